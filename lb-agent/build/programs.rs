//! Builds kernel programs, for the build scripts of the crates that carry some.

use std::{env, fs, io, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain, build_ebpf};

/// Builds the programs of a package into `OUT_DIR`; tells whether it has.
///
/// Clippy runs no program: it gets an empty file.
pub(crate) fn build(package: Package<'_>, file: &str) -> Result<bool> {
    println!("cargo:rerun-if-env-changed=LB_BPF_TOOLCHAIN");
    let folder = env::var_os("OUT_DIR").context("no OUT_DIR")?;
    if is_linted() {
        fs::write(Path::new(&folder).join(file), []).context("write an empty file")?;
        return Ok(false);
    }
    share_target(Path::new(&folder), package.name).context("share a target folder")?;
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
    build_ebpf([package], Toolchain::Custom(&toolchain))?;
    Ok(true)
}

/// Does cargo run for clippy? It names its wrapper to build scripts.
fn is_linted() -> bool {
    env::var_os("RUSTC_WORKSPACE_WRAPPER")
        .is_some_and(|wrapper| wrapper.to_string_lossy().contains("clippy-driver"))
}

/// Has `aya_build` use one target folder for all packages and profiles, below the outer one: what they depend on
/// is compiled once.
fn share_target(folder: &Path, package: &str) -> io::Result<()> {
    // The folder is target/PROFILE/build/PACKAGE-HASH/out.
    let target = folder.ancestors().nth(4).unwrap_or(folder);
    let (shared, own) = (target.join("bpf"), folder.join("aya-build/target"));
    fs::create_dir_all(&shared)?;
    fs::create_dir_all(&own)?;
    match symlink(&shared, own.join(package)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
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
