//! Which toolchain builds kernel programs.

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail};

/// The toolchain named by `LB_BPF_TOOLCHAIN`, else `bpf` or a nightly, whichever is linked.
pub(crate) fn toolchain() -> Result<String> {
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
