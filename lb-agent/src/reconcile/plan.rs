//! Turns what should be and what is into ordered steps.
//!
//! Pure: nothing is written here. The order is the point: programs read while the agent writes, so
//! no prefix of a plan may leave a frontend with a region, or a region with a backend, that is not
//! there. Backends appear first and leave last.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{
    abi::{BackendFlags, Region, maps},
    maglev,
};

use crate::{
    dataplane::{BackendEntry, BackendId, FrontendAddress, ServiceId, Step, TableError},
    desired::PortTables,
    model::Family,
};

use super::{
    entries::frontend_entry,
    held::{Held, HeldBackend, HeldRegion, Realized},
    ids::Pool,
    regions::Regions,
    sources,
};

/// Steps in order, each with the Service port it is for; `None` for all of them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) owners: Vec<Option<ServiceId>>,
}

impl Plan {
    /// A grace period.
    pub(super) fn settle() -> Self {
        Self { steps: vec![Step::Settle], owners: vec![None] }
    }

    pub(super) fn push(&mut self, owner: impl Into<Option<ServiceId>>, step: Step) {
        self.steps.push(step);
        self.owners.push(owner.into());
    }

    fn append(&mut self, mut other: Self) {
        self.steps.append(&mut other.steps);
        self.owners.append(&mut other.owners);
    }

    /// What is left after the first `done` steps, without those for `owner`.
    pub(super) fn rest(self, done: usize, owner: ServiceId) -> Self {
        let mut rest = Self::default();
        for (step, other) in self.steps.into_iter().zip(self.owners).skip(done) {
            if other != Some(owner) {
                rest.push(other, step);
            }
        }
        rest
    }
}

/// Everything that ids and regions are taken from.
#[derive(Debug)]
pub(super) struct Pools {
    pub(super) services: Pool,
    pub(super) backends: BTreeMap<Family, Pool>,
    pub(super) regions: Regions,
}

/// Makes sure that every wanted backend has an id and every used list a region.
///
/// # Errors
///
/// What has no room. What was taken until then stays with `held`: [`release_unwritten`] gives it
/// back.
pub(super) fn prepare(
    tables: &PortTables,
    held: &mut Held,
    pools: &mut Pools,
) -> Result<(), TableError> {
    for (address, _) in tables.backends() {
        if !held.backends.contains_key(address) {
            held.backends.insert(*address, take_backend(Family::of(address.ip()), pools)?);
        }
    }
    for list in tables.used_lists() {
        if held.region(list).is_none() {
            let region = pools.regions.allocate(maglev::length(list.len())).ok_or(SLOTS_FULL)?;
            let list = Some(Arc::clone(list));
            held.regions.push(HeldRegion { region, list, written: false });
        }
    }
    Ok(())
}

const SLOTS_FULL: TableError = TableError::Full {
    map: maps::SLOTS,
    capacity: lb_common::abi::CHUNKS_PER_ARRAY * lb_common::abi::MAX_CHUNK_ARRAYS,
    flag: "",
};

fn take_backend(family: Family, pools: &mut Pools) -> Result<HeldBackend, TableError> {
    let map = match family {
        Family::V4 => maps::BACKENDS_V4,
        Family::V6 => maps::BACKENDS_V6,
    };
    let pool = pools.backends.get_mut(&family);
    let capacity = pool.as_ref().map_or(0, |pool| pool.capacity());
    let (index, generation) = pool.and_then(Pool::allocate).ok_or(TableError::Full {
        map,
        capacity,
        flag: "max-backends",
    })?;
    Ok(HeldBackend { id: BackendId { family, index }, generation, written: None })
}

/// Gives back the ids and regions that nothing was written to yet.
pub(super) fn release_unwritten(held: &mut Held, pools: &mut Pools) {
    held.backends.retain(|_, backend| {
        if backend.written.is_none() {
            release_backend(backend.id, pools);
        }
        backend.written.is_some()
    });
    held.regions.retain(|held| {
        if !held.written {
            pools.regions.release(held.region);
        }
        held.written
    });
}

/// Makes the id of a backend free.
pub(super) fn release_backend(id: BackendId, pools: &mut Pools) {
    if let Some(pool) = pools.backends.get_mut(&id.family) {
        pool.release(id.index);
    }
}

/// The writes of many prepared Service ports: all backends, then all regions and ranges of sources,
/// then all frontends.
pub(super) fn puts<'a>(
    ports: impl IntoIterator<Item = (ServiceId, &'a PortTables)>,
    realized: &Realized,
) -> Plan {
    let (mut backends, mut regions) = (Plan::default(), Plan::default());
    let (mut ranges, mut frontends) = (Plan::default(), Plan::default());
    for (id, tables) in ports {
        if let Some(held) = realized.ports.get(&id) {
            put_backends(id, tables, held, &mut backends);
            put_regions(id, tables, held, &mut regions);
            sources::put(id, tables, held, &mut ranges);
            put_frontends(id, tables, realized, &mut frontends);
        }
    }
    backends.append(regions);
    backends.append(ranges);
    backends.append(frontends);
    backends
}

fn put_backends(service: ServiceId, tables: &PortTables, held: &Held, plan: &mut Plan) {
    for (address, backend) in tables.backends() {
        let Some(entry) = held.backends.get(address) else { continue };
        if entry.written != Some(backend.flags) {
            let HeldBackend { id, generation, .. } = *entry;
            let (address, flags) = (*address, backend.flags);
            let entry = BackendEntry { address, flags, generation, service };
            plan.push(service, Step::PutBackend(id, entry));
        }
    }
    for (address, entry) in &held.backends {
        if tables.backend(address).is_none() {
            end_affinity(service, *address, *entry, plan);
        }
    }
}

