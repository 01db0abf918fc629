//! An agent in pieces: events in, tables out, without a source and without a kernel.

#![allow(dead_code, reason = "each test that takes this in uses its part of it")]

pub(crate) mod trial;

use std::collections::BTreeMap;

use lb_agent::{
    desired::{Delta, Desired, NodeFacts},
    model::{Change, Event, Model, ObjectName, Problem},
    reconcile::{Outcome, Reconciler},
};

use trial::{Script, Trial};

/// What the agent complains of, by Service.
#[derive(Default)]
pub(crate) struct Problems {
    /// Found by the rules.
    pub(crate) rules: BTreeMap<ObjectName, Vec<Problem>>,
    /// Found by the tables.
    pub(crate) tables: BTreeMap<ObjectName, Vec<Problem>>,
}

/// Model, desired tables and reconciler, as the agent joins them.
pub(crate) struct Pipeline {
    model: Model,
    facts: NodeFacts,
    desired: Desired,
    reconciler: Reconciler<Trial>,
    problems: Problems,
}

impl Pipeline {
    /// An agent that has listed a cluster without objects, on empty tables.
    pub(crate) fn new(script: Script) -> Self {
        let mut reconciler = Reconciler::new(Trial::new(script));
        reconciler.listed();
        Self {
            model: Model::default(),
            facts: NodeFacts::default(),
            desired: Desired::default(),
            reconciler,
            problems: Problems::default(),
        }
    }

    /// The node has changed; its zone is what the Node object says.
    pub(crate) fn see(&mut self, facts: NodeFacts) {
        let zone = self.model.node().and_then(|node| node.zone.clone());
        self.facts = NodeFacts { zone, ..facts };
        if !self.is_dead() {
            let delta = self.desired.set_facts(&self.model, self.facts.clone());
            self.write(delta);
        }
    }

    /// Events arrive together. A dead agent hears of them when it is there again.
    pub(crate) fn take(&mut self, events: impl IntoIterator<Item = Event>) {
        let (mut changed, mut node) = (Vec::new(), false);
        for event in events {
            match self.model.apply(event) {
                Change::Services(names) => changed.extend(names),
                Change::Node => node = true,
                Change::Nothing => {}
            }
        }
        if !self.is_dead() {
            let delta = self.desired.update(&self.model, &changed);
            self.write(delta);
        }
        if node {
            self.see(self.facts.clone());
        }
    }

    /// The agent dies.
    pub(crate) fn kill(&mut self) {
        self.tables().kill();
    }

    /// Another agent takes over the tables, and is told everything anew.
    pub(crate) fn restart(&mut self) {
        let reconciler = std::mem::replace(&mut self.reconciler, Reconciler::new(Trial::default()));
        let mut tables = reconciler.into_tables();
        tables.revive();
        self.reconciler = Reconciler::new(tables);
        self.problems = Problems::default();
        self.desired = Desired::new(self.facts.clone());
        let names: Vec<ObjectName> = self.model.services().map(|s| s.name.clone()).collect();
        let delta = self.desired.update(&self.model, &names);
        self.write(delta);
        let outcome = self.reconciler.listed();
        self.note(outcome);
    }

    /// Reads the tables and mends what differs.
    pub(crate) fn resync(&mut self) {
        let outcome = self.reconciler.resync();
        self.note(outcome);
    }

    /// Retries until nothing is pending, or the agent is dead.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1000 {
            if self.is_dead() || !self.reconciler.is_pending() {
                return;
            }
            let outcome = self.reconciler.retry();
            self.note(outcome);
        }
        panic!("never done");
    }

    /// As [`Self::settle`]; whenever the agent dies, another one takes over at once.
    pub(crate) fn settle_alive(&mut self) {
        self.settle();
        while self.is_dead() {
            self.restart();
            self.settle();
        }
    }

    pub(crate) fn is_dead(&mut self) -> bool {
        self.reconciler.tables().is_dead()
    }

    pub(crate) fn reconciler(&mut self) -> &mut Reconciler<Trial> {
        &mut self.reconciler
    }

    pub(crate) fn tables(&mut self) -> &mut Trial {
        self.reconciler.tables()
    }

    pub(crate) fn problems(&self) -> &Problems {
        &self.problems
    }

    fn write(&mut self, delta: Delta) {
        self.problems.rules.extend(delta.problems.clone());
        let outcome = self.reconciler.apply(delta);
        self.note(outcome);
    }

    fn note(&mut self, outcome: Outcome) {
        self.problems.tables.extend(outcome.problems);
    }
}
