//! The agent at work: everything that runs between its start and the signal that ends it.
//!
//! One task owns model, tables and devices; a source and netlink tell it what changed. What comes
//! close together is taken together. Not for: deciding what the tables hold (`desired`), or how
//! they are written (`reconcile`, `dataplane`).

mod changes;
mod conntrack;
mod devices;
mod engine;
pub(crate) mod fast;
mod node_settings;
mod problems;
mod report;
mod room;
mod stale;
mod taken;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context;
use ipnet::IpNet;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    conntrack::Watch,
    devices::Devices,
    engine::{Engine, HealthChange},
    node_settings::NodeSettings,
    problems::{Finder, Problems},
    report::Report,
    stale::Sweeper,
};
use crate::{
    config::{NodePortAddresses, PortRange, Settings, Source},
    dataplane::Kernel,
    desired::NodeFacts,
    health::{self, Health, HealthPorts, Metrics},
    instance::{Instance, Lock, Status},
    model::Event,
    net::{self, NodeNetwork},
    source::{self, SourceError, cluster, manifests},
    telemetry::with_progress,
};

/// Events that wait for the task that takes them in.
const QUEUE: usize = 4096;
/// Between looks at whether the kernel still holds what it should.
const RESYNC: Duration = Duration::from_mins(1);
/// Between tries to write what the kernel refused.
const RETRY: Duration = Duration::from_secs(1);
/// Between looks at counters and maps.
const MEASURE: Duration = Duration::from_secs(10);

/// What the agent starts with. It holds the lock for as long as it lives.
#[derive(Debug)]
pub struct Start {
    /// What it was told.
    pub settings: Settings,
    /// Its files.
    pub instance: Instance,
    /// Its lock.
    pub lock: Lock,
    /// What it tells of itself.
    pub status: Status,
    /// Cancelled by SIGTERM and SIGINT.
    pub stop: CancellationToken,
}

/// Runs until `stop` is cancelled.
///
/// # Errors
///
/// What the agent can't work without is missing.
pub async fn agent(start: Start) -> anyhow::Result<()> {
    let Start { settings, instance, lock: _lock, status, stop } = start;
    tracing::info!(node = settings.node_name, source = %settings.source, "starting");
    let (health, metrics) = (Health::default(), Arc::new(Metrics::new(settings.proxy_names)));
    let _servers = health::serve(settings.healthz, settings.metrics, &health, &metrics);
    let node_settings = NodeSettings::start(&settings, &instance);
    let mut kernel = Kernel::start(&room::kernel_options(&settings))?;
    let ended = Arc::new(Notify::new());
    let sweeper = sweeper(&mut kernel, &metrics, &ended);
    let (named, local) = (settings.devices.clone(), settings.detect_local.clone());
    let following = net::follow(net::DeviceSettings { named, local: local.clone() });
    let following = with_progress("listing devices", following).await.context("list devices")?;
    let _hops = watch_hops(&kernel).await?;
    let mut source = source::Source::new(source_options(&settings, &instance));
    let mut problems = Problems::told_to(source.complaints());
    room::tell(kernel.sizes_kept(), &mut problems);
    let source_health = source.health();
    let (sender, events) = mpsc::channel(QUEUE);
    let source = tokio::spawn(source.run(sender, stop.clone()));
    let health_ports = HealthPorts::new(health.clone());
    let engine = Engine::open(kernel.tables()?, &instance, &metrics, local)?;
    let report = Report::new(status, &instance, &settings.bpffs, (source_health, health, metrics));
    let agent = Agent {
        engine,
        health_ports,
        devices: Devices::new(kernel, settings.xdp),
        sweeper,
        conntrack: Watch::default(),
        ended,
        problems,
        node_settings,
        report,
        settings,
    };
    agent.run(events, following.network.clone(), source, stop).await
}

struct Agent {
    engine: Engine,
    health_ports: HealthPorts,
    devices: Devices,
    sweeper: Option<Sweeper>,
    conntrack: Watch,
    ended: Arc<Notify>,
    problems: Problems,
    node_settings: NodeSettings,
    report: Report,
    settings: Settings,
}

