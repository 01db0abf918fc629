//! From arguments, environment and file to one [`Cli`].
//!
//! What a file sets is added behind the given arguments, for each flag that neither the arguments
//! nor the environment set: so every value is checked by the same parser.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    Arg, ArgMatches, Command, CommandFactory, FromArgMatches, error::ErrorKind, parser::ValueSource,
};

use super::Cli;
use crate::config::file::{self, FileError, FileSettings};

/// Why there is nothing to perform.
#[derive(Debug)]
pub(super) enum Stop {
    /// Help or version was asked for; or there is no command, and help is the answer.
    Help(clap::Error),
    /// A mistake in the arguments, the environment or the file; one line.
    Usage(String),
}

impl Stop {
    /// Says why, and gives the exit code.
    pub(super) fn exit(self) -> ExitCode {
        match self {
            Self::Help(error) => {
                let _ = error.print();
                u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
            Self::Usage(line) => {
                eprintln!("error: {line}");
                ExitCode::from(2)
            }
        }
    }
}

/// Parses everything.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let mut command = command();
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    let given = command.try_get_matches_from_mut(&arguments).map_err(|error| stop(error, ""))?;
    let Some((name, matches)) = given.subcommand() else {
        return Err(Stop::Usage("a command is missing".to_owned()));
    };
    let path = matches.try_get_one::<PathBuf>("config").ok().flatten();
    let Some(path) = path else { return cli(&given, "") };
    let context = format!("config file {}: ", path.display());
    let settings = read(&command, path).map_err(|error| Stop::Usage(error.to_string()))?;
    arguments.extend(added(&settings, &command, name, matches));
    let all =
        command.try_get_matches_from_mut(&arguments).map_err(|error| stop(error, &context))?;
    let mut parsed = cli(&all, &context)?;
    if !settings.ignored.is_empty() {
        let fields = settings.ignored.join(", ");
        parsed.note = Some(format!("{context}fields without meaning here: {fields}"));
    }
    Ok(parsed)
}

fn cli(matches: &ArgMatches, context: &str) -> Result<Cli, Stop> {
    Cli::from_arg_matches(matches).map_err(|error| stop(error, context))
}

/// The command with an environment variable for every flag.
fn command() -> Command {
    let with_variable = |argument: Arg| match argument.get_long() {
        Some(long) => {
            let variable = format!("LB_{}", long.replace('-', "_").to_uppercase());
            // Built once in the life of the process, and clap wants it for that long.
            argument.env(&*variable.leak()).hide_env(true)
        }
        None => argument,
    };
    let names: Vec<_> =
        Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let command = Cli::command().mut_args(with_variable);
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |command| command.mut_args(with_variable))
    })
}

fn read(command: &Command, path: &std::path::Path) -> Result<FileSettings, FileError> {
    let run = command.get_subcommands().find(|command| command.get_name() == "run");
    let arguments = run.into_iter().flat_map(Command::get_arguments).chain(command.get_arguments());
    let mut flags: Vec<_> = arguments
        .filter_map(Arg::get_long)
        .filter(|flag| !matches!(*flag, "config" | "help" | "version"))
        .map(str::to_owned)
        .collect();
    flags.sort();
    flags.dedup();
    file::read(path, &flags)
}

/// The file's flags that this command knows and that nothing else sets.
fn added<'a>(
    settings: &'a FileSettings,
    command: &'a Command,
    name: &'a str,
    given: &'a ArgMatches,
) -> impl Iterator<Item = OsString> + 'a {
    let subcommand = command.get_subcommands().find(move |command| command.get_name() == name);
    let known =
        subcommand.into_iter().flat_map(Command::get_arguments).chain(command.get_arguments());
    let ids: Vec<_> =
        known.filter_map(|arg| Some((arg.get_long()?, arg.get_id().as_str()))).collect();
    let is_open = move |flag: &str| {
        let id = ids.iter().find(|(long, _)| *long == flag).map(|(_, id)| *id);
        id.is_some_and(|id| !is_given(given, id)) && !is_other_source(given, flag)
    };
    let open = settings.flags.iter().filter(move |(flag, _)| is_open(flag));
    open.flat_map(|(flag, values)| {
        values.iter().map(move |value| OsString::from(format!("--{flag}={value}")))
    })
}

/// Was it set by an argument or by the environment?
fn is_given(given: &ArgMatches, id: &str) -> bool {
    matches!(
        given.try_contains_id(id).ok().and_then(|_| given.value_source(id)),
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    )
}

/// A file's source of Services gives way to the other kind of source.
fn is_other_source(given: &ArgMatches, flag: &str) -> bool {
    match flag {
        "kubeconfig" | "master" => is_given(given, "manifests"),
        "manifests" => is_given(given, "kubeconfig") || is_given(given, "master"),
        _ => false,
    }
}

/// One line for people, in place of clap's paragraphs.
fn stop(error: clap::Error, context: &str) -> Stop {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
    );
    if is_help {
        return Stop::Help(error);
    }
    let text = error.render().to_string();
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let line = lines.join("; ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    Stop::Usage(format!("{context}{line} (--help lists what there is)"))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
