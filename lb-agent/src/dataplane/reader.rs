//! What the commands read from the pinned maps, with the agent running or not.

use std::{fs, os::fd::AsFd, path::Path};

use lb_common::abi::{
    Abi, Affinity, AffinityKey, Backend, Counter, CtEntry, CtKey, Device, Frontend, FrontendKey,
    Ipv4, Ipv6, SourceRange, maps,
};

use super::{
    KernelTables, Memory, Snapshot, TableError, Tables as _, map::Map, memory::bytes, pins::Pins,
    sys,
};

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

    /// Kernel memory that all maps take.
    pub fn memory(&self) -> Memory {
        Memory::of(&self.pins)
    }

    /// How full the maps are.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn fill(&self) -> Result<Vec<MapFill>, TableError> {
        let mut fill = self.fill_of_others()?;
        fill.push(self.filled::<CtKey<Ipv4>, CtEntry<Ipv4>>(maps::CONNTRACK_V4, |_| true)?);
        fill.push(self.filled::<CtKey<Ipv6>, CtEntry<Ipv6>>(maps::CONNTRACK_V6, |_| true)?);
        Ok(fill)
    }

    /// How full the maps are that no walk counts: all but conntrack.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn fill_of_others(&self) -> Result<Vec<MapFill>, TableError> {
        Ok(vec![
            self.filled::<FrontendKey<Ipv4>, Frontend>(maps::FRONTENDS_V4, |_| true)?,
            self.filled::<FrontendKey<Ipv6>, Frontend>(maps::FRONTENDS_V6, |_| true)?,
            self.filled::<u32, Backend<Ipv4>>(maps::BACKENDS_V4, Backend::is_live)?,
            self.filled::<u32, Backend<Ipv6>>(maps::BACKENDS_V6, Backend::is_live)?,
            self.filled::<AffinityKey, Affinity>(maps::AFFINITY_V4, |_| true)?,
            self.filled::<AffinityKey, Affinity>(maps::AFFINITY_V6, |_| true)?,
            self.filled::<SourceRange<Ipv4>, u32>(maps::SOURCE_RANGES_V4, |_| true)?,
            self.filled::<SourceRange<Ipv6>, u32>(maps::SOURCE_RANGES_V6, |_| true)?,
            self.filled::<CtKey<Ipv4>, CtEntry<Ipv4>>(maps::HALF_OPEN_V4, |_| true)?,
            self.filled::<CtKey<Ipv6>, CtEntry<Ipv6>>(maps::HALF_OPEN_V6, |_| true)?,
        ])
    }

    fn filled<K: Abi, V: Abi>(
        &self,
        name: &'static str,
        is_live: impl Fn(&V) -> bool,
    ) -> Result<MapFill, TableError> {
        let map = Map::<K, V>::open(&self.pins.maps, name)?;
        let (entries, capacity) = (map.count(is_live)?, map.capacity().into());
        Ok(MapFill { name, entries, capacity, bytes: bytes(map.fd()) })
    }
}
