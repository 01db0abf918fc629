//! Chooses the toolchain that compiles the BPF programs: the only place that does.
//!
//! The choice travels to `lb-agent/build.rs` in [`VARIABLE`]. `RUSTC_BOOTSTRAP` is not set here:
//! it would reach the crates that stable Rust compiles too.

use std::env;
use std::path::Path;
use std::sync::OnceLock;

use crate::command;

/// The environment variable that names the toolchain: `bpf` or `nightly`.
pub(crate) const VARIABLE: &str = "LB_BPF_TOOLCHAIN";

/// What a toolchain must hold to compile for BPF, below its folder.
pub(crate) const READY_CORE: &str = "lib/rustlib/bpfel-unknown-none";
const CORE_SOURCE: &str = "lib/rustlib/src/rust/library/core";

/// A toolchain that can compile the BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BpfToolchain {
    /// A stable compiler with a ready `core` for BPF, linked in rustup as `bpf`.
    Bpf,
    /// rustup's nightly, which compiles `core` from `rust-src`.
    Nightly,
}

impl BpfToolchain {
    /// Returns the name rustup knows it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Nightly => "nightly",
        }
    }
}

/// Returns the toolchain in use, looked up once; `None` where none is installed.
pub(crate) fn chosen() -> Option<BpfToolchain> {
    static CHOSEN: OnceLock<BpfToolchain> = OnceLock::new();
    if let Some(toolchain) = CHOSEN.get() {
        return Some(*toolchain);
    }
    let toolchain = look()?;
    Some(*CHOSEN.get_or_init(|| toolchain))
}

fn look() -> Option<BpfToolchain> {
    let list = command::output(command::program("rustup").args(["toolchain", "list", "-v"]));
    choose(env::var(VARIABLE).ok().as_deref(), &list.unwrap_or_default(), Path::is_dir)
}

/// Prefers the wish, if its toolchain is ready; without a wish `bpf`, which needs no nightly.
fn choose(wish: Option<&str>, list: &str, exists: fn(&Path) -> bool) -> Option<BpfToolchain> {
    let ready = |toolchain: &BpfToolchain| {
        let (prefix, needs) = match toolchain {
            BpfToolchain::Bpf => ("bpf ", READY_CORE),
            BpfToolchain::Nightly => ("nightly-", CORE_SOURCE),
        };
        let line =
            list.lines().find(|line| line.starts_with(prefix) && !line.contains("nightly-2"));
        let folder = line.and_then(|line| line.split_whitespace().last());
        folder.is_some_and(|folder| exists(&Path::new(folder).join(needs)))
    };
    [BpfToolchain::Bpf, BpfToolchain::Nightly]
        .into_iter()
        .filter(|toolchain| wish.is_none_or(|wish| wish == toolchain.name()))
        .find(ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "stable-x86_64-unknown-linux-gnu (active, default) /r/stable\n\
        nightly-2026-01-01-x86_64-unknown-linux-gnu /r/dated\n\
        nightly-x86_64-unknown-linux-gnu /r/nightly\n\
        bpf /usr\n";

    #[test]
    fn the_toolchain_with_a_ready_core_is_preferred() {
        assert_eq!(choose(None, LIST, |_| true), Some(BpfToolchain::Bpf));
    }

    #[test]
    fn a_toolchain_that_lacks_its_core_is_passed_over() {
        let nightly_only = |path: &Path| path.starts_with("/r/nightly");
        assert_eq!(choose(None, LIST, nightly_only), Some(BpfToolchain::Nightly));
        assert_eq!(choose(None, LIST, |_| false), None);
    }

    #[test]
    fn a_wish_is_kept_or_nothing_is_chosen() {
        assert_eq!(choose(Some("nightly"), LIST, |_| true), Some(BpfToolchain::Nightly));
        assert_eq!(choose(Some("nightly"), "bpf /usr\n", |_| true), None);
    }
}
