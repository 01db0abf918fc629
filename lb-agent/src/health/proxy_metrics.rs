//! What is counted with kube-proxy's meaning (S20), so that dashboards made for it can be used.
//!
//! Each has kube-proxy's name, type, labels and buckets, under the prefix `lb_` and, where asked
//! for, under `kubeproxy_` too; [`ProxyMetrics::register`] is the one place that has the names.

use std::{sync::atomic::AtomicU64, time::Duration};

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets, linear_buckets},
    },
    registry::Registry,
};

use crate::{desired::NoLocalEndpoints, model};

type Histograms = Family<FamilyLabel, Histogram, fn() -> Histogram>;
type Times = Family<FamilyLabel, Gauge<f64, AtomicU64>>;

/// The metrics that kube-proxy has as well.
#[derive(Clone, Debug)]
pub(super) struct ProxyMetrics {
    network_programming: Histograms,
    sync: Histograms,
    last_sync: Times,
    last_queued: Times,
    pub(super) endpoint_changes: Counter,
    pub(super) endpoint_changes_pending: Gauge,
    pub(super) service_changes: Counter,
    pub(super) service_changes_pending: Gauge,
    no_local_endpoints: Family<PolicyLabels, Gauge>,
    healthz: Family<CodeLabel, Counter>,
    livez: Family<CodeLabel, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FamilyLabel {
    ip_family: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PolicyLabels {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CodeLabel {
    code: u16,
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        Self {
            network_programming: Family::new_with_constructor(network_programming),
            sync: Family::new_with_constructor(sync),
            last_sync: Family::default(),
            last_queued: Family::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }
}

/// From a quarter of a second to five minutes.
fn network_programming() -> Histogram {
    let seconds = linear_buckets(0.25, 0.25, 2).chain(linear_buckets(1.0, 1.0, 59));
    Histogram::new(
        seconds.chain(linear_buckets(60.0, 5.0, 12)).chain(linear_buckets(120.0, 30.0, 7)),
    )
}

/// From a millisecond to 16 seconds.
fn sync() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl ProxyMetrics {
    /// Shows them in a registry, whose prefix is in front of each name. Counters get `_total`.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "network_programming_duration_seconds",
            "From the change of a Pod or Service to the end of programming it",
            self.network_programming.clone(),
        );
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "Time to bring the tables in step",
            self.sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the tables were last brought in step",
            self.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When something last came to be written",
            self.last_queued.clone(),
        );
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports that drop clients by a Local policy, having no endpoint here",
            self.no_local_endpoints.clone(),
        );
        self.register_changes(registry);
        self.register_probes(registry);
    }

    fn register_changes(&self, registry: &mut Registry) {
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that are not written yet",
            self.endpoint_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices",
            self.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not written yet",
            self.service_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services",
            self.service_changes.clone(),
        );
    }

    fn register_probes(&self, registry: &mut Registry) {
        registry.register("proxy_healthz", "Answers of /healthz", self.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", self.livez.clone());
    }

    /// The tables of both families are in step after `duration`.
    pub(super) fn synced(&self, duration: Duration) {
        for label in FamilyLabel::BOTH {
            self.sync.get_or_create(&label).observe(duration.as_secs_f64());
        }
    }

    /// A change that happened `seconds` ago is programmed.
    pub(super) fn programmed(&self, family: model::Family, seconds: f64) {
        self.network_programming.get_or_create(&FamilyLabel::of(family)).observe(seconds);
    }

    pub(super) fn set_last_queued(&self, time: Timestamp) {
        set_times(&self.last_queued, time);
    }

    pub(super) fn set_last_sync(&self, time: Timestamp) {
        set_times(&self.last_sync, time);
    }

    pub(super) fn set_no_local_endpoints(&self, family: model::Family, count: NoLocalEndpoints) {
        for (traffic_policy, count) in [("internal", count.internal), ("external", count.external)]
        {
            let labels =
                PolicyLabels { traffic_policy, ip_family: FamilyLabel::of(family).ip_family };
            let gauge = self.no_local_endpoints.get_or_create(&labels);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// `/healthz` has answered with `code`.
    pub(super) fn answered_healthz(&self, code: u16) {
        self.healthz.get_or_create(&CodeLabel { code }).inc();
    }

    /// `/livez` has answered with `code`.
    pub(super) fn answered_livez(&self, code: u16) {
        self.livez.get_or_create(&CodeLabel { code }).inc();
    }
}

fn set_times(times: &Times, time: Timestamp) {
    let seconds = time.as_duration().as_secs_f64();
    for label in FamilyLabel::BOTH {
        times.get_or_create(&label).set(seconds);
    }
}

impl FamilyLabel {
    const BOTH: [Self; 2] = [Self { ip_family: "IPv4" }, Self { ip_family: "IPv6" }];

    fn of(family: model::Family) -> Self {
        let [v4, v6] = Self::BOTH;
        match family {
            model::Family::V4 => v4,
            model::Family::V6 => v6,
        }
    }
}
