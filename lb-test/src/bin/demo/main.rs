//! The demo: a Service on two nodes made of network namespaces, told as a story of numbered steps.
//!
//! Each step shows a command, then what it printed, and checks that. Nothing of it stays unless `--keep` is given.

mod cluster;
mod interrupt;
mod kept;
mod manifests;
mod narrator;
mod story;
mod traffic;

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use lb_test::{SocketLb, require};

use crate::cluster::Cluster;
use crate::narrator::Narrator;

#[derive(Parser)]
#[command(
    name = "demo",
    bin_name = "cargo xtask demo",
    about = "Shows a Service at work on two nodes made of network namespaces",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Options {
    /// Whose connects are translated at the socket: of pods and nodes, of nodes alone, or of none
    #[arg(long, default_value = "all", value_parser = socket_lb())]
    socket_lb: SocketLb,
    /// Leave everything up at the end, to look around in
    #[arg(long)]
    keep: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run a shell, or a command, in a place of a kept demo
    Shell(kept::Shell),
    /// Remove what kept demos left up
    Down(kept::Down),
}

fn socket_lb() -> impl TypedValueParser<Value = SocketLb> {
    PossibleValuesParser::new(["all", "host", "off"]).map(|name| match name.as_str() {
        "host" => SocketLb::Host,
        "off" => SocketLb::Off,
        _ => SocketLb::All,
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !require::root() {
        eprintln!(
            "error: the demo makes network namespaces and loads BPF programs, which needs root; \
             run: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo"
        );
        return ExitCode::from(2);
    }
    let outcome = match cli.command {
        Some(Command::Shell(shell)) => kept::shell(&shell),
        Some(Command::Down(down)) => kept::down(&down),
        None => demo(&cli.options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::received() => ExitCode::from(130),
        Err(error) if is_closed_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the story, and prints the world where it does not come true.
fn demo(options: &Options) -> Result<()> {
    interrupt::listen()?;
    let mut narrator = Narrator::new();
    let mut cluster = Cluster::create(options.socket_lb).context("make the nodes and pods")?;
    let outcome = story::tell(&mut narrator, &mut cluster);
    match outcome {
        Ok(()) if options.keep => kept::keep(&mut narrator, cluster),
        Ok(()) => story::end(&mut narrator, cluster),
        Err(error) => {
            if !interrupt::received() && !is_closed_pipe(&error) {
                eprintln!("{}", cluster.topology().describe());
            }
            Err(error)
        }
    }
}

/// Whether whoever read the story has gone, as `head` does.
fn is_closed_pipe(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