/// S10: a backend that is about to go would be given to its clients for as long as it is there,
/// past the frontends that no longer lead to it.
fn end_affinity(service: ServiceId, address: SocketAddr, held: HeldBackend, plan: &mut Plan) {
    let HeldBackend { id, generation, written: Some(flags) } = held else { return };
    let ended = flags.without(BackendFlags::AFFINE_CLUSTER.with(BackendFlags::AFFINE_LOCAL));
    if ended != flags {
        let entry = BackendEntry { address, flags: ended, generation, service };
        plan.push(service, Step::PutBackend(id, entry));
    }
}

fn put_regions(id: ServiceId, tables: &PortTables, held: &Held, plan: &mut Plan) {
    for list in tables.used_lists() {
        if let Some(HeldRegion { region, written: false, .. }) = held.region(list) {
            plan.push(id, Step::PutRegion(*region, slots(list, held)));
        }
    }
}

fn put_frontends(id: ServiceId, tables: &PortTables, realized: &Realized, plan: &mut Plan) {
    let Some(held) = realized.ports.get(&id) else { return };
    for (address, frontend) in tables.frontends() {
        let entry = frontend_entry(id, tables, *frontend, Family::of(address.ip), held);
        if realized.frontends.get(address) != Some(&entry) {
            plan.push(id, Step::PutFrontend(*address, entry));
        }
    }
}

/// The Maglev table of a list as backend indices; an address without an id becomes zero.
pub(super) fn slots(list: &[SocketAddr], held: &Held) -> Arc<[u32]> {
    let index = |address| held.backends.get(address).map_or(0, |backend| backend.id.index);
    let indices: Vec<u32> = list.iter().map(index).collect();
    maglev::table(list).into_iter().map(|place| indices[place as usize]).collect()
}

/// What can go once the puts of the same Service ports are through.
#[derive(Debug, Default)]
pub(super) struct Removals {
    pub(super) plan: Plan,
    /// Regions that are free when all of a Service port's steps are done.
    pub(super) regions: Vec<(ServiceId, Region)>,
    /// Service ports that keep an address until another one takes it over.
    pub(super) keepers: BTreeSet<ServiceId>,
}

/// What Service ports hold and do not want: frontends, then, after a grace period, backends and
/// ranges of sources.
///
/// An address that is `awaited` is kept: another Service port wants it and could not write it, and
/// until it can, better the old answer than none.
pub(super) fn removals<'a>(
    ports: impl IntoIterator<Item = (ServiceId, Option<&'a PortTables>)>,
    realized: &Realized,
    awaited: impl Fn(&FrontendAddress) -> bool,
) -> Removals {
    let (mut removals, mut last) = (Removals::default(), Plan::default());
    let mut frees_written = false;
    for (id, tables) in ports {
        let Some(held) = realized.ports.get(&id) else { continue };
        let used = remove_frontends(id, tables, realized, &awaited, &mut removals);
        for unused in held.regions.iter().filter(|held| !used.contains(&held.region.first_chunk)) {
            frees_written |= unused.written;
            removals.regions.push((id, unused.region));
        }
        remove_backends(id, tables, held, &used, &mut last);
        if !removals.keepers.contains(&id) {
            sources::remove(id, tables, realized, &mut last);
        }
    }
    if frees_written || !last.steps.is_empty() {
        removals.plan.push(None, Step::Settle);
    }
    removals.plan.append(last);
    removals
}

/// Removes the frontends that are not wanted, and tells what the others name.
fn remove_frontends(
    id: ServiceId,
    tables: Option<&PortTables>,
    realized: &Realized,
    awaited: impl Fn(&FrontendAddress) -> bool,
    removals: &mut Removals,
) -> BTreeSet<u32> {
    let mut used = BTreeSet::new();
    for (address, entry) in realized.frontends_of(id) {
        let is_wanted = tables.is_some_and(|tables| tables.frontend(address).is_some());
        if !is_wanted && !awaited(address) {
            removals.plan.push(id, Step::RemoveFrontend(*address));
            continue;
        }
        let regions = [entry.internal, entry.external];
        used.extend(regions.iter().filter(|region| region.length > 0).map(|r| r.first_chunk));
        if !is_wanted {
            removals.keepers.insert(id);
        }
    }
    used
}

/// A backend stays while it is wanted, or while a region in use may name it.
fn remove_backends(
    id: ServiceId,
    tables: Option<&PortTables>,
    held: &Held,
    used: &BTreeSet<u32>,
    plan: &mut Plan,
) {
    let in_use = held.regions.iter().filter(|held| used.contains(&held.region.first_chunk));
    let lists: Vec<_> = in_use.map(|held| held.list.as_deref()).collect();
    let named = |address: &SocketAddr| {
        lists.iter().any(|list| list.is_none_or(|list| list.binary_search(address).is_ok()))
    };
    let wanted = |address| tables.is_some_and(|tables| tables.backend(address).is_some());
    for (address, backend) in &held.backends {
        if !wanted(address) && !named(address) {
            plan.push(id, Step::RemoveBackend(backend.id));
        }
    }
}
