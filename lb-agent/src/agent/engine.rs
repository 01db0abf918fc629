//! Model, desired tables and reconciler, driven by events: from what changed to what is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;

use super::{
    changes::{Changes, Heard},
    problems::{Finder, Problems, Told},
    taken::TakenPorts,
};
use crate::{
    config::DetectLocal,
    dataplane::{BackendId, KernelTables, ServiceId},
    desired::{Delta, Desired, FrontendAddress, HealthCheck, NodeFacts, PortKey},
    health::Metrics,
    instance::Instance,
    model::{Change, Event, Family, Model, ObjectName},
    names::{BackendNames, Names, ServiceNames},
    reconcile::{self, Outcome, Reconciler},
};

/// The pipeline from events to tables.
pub(super) struct Engine {
    model: Model,
    desired: Desired,
    reconciler: Reconciler<KernelTables>,
    names: Names,
    facts: NodeFacts,
    taken: TakenPorts,
    detect_local: DetectLocal,
    listed: bool,
    failed_at: Option<tokio::time::Instant>,
    last: Written,
    changes: Changes,
    /// Those that wait until the tables say the same.
    health_checks: BTreeMap<ObjectName, Option<HealthCheck>>,
    metrics: Arc<Metrics>,
    retired: bool,
}

/// A Service's health check port after a change (S3).
#[derive(Clone, Debug)]
pub(super) enum HealthChange {
    /// Its endpoints changed, and the tables do not say so yet.
    Ahead(ObjectName, HealthCheck),
    /// It is this one, or none.
    Settled(ObjectName, Option<HealthCheck>),
}

/// What has been written so far, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    /// Steps performed.
    pub(super) steps: u64,
    /// Runs that performed any.
    pub(super) runs: u64,
    /// How long the newest of them took.
    pub(super) duration: Duration,
}

