//! Runs other programs, from the top of the repository.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::toolchain;

/// Returns the top folder of the repository.
pub(crate) fn top() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Prepares a program to run at the top of the repository, found in [`search_path`].
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.current_dir(top()).env("PATH", search_path());
    command
}

/// Prepares cargo, with the choice of the BPF toolchain in its environment.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = program("cargo");
    command.args(args);
    if let Some(toolchain) = toolchain::chosen() {
        command.env(toolchain::VARIABLE, toolchain.name());
    }
    command
}

/// Runs a program to its end; fails when it can't run or ends with anything but 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = shown(command);
    let status = command.status().with_context(|| format!("run {text}"))?;
    if !status.success() {
        bail!("{text}: {status}");
    }
    Ok(())
}

/// Runs a program to its end and returns its standard output; fails as [`run`] does.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let text = shown(command);
    let output = command.output().with_context(|| format!("run {text}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("{text}: {}: {}", output.status, reason.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the path of a program in [`search_path`].
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Tells whether this process runs as root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Returns a folder that a variable names, else one below the home folder.
pub(crate) fn home_folder(variable: &str, below_home: &str) -> PathBuf {
    let named = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(below_home))
}

/// `PATH`, then where cargo installs programs and where system programs are.
fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let more =
        [home_folder("CARGO_HOME", ".cargo").join("bin"), "/usr/sbin".into(), "/sbin".into()];
    let folders: Vec<PathBuf> = env::split_paths(&path).chain(more).collect();
    env::join_paths(folders).unwrap_or(path)
}

fn shown(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
