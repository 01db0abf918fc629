//! How full the tables are, and what goes from them by itself.

use std::time::Duration;

use lb_common::abi::{Swept, maps};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family as Labelled, gauge::Gauge},
    registry::Registry,
};

use super::metrics::new;
use crate::{dataplane::MapFill, model::Family};

/// A walk over all flows of a family.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// What it found.
    pub swept: Swept,
    /// Entries that a full table has thrown out since the walk before.
    pub evicted: u64,
    /// Room for so many entries.
    pub capacity: u64,
    /// Time that it took.
    pub duration: Duration,
}

impl Walk {
    /// Entries that it left.
    pub const fn left(&self) -> u64 {
        self.swept.entries - self.swept.stale - self.swept.expired
    }
}

/// The metrics of maps.
#[derive(Debug)]
pub(super) struct MapMetrics {
    entries: Labelled<MapLabels, Gauge>,
    capacity: Labelled<MapLabels, Gauge>,
    expired: Labelled<MapLabels, Counter>,
    evicted: Labelled<MapLabels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct MapLabels {
    map: &'static str,
}

impl MapMetrics {
    /// Nothing is counted yet.
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            entries: new(registry, "map_entries", "Entries in use"),
            capacity: new(registry, "map_capacity", "Entries that fit"),
            expired: new(
                registry,
                "map_expired_entries",
                "Entries of flows removed because they were silent for too long",
            ),
            evicted: new(
                registry,
                "map_evicted_entries",
                "Entries of flows that a full table threw out",
            ),
        }
    }

    /// A map is so full.
    pub(super) fn set(&self, map: &MapFill) {
        self.set_fill(&MapLabels { map: map.name }, map.entries, map.capacity);
    }

    /// All flows of a family were looked at.
    pub(super) fn walked(&self, family: Family, walk: &Walk) {
        let labels = labels(family);
        self.set_fill(&labels, walk.left(), walk.capacity);
        self.expired.get_or_create(&labels).inc_by(walk.swept.expired);
        self.evicted.get_or_create(&labels).inc_by(walk.evicted);
    }

    /// Entries that were silent for too long, and that full tables threw out, in all.
    pub(super) fn expired_and_evicted(&self) -> (u64, u64) {
        (sum(&self.expired), sum(&self.evicted))
    }

    fn set_fill(&self, labels: &MapLabels, entries: u64, capacity: u64) {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.entries.get_or_create(labels).set(signed(entries));
        self.capacity.get_or_create(labels).set(signed(capacity));
    }
}

fn sum(counters: &Labelled<MapLabels, Counter>) -> u64 {
    let of = |family| counters.get_or_create(&labels(family)).get();
    [Family::V4, Family::V6].into_iter().map(of).sum()
}

const fn labels(family: Family) -> MapLabels {
    MapLabels {
        map: match family {
            Family::V4 => maps::CONNTRACK_V4,
            Family::V6 => maps::CONNTRACK_V6,
        },
    }
}