impl Engine {
    pub(super) fn open(
        tables: KernelTables,
        instance: &Instance,
        metrics: &Arc<Metrics>,
        detect_local: DetectLocal,
    ) -> anyhow::Result<Self> {
        let path = instance.names();
        let names = Names::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            model: Model::default(),
            desired: Desired::default(),
            reconciler: Reconciler::new(tables),
            names,
            facts: NodeFacts::default(),
            taken: TakenPorts::default(),
            detect_local,
            listed: false,
            failed_at: None,
            last: Written::default(),
            changes: Changes::new(Arc::clone(metrics), Timestamp::now()),
            health_checks: BTreeMap::new(),
            metrics: Arc::clone(metrics),
            retired: false,
        })
    }

    /// Takes in what a source says, all of it before anything is written.
    pub(super) fn take(&mut self, events: impl Iterator<Item = Event>, problems: &mut Problems) {
        let mut changed = BTreeSet::new();
        let (mut node, mut listed, mut told) = (false, false, Told::default());
        for event in events {
            match event {
                Event::Listed => listed = true,
                Event::Problem(problem) => told.add(problem),
                Event::ProblemSolved(key) => told.solved(key),
                event => {
                    let heard = Heard::of(&event);
                    let change = self.model.apply(event);
                    self.changes.add(&heard, &change, !self.listed);
                    match change {
                        Change::Services(names) => changed.extend(names),
                        Change::Node => node = true,
                        Change::Nothing => {}
                    }
                }
            }
        }
        self.changes.tell();
        told.settle(problems);
        let delta = self.desired.update(&self.model, &changed);
        self.write(delta, problems);
        if node {
            self.see(self.facts.clone(), problems);
        }
        if listed && !self.listed {
            self.listed = true;
            tracing::info!(services = self.model.services().count(), "everything is listed");
            self.write_local_sources();
            self.run(problems, Reconciler::listed);
            // An agent before this one may have ended between its writes and what follows them.
            self.retired = true;
        }
        self.measure();
    }

    /// Takes in facts of the node; zone and pods' networks are the model's to say.
    pub(super) fn see(&mut self, facts: NodeFacts, problems: &mut Problems) {
        let node = self.model.node();
        let zone = node.and_then(|node| node.zone.clone());
        let local_sources = self.detect_local.sources(node.map_or(&[], |node| &node.pod_cidrs));
        let is_known = self.facts.local_sources == local_sources;
        self.facts = NodeFacts { zone, local_sources, ..facts };
        // Each address and route that changes comes by here, and writing reads the tries.
        if !is_known {
            self.write_local_sources();
        }
        let delta = self.desired.set_facts(&self.model, self.facts.clone());
        self.write(delta, problems);
        self.measure();
    }

    /// When what failed is to be tried again.
    pub(super) fn retry_at(&self, after: Duration) -> Option<tokio::time::Instant> {
        self.failed_at.map(|failed_at| failed_at + after)
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self, problems: &mut Problems) {
        self.run(problems, Reconciler::retry);
        self.measure();
    }

    /// Mends what the kernel holds, where something else has changed it.
    pub(super) fn resync(&mut self, problems: &mut Problems) {
        self.taken.look_again(problems);
        let before = self.last.steps;
        self.write_local_sources();
        self.run(problems, Reconciler::resync);
        let steps = self.last.steps - before;
        if steps > 0 {
            tracing::warn!(steps, "the tables differed from what was written, and are mended");
        }
    }

    /// Is everything written that was listed?
    pub(super) fn is_synced(&self) -> bool {
        self.listed && self.failed_at.is_none() && !self.reconciler.is_pending()
    }

    /// May a load balancer in front send traffic to this node (S4)?
    pub(super) fn is_node_eligible(&self) -> bool {
        self.model.is_node_eligible()
    }

    /// The health check ports that changed; none before the first tables are written (S16).
    pub(super) fn take_health_changes(&mut self) -> Vec<HealthChange> {
        if !self.listed || self.health_checks.is_empty() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for (name, check) in std::mem::take(&mut self.health_checks) {
            match check {
                Some(check) if self.reconciler.is_behind(&name) => {
                    changes.push(HealthChange::Ahead(name.clone(), check.clone()));
                    self.health_checks.insert(name, Some(check));
                }
                check => changes.push(HealthChange::Settled(name, check)),
            }
        }
        changes
    }

    /// Cluster IPs that a device of this node holds, and whose they would be.
    pub(super) fn left_alone(&self) -> &BTreeSet<(FrontendAddress, PortKey)> {
        self.desired.left_alone()
    }

    /// What has been written so far.
    pub(super) const fn written(&self) -> Written {
        self.last
    }

    /// May flows have been parted from their backends since this was asked, or are the tables just taken
    /// over?
    pub(super) fn take_retired(&mut self) -> bool {
        std::mem::take(&mut self.retired)
    }

    /// Writes who is local by address, once the node's object is known if there is one (S16).
    fn write_local_sources(&mut self) {
        if !self.listed {
            return;
        }
        let sources = &self.facts.local_sources;
        if let Err(error) = self.reconciler.tables().set_local_sources(sources) {
            tracing::error!(%error, "write the local sources; it is tried again within a minute");
        }
    }

    /// Tells the metrics what came of the changes.
    fn measure(&mut self) {
        if self.is_synced() {
            self.changes.written(Timestamp::now());
            for family in [Family::V4, Family::V6] {
                let count = self.desired.no_local_endpoints(family);
                self.metrics.set_no_local_endpoints(family, count);
            }
        }
        self.changes.tell();
    }

    fn write(&mut self, mut delta: Delta, problems: &mut Problems) {
        self.health_checks.append(&mut delta.health_checks);
        for (name, found) in &delta.problems {
            problems.set(Finder::Rules(name.clone()), found.iter().cloned());
        }
        if !delta.ports.is_empty() {
            self.taken.see(&delta, problems);
            self.run(problems, |reconciler| reconciler.apply(delta));
        }
    }

    fn run(
        &mut self,
        problems: &mut Problems,
        work: impl FnOnce(&mut Reconciler<KernelTables>) -> Outcome,
    ) {
        let begun = Instant::now();
        let outcome = work(&mut self.reconciler);
        if outcome.steps > 0 {
            self.last.steps += outcome.steps as u64;
            self.last.runs += 1;
            self.last.duration = begun.elapsed();
            let (steps, duration) = (outcome.steps, self.last.duration);
            tracing::debug!(steps, services = outcome.visited, ?duration, "written");
        }
        self.retired |= outcome.retired;
        if let Some(error) = &outcome.failure {
            tracing::warn!(%error, "not everything could be written; it is tried again");
        }
        self.failed_at = outcome.failure.map(|_| tokio::time::Instant::now());
        for (name, found) in outcome.problems {
            problems.set(Finder::Tables(name), found);
        }
        if let Err(error) = self.record_names(&outcome.services) {
            tracing::error!(%error, "write the names of Services");
        }
    }

    fn record_names(&mut self, services: &BTreeSet<ServiceId>) -> io::Result<()> {
        let reconciler = &self.reconciler;
        self.names.record(services.iter().map(|id| (*id, reconciler.names(*id).map(names))))
    }
}

/// Names as the journal keeps them.
fn names(known: reconcile::ServiceNames) -> ServiceNames {
    let ObjectName { namespace, name } = &known.port.service;
    let mut names = ServiceNames {
        namespace: namespace.to_string(),
        name: name.to_string(),
        port: known.port.port.to_string(),
        ..ServiceNames::default()
    };
    for (BackendId { family, index }, backend) in known.backends {
        let entry = BackendNames {
            pod: backend.pod.map(|pod| pod.to_string()).unwrap_or_default(),
            node: backend.node.as_deref().unwrap_or_default().to_owned(),
        };
        match family {
            Family::V4 => names.v4.insert(index, entry),
            Family::V6 => names.v6.insert(index, entry),
        };
    }
    names
}
