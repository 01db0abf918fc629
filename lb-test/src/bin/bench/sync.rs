//! From what a source says to the last map write: model, rules, plan, and the kernel's maps.

use std::time::Instant;

use anyhow::{Result, ensure};
use lb_agent::{
    dataplane::{
        Kernel, KernelOptions, KernelTables, MidFlow, PerformError, Snapshot, SocketLb, Step,
        TableError, Tables, TcAttach, cleanup,
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
    let mut pipeline = Pipeline::start(node, "sync")?;
    for index in 0..STARTS {
        if index > 0 {
            pipeline = Pipeline::start(node, "sync")?;
        }
        colds.push(pipeline.fill(size)?);
    }
    let (mut published, mut complete) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let [first, last] = pipeline.change(number / 2 * 37 % size, number)?;
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

/// Adds what a change costs in the larger cluster over what it costs in the smaller one.
///
/// Both are there at the same time, and changed in turn, so that both have the same machine. The
/// same number of Services changes in both: what differs is only how much else there is.
pub(crate) fn compare(node: &Node, sizes: [u32; 2], report: &mut Report) -> Result<()> {
    let mut pipelines = Vec::new();
    for size in sizes {
        let mut pipeline = Pipeline::start(node, &format!("sync-{size}"))?;
        pipeline.fill(size)?;
        pipelines.push((size, pipeline, Vec::new()));
    }
    for number in 0..CHANGES {
        for (size, pipeline, published) in &mut pipelines {
            let every = *size / sizes[0];
            let of = number / 2 % sizes[0] * every;
            published.push(pipeline.change(of, number)?[0]);
        }
    }
    let [(_, small, few), (_, large, many)] = &pipelines[..] else { unreachable!("two sizes") };
    let [writes, more] = [small, large].map(|pipeline| f64::from(pipeline.writes));
    let name =
        |what| format!("one change at {} Services over one at {}: {what}", sizes[1], sizes[0]);
    let mut add = |what, ratio| report.add(&name(what), None, (ratio, Unit::Times), 1.0);
    add("map writes", more / writes);
    add("time until in effect, p50", percentile(many, 0.5) / percentile(few, 0.5));
    for size in sizes {
        cleanup(&node.bpffs().join(format!("sync-{size}")))?;
    }
    Ok(())
}

/// The agent's pipeline, without a source.
struct Pipeline {
    /// Steps that changes have taken.
    writes: u32,
    model: Model,
    desired: Desired,
    reconciler: Reconciler<Watched>,
}

impl Pipeline {
    /// An empty pipeline on fresh maps.
    fn start(node: &Node, folder: &str) -> Result<Self> {
        let bpffs = node.bpffs().join(folder);
        cleanup(&bpffs)?;
        let options = KernelOptions {
            bpffs,
            cgroup: None,
            socket_lb: SocketLb::Off,
            bind_protection: false,
            tc_attach: TcAttach::Auto,
            xdp: true,
            snat_ports: (61000, 65535),
            carrier_kind: lb_common::carrier::Kind::Gue,
            carrier_port: lb_common::carrier::PORT,
            mid_flow: MidFlow::Balanced,
            reset_tcp: false,
            timeouts: lb_common::conntrack::Timeouts::DEFAULT,
            conntrack_max: ENTRIES,
            affinity_max: ENTRIES,
            max_frontends: ENTRIES,
            max_backends: ENTRIES,
        };
        let tables = node.enter(|| -> Result<_> { Ok(Kernel::start(&options)?.tables()?) })??;
        let facts = NodeFacts { name: "node1".into(), ..NodeFacts::default() };
        let reconciler = Reconciler::new(Watched { tables, published: Instant::now() });
        let desired = Desired::new(facts);
        Ok(Self { writes: 0, model: Model::default(), desired, reconciler })
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

    /// Takes an endpoint out of a Service, or with an odd number back in; milliseconds until the
    /// frontend is replaced, and until what it replaced is gone.
    fn change(&mut self, service: u32, number: u32) -> Result<[f64; 2]> {
        let slice = slice(service, 1 - number % 2);
        let begun = Instant::now();
        let outcome = self.take(vec![Event::SliceApplied(slice)])?;
        let complete = begun.elapsed();
        ensure!(outcome.steps > 0, "change {number} wrote nothing");
        self.writes += u32::try_from(outcome.steps)?;
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
        forwarding: None,
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
        last_change: None,
    }
}
