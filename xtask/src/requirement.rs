//! What building and testing ask of a machine, and how each thing comes to one.

use std::path::Path;

use crate::command;
use crate::toolchain::{self, BpfToolchain};

/// The version of bpf-linker that set-up installs.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// Where Debian keeps the LLVM that bpf-linker is built against.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Programs that tests, demo and bench run, with the Debian package of each.
const PROGRAMS: [(&str, &str); 12] = [
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iptables-save", "iptables"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
];

/// One thing that has to be on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requirement {
    /// The linker of BPF objects, in the version that the project is built with.
    BpfLinker,
    /// A toolchain that compiles BPF programs.
    BpfToolchain,
    /// A cargo subcommand and the rustup component that brings it.
    Component { subcommand: &'static str, name: &'static str },
    /// A program and the Debian package that brings it.
    Program { name: &'static str, package: &'static str },
}

/// Returns what building and linting need.
pub(crate) fn for_building() -> Vec<Requirement> {
    vec![
        Requirement::Component { subcommand: "fmt", name: "rustfmt" },
        Requirement::Component { subcommand: "clippy", name: "clippy" },
        Requirement::BpfToolchain,
        Requirement::BpfLinker,
    ]
}

/// Returns what building, tests, demo and bench need.
pub(crate) fn for_everything() -> Vec<Requirement> {
    let programs = PROGRAMS.map(|(name, package)| Requirement::Program { name, package });
    for_building().into_iter().chain(programs).collect()
}

impl Requirement {
    /// Returns its name for people.
    pub(crate) fn label(self) -> String {
        match self {
            Self::BpfLinker => format!("bpf-linker {LINKER_VERSION}"),
            Self::BpfToolchain => match toolchain::chosen() {
                Some(toolchain) => format!("BPF toolchain `{}`", toolchain.name()),
                None => "BPF toolchain".into(),
            },
            Self::Component { name, .. } | Self::Program { name, .. } => name.into(),
        }
    }

    /// Tells whether the machine has it.
    pub(crate) fn is_present(self) -> bool {
        match self {
            Self::BpfLinker => command::output(command::program("bpf-linker").arg("--version"))
                .is_ok_and(|version| version.trim() == format!("bpf-linker {LINKER_VERSION}")),
            Self::BpfToolchain => toolchain::chosen().is_some(),
            Self::Component { subcommand, .. } => {
                command::output(command::program("cargo").args([subcommand, "--version"])).is_ok()
            }
            Self::Program { name, .. } => command::find(name).is_some(),
        }
    }

    /// Returns the Debian packages that bring it, or that it is made from.
    pub(crate) fn packages(self) -> Vec<&'static str> {
        match self {
            Self::BpfLinker if Path::new(LLVM_PREFIX).join("lib/libLLVM.so").exists() => vec![],
            Self::BpfLinker => vec!["llvm-22-dev"],
            Self::BpfToolchain if has_packaged_core() => vec![],
            Self::BpfToolchain => vec!["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
            Self::Component { .. } => vec![],
            Self::Program { package, .. } => vec![package],
        }
    }

    /// Returns the command that brings it, where Debian's packages do not.
    pub(crate) fn mend(self) -> String {
        match self {
            Self::BpfLinker => format!("LLVM_PREFIX=<folder of LLVM 22> {}", linker_command()),
            Self::BpfToolchain => {
                let nightly = BpfToolchain::Nightly.name();
                format!("rustup toolchain install {nightly} --component rust-src")
            }
            Self::Component { name, .. } => format!("rustup component add {name}"),
            Self::Program { name, package } => {
                format!("install the program {name} (Debian: apt-get install {package})")
            }
        }
    }
}

/// Returns the command that installs bpf-linker, without its environment.
pub(crate) fn linker_command() -> String {
    format!(
        "cargo install bpf-linker --version {LINKER_VERSION} --locked \
         --no-default-features --features llvm-22"
    )
}

/// Tells whether Debian's compiler with a ready `core` for BPF is installed below `/usr`.
pub(crate) fn has_packaged_core() -> bool {
    Path::new("/usr").join(toolchain::READY_CORE).is_dir() && Path::new("/usr/bin/rustc").exists()
}
