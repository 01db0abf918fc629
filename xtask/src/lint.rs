//! Checks that need no test run: format, clippy, direction of imports, shape of the tree.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{command, imports, setup, tree};

/// A check and what performs it.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 5] = [
    ("format", format),
    ("imports", || report(&imports::violations()?)),
    ("file sizes", || report(&tree::oversized()?)),
    ("links in documents", || report(&tree::dead_links()?)),
    ("clippy", clippy),
];

/// Sets up what the checks need and runs them all.
pub(crate) fn run() -> Result<ExitCode> {
    setup::for_building()?;
    Ok(if failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every check, printing a line each, and returns the names of those that failed.
pub(crate) fn failures() -> Vec<&'static str> {
    CHECKS.iter().filter(|check| !passes(check)).map(|(name, _)| *name).collect()
}

fn passes((name, check): &Check) -> bool {
    match check() {
        Ok(()) => {
            println!("lint: {name}: ok");
            true
        }
        Err(error) => {
            println!("lint: {name}: FAILED: {error:#}");
            false
        }
    }
}

fn format() -> Result<()> {
    command::run(&mut command::cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    command::run(&mut command::cargo(&["clippy", "--all-targets", "--", "-D", "warnings"]))
}

fn report(findings: &[String]) -> Result<()> {
    for finding in findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("findings: {}", findings.len());
    }
    Ok(())
}
