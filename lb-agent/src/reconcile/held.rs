//! What has been written so far, step by step: the realized state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::{BackendFlags, Region};

use crate::dataplane::{BackendId, FrontendAddress, FrontendEntry, ServiceId, Step};

/// A backend of one Service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBackend {
    pub(super) id: BackendId,
    pub(super) generation: u32,
    /// What the table holds; `None` while only the id is taken.
    pub(super) written: Option<BackendFlags>,
}

/// A region of one Service port.
#[derive(Clone, Debug)]
pub(super) struct HeldRegion {
    pub(super) region: Region,
    /// The list it was made from; `None` for one that was found and fits no list.
    pub(super) list: Option<Arc<[SocketAddr]>>,
    /// Have its slots been written?
    pub(super) written: bool,
}

/// All that one Service port holds in the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) backends: BTreeMap<SocketAddr, HeldBackend>,
    /// At most one for each list.
    pub(super) regions: Vec<HeldRegion>,
    /// May name addresses that another Service port has taken over since.
    pub(super) frontends: BTreeSet<FrontendAddress>,
    /// Whom it lets in where its frontends check that.
    pub(super) source_ranges: BTreeSet<IpNet>,
}

impl Held {
    /// The region made from that list.
    pub(super) fn region(&self, list: &Arc<[SocketAddr]>) -> Option<&HeldRegion> {
        self.regions.iter().find(|held| held.list.as_ref() == Some(list))
    }

    /// Nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.backends.is_empty()
            && self.regions.is_empty()
            && self.frontends.is_empty()
            && self.source_ranges.is_empty()
    }
}

/// The tables as they are, as far as the performed steps tell.
#[derive(Debug, Default)]
pub(super) struct Realized {
    pub(super) ports: BTreeMap<ServiceId, Held>,
    pub(super) frontends: HashMap<FrontendAddress, FrontendEntry>,
}

impl Realized {
    /// The frontends that a Service port still has.
    pub(super) fn frontends_of(
        &self,
        id: ServiceId,
    ) -> impl Iterator<Item = (&FrontendAddress, &FrontendEntry)> {
        let addresses = self.ports.get(&id).into_iter().flat_map(|held| &held.frontends);
        addresses
            .filter_map(|address| self.frontends.get_key_value(address))
            .filter(move |(_, entry)| entry.service == id)
    }

    /// Forgets what is in regions that are about to be freed: their backends may go first.
    pub(super) fn disown(&mut self, regions: &[(ServiceId, Region)]) {
        for (id, region) in regions {
            let held = self.ports.get_mut(id).into_iter().flat_map(|held| &mut held.regions);
            held.filter(|held| held.region == *region).for_each(|held| held.list = None);
        }
    }

    /// Can a step take a backend from flows that have it: removed, or no longer of their address?
    /// An address that nobody has may have been another Service port's a moment before.
    pub(super) fn is_parted_by(&self, step: &Step) -> bool {
        match step {
            Step::PutFrontend(address, entry) => {
                self.frontends.get(address).is_none_or(|held| held.service != entry.service)
            }
            Step::RemoveBackend(_) => true,
            _ => false,
        }
    }

    /// Takes note of a step that was performed for a Service port.
    pub(super) fn record(&mut self, owner: ServiceId, step: &Step) {
        let held = self.ports.entry(owner).or_default();
        match step {
            Step::PutBackend(_, entry) => {
                if let Some(backend) = held.backends.get_mut(&entry.address) {
                    backend.written = Some(entry.flags);
                }
            }
            Step::PutRegion(region, _) => {
                held.regions
                    .iter_mut()
                    .filter(|held| held.region == *region)
                    .for_each(|held| held.written = true);
            }
            Step::PutFrontend(address, entry) => {
                held.frontends.insert(*address);
                self.frontends.insert(*address, *entry);
            }
            Step::RemoveFrontend(address) => {
                held.frontends.remove(address);
                self.frontends.remove(address);
            }
            Step::RemoveBackend(id) => held.backends.retain(|_, backend| backend.id != *id),
            Step::PutSourceRange(_, range) => {
                held.source_ranges.insert(*range);
            }
            Step::RemoveSourceRange(_, range) => {
                held.source_ranges.remove(range);
            }
            Step::Settle => {}
        }
    }
}
