//! How much room each map has: asked for when it is made, fixed from then on.

use std::{os::fd::AsFd as _, path::Path};

use lb_common::abi::maps;

use super::{KernelOptions, TableError, pins::Pins, size_flag, sys};

/// A map that was made with another size than the one asked for, and keeps it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SizeKept {
    /// Name of the map.
    pub map: &'static str,
    /// Room for so many entries.
    pub capacity: u32,
    /// Room that was asked for.
    pub wanted: u32,
    /// The setting that asked.
    pub flag: &'static str,
}

/// Entries that each map is to have room for.
pub(super) const fn sizes(options: &KernelOptions) -> [(&'static str, u32); 12] {
    let half_open = half_open(options.conntrack_max);
    [
        (maps::AFFINITY_V4, options.affinity_max),
        (maps::AFFINITY_V6, options.affinity_max),
        (maps::BACKENDS_V4, options.max_backends),
        (maps::BACKENDS_V6, options.max_backends),
        (maps::CONNTRACK_V4, options.conntrack_max),
        (maps::CONNTRACK_V6, options.conntrack_max),
        (maps::FRONTENDS_V4, options.max_frontends),
        (maps::FRONTENDS_V6, options.max_frontends),
        (maps::TARGETS_V4, options.max_backends),
        (maps::TARGETS_V6, options.max_backends),
        (maps::HALF_OPEN_V4, half_open),
        (maps::HALF_OPEN_V6, half_open),
    ]
}

/// Room for flows that are not proven yet: a quarter of that for those that are.
const fn half_open(conntrack_max: u32) -> u32 {
    let quarter = conntrack_max / 4;
    if quarter < 1 << 14 { 1 << 14 } else { quarter }
}

/// Maps that are pinned with another size than the one asked for.
pub(super) fn kept(options: &KernelOptions, pins: &Pins) -> Result<Vec<SizeKept>, TableError> {
    let mut kept = Vec::new();
    for (map, wanted) in sizes(options) {
        let capacity = capacity(pins, map)?;
        if capacity != wanted {
            kept.push(SizeKept { map, capacity, wanted, flag: size_flag(map).unwrap_or_default() });
        }
    }
    Ok(kept)
}

/// Room of the conntrack maps that are pinned; none before there are any.
pub fn pinned_conntrack(bpffs: &Path) -> Option<u32> {
    capacity(&Pins::at(bpffs), maps::CONNTRACK_V4).ok()
}

/// Entries that a pinned map has room for.
pub(super) fn capacity(pins: &Pins, map: &'static str) -> Result<u32, TableError> {
    let info = sys::obj_get(&pins.maps.join(map)).and_then(|fd| sys::map_info(fd.as_fd()));
    let info = info.map_err(|source| TableError::System { map, operation: "open", source })?;
    Ok(info.max_entries)
}
