//! Changes lines of the pure code one at a time, and says which changes no test notices.
//!
//! Which code, which tests, and which changes may go unnoticed and why stands in
//! `.cargo/mutants.toml`.

use anyhow::Result;

use crate::command;

/// The version of cargo-mutants that is installed where there is none.
const VERSION: &str = "27.1.0";

/// Runs cargo-mutants with these arguments, on a copy of the source that it makes by itself.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let wanted = format!("cargo-mutants {VERSION}");
    let found = command::output(&mut command::cargo(&["mutants", "--version"]));
    if found.is_ok_and(|found| found.trim() != wanted) || command::find("cargo-mutants").is_none() {
        let install = ["install", "cargo-mutants", "--locked", "--version", VERSION];
        command::run(&mut command::cargo(&install))?;
    }
    let mut mutants = command::cargo(&["mutants", "--package", "lb-agent", "--output", "target"]);
    // That a property fails is enough: finding its smallest case takes most of a minute.
    mutants.env("PROPTEST_MAX_SHRINK_ITERS", "0");
    command::run(mutants.args(args))
}
