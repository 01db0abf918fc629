//! Builds the kernel programs into `OUT_DIR/lb`, to be part of the binary.

#[path = "build/programs.rs"]
mod programs;

use aya_build::Package;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../lb-common/src");
    programs::build(Package {
        name: "lb-ebpf",
        root_dir: "../lb-ebpf",
        features: &["kernel"],
        ..Package::default()
    })
}
