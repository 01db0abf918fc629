//! How the story looks: numbered steps, commands, what they print. Colours only on a terminal,
//! and not where `NO_COLOR` is set.

use std::env;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use lb_test::Host;

use crate::interrupt;

const BOLD: &str = "\x1b[1m";
const CYAN: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// Tells the story to stdout.
pub(crate) struct Narrator {
    colours: bool,
    out: io::Stdout,
    step: u32,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let out = io::stdout();
        Self { colours: out.is_terminal() && !refused, out, step: 0 }
    }

    /// Begins the next step.
    pub(crate) fn step(&mut self, title: &str) -> Result<()> {
        interrupt::check()?;
        self.step += 1;
        let title = self.painted(BOLD, &format!("{}. {title}", self.step));
        self.line(&format!("\n{title}"))
    }

    /// Says something, a line or several.
    pub(crate) fn say(&self, text: &str) -> Result<()> {
        text.lines().try_for_each(|said| self.line(&format!("   {said}")))
    }

    /// Shows a command that is about to be run at a place, or on the machine itself if it is "".
    pub(crate) fn command(&self, place: &str, command: &str) -> Result<()> {
        interrupt::check()?;
        self.line(&format!("   {}", self.painted(CYAN, format!("{place} $ {command}").trim())))
    }

    /// Shows what a command printed.
    pub(crate) fn output(&self, text: &str) -> Result<()> {
        text.lines().try_for_each(|printed| self.line(format!("     {printed}").trim_end()))
    }

    /// Shows the beginning and the end of what a command printed.
    pub(crate) fn excerpt(&self, text: &str) -> Result<()> {
        let lines: Vec<_> = text.lines().collect();
        match lines.as_slice() {
            [first, second, hidden @ .., last] if hidden.len() > 1 => {
                self.output(&format!("{first}\n{second}\n… {} more lines\n{last}", hidden.len()))
            }
            _ => self.output(text),
        }
    }

    /// Shows a command, runs it to its end, shows what it printed and returns that.
    pub(crate) fn run(&self, host: &Host, program: &str, arguments: &[&str]) -> Result<String> {
        let words: Vec<_> = std::iter::once(&program).chain(arguments).copied().collect();
        self.command(host.name(), &words.join(" "))?;
        let output = host.run(program, arguments)?;
        self.output(&output)?;
        Ok(output)
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }

    /// Not `println!`, which panics when the reader has gone.
    fn line(&self, text: &str) -> Result<()> {
        Ok(writeln!(&self.out, "{text}")?)
    }
}
