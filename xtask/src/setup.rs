//! Set-up: brings a machine with a Rust toolchain to a working state, and asks nothing.
//!
//! Debian has packages for all of it. Elsewhere set-up names what is missing and the command that
//! mends it. It never starts a daemon that a package brings.

use std::fmt;

use anyhow::{Result, bail};

use crate::command;
use crate::requirement::{self, LLVM_PREFIX, Requirement};

/// Installs Debian packages (`$@`), without the daemons they would start.
const INSTALL_PACKAGES: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
"#;

/// One action of set-up.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    AddComponents(Vec<&'static str>),
    InstallLinker,
    InstallPackages(Vec<&'static str>),
    LinkToolchain,
}

/// Installs whatever building, tests, demo and bench lack.
pub(crate) fn run() -> Result<()> {
    ensure(&requirement::for_everything())
}

/// Installs whatever building lacks.
pub(crate) fn for_building() -> Result<()> {
    ensure(&requirement::for_building())
}

fn ensure(wanted: &[Requirement]) -> Result<()> {
    let (present, missing): (Vec<_>, Vec<_>) =
        wanted.iter().partition(|requirement| requirement.is_present());
    println!("set-up: here: {}", labels(&present));
    if missing.is_empty() {
        return Ok(());
    }
    println!("set-up: missing: {}", labels(&missing));
    let steps = plan(&missing, command::find("apt-get").is_some());
    for step in &steps {
        println!("set-up: will {step}");
    }
    for step in &steps {
        step.perform()?;
    }
    verify(&missing)
}

/// Decides what to do about what is missing, in the order it has to be done.
fn plan(missing: &[Requirement], has_apt: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let packages: Vec<_> = missing.iter().flat_map(|requirement| requirement.packages()).collect();
    if has_apt && !packages.is_empty() {
        steps.push(Step::InstallPackages(packages));
    }
    let components: Vec<_> = missing.iter().filter_map(component).collect();
    if !components.is_empty() {
        steps.push(Step::AddComponents(components));
    }
    let obtainable =
        |wanted| missing.contains(&wanted) && (has_apt || wanted.packages().is_empty());
    if obtainable(Requirement::BpfToolchain) {
        steps.push(Step::LinkToolchain);
    }
    if obtainable(Requirement::BpfLinker) {
        steps.push(Step::InstallLinker);
    }
    steps
}

fn component(requirement: &Requirement) -> Option<&'static str> {
    match requirement {
        Requirement::Component { name, .. } => Some(name),
        _ => None,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddComponents(names) => write!(f, "rustup component add {}", names.join(" ")),
            Self::InstallLinker => {
                write!(f, "LLVM_PREFIX={LLVM_PREFIX} {}", requirement::linker_command())
            }
            Self::InstallPackages(names) => {
                write!(f, "apt-get update; apt-get install {}", names.join(" "))
            }
            Self::LinkToolchain => f.write_str("rustup toolchain link bpf /usr"),
        }
    }
}

impl Step {
    /// Does it; leaves out what the steps before could not lay the ground for, as [`verify`] tells.
    fn perform(&self) -> Result<()> {
        match self {
            Self::AddComponents(names) => {
                command::run(command::program("rustup").args(["component", "add"]).args(names))
            }
            Self::InstallLinker if Requirement::BpfLinker.packages().is_empty() => {
                let install = requirement::linker_command();
                let mut words = install.split_whitespace();
                let mut program = command::program(words.next().unwrap_or_default());
                command::run(program.args(words).arg("--force").env("LLVM_PREFIX", LLVM_PREFIX))
            }
            Self::LinkToolchain if requirement::has_packaged_core() => {
                command::run(command::program("rustup").args(["toolchain", "link", "bpf", "/usr"]))
            }
            Self::InstallPackages(names) => install_packages(names),
            Self::InstallLinker | Self::LinkToolchain => Ok(()),
        }
    }
}

fn install_packages(names: &[&str]) -> Result<()> {
    if !command::is_root() {
        bail!("packages are missing; run: sudo apt-get install {}", names.join(" "));
    }
    if let Err(error) = command::run(command::program("apt-get").args(["-q", "update"])) {
        println!("set-up: goes on with the package lists that are here: {error:#}");
    }
    let known: Vec<_> = names.iter().copied().filter(|name| is_known_package(name)).collect();
    if known.is_empty() {
        return Ok(());
    }
    command::run(command::program("sh").args(["-c", INSTALL_PACKAGES, "sh"]).args(known))
}

fn is_known_package(name: &str) -> bool {
    command::output(command::program("apt-cache").args(["policy", name]))
        .is_ok_and(|policy| policy.contains("Candidate: ") && !policy.contains("Candidate: (none)"))
}

fn verify(missing: &[Requirement]) -> Result<()> {
    let missing: Vec<_> = missing.iter().filter(|requirement| !requirement.is_present()).collect();
    if missing.is_empty() {
        println!("set-up: done");
        return Ok(());
    }
    for requirement in &missing {
        eprintln!("missing: {}; mend: {}", requirement.label(), requirement.mend());
    }
    bail!("set-up can't bring what is listed above to this machine")
}

fn labels(requirements: &[Requirement]) -> String {
    requirements.iter().map(|requirement| requirement.label()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NGINX: Requirement = Requirement::Program { name: "nginx", package: "nginx-light" };
    const CLIPPY: Requirement = Requirement::Component { subcommand: "clippy", name: "clippy" };

    #[test]
    fn packages_come_before_what_is_made_from_them() {
        let steps = plan(&[Requirement::BpfLinker, Requirement::BpfToolchain, NGINX], true);
        assert!(
            matches!(&steps[0], Step::InstallPackages(names) if names.contains(&"nginx-light"))
        );
        assert_eq!(steps[1..], [Step::LinkToolchain, Step::InstallLinker]);
    }

    #[test]
    fn without_apt_no_package_is_planned() {
        assert_eq!(plan(&[NGINX, CLIPPY], false), [Step::AddComponents(vec!["clippy"])]);
    }

    #[test]
    fn every_requirement_names_its_mend() {
        for requirement in requirement::for_everything() {
            assert!(!requirement.mend().is_empty(), "{}", requirement.label());
        }
    }
}
