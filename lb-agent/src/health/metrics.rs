//! The agent's metrics, for Prometheus.

use std::{sync::atomic::Ordering, time::Duration};

use jiff::Timestamp;
use lb_common::abi::{Counter as Reason, CounterKind};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family as Labelled,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

use super::{
    map_metrics::{MapMetrics, Walk},
    proxy_metrics::ProxyMetrics,
};
use crate::{dataplane::MapFill, desired::NoLocalEndpoints, instance::StaleStatus, model::Family};

/// Everything that is counted. The loop that knows a number sets it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    proxy: ProxyMetrics,
    sync_duration: Histogram,
    sync_changes: Counter,
    problems: Gauge,
    unsupported_devices: Gauge,
    packets: Labelled<PacketLabels, Counter>,
    closed_sockets: Counter,
    maps: MapMetrics,
}

/// What a change is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChangeKind {
    /// An `EndpointSlice`.
    Endpoints,
    /// A Service.
    Service,
}

/// A page that says how the agent is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PacketLabels {
    reason: &'static str,
    kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(ProxyNames::Own)
    }
}

/// Under which names there is what kube-proxy counts as well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyNames {
    /// Under kube-proxy's own, too.
    Both,
    /// Under our prefix alone.
    Own,
}

impl Metrics {
    /// Nothing is counted yet.
    pub fn new(names: ProxyNames) -> Self {
        let mut all = Registry::default();
        let proxy = ProxyMetrics::default();
        if names == ProxyNames::Both {
            proxy.register(all.sub_registry_with_prefix("kubeproxy"));
        }
        let registry = all.sub_registry_with_prefix("lb");
        proxy.register(registry);
        // From 0.1 ms to 26 s.
        let sync_duration = Histogram::new(exponential_buckets(0.0001, 4.0, 10));
        registry.register_with_unit(
            "sync_duration",
            "Time to bring the tables in step, in finer steps",
            Unit::Seconds,
            sync_duration.clone(),
        );
        Self {
            proxy,
            sync_duration,
            sync_changes: new(registry, "sync_changes", "Entries written or removed"),
            problems: new(registry, "problems", "Objects and files at fault"),
            unsupported_devices: new(
                registry,
                "unsupported_devices",
                "Devices of neither Ethernet nor IP, which get no programs",
            ),
            packets: new(registry, "packets", "Packets that were not translated"),
            closed_sockets: new(
                registry,
                "closed_sockets",
                "Connected sockets closed because their backend no longer serves",
            ),
            maps: MapMetrics::new(registry),
            registry: all,
        }
    }
}

