//! Which ready endpoints are near enough for the Cluster list (S2).

use crate::model::Endpoint;

use super::NodeFacts;

/// How endpoints are chosen by their hints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Topology {
    /// All of them.
    Anywhere,
    /// Those that name this node.
    SameNode,
    /// Those that name the zone of this node.
    SameZone,
}

impl Topology {
    /// Reads the hints of the ready endpoints: one without a hint switches that filter off.
    pub(super) fn of<'a>(ready: impl Iterator<Item = &'a Endpoint>, facts: &NodeFacts) -> Self {
        let (mut node, mut zone) = (Hints::default(), Hints::default());
        for endpoint in ready {
            node.take(endpoint.node_hints.is_empty(), Self::SameNode.admits(endpoint, facts));
            zone.take(endpoint.zone_hints.is_empty(), Self::SameZone.admits(endpoint, facts));
        }
        match (node.usable(), zone.usable()) {
            (true, _) => Self::SameNode,
            (false, true) => Self::SameZone,
            (false, false) => Self::Anywhere,
        }
    }

    /// Is this endpoint one to use from this node?
    pub(super) fn admits(self, endpoint: &Endpoint, facts: &NodeFacts) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameNode => endpoint.node_hints.contains(&facts.name),
            Self::SameZone => {
                facts.zone.as_ref().is_some_and(|zone| endpoint.zone_hints.contains(zone))
            }
        }
    }
}

/// What one kind of hint says over all endpoints.
#[derive(Default)]
struct Hints {
    one_is_missing: bool,
    one_is_ours: bool,
}

impl Hints {
    fn take(&mut self, missing: bool, ours: bool) {
        self.one_is_missing |= missing;
        self.one_is_ours |= ours;
    }

    fn usable(&self) -> bool {
        !self.one_is_missing && self.one_is_ours
    }
}
