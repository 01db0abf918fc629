//! Builds the kernel programs into `OUT_DIR/lb`, to be part of the binary.

#[path = "build/programs.rs"]
mod programs;

use std::{env, fs, path::Path};

use anyhow::Context as _;
use aya_build::Package;
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

const SECTION_NAMES: &[u8] = b".shstrtab";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../lb-common/src");
    let package = Package {
        name: "lb-ebpf",
        root_dir: "../lb-ebpf",
        features: &["kernel"],
        ..Package::default()
    };
    if !programs::build(package, "lb")? {
        return Ok(());
    }
    let folder = env::var_os("OUT_DIR").context("no OUT_DIR")?;
    strip(&Path::new(&folder).join("lb"))
}

/// Leaves out what only debuggers read, five times as long as the programs; the kernel's BTF stays.
fn strip(path: &Path) -> anyhow::Result<()> {
    let object = fs::read(path)?;
    let mut builder = Builder::read(object.as_slice())?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    builder.delete_orphans();
    // Compilers may put the names of sections among those of symbols.
    if !builder.sections.iter().any(|section| section.name.as_slice() == SECTION_NAMES) {
        let names = builder.sections.add();
        (names.name, names.sh_type) = (SECTION_NAMES.into(), SHT_STRTAB);
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    fs::write(path, stripped).context("write the programs without what debuggers read")
}
