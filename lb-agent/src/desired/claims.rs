//! Who has an address that several Service ports ask for (S21).

use std::collections::HashMap;

use lb_common::abi::FrontendKind;

use super::{FrontendAddress, PortKey};

/// One Service port's wish for an address; the least of all claims wins.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Claim {
    rank: Rank,
    created: i64,
    /// The Service port that asks.
    pub(super) port: PortKey,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    ClusterIp,
    Other,
}

impl Claim {
    /// The claim of a port of a Service created at `created`.
    pub(super) fn new(kind: FrontendKind, created: i64, port: &PortKey) -> Self {
        let rank = if kind == FrontendKind::CLUSTER_IP { Rank::ClusterIp } else { Rank::Other };
        Self { rank, created, port: port.clone() }
    }
}

/// All claims, in order for each address.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<FrontendAddress, Vec<Claim>>);

impl Claims {
    /// Adds a claim.
    pub(super) fn add(&mut self, address: FrontendAddress, claim: Claim) {
        let claims = self.0.entry(address).or_insert_with(|| Vec::with_capacity(1));
        let place = claims.partition_point(|other| *other < claim);
        claims.insert(place, claim);
    }

    /// Takes a port's claim back.
    pub(super) fn withdraw(&mut self, address: &FrontendAddress, port: &PortKey) {
        if let Some(claims) = self.0.get_mut(address) {
            claims.retain(|claim| claim.port != *port);
            if claims.is_empty() {
                self.0.remove(address);
            }
        }
    }

    /// The port that has the address.
    pub(super) fn winner(&self, address: &FrontendAddress) -> Option<&PortKey> {
        self.0.get(address)?.first().map(|claim| &claim.port)
    }

    /// All ports that ask for the address.
    pub(super) fn claimants(&self, address: &FrontendAddress) -> impl Iterator<Item = &PortKey> {
        self.0.get(address).into_iter().flatten().map(|claim| &claim.port)
    }
}
