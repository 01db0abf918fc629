//! What the commands read from the pinned maps, with the agent running or not.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use lb_common::abi::{
    Abi, Backend, Counter, CtEntry, CtKey, Device, Frontend, FrontendKey, Ipv4, Ipv6, maps,
};

use super::{KernelTables, Snapshot, TableError, Tables as _, map::Map, pins::Pins, sys};

/// How full a map is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
pub struct MapFill {
    /// Its name.
    pub name: &'static str,
    /// Live entries.
    pub entries: u64,
    /// Room for so many.
    pub capacity: u64,
    /// Kernel memory in bytes, as `/proc/self/fdinfo` tells it.
    pub bytes: u64,
}

/// The pinned maps of an instance, to look at.
#[derive(Clone, Debug)]
pub struct Reader {
    pins: Pins,
}

impl Reader {
    /// Names the folder of pins; `None` if nothing is pinned there.
    pub fn open(bpffs: &Path) -> Option<Self> {
        let pins = Pins::at(bpffs);
        pins.maps.is_dir().then_some(Self { pins })
    }

    /// Reads frontends, backends and slots.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn snapshot(&self) -> Result<Snapshot, TableError> {
        KernelTables::open(&self.pins.maps)?.snapshot()
    }

    /// Reads the counters, summed over CPUs.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, TableError> {
        let fail = |source| TableError::System { map: maps::COUNTERS, operation: "lookup", source };
        let map = sys::obj_get(&self.pins.maps.join(maps::COUNTERS)).map_err(fail)?;
        let mut values = vec![0; sys::possible_cpus() * size_of::<u64>()];
        let mut counters = Vec::new();
        for counter in Counter::ALL {
            let key = *counter as u32;
            sys::lookup(map.as_fd(), key.as_bytes(), &mut values).map_err(fail)?;
            let cpus = values.chunks_exact(size_of::<u64>()).filter_map(u64::from_bytes);
            counters.push((*counter, cpus.sum()));
        }
        Ok(counters)
    }

    /// Reads the devices that the packet programs know.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn devices(&self) -> Result<Vec<(u32, Device)>, TableError> {
        Map::open(&self.pins.maps, maps::DEVICES)?.entries()
    }

    /// Names of the attached links: a program of the socket path, or `IFINDEX-ingress`.
    pub fn links(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.pins.links) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// How full the maps are.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn fill(&self) -> Result<Vec<MapFill>, TableError> {
        let frontends_v4 = self.entries::<FrontendKey<Ipv4>, Frontend>(maps::FRONTENDS_V4)?.len();
        let frontends_v6 = self.entries::<FrontendKey<Ipv6>, Frontend>(maps::FRONTENDS_V6)?.len();
        let backends_v4 = self.entries::<u32, Backend<Ipv4>>(maps::BACKENDS_V4)?;
        let backends_v6 = self.entries::<u32, Backend<Ipv6>>(maps::BACKENDS_V6)?;
        let flows_v4 = self.entries::<CtKey<Ipv4>, CtEntry<Ipv4>>(maps::CONNTRACK_V4)?.len();
        let flows_v6 = self.entries::<CtKey<Ipv6>, CtEntry<Ipv6>>(maps::CONNTRACK_V6)?.len();
        let live_v4 = backends_v4.iter().filter(|(_, backend)| backend.is_live()).count();
        let live_v6 = backends_v6.iter().filter(|(_, backend)| backend.is_live()).count();
        [
            (maps::FRONTENDS_V4, frontends_v4),
            (maps::FRONTENDS_V6, frontends_v6),
            (maps::BACKENDS_V4, live_v4),
            (maps::BACKENDS_V6, live_v6),
            (maps::CONNTRACK_V4, flows_v4),
            (maps::CONNTRACK_V6, flows_v6),
        ]
        .into_iter()
        .map(|(name, entries)| self.filled(name, entries))
        .collect()
    }

    fn entries<K: Abi, V: Abi>(&self, name: &'static str) -> Result<Vec<(K, V)>, TableError> {
        Map::open(&self.pins.maps, name)?.entries()
    }

    fn filled(&self, name: &'static str, entries: usize) -> Result<MapFill, TableError> {
        let fail = |source| TableError::System { map: name, operation: "open", source };
        let map = sys::obj_get(&self.pins.maps.join(name)).map_err(fail)?;
        let capacity = sys::map_info(map.as_fd()).map_err(fail)?.max_entries;
        Ok(MapFill {
            name,
            entries: entries as u64,
            capacity: capacity.into(),
            bytes: memory(&map),
        })
    }
}

/// Kernel memory of a map in bytes; zero where the kernel does not say.
fn memory(map: &OwnedFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let info = fs::read_to_string(path).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_default()
}
