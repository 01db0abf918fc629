//! What the commands ask of the pinned maps, whether an agent runs or not.

use std::path::Path;

use lb_common::abi::Counter;

use crate::{
    dataplane::{Snapshot, TableError},
    health::MapUse,
};

/// Reads the pinned maps, and changes nothing.
pub trait Reader {
    /// Packets that were not translated, by reason.
    ///
    /// # Errors
    ///
    /// A system call that failed.
    fn counters(&mut self) -> Result<Vec<(Counter, u64)>, TableError>;

    /// How full the maps are.
    ///
    /// # Errors
    ///
    /// A system call that failed.
    fn maps(&mut self) -> Result<Vec<MapUse>, TableError>;

    /// Everything the tables hold.
    ///
    /// # Errors
    ///
    /// A system call that failed.
    fn snapshot(&mut self) -> Result<Snapshot, TableError>;
}

/// Opens the maps pinned below `bpffs`; none if nothing is pinned there.
///
/// # Errors
///
/// The maps are of another version, or can't be opened.
pub fn open(bpffs: &Path) -> anyhow::Result<Option<Box<dyn Reader>>> {
    anyhow::ensure!(!bpffs.join("maps").exists(), "read the maps pinned below {}", bpffs.display());
    Ok(None)
}

/// Removes links, filters, programs and maps below `bpffs`, and names what was removed.
///
/// # Errors
///
/// Everything that could not be removed; the rest is gone.
pub fn cleanup(bpffs: &Path) -> anyhow::Result<Vec<String>> {
    anyhow::ensure!(!bpffs.join("maps").exists(), "remove the pins below {}", bpffs.display());
    Ok(Vec::new())
}
