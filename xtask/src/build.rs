//! Builds lb-agent: one program with the BPF object inside.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{command, setup};

/// The program that all this is about.
pub(crate) const AGENT: &str = "lb-agent";
/// The environment variable that tells lb-test's programs and tests which lb-agent to run.
pub(crate) const AGENT_VARIABLE: &str = "LB_AGENT_BIN";

/// cargo's profile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// Optimized.
    Release,
}

impl Profile {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Sets up, builds lb-agent and prints where it is and its size.
pub(crate) fn run(release: bool) -> Result<()> {
    setup::for_building()?;
    let (program, kind) =
        if release { for_release()? } else { (local(AGENT, Profile::Dev)?, "dynamic") };
    let size = program.metadata().with_context(|| format!("read {}", program.display()))?.len();
    println!("{} ({}.{} MB, {kind})", program.display(), size / 1_000_000, size / 100_000 % 10);
    Ok(())
}

/// Builds a program of the workspace for this machine and returns its path.
///
/// All packages are selected together, so that every program uses one build of a dependency.
pub(crate) fn local(name: &str, profile: Profile) -> Result<PathBuf> {
    command::run(command::cargo(&["build", "--bin", name]).args(profile.args()))?;
    Ok(local_path(name, profile))
}

/// Returns the path at which [`local`] leaves a program.
pub(crate) fn local_path(name: &str, profile: Profile) -> PathBuf {
    target_folder().join(profile.folder()).join(name)
}

/// Builds lb-agent to be given away: static where the C library can be linked so.
fn for_release() -> Result<(PathBuf, &'static str)> {
    if !has_static_libc() {
        println!("not static: libc.a is missing (Debian: libc6-dev, Fedora: glibc-static)");
        return Ok((local(AGENT, Profile::Release)?, "dynamic"));
    }
    let host = host_triple()?;
    let mut flags = env::var_os("RUSTFLAGS").unwrap_or_default();
    flags.push(" -C target-feature=+crt-static");
    // With `--target`, the flags reach neither build scripts nor procedural macros.
    let mut build = command::cargo(&["build", "-p", AGENT, "--release", "--target", &host]);
    command::run(build.env("RUSTFLAGS", flags))?;
    Ok((target_folder().join(host).join("release/lb-agent"), "static"))
}

/// Returns the folder that cargo builds into.
pub(crate) fn target_folder() -> PathBuf {
    let named = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target"));
    command::top().join(named)
}

fn has_static_libc() -> bool {
    // A C compiler that finds no such file answers with the bare name.
    command::output(command::program("cc").arg("-print-file-name=libc.a"))
        .is_ok_and(|path| Path::new(path.trim()).is_absolute())
}

fn host_triple() -> Result<String> {
    let version = command::output(command::program("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}
