//! Builds the benchmark's kernel programs into `OUT_DIR/bench`.

#[path = "../lb-agent/build/programs.rs"]
mod programs;

use aya_build::Package;

fn main() -> anyhow::Result<()> {
    let package = Package { name: "lb-bench-ebpf", root_dir: "ebpf", ..Package::default() };
    programs::build(package, "bench").map(drop)
}