impl Agent {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut network: watch::Receiver<NodeNetwork>,
        mut source: JoinHandle<Result<(), SourceError>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut resync = every(RESYNC);
        let mut measure = every(MEASURE);
        // Before any list is complete: what it leaves out is removed, node ports among it.
        let first = network.borrow_and_update().clone();
        self.see(&first);
        let mut batch = Vec::with_capacity(QUEUE);
        loop {
            let retry = self.retry_at();
            tokio::select! {
                () = stop.cancelled() => break,
                count = events.recv_many(&mut batch, QUEUE), if !source.is_finished() => {
                    if count > 0 { self.take(batch.drain(..)) }
                }
                ended = &mut source => return ended.context("the source's task")?.context("source"),
                changed = network.changed() => {
                    changed.context("follow devices")?;
                    let newest = network.borrow_and_update().clone();
                    self.see(&newest);
                }
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                    self.retry();
                }
                _ = resync.tick() => self.resync(),
                () = self.ended.notified() => self.watch_conntrack(),
                _ = measure.tick() => self.report.measure(self.sweeper.is_some()),
            }
            self.settle_health_ports().await;
            if self.engine.take_retired() {
                self.sweep();
            }
            self.report.update(&self.engine, &self.devices, &self.problems);
        }
        Ok(())
    }

    /// Has what leads to backends that no longer serve ended.
    fn sweep(&self) {
        if let Some(sweeper) = &self.sweeper {
            sweeper.wake();
        }
    }

    /// Takes in what the last walk over all flows has found.
    fn watch_conntrack(&mut self) {
        if let Some(sweeper) = &self.sweeper {
            self.conntrack.see(sweeper.fills(), &mut self.problems);
        }
    }

    /// Takes in what a source says.
    fn take(&mut self, events: impl Iterator<Item = Event>) {
        self.report.queued();
        self.engine.take(events, &mut self.problems);
    }

    /// Mends what others have changed.
    fn resync(&mut self) {
        self.devices.repair(&mut self.problems);
        self.engine.resync(&mut self.problems);
        self.node_settings.retry();
        self.sweep();
    }

    fn retry_at(&self) -> Option<Instant> {
        let all = [self.engine.retry_at(RETRY), self.health_ports.retry_at(RETRY)];
        all.into_iter().flatten().min()
    }

    /// Tries again what failed a while ago.
    fn retry(&mut self) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
        if is_due(self.engine.retry_at(RETRY)) {
            self.engine.retry(&mut self.problems);
        }
        if is_due(self.health_ports.retry_at(RETRY)) {
            self.health_ports.retry();
        }
    }

    /// Brings the health check ports after the tables.
    async fn settle_health_ports(&mut self) {
        for change in self.engine.take_health_changes() {
            match change {
                HealthChange::Ahead(service, check) => self.health_ports.lower(&service, &check),
                HealthChange::Settled(service, check) => self.health_ports.want(service, check),
            }
        }
        for (service, problem) in self.health_ports.settle().await {
            self.problems.set(Finder::HealthPort(service), problem);
        }
    }

    /// Takes in a new picture of the node's network.
    fn see(&mut self, network: &NodeNetwork) {
        self.report.see(network);
        self.devices.see(network, &mut self.problems);
        let node_ports = net::nodeports(network, &self.settings.nodeport_addresses);
        if !self.settings.nodeport_addresses.contains(&NodePortAddresses::All) {
            self.health_ports.listen_at(node_ports.clone());
        }
        let facts = NodeFacts {
            name: self.settings.node_name.as_str().into(),
            zone: None,
            node_port_addresses: node_ports,
            local_addresses: network.addresses.clone(),
            primary_addresses: network.primary.addresses().collect(),
            local_sources: BTreeSet::new(),
            forwarding: self.settings.forwarding,
            masquerade_all: self.settings.masquerade_all,
        };
        self.engine.see(facts, &mut self.problems);
    }
}

/// Has known flows ask for their way again when the network changes. Without it they do so by time, within
/// seconds.
async fn watch_hops(kernel: &Kernel) -> anyhow::Result<Option<net::HopWatch>> {
    let cache = kernel.flow_cache()?;
    let watch = net::watch_hops(move || cache.renew()).await;
    Ok(watch.inspect_err(|error| tracing::warn!(%error, "follow routes and neighbours")).ok())
}

/// Without it the rest works: a kernel may lack what it needs.
fn sweeper(kernel: &mut Kernel, metrics: &Arc<Metrics>, ended: &Arc<Notify>) -> Option<Sweeper> {
    let started = kernel.take_stale()?.map_err(anyhow::Error::from).and_then(|finder| {
        Sweeper::start(finder, Arc::clone(metrics), Arc::clone(ended)).context("start a thread")
    });
    let failed =
        "sockets that are connected to a removed backend stay open, and silent flows are kept";
    started.inspect_err(|error| tracing::warn!("{failed}: {error:#}")).ok()
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.reset();
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn source_options(settings: &Settings, instance: &Instance) -> source::Options {
    let node_name = settings.node_name.clone();
    match settings.source.clone() {
        Source::Cluster { kubeconfig, master } => {
            let retry = cluster::Options::RETRY;
            source::Options::Cluster(cluster::Options { kubeconfig, master, node_name, retry })
        }
        Source::Folder { path, service_networks, node_ports } => {
            source::Options::Manifests(manifests::Options {
                folder: path,
                node_name,
                state_file: Some(instance.allocations()),
                ranges: ranges(&service_networks, node_ports),
            })
        }
    }
}

/// The last network named of each family; a family that is not named keeps the usual one.
fn ranges(networks: &[IpNet], node_ports: PortRange) -> manifests::Ranges {
    let mut ranges = manifests::Ranges {
        node_ports: node_ports.first..=node_ports.last,
        ..manifests::Ranges::default()
    };
    for network in networks {
        match network {
            IpNet::V4(v4) => ranges.v4 = *v4,
            IpNet::V6(v6) => ranges.v6 = *v6,
        }
    }
    ranges
}
