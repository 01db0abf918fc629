//! Builds kernel programs, for the build scripts of the crates that carry some.

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain, build_ebpf};

/// Builds the programs of a package into `OUT_DIR`.
pub(crate) fn build(package: Package<'_>) -> Result<()> {
    println!("cargo:rerun-if-env-changed=LB_BPF_TOOLCHAIN");
    let toolchain = toolchain()?;
    // SAFETY: a build script has one thread.
    unsafe {
        if toolchain != "nightly" {
            // The crate for the BPF side needs unstable features, which this toolchain has ready.
            env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        // What the inner build says comes out as warnings of the outer one.
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    build_ebpf([package], Toolchain::Custom(&toolchain))
}

/// The toolchain named by `LB_BPF_TOOLCHAIN`, else `bpf` or a nightly, whichever is linked.
fn toolchain() -> Result<String> {
    if let Ok(name) = env::var("LB_BPF_TOOLCHAIN") {
        return Ok(name);
    }
    let list = Command::new("rustup").args(["toolchain", "list"]).output();
    let list = String::from_utf8(list.context("run rustup toolchain list")?.stdout)?;
    let has = |name: &str| list.lines().any(|line| line.split([' ', '-']).next() == Some(name));
    match ["bpf", "nightly"].into_iter().find(|name| has(name)) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("no toolchain for BPF: run `cargo xtask setup`"),
    }
}
