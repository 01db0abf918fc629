//! The tables without ids: for comparing what two agents made.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ipnet::IpNet;
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind, Region};

use crate::{
    dataplane::{BackendId, FrontendAddress, FrontendEntry},
    model::Family,
};

use super::FakeTables;

/// The tables without ids: what a client would see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Meaning {
    /// Frontends.
    pub frontends: BTreeMap<FrontendAddress, FrontendMeaning>,
    /// Addresses and flags of all backends, in ascending order.
    pub backends: Vec<(SocketAddr, BackendFlags)>,
    /// Source ranges of all Service ports, in ascending order.
    pub source_ranges: Vec<IpNet>,
}

/// One frontend without ids.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FrontendMeaning {
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// Refuse or drop, and for whom.
    pub flags: FrontendFlags,
    /// Affinity timeout in seconds.
    pub affinity_timeout: u32,
    /// Who may ask, where it checks that.
    pub sources: BTreeSet<IpNet>,
    /// The backend of each slot for clients on this node.
    pub internal: Vec<SocketAddr>,
    /// The backend of each slot for clients from outside.
    pub external: Vec<SocketAddr>,
}

impl FakeTables {
    /// What the tables mean, without ids.
    pub fn meaning(&self) -> Meaning {
        let frontends = self.frontends.iter();
        let mut backends: Vec<_> =
            self.backends.values().map(|entry| (entry.address, entry.flags)).collect();
        backends.sort_unstable_by_key(|(address, flags)| (*address, flags.0));
        let mut source_ranges: Vec<_> = self.sources.iter().map(|(_, range)| *range).collect();
        source_ranges.sort_unstable();
        Meaning {
            source_ranges,
            frontends: frontends
                .map(|(at, entry)| (*at, self.frontend_meaning(at, entry)))
                .collect(),
            backends,
        }
    }

    /// What one frontend means; `None` where there is none.
    pub fn meaning_at(&self, at: &FrontendAddress) -> Option<FrontendMeaning> {
        self.frontends.get(at).map(|entry| self.frontend_meaning(at, entry))
    }

    fn frontend_meaning(&self, at: &FrontendAddress, entry: &FrontendEntry) -> FrontendMeaning {
        FrontendMeaning {
            kind: entry.kind,
            flags: entry.flags,
            affinity_timeout: entry.affinity_timeout,
            sources: self.sources(at, entry),
            internal: self.addresses(Family::of(at.ip), entry.internal),
            external: self.addresses(Family::of(at.ip), entry.external),
        }
    }

    fn sources(&self, at: &FrontendAddress, entry: &FrontendEntry) -> BTreeSet<IpNet> {
        let checks = entry.flags.has(FrontendFlags::CHECK_SOURCE);
        let ranges = checks.then(|| self.sources_of(entry.service, Family::of(at.ip)));
        ranges.into_iter().flatten().copied().collect()
    }

    fn addresses(&self, family: Family, region: Region) -> Vec<SocketAddr> {
        if region.length == 0 {
            return Vec::new();
        }
        let slots = self.regions.get(&region.first_chunk).map(|(_, slots)| slots);
        let backend = |index: &u32| self.backends.get(&BackendId { family, index: *index });
        let indices = slots.into_iter().flat_map(|slots| slots.iter());
        indices.filter_map(backend).map(|entry| entry.address).collect()
    }
}
