//! What the programs take of the verifier's limits, against `lb-ebpf/verifier-budget.txt`.
//!
//! `UPDATE=1` writes the file anew; a raise belongs to the commit that causes it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use lb_agent::dataplane::{self, Kernel, KernelOptions, XdpHook};
use lb_common::abi::{Abi as _, Device, DeviceFlags};
use lb_test::{
    NodeSpec, Topology,
    prog::{self, size::Size},
    require_topology,
};

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-ebpf/verifier-budget.txt");
const TITLE: &str = "# program: instructions that the verifier may process, bytes of stack\n";
/// Compilers and kernels differ: a twentieth more instructions than measured are allowed.
const ALLOWANCE: u32 = 20;

/// Has devices ask for the programs that are loaded for some alone.
fn with_all_programs(options: &KernelOptions) -> Kernel {
    let mut kernel = Kernel::start(options).unwrap_or_else(|error| panic!("{error}"));
    for (name, flags) in [("eth0", DeviceFlags::NONE), ("lo", DeviceFlags::BEGINS_WITH_IP)] {
        let index = nix::net::if_::if_nametoindex(name).unwrap();
        kernel.attach_device((index, name), &Device { flags, ..Device::zeroed() }).unwrap();
        if name == "eth0" {
            kernel.attach_xdp(index, XdpHook::Native).unwrap();
        }
    }
    kernel
}

/// The sizes of all pinned programs, by name.
fn measured(programs: &Path) -> BTreeMap<String, Size> {
    let pins = fs::read_dir(programs).unwrap().map(|entry| entry.unwrap().path());
    pins.map(|pin| {
        let name = pin.file_name().unwrap().to_str().unwrap().to_owned();
        (name, Size::of(&pin).unwrap_or_else(|error| panic!("{error:#}")))
    })
    .collect()
}

fn written(sizes: &BTreeMap<String, Size>) -> String {
    let mut text = TITLE.to_owned();
    for (name, Size { instructions, stack }) in sizes {
        let allowed = (instructions + instructions / ALLOWANCE).next_multiple_of(100);
        writeln!(text, "{name} {allowed} {stack}").unwrap();
    }
    text
}

fn budget(text: &str) -> BTreeMap<String, Size> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let fields = lines.map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .map(|fields| {
            let [name, instructions, stack] = fields[..] else { panic!("{fields:?}") };
            let instructions = instructions.parse().unwrap();
            (name.to_owned(), Size { instructions, stack: stack.parse().unwrap() })
        })
        .collect()
}

#[test]
fn programs_stay_within_their_budget() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let options = prog::options(node);
    let _kernel = node.enter(|| with_all_programs(&options)).unwrap();
    let sizes = measured(&options.bpffs.join("programs"));
    println!("{}", written(&sizes));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(BUDGET, written(&sizes)).unwrap();
    }
    let budget = budget(&fs::read_to_string(BUDGET).unwrap());
    let names = |sizes: &BTreeMap<String, Size>| sizes.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&sizes), names(&budget), "UPDATE=1 writes {BUDGET} anew");
    for (name, size) in &sizes {
        let allowed = budget[name];
        let fits = size.instructions <= allowed.instructions && size.stack <= allowed.stack;
        assert!(fits, "{name}: {size:?}, the budget allows {allowed:?}; UPDATE=1 raises it");
    }
}

/// The names of all symbols (ELF-64, little-endian): in the table of strings that is not that of the sections' names.
fn names(object: &[u8]) -> &[u8] {
    const SHT_STRTAB: u32 = 3;
    let word = |offset: usize| u64::from_le_bytes(*object[offset..].first_chunk().unwrap());
    let half = |offset: usize| u16::from_le_bytes(*object[offset..].first_chunk().unwrap());
    let (headers, count, sections) = (word(40), half(60), half(62));
    let header = |index: u16| usize::try_from(headers).unwrap() + usize::from(index) * 64;
    let kind = |header: usize| u32::from_le_bytes(*object[header + 4..].first_chunk().unwrap());
    let is_strings = |header: usize| kind(header) == SHT_STRTAB;
    let symbols =
        (0..count).filter(|index| *index != sections).map(header).find(|at| is_strings(*at));
    let [start, length] =
        [24, 32].map(|field| usize::try_from(word(symbols.unwrap() + field)).unwrap());
    &object[start..start + length]
}

/// A panic would be an endless loop, and the verifier's message about it says nothing.
#[test]
fn the_object_holds_no_panic() {
    let names = names(dataplane::object());
    let holds = |symbol: &str| names.windows(symbol.len()).any(|place| place == symbol.as_bytes());
    assert!(holds("lb_tc_ingress") && holds("memcpy"), "symbols have names");
    for symbol in ["panic", "begin_unwind", "unwrap_failed", "expect_failed", "slice_index"] {
        assert!(!holds(symbol), "the object holds {symbol}");
    }
}
