//! The agent's metrics, for Prometheus.

use std::{sync::atomic::Ordering, time::Duration};

use lb_common::abi::{Counter as Reason, CounterKind};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

use crate::{dataplane::MapFill, model};

/// Everything that is counted. The loop that knows a number sets it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sync_duration: Histogram,
    sync_changes: Counter,
    problems: Gauge,
    unsupported_devices: Gauge,
    packets: Family<PacketLabels, Counter>,
    closed_sockets: Counter,
    deleted_entries: Family<FamilyLabels, Counter>,
    sweep_duration: Family<FamilyLabels, Histogram, fn() -> Histogram>,
    map_entries: Family<MapLabels, Gauge>,
    map_capacity: Family<MapLabels, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PacketLabels {
    reason: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FamilyLabels {
    ip_family: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct MapLabels {
    map: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lb");
        let sync_duration = durations();
        registry.register_with_unit(
            "sync_duration",
            "Time to bring the tables in step",
            Unit::Seconds,
            sync_duration.clone(),
        );
        let sweep_duration = Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register_with_unit(
            "conntrack_reconciler_sync_duration",
            "Time to find and delete flows whose backend no longer serves",
            Unit::Seconds,
            sweep_duration.clone(),
        );
        Self {
            sync_duration,
            sync_changes: new(&mut registry, "sync_changes", "Entries written or removed"),
            problems: new(&mut registry, "problems", "Objects and files at fault"),
            unsupported_devices: new(
                &mut registry,
                "unsupported_devices",
                "Devices without an Ethernet header, which get no programs",
            ),
            packets: new(&mut registry, "packets", "Packets that were not translated"),
            closed_sockets: new(
                &mut registry,
                "closed_sockets",
                "Connected sockets closed because their backend no longer serves",
            ),
            deleted_entries: new(
                &mut registry,
                "conntrack_reconciler_deleted_entries",
                "Entries of flows deleted because their backend no longer serves",
            ),
            sweep_duration,
            map_entries: new(&mut registry, "map_entries", "Entries in use"),
            map_capacity: new(&mut registry, "map_capacity", "Entries that fit"),
            registry,
        }
    }
}

/// From 0.1 ms to 26 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 10))
}

fn new<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// The tables are in step after `duration`, with so many entries written or removed.
    pub fn synced(&self, duration: Duration, changes: u64) {
        self.sync_duration.observe(duration.as_secs_f64());
        self.sync_changes.inc_by(changes);
    }

    /// So many objects and files are at fault.
    pub fn set_problems(&self, count: usize) {
        self.problems.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many devices are left alone for want of an Ethernet header.
    pub fn set_unsupported_devices(&self, count: usize) {
        self.unsupported_devices.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many packets met `reason` since the maps were made.
    pub fn set_packets(&self, reason: Reason, count: u64) {
        let labels = PacketLabels { reason: reason.name(), kind: kind_name(reason.kind()) };
        self.packets.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
    }

    /// So many sockets were closed because their backend no longer serves.
    pub fn closed(&self, sockets: u64) {
        self.closed_sockets.inc_by(sockets);
    }

    /// Flows whose backend no longer serves were looked for, and so many entries deleted.
    pub fn swept(&self, family: model::Family, entries: u64, duration: Duration) {
        let ip_family = match family {
            model::Family::V4 => "IPv4",
            model::Family::V6 => "IPv6",
        };
        let labels = FamilyLabels { ip_family };
        self.deleted_entries.get_or_create(&labels).inc_by(entries);
        self.sweep_duration.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    /// Sockets closed, and entries of flows deleted, in all.
    pub fn ended(&self) -> (u64, u64) {
        let entries = ["IPv4", "IPv6"]
            .map(|ip_family| self.deleted_entries.get_or_create(&FamilyLabels { ip_family }).get());
        (self.closed_sockets.get(), entries.iter().sum())
    }

    /// A map is so full.
    pub fn set_map(&self, map: &MapFill) {
        let labels = MapLabels { map: map.name };
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.map_entries.get_or_create(&labels).set(signed(map.entries));
        self.map_capacity.get_or_create(&labels).set(signed(map.capacity));
    }

    /// All of them in the text format of `OpenMetrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let written = encode(&mut text, &self.registry);
        debug_assert!(written.is_ok(), "a String takes every write");
        text
    }
}

fn kind_name(kind: CounterKind) -> &'static str {
    match kind {
        CounterKind::Drop => "drop",
        CounterKind::Pass => "pass",
        CounterKind::Reject => "reject",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_what_is_shown() {
        let metrics = Metrics::default();
        metrics.synced(Duration::from_millis(3), 7);
        metrics.set_problems(2);
        metrics.set_packets(Reason::NoEndpoint, 5);
        metrics.set_packets(Reason::NoEndpoint, 6);
        let map = MapFill { name: "FRONTENDS_V4", entries: 4, capacity: 262_144, bytes: 1024 };
        metrics.set_map(&map);
        metrics.closed(3);
        metrics.swept(model::Family::V6, 2, Duration::from_millis(1));
        let text = metrics.text();
        for line in [
            "lb_sync_duration_seconds_count 1\n",
            "lb_sync_changes_total 7\n",
            "lb_problems 2\n",
            "lb_packets_total{reason=\"no_endpoint\",kind=\"reject\"} 6\n",
            "lb_closed_sockets_total 3\n",
            "lb_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 2\n",
            "lb_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"} 1\n",
            "lb_map_entries{map=\"FRONTENDS_V4\"} 4\n",
            "lb_map_capacity{map=\"FRONTENDS_V4\"} 262144\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
