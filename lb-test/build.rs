//! Builds the benchmark's kernel programs into `OUT_DIR/bench`.

#[path = "../lb-agent/build/toolchain.rs"]
mod toolchain;

use std::env;

use anyhow::Result;
use aya_build::{Package, Toolchain, build_ebpf};

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=LB_BPF_TOOLCHAIN");
    let toolchain = toolchain::toolchain()?;
    if toolchain != "nightly" {
        // The crate for the BPF side needs unstable features, which this toolchain has ready.
        // SAFETY: a build script has one thread.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf") };
    }
    let ebpf = Package { name: "lb-bench-ebpf", root_dir: "ebpf", ..Default::default() };
    build_ebpf([ebpf], Toolchain::Custom(&toolchain))
}
