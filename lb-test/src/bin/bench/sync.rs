//! From what a source says to the last map write: model, rules, plan, and the kernel's maps.

use std::time::Instant;

use anyhow::{Result, ensure};
use lb_agent::{
    dataplane::{
        Kernel, KernelOptions, KernelTables, PerformError, Snapshot, SocketLb, Step, TableError,
        Tables, TcAttach, cleanup,
    },
    desired::{Desired, NodeFacts},
    model::{
        Change, Endpoint, EndpointSlice, Event, Family, Model, ObjectName, Protocol, Service,
        ServicePort, ServiceType, SlicePort, TrafficPolicy,
    },
    reconcile::{Outcome, Reconciler},
};
use lb_test::Node;

use crate::cluster::{ENDPOINTS, cluster_ip, endpoint};
use crate::report::{Report, Unit, percentile};

/// Cold starts that are timed.
const STARTS: usize = 3;
/// Changes that are timed.
const CHANGES: u32 = 200;
/// Entries of each map, as the agent has them by default.
const ENTRIES: u32 = 1 << 18;

/// Adds the figures of a cold start and of single changes.
pub(crate) fn measure(node: &Node, size: u32, report: &mut Report) -> Result<()> {
    let mut colds = Vec::new();
    let mut pipeline = Pipeline::start(node)?;
    for index in 0..STARTS {
        if index > 0 {
            pipeline = Pipeline::start(node)?;
        }
        colds.push(pipeline.fill(size)?);
    }
    let (mut published, mut complete) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let [first, last] = pipeline.change(number, size)?;
        published.push(first);
        complete.push(last);
    }
    cleanup(&node.bpffs().join("sync"))?;
    let mut add = |name: &str, value: f64, goal: Option<f64>| {
        report.add(name, size, (value, Unit::Milliseconds), goal);
    };
    add("cold start, listed until every map is written", percentile(&colds, 0.5), Some(1000.0));
    for (name, times) in [("in effect", published), ("its last map write", complete)] {
        add(&format!("one change until {name}, p50"), percentile(&times, 0.5), None);
        add(&format!("one change until {name}, p99"), percentile(&times, 0.99), Some(5.0));
    }
    Ok(())
}

/// The agent's pipeline, without a source.
struct Pipeline {
    model: Model,
    desired: Desired,
    reconciler: Reconciler<Watched>,
}

impl Pipeline {
    /// An empty pipeline on fresh maps.
    fn start(node: &Node) -> Result<Self> {
        let bpffs = node.bpffs().join("sync");
        cleanup(&bpffs)?;
        let options = KernelOptions {
            bpffs,
            cgroup: None,
            socket_lb: SocketLb::Off,
            tc_attach: TcAttach::Auto,
            snat_ports: (61000, 65535),
            reset_tcp: false,
            conntrack_max: ENTRIES,
            max_frontends: ENTRIES,
            max_backends: ENTRIES,
        };
        let tables = node.enter(|| -> Result<_> { Ok(Kernel::start(&options)?.tables()?) })??;
        let facts = NodeFacts { name: "node1".into(), ..NodeFacts::default() };
        let reconciler = Reconciler::new(Watched { tables, published: Instant::now() });
        Ok(Self { model: Model::default(), desired: Desired::new(facts), reconciler })
    }

    /// Milliseconds from "everything is listed" to the last write.
    fn fill(&mut self, size: u32) -> Result<f64> {
        let events: Vec<Event> = (0..size)
            .flat_map(|n| [Event::ServiceApplied(service(n)), Event::SliceApplied(slice(n, 0))])
            .collect();
        let begun = Instant::now();
        self.take(events)?;
        let outcome = self.reconciler.listed();
        let time = begun.elapsed();
        ensure!(outcome.failure.is_none(), "{:?}", outcome.failure);
        let steps = size as usize * (ENDPOINTS as usize + 2);
        ensure!(outcome.steps == steps, "{} steps instead of {steps}", outcome.steps);
        Ok(time.as_secs_f64() * 1e3)
    }

    /// Takes an endpoint out of a Service or back in; milliseconds until the frontend is replaced,
    /// and until what it replaced is gone.
    fn change(&mut self, number: u32, size: u32) -> Result<[f64; 2]> {
        let slice = slice((number / 2 * 37) % size, 1 - number % 2);
        let begun = Instant::now();
        let outcome = self.take(vec![Event::SliceApplied(slice)])?;
        let complete = begun.elapsed();
        ensure!(outcome.steps > 0, "change {number} wrote nothing");
        let published = self.reconciler.tables().published.duration_since(begun);
        Ok([published, complete].map(|time| time.as_secs_f64() * 1e3))
    }

    fn take(&mut self, events: Vec<Event>) -> Result<Outcome> {
        let mut changed = Vec::new();
        for event in events {
            if let Change::Services(names) = self.model.apply(event) {
                changed.extend(names);
            }
        }
        changed.sort();
        changed.dedup();
        let outcome = self.reconciler.apply(self.desired.update(&self.model, &changed));
        ensure!(outcome.failure.is_none(), "{:?}", outcome.failure);
        Ok(outcome)
    }
}

/// The kernel's tables, with the time at which the last frontend was written.
struct Watched {
    tables: KernelTables,
    published: Instant,
}

impl Tables for Watched {
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError> {
        self.tables.perform(steps)?;
        if steps.iter().any(|step| matches!(step, Step::PutFrontend(..))) {
            self.published = Instant::now();
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, TableError> {
        self.tables.snapshot()
    }

    fn backend_capacity(&self, family: Family) -> u32 {
        self.tables.backend_capacity(family)
    }
}

fn name(number: u32) -> ObjectName {
    ObjectName::new("default", &format!("other-{number}"))
}

fn service(number: u32) -> Service {
    let port = ServicePort {
        name: "http".into(),
        port: const { std::num::NonZeroU16::new(80).expect("not zero") },
        protocol: Protocol::Tcp,
        node_port: None,
    };
    Service {
        name: name(number),
        service_type: ServiceType::ClusterIp,
        created: 1000,
        cluster_ips: vec![cluster_ip(number).into()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: vec![port],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_timeout: None,
        source_ranges: Vec::new(),
        health_check_node_port: None,
    }
}

/// The slice of a Service, without its last `missing` endpoints.
fn slice(number: u32, missing: u32) -> EndpointSlice {
    let endpoints = (0..ENDPOINTS - missing).map(|index| Endpoint {
        address: endpoint(number, index).into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("elsewhere".into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        pod: None,
    });
    EndpointSlice {
        name: ObjectName::new("default", &format!("other-{number}-1")),
        service: name(number),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: const { std::num::NonZeroU16::new(8080).expect("not zero") },
        }],
        endpoints: endpoints.collect(),
    }
}
