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
const BTF_EXT: &[u8] = b".BTF.ext";

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
        // Nothing moves what they point to.
        let is_of_btf = name.starts_with(b".rel.BTF");
        let is_of_debuggers = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
        section.delete = is_of_btf || is_of_debuggers;
        if let (BTF_EXT, SectionData::Data(data)) = (name, &mut section.data) {
            *data = without_lines(data).context("a BTF.ext that is cut short")?.into();
        }
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

/// Leaves the lines of the source out of a section `.BTF.ext` (`Documentation/bpf/btf.rst`, section 4.2): they are
/// most of it, and what is read of them would take a third of an agent's memory.
fn without_lines(data: &[u8]) -> Option<Vec<u8>> {
    const LINES: std::ops::Range<usize> = 16..24;
    let word = |at: usize| Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?));
    let (header, from, length) = (word(4)?, word(LINES.start)?, word(LINES.start + 4)?);
    let (relocations, begin) = (word(LINES.end)?, (header + from) as usize);
    let mut kept = data.get(..begin)?.to_vec();
    kept.extend_from_slice(data.get(begin + length as usize..)?);
    kept.get_mut(LINES)?.fill(0);
    if relocations > from {
        let relocations = (relocations - length).to_le_bytes();
        kept.get_mut(LINES.end..LINES.end + 4)?.copy_from_slice(&relocations);
    }
    Some(kept)
}
