//! The tables in memory, for tests: every step is checked against what a program could see.

mod meaning;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::{FrontendFlags, Region, SLOTS_PER_CHUNK, maps};

use crate::model::Family;

pub use meaning::{FrontendMeaning, Meaning};

use super::{
    BackendEntry, BackendId, FrontendAddress, FrontendEntry, PerformError, ServiceId, Snapshot,
    Step, TableError, Tables,
};

type Slots = (Region, Arc<[u32]>);

/// Tables in memory.
///
/// A step that a program could stumble over is a panic: the caller's order is wrong.
#[derive(Clone, Debug)]
pub struct FakeTables {
    frontends: BTreeMap<FrontendAddress, FrontendEntry>,
    backends: BTreeMap<BackendId, BackendEntry>,
    regions: BTreeMap<u32, Slots>,
    /// Regions that a frontend names, or named since the last grace period.
    lingering: BTreeMap<u32, Family>,
    /// How often each region is named.
    named: BTreeMap<u32, usize>,
    /// Regions that frontends ceased to name since the last grace period.
    let_go: Vec<u32>,
    generations: BTreeMap<BackendId, u32>,
    sources: BTreeSet<(ServiceId, IpNet)>,
    capacity: Capacity,
    checks: Checks,
    steps: usize,
}

/// How many entries the tables have.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Of each backend table.
    pub backends: u32,
    /// Of the frontend table.
    pub frontends: usize,
}

/// What is checked after each step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checks {
    /// Everything: its cost follows the size of the tables.
    Everything,
    /// What the step alone can break, but for the slots of the regions that a frontend names.
    TheStep,
}

impl Default for FakeTables {
    fn default() -> Self {
        Self::new(Capacity { backends: 1 << 20, frontends: 1 << 20 }, Checks::Everything)
    }
}

