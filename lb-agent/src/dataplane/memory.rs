//! Kernel memory that the maps of an instance take, also those that only programs hold. Not for: how
//! full they are (`reader`).

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::ProgramInfo};
use lb_common::abi::{MAX_CHUNK_ARRAYS, maps};

use super::{map::Map, pins::Pins};

/// How the names of maps begin that remember flows.
const OF_FLOWS: [&str; 2] = ["CONNTRACK", "HALF_OPEN"];

/// Kernel memory in bytes; what the kernel does not tell counts for nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct Memory {
    /// Of all maps.
    pub maps: u64,
    /// Of those that remember flows, whose room follows from `--conntrack-max`.
    pub flows: u64,
}

impl Memory {
    /// Of all maps that are pinned in a folder, or held by programs or maps that are.
    pub(super) fn of(pins: &Pins) -> Self {
        let mut memory = Self::default();
        for id in ids(pins) {
            let Ok(info) = MapInfo::from_id(id) else { continue };
            let bytes = info.fd().map_or(0, |fd| bytes(fd.as_fd()));
            memory.maps += bytes;
            let name = info.name_as_str().unwrap_or_default();
            if OF_FLOWS.iter().any(|prefix| name.starts_with(prefix)) {
                memory.flows += bytes;
            }
        }
        memory
    }
}

fn ids(pins: &Pins) -> BTreeSet<u32> {
    let maps = files(&pins.maps).into_iter().filter_map(|path| MapInfo::from_pin(path).ok());
    let mut ids: BTreeSet<u32> = maps.map(|info| info.id()).collect();
    for path in files(&pins.programs) {
        let held = ProgramInfo::from_pin(path).and_then(|info| info.map_ids());
        ids.extend(held.ok().flatten().unwrap_or_default());
    }
    if let Ok(slots) = Map::<u32, u32>::open(&pins.maps, maps::SLOTS) {
        let inner = (0..MAX_CHUNK_ARRAYS).map_while(|index| slots.get(&index).ok());
        ids.extend(inner.flatten());
    }
    ids
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Kernel memory of a map in bytes; zero where the kernel does not say.
pub(super) fn bytes(map: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let info = fs::read_to_string(path).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_default()
}
