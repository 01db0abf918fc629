//! Hands over to a program of lb-test: `demo` or `bench`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::setup;

/// Sets up, builds lb-agent and becomes the program `name` of lb-test, which gets `args`.
///
/// Returns only if it can't.
pub(crate) fn run(name: &str, profile: Profile, args: &[String]) -> Result<ExitCode> {
    setup::run()?;
    let agent = build::local(build::AGENT, profile)?;
    // What asks Services; lb-test looks for it beside its other programs.
    build::local("probe", profile)?;
    let program = build::local(name, profile)?;
    let mut program = Command::new(program);
    program.args(args).env(build::AGENT_VARIABLE, agent);
    // In place of this process, so that signals and the exit code are the program's own.
    Err(program.exec()).with_context(|| format!("run {name}"))
}