impl FakeTables {
    /// Empty tables.
    pub fn new(capacity: Capacity, checks: Checks) -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            regions: BTreeMap::new(),
            lingering: BTreeMap::new(),
            named: BTreeMap::new(),
            let_go: Vec::new(),
            generations: BTreeMap::new(),
            sources: BTreeSet::new(),
            capacity,
            checks,
            steps: 0,
        }
    }

    /// Steps performed so far.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Changes the size of the tables.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Loses a frontend, as if a foreign hand had removed it.
    pub fn lose_frontend(&mut self, address: &FrontendAddress) {
        if let Some(old) = self.frontends.remove(address) {
            self.let_regions_go(address, &old);
        }
    }

    /// Changes every slot of a region, as if a foreign hand had written it.
    pub fn spoil_region(&mut self, first_chunk: u32) {
        if let Some((_, slots)) = self.regions.get_mut(&first_chunk) {
            let first = slots.iter().min().copied().unwrap_or(0);
            *slots = vec![first; slots.len()].into();
        }
    }

    /// Checks everything a program could follow.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn is_consistent(&self) -> Result<(), String> {
        for (address, entry) in &self.frontends {
            self.check_frontend(address, entry)?;
        }
        Ok(())
    }

    fn check_frontend(&self, at: &FrontendAddress, entry: &FrontendEntry) -> Result<(), String> {
        if entry.service.0 == 0 {
            return Err(format!("{at} belongs to Service 0"));
        }
        for region in [entry.internal, entry.external] {
            self.check_region(Family::of(at.ip), entry.service, region)
                .map_err(|error| format!("{at}: {error}"))?;
        }
        let drops = FrontendFlags::DROP_INTERNAL;
        if entry.flags.has(drops) && entry.internal.length > 0 {
            return Err(format!("{at} has endpoints and drops"));
        }
        self.check_sources(at, entry)
    }

    /// Who is checked is let in by some range: those were all written before it, and go after it.
    fn check_sources(&self, at: &FrontendAddress, entry: &FrontendEntry) -> Result<(), String> {
        let checks = entry.flags.has(FrontendFlags::CHECK_SOURCE);
        let family = Family::of(at.ip);
        if checks && self.sources_of(entry.service, family).next().is_none() {
            return Err(format!("{at} lets nobody in"));
        }
        Ok(())
    }

    fn sources_of(&self, id: ServiceId, family: Family) -> impl Iterator<Item = &IpNet> {
        let ranges = self.sources.iter().filter(move |(other, _)| *other == id);
        ranges.map(|(_, range)| range).filter(move |range| Family::of(range.addr()) == family)
    }

    fn check_region(
        &self,
        family: Family,
        service: ServiceId,
        region: Region,
    ) -> Result<(), String> {
        if region == Region::EMPTY {
            return Ok(());
        }
        let Some((written, slots)) = self.regions.get(&region.first_chunk) else {
            return Err(format!("{region:?} was never written"));
        };
        if *written != region {
            return Err(format!("{region:?} is named, {written:?} was written"));
        }
        if self.checks == Checks::TheStep {
            return Ok(());
        }
        let mut indices: Vec<u32> = slots.to_vec();
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            match self.backends.get(&BackendId { family, index }) {
                None => {
                    return Err(format!("{region:?} names backend {index}, which is not there"));
                }
                Some(entry) if entry.service != service => {
                    return Err(format!("{region:?} names backend {index} of {:?}", entry.service));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn retired(&self) -> BTreeMap<BackendId, u32> {
        let cleared = self.generations.iter().filter(|(id, _)| !self.backends.contains_key(id));
        cleared.map(|(id, generation)| (*id, *generation)).collect()
    }

    fn perform_one(&mut self, step: &Step) -> Result<(), TableError> {
        match step {
            Step::PutBackend(id, entry) => self.put_backend(*id, *entry)?,
            Step::PutRegion(region, slots) => self.put_region(*region, slots),
            Step::PutFrontend(address, entry) => self.put_frontend(*address, *entry)?,
            Step::RemoveFrontend(address) => self.lose_frontend(address),
            Step::Settle => self.settle(),
            Step::RemoveBackend(id) => self.remove_backend(*id),
            Step::PutSourceRange(id, range) => {
                self.sources.insert((*id, *range));
            }
            Step::RemoveSourceRange(id, range) => {
                self.sources.remove(&(*id, *range));
            }
        }
        self.steps += 1;
        if self.checks == Checks::Everything {
            self.is_consistent().unwrap_or_else(|error| panic!("after {step:?}: {error}"));
        }
        Ok(())
    }

    fn put_backend(&mut self, id: BackendId, entry: BackendEntry) -> Result<(), TableError> {
        assert!(id.index > 0 && entry.generation > 0, "{id:?}: {entry:?}");
        assert_eq!(Family::of(entry.address.ip()), id.family, "{entry:?}");
        if id.index >= self.capacity.backends {
            let map = if id.family == Family::V4 { maps::BACKENDS_V4 } else { maps::BACKENDS_V6 };
            return Err(full(map, self.capacity.backends, "max-backends"));
        }
        if let Some(old) = self.backends.get(&id) {
            let renamed = BackendEntry { flags: entry.flags, ..*old };
            assert_eq!(entry, renamed, "a live backend changes only its flags");
        } else {
            let old = self.generations.insert(id, entry.generation);
            assert_ne!(old, Some(entry.generation), "{id:?} is used again unnoticed");
        }
        self.backends.insert(id, entry);
        Ok(())
    }

    fn put_region(&mut self, region: Region, slots: &Arc<[u32]>) {
        assert_eq!(slots.len(), region.length as usize, "{region:?}");
        let chunks = chunks(region);
        // What is there does not overlap: of those before, only the last can reach in.
        let before = self.regions.range(..chunks.start).next_back();
        let overlapping: Vec<u32> = before
            .into_iter()
            .chain(self.regions.range(chunks.clone()))
            .filter(|(_, (old, _))| chunks.start < self::chunks(*old).end)
            .map(|(first, _)| *first)
            .collect();
        for first in overlapping {
            assert!(!self.lingering.contains_key(&first), "{region:?} overwrites region {first}");
            self.regions.remove(&first);
        }
        self.regions.insert(region.first_chunk, (region, Arc::clone(slots)));
    }

    fn put_frontend(
        &mut self,
        address: FrontendAddress,
        entry: FrontendEntry,
    ) -> Result<(), TableError> {
        if !self.frontends.contains_key(&address) && self.frontends.len() >= self.capacity.frontends
        {
            let capacity = u32::try_from(self.capacity.frontends).unwrap_or(u32::MAX);
            return Err(full(maps::FRONTENDS_V4, capacity, "max-frontends"));
        }
        self.check_frontend(&address, &entry).unwrap_or_else(|error| panic!("{error}"));
        self.name_regions(&address, &entry);
        if let Some(old) = self.frontends.insert(address, entry) {
            self.let_regions_go(&address, &old);
        }
        Ok(())
    }

    fn settle(&mut self) {
        for first in std::mem::take(&mut self.let_go) {
            if !self.named.contains_key(&first) {
                self.lingering.remove(&first);
            }
        }
    }

    fn name_regions(&mut self, at: &FrontendAddress, entry: &FrontendEntry) {
        for (first, family) in named(at, entry) {
            *self.named.entry(first).or_default() += 1;
            self.lingering.insert(first, family);
        }
    }

    fn let_regions_go(&mut self, at: &FrontendAddress, entry: &FrontendEntry) {
        for (first, _) in named(at, entry) {
            self.let_go.push(first);
            self.named.entry(first).and_modify(|count| *count -= 1);
            if self.named.get(&first) == Some(&0) {
                self.named.remove(&first);
            }
        }
    }

    fn remove_backend(&mut self, id: BackendId) {
        assert!(self.backends.remove(&id).is_some(), "{id:?} is not there");
        if self.checks == Checks::Everything {
            self.check_unnamed(id);
        }
    }

    /// No program may still read a region that names the backend.
    fn check_unnamed(&self, id: BackendId) {
        for first in self.lingering.iter().filter(|(_, family)| **family == id.family).map(|f| f.0)
        {
            let names_it =
                self.regions.get(first).is_some_and(|(_, slots)| slots.contains(&id.index));
            assert!(!names_it, "region {first} may be read and names {id:?}");
        }
    }
}

/// First chunks of the regions that a frontend names, with their family.
fn named(at: &FrontendAddress, entry: &FrontendEntry) -> impl Iterator<Item = (u32, Family)> {
    let family = Family::of(at.ip);
    let regions = [entry.internal, entry.external].into_iter();
    regions.filter(|region| region.length > 0).map(move |region| (region.first_chunk, family))
}

fn chunks(region: Region) -> std::ops::Range<u32> {
    region.first_chunk..region.first_chunk + region.length.div_ceil(SLOTS_PER_CHUNK)
}

fn full(map: &'static str, capacity: u32, flag: &'static str) -> TableError {
    TableError::Full { map, capacity, flag }
}

impl Tables for FakeTables {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        for (done, step) in steps.iter().enumerate() {
            self.perform_one(step).map_err(|source| PerformError { done, source })?;
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        let named = self.frontends.values().flat_map(|entry| [entry.internal, entry.external]);
        let regions = named.filter_map(|region| self.regions.get(&region.first_chunk));
        Ok(Snapshot {
            frontends: self.frontends.clone(),
            backends: self.backends.clone(),
            retired: self.retired(),
            regions: regions.map(|slots| (slots.0.first_chunk, slots.clone())).collect(),
            source_ranges: self.sources.clone(),
        })
    }

    fn backend_capacity(&self, _family: Family) -> u32 {
        self.capacity.backends
    }
}
