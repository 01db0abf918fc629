//! Takes over what the tables hold already, so that what is right is not written again.
//!
//! Used at the start, and whenever the tables are compared with what should be in them.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{
    abi::{FrontendKind, Region},
    maglev,
};

use crate::{
    dataplane::{BackendEntry, FrontendAddress, ServiceId, Snapshot},
    desired::{PortKey, PortTables},
    model::Family,
};

use super::{
    held::{Held, HeldBackend, HeldRegion, Realized},
    ids::Pool,
    plan::{self, Pools},
    regions::Regions,
};

/// Service ids are below this.
pub(super) const SERVICE_IDS: u32 = 1 << 20;

/// Wanted Service ports.
pub(super) type Wanted = HashMap<PortKey, Arc<PortTables>>;
/// Ids of Service ports.
pub(super) type Ids = HashMap<PortKey, ServiceId>;

/// What a snapshot means.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) ids: Ids,
    pub(super) realized: Realized,
    pub(super) pools: Pools,
}

/// Reads a snapshot with the eyes of what is wanted.
///
/// `known` are the ids that Service ports are sure to have; the ids of others are found by their
/// frontends. What belongs to no wanted Service port is kept under its id, to be removed.
pub(super) fn restore(
    snapshot: &Snapshot,
    wanted: &Wanted,
    known: &Ids,
    capacity: impl Fn(Family) -> u32,
) -> Restored {
    let ids = identify(snapshot, wanted, known);
    let mut restored = Restored {
        realized: Realized::default(),
        pools: Pools {
            services: services_pool(snapshot, &ids),
            backends: [Family::V4, Family::V6]
                .map(|family| (family, backends_pool(snapshot, family, capacity(family))))
                .into(),
            regions: Regions::new(),
        },
        ids,
    };
    restored.adopt_backends(snapshot);
    restored.adopt_frontends(snapshot);
    restored.adopt_source_ranges(snapshot);
    restored.recognise_lists(snapshot, wanted);
    restored
}

/// A Service port has the id that one of its frontends names, cluster IPs first.
fn identify(snapshot: &Snapshot, wanted: &Wanted, known: &Ids) -> Ids {
    let mut ids: Ids = known
        .iter()
        .filter(|(key, _)| wanted.contains_key(key))
        .map(|(key, id)| (key.clone(), *id))
        .collect();
    let mut taken: BTreeSet<ServiceId> = known.values().copied().collect();
    for key in in_order(wanted) {
        if ids.contains_key(key) {
            continue;
        }
        let found = addresses(&wanted[key])
            .filter_map(|address| snapshot.frontends.get(address))
            .map(|entry| entry.service)
            .find(|id| (1..SERVICE_IDS).contains(&id.0) && !taken.contains(id));
        if let Some(id) = found {
            taken.insert(id);
            ids.insert(key.clone(), id);
        }
    }
    ids
}

/// Wanted Service ports in order of their names: the same cluster gets the same ids.
pub(super) fn in_order(wanted: &Wanted) -> Vec<&PortKey> {
    let mut keys: Vec<&PortKey> = wanted.keys().collect();
    keys.sort_unstable();
    keys
}

fn addresses(tables: &PortTables) -> impl Iterator<Item = &FrontendAddress> {
    let of = |cluster_ip| {
        tables.frontends().filter(move |(_, f)| (f.kind == FrontendKind::CLUSTER_IP) == cluster_ip)
    };
    of(true).chain(of(false)).map(|(address, _)| address)
}

fn services_pool(snapshot: &Snapshot, ids: &Ids) -> Pool {
    let frontends = snapshot.frontends.values().map(|entry| entry.service);
    let backends = snapshot.backends.values().map(|entry| entry.service);
    let ranges = snapshot.source_ranges.iter().map(|(id, _)| *id);
    let used = frontends.chain(backends).chain(ranges).chain(ids.values().copied());
    Pool::restored(SERVICE_IDS, used.map(|id| (id.0, 1)).collect())
}

fn backends_pool(snapshot: &Snapshot, family: Family, capacity: u32) -> Pool {
    let used = snapshot.backends.iter().filter(|(id, _)| id.family == family);
    let used = used.map(|(id, entry)| (id.index, entry.generation));
    let mut pool = Pool::restored(capacity, used.collect());
    let retired = snapshot.retired.iter().filter(|(id, _)| id.family == family);
    pool.remember(retired.map(|(id, generation)| (id.index, *generation)));
    pool
}

impl Restored {
    fn adopt_backends(&mut self, snapshot: &Snapshot) {
        for (id, entry) in &snapshot.backends {
            self.owner(entry).backends.insert(
                entry.address,
                HeldBackend { id: *id, generation: entry.generation, written: Some(entry.flags) },
            );
        }
    }

    /// The Service port of a backend. The second backend of an address is a stray: it gets an
    /// owner that is nobody's, from the end of the numbers.
    fn owner(&mut self, entry: &BackendEntry) -> &mut Held {
        let strays = (0..).map(|n| ServiceId(u32::MAX - n));
        let ports = &mut self.realized.ports;
        let is_free = |id: &ServiceId| {
            ports.get(id).is_none_or(|held| !held.backends.contains_key(&entry.address))
        };
        let owner = std::iter::once(entry.service).chain(strays).find(is_free);
        ports.entry(owner.unwrap_or(entry.service)).or_default()
    }

    fn adopt_frontends(&mut self, snapshot: &Snapshot) {
        for (address, entry) in &snapshot.frontends {
            self.realized.frontends.insert(*address, *entry);
            let held = self.realized.ports.entry(entry.service).or_default();
            held.frontends.insert(*address);
            for region in [entry.internal, entry.external] {
                if region.length > 0 && self.pools.regions.reserve(region) {
                    held.regions.push(HeldRegion { region, list: None, written: true });
                }
            }
        }
    }

    fn adopt_source_ranges(&mut self, snapshot: &Snapshot) {
        for (id, range) in &snapshot.source_ranges {
            self.realized.ports.entry(*id).or_default().source_ranges.insert(*range);
        }
    }

    /// Finds for each wanted list the region that holds exactly its slots.
    fn recognise_lists(&mut self, snapshot: &Snapshot, wanted: &Wanted) {
        for (key, tables) in wanted {
            let id = self.ids.get(key);
            let Some(held) = id.and_then(|id| self.realized.ports.get_mut(id)) else { continue };
            for list in tables.used_lists() {
                if let Some(place) = place_of(list, held, snapshot) {
                    held.regions[place].list = Some(Arc::clone(list));
                }
            }
        }
    }
}

fn place_of(list: &[SocketAddr], held: &Held, snapshot: &Snapshot) -> Option<usize> {
    let length = maglev::length(list.len());
    let fits = |held: &HeldRegion| held.region.length == length && held.list.is_none();
    let mut places = held.regions.iter().enumerate().filter(|(_, held)| fits(held)).peekable();
    places.peek()?;
    if !list.iter().all(|address| held.backends.contains_key(address)) {
        return None;
    }
    let slots = plan::slots(list, held);
    let found = places.find(|(_, held)| holds(snapshot, held.region, &slots));
    found.map(|(place, _)| place)
}

fn holds(snapshot: &Snapshot, region: Region, slots: &[u32]) -> bool {
    let found = snapshot.regions.get(&region.first_chunk);
    found.is_some_and(|(found, content)| *found == region && **content == *slots)
}
