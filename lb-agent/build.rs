//! Builds the kernel programs into `OUT_DIR/lb`, to be part of the binary.

use std::{env, process::Command};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain, build_ebpf};

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=LB_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=../lb-common/src");
    let toolchain = toolchain()?;
    if toolchain != "nightly" {
        // The crate for the BPF side needs unstable features, which this toolchain has ready.
        // SAFETY: a build script has one thread.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf") };
    }
    let ebpf = Package {
        name: "lb-ebpf",
        root_dir: "../lb-ebpf",
        features: &["kernel"],
        ..Default::default()
    };
    build_ebpf([ebpf], Toolchain::Custom(&toolchain))
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