/// Registers a metric.
pub(super) fn new<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// The tables are in step after `duration`, with so many entries written or removed.
    pub fn synced(&self, duration: Duration, changes: u64) {
        self.sync_duration.observe(duration.as_secs_f64());
        self.sync_changes.inc_by(changes);
        self.proxy.synced(duration);
    }

    /// A change of endpoints that began at `time` has been written at `now` (S20).
    pub fn programmed(&self, family: Family, time: Timestamp, now: Timestamp) {
        let seconds = now.duration_since(time).as_secs_f64();
        self.proxy.programmed(family, seconds.max(0.0));
    }

    /// Something waits to be written since `time`.
    pub fn queued(&self, time: Timestamp) {
        self.proxy.set_last_queued(time);
    }

    /// Everything known is written at `time`.
    pub fn in_step(&self, time: Timestamp) {
        self.proxy.set_last_sync(time);
    }

    /// So many more changes were heard of, and so many wait to be written.
    pub fn set_changes(&self, kind: ChangeKind, seen: u64, pending: u64) {
        let (all, waiting) = match kind {
            ChangeKind::Endpoints => {
                (&self.proxy.endpoint_changes, &self.proxy.endpoint_changes_pending)
            }
            ChangeKind::Service => {
                (&self.proxy.service_changes, &self.proxy.service_changes_pending)
            }
        };
        all.inc_by(seen);
        waiting.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    /// So many Service ports drop clients for want of an endpoint on this node.
    pub fn set_no_local_endpoints(&self, family: Family, count: NoLocalEndpoints) {
        self.proxy.set_no_local_endpoints(family, count);
    }

    /// One of the two probes was answered with `code`.
    pub fn answered(&self, probe: Probe, code: u16) {
        match probe {
            Probe::Healthz => self.proxy.answered_healthz(code),
            Probe::Livez => self.proxy.answered_livez(code),
        }
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

    /// All flows of a family were looked at.
    pub fn walked(&self, family: Family, walk: &Walk) {
        self.proxy.swept(family, walk.swept.stale, walk.duration);
        self.maps.walked(family, walk);
    }

    /// What was ended, in all.
    pub fn ended(&self) -> StaleStatus {
        let (expired_entries, evicted_entries) = self.maps.expired_and_evicted();
        StaleStatus {
            closed_sockets: self.closed_sockets.get(),
            deleted_entries: self.proxy.deleted_entries(),
            expired_entries,
            evicted_entries,
        }
    }

    /// A map is so full.
    pub fn set_map(&self, map: &MapFill) {
        self.maps.set(map);
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
        CounterKind::Answer => "answer",
        CounterKind::Drop => "drop",
        CounterKind::Pass => "pass",
        CounterKind::Reject => "reject",
        CounterKind::Serve => "serve",
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Swept;

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
        let swept = Swept { entries: 9, stale: 2, expired: 3, begun: 0 };
        let duration = Duration::from_millis(1);
        metrics.walked(Family::V6, &Walk { swept, evicted: 4, capacity: 100, duration });
        let text = metrics.text();
        for line in [
            "lb_sync_duration_seconds_count 1\n",
            "lb_sync_changes_total 7\n",
            "lb_problems 2\n",
            "lb_packets_total{reason=\"no_endpoint\",kind=\"reject\"} 6\n",
            "lb_closed_sockets_total 3\n",
            "lb_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 2\n",
            "lb_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"} 1\n",
            "lb_map_entries{map=\"CONNTRACK_V6\"} 4\n",
            "lb_map_capacity{map=\"CONNTRACK_V6\"} 100\n",
            "lb_map_expired_entries_total{map=\"CONNTRACK_V6\"} 3\n",
            "lb_map_evicted_entries_total{map=\"CONNTRACK_V6\"} 4\n",
            "lb_map_entries{map=\"FRONTENDS_V4\"} 4\n",
            "lb_map_capacity{map=\"FRONTENDS_V4\"} 262144\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    /// The lines of one metric, under both prefixes, the prefix cut off.
    fn under_both_names(text: &str, name: &str) -> Vec<String> {
        let under = |prefix: &str| -> Vec<String> {
            let start = format!("{prefix}_{name}");
            let lines = text.lines().filter(|line| line.starts_with(&start));
            lines.filter_map(|line| Some(line.split_once('_')?.1.to_owned())).collect()
        };
        let lines = under("lb");
        assert_eq!(lines, under("kubeproxy"), "{name}");
        lines
    }

    fn filled() -> Metrics {
        let metrics = Metrics::new(ProxyNames::Both);
        let time = Timestamp::from_second(1_800_000_000).unwrap();
        let later = Timestamp::from_millisecond(1_800_000_000_400).unwrap();
        metrics.programmed(Family::V6, time, later);
        metrics.synced(Duration::from_millis(3), 7);
        metrics.queued(time);
        metrics.in_step(later);
        metrics.set_changes(ChangeKind::Endpoints, 3, 2);
        metrics.set_changes(ChangeKind::Service, 5, 0);
        metrics.set_no_local_endpoints(Family::V4, NoLocalEndpoints { internal: 1, external: 2 });
        metrics.answered(Probe::Healthz, 503);
        metrics.answered(Probe::Livez, 200);
        metrics
    }

    #[test]
    fn s20_what_kube_proxy_counts_has_its_names_types_and_labels() {
        let metrics = filled();
        let text = metrics.text();
        for line in [
            "network_programming_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "network_programming_duration_seconds_bucket{le=\"0.25\",ip_family=\"IPv6\"} 0",
            "network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv6\"} 1",
            "network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv6\"} 1",
            "sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 1",
            "sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1800000000.4",
            "sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 1800000000.0",
            "sync_proxy_rules_endpoint_changes_pending 2",
            "sync_proxy_rules_endpoint_changes_total 3",
            "sync_proxy_rules_service_changes_pending 0",
            "sync_proxy_rules_service_changes_total 5",
            "sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 1",
            "sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 2",
            "proxy_healthz_total{code=\"503\"} 1",
            "proxy_livez_total{code=\"200\"} 1",
        ] {
            let name = line.split(['{', ' ']).next().unwrap();
            let lines = under_both_names(&text, name);
            assert!(lines.iter().any(|found| found == line), "{line} is not in\n{text}");
        }
        for typed in [
            "network_programming_duration_seconds histogram",
            "sync_proxy_rules_no_local_endpoints_total gauge",
            "sync_proxy_rules_endpoint_changes counter",
        ] {
            assert!(text.contains(&format!("# TYPE kubeproxy_{typed}\n")), "{typed}\n{text}");
        }
    }

    #[test]
    fn s20_kube_proxys_names_are_there_only_where_asked_for() {
        let metrics = Metrics::default();
        metrics.synced(Duration::from_millis(3), 7);
        let text = metrics.text();
        assert!(!text.contains("kubeproxy"), "{text}");
        assert!(text.contains("lb_sync_proxy_rules_duration_seconds_count"), "{text}");
    }
}
