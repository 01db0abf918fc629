//! The endpoints of one Service port and family, and the lists that clients choose from (S1, S19).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::abi::BackendFlags;

use crate::model::{Endpoint, EndpointSlice, Family, ServicePort};

use super::{Backend, NodeFacts, topology::Topology};

/// Endpoints that one list can lead to: as many as the largest Maglev table has slots.
pub const MAX_ENDPOINTS: usize = 65_521;

/// An endpoint with the port that its slice gives it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    endpoint: &'a Endpoint,
    local: bool,
}

impl Candidate<'_> {
    /// Which of two entries for one address counts: the one on this node, then the better one.
    fn rank(&self) -> (bool, bool, bool) {
        (self.local, self.endpoint.ready, self.endpoint.serving)
    }

    /// Known flows may go on to it: a ready endpoint counts as serving, because
    /// `publishNotReadyAddresses` makes pods ready that do not serve (S17).
    fn serves(&self) -> bool {
        self.endpoint.ready || self.endpoint.serving
    }

    fn backend(&self) -> Backend {
        let local = if self.local { BackendFlags::LOCAL } else { BackendFlags::NONE };
        Backend {
            flags: BackendFlags::SERVING.with(local),
            node: self.endpoint.node.clone(),
            pod: self.endpoint.pod.clone(),
        }
    }
}

/// Endpoints of one Service port and family, merged over all slices.
pub(super) struct Candidates<'a>(BTreeMap<SocketAddr, Candidate<'a>>);

impl<'a> Candidates<'a> {
    /// Collects them: a slice port belongs to the Service port of its name and protocol (S1.9).
    pub(super) fn collect(
        slices: &[&'a EndpointSlice],
        port: &ServicePort,
        family: Family,
        facts: &NodeFacts,
    ) -> Self {
        let mut merged = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.family == family) {
            for number in slice
                .ports
                .iter()
                .filter(|p| p.name == port.name && p.protocol == port.protocol)
                .map(|p| p.port.get())
            {
                for endpoint in &slice.endpoints {
                    let local = endpoint.node.as_ref() == Some(&facts.name);
                    let address = SocketAddr::new(endpoint.address, number);
                    merge(merged.entry(address), Candidate { endpoint, local });
                }
            }
        }
        Self(merged)
    }

    /// Everything that flows may go to.
    pub(super) fn backends(&self) -> BTreeMap<SocketAddr, Backend> {
        let serving = self.0.iter().filter(|(_, candidate)| candidate.serves());
        serving.map(|(address, candidate)| (*address, candidate.backend())).collect()
    }

    /// Is any endpoint usable, on any node (S1.7)?
    pub(super) fn has_any(&self) -> bool {
        self.0.values().any(|candidate| candidate.endpoint.ready || is_leaving(candidate))
    }

    /// The Cluster list (S1.4).
    pub(super) fn cluster_list(&self, facts: &NodeFacts) -> Arc<[SocketAddr]> {
        let ready = self.0.values().map(|c| c.endpoint).filter(|endpoint| endpoint.ready);
        let topology = Topology::of(ready, facts);
        self.first_list(|c| c.endpoint.ready && topology.admits(c.endpoint, facts), is_leaving)
    }

    /// The Local list (S1.5).
    pub(super) fn local_list(&self) -> Arc<[SocketAddr]> {
        self.first_list(|c| c.local && c.endpoint.ready, |c| c.local && is_leaving(c))
    }

    /// Those of the first choice; where there are none, those of the second.
    fn first_list(
        &self,
        first: impl Fn(&Candidate<'_>) -> bool,
        second: impl Fn(&Candidate<'_>) -> bool,
    ) -> Arc<[SocketAddr]> {
        let chosen = self.list(first);
        if chosen.is_empty() { self.list(second) } else { chosen }
    }

    fn list(&self, wanted: impl Fn(&Candidate<'_>) -> bool) -> Arc<[SocketAddr]> {
        let chosen = self.0.iter().filter(|(_, candidate)| wanted(candidate));
        chosen.map(|(address, _)| *address).take(MAX_ENDPOINTS).collect()
    }
}

/// Terminating, and still able to answer: used where nothing is ready.
fn is_leaving(candidate: &Candidate<'_>) -> bool {
    candidate.endpoint.serving && candidate.endpoint.terminating
}

fn merge<'a>(entry: Entry<'_, SocketAddr, Candidate<'a>>, candidate: Candidate<'a>) {
    match entry {
        Entry::Occupied(mut held) if held.get().rank() < candidate.rank() => {
            held.insert(candidate);
        }
        Entry::Occupied(_) => {}
        Entry::Vacant(free) => {
            free.insert(candidate);
        }
    }
}
