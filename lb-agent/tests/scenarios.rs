//! Scenarios: cluster objects in, tables by name out.
//!
//! A file of `tests/scenarios/` is a story in YAML documents. Each document applies objects and
//! ends with `expect: |`: the first with the whole tables, the next ones with the lines that came
//! and went. `UPDATE=1 cargo test --test scenarios` writes the expectations anew: read the diff.
//!
//! Each story is told twice: as it stands, and with the objects of each document in reverse order
//! while one step in ten fails.

#![allow(clippy::unwrap_used, reason = "a test ends where it panics")]

#[path = "scenarios/dump.rs"]
mod dump;
#[path = "scenarios/objects.rs"]
mod objects;

use std::{collections::BTreeSet, env, fs, path::Path};

use lb_agent::{
    dataplane::{fake::FakeTables, faulty::Faulty},
    desired::{Desired, NodeFacts},
    model::{Change, Event, Model},
    reconcile::{Outcome, Reconciler},
};

use dump::Problems;
use objects::Document;

/// An agent without a source, on tables that may fail.
struct Agent {
    model: Model,
    desired: Desired,
    reconciler: Reconciler<Faulty<FakeTables>>,
    problems: Problems,
}

impl Agent {
    fn new(one_in: u64) -> Self {
        let tables = Faulty::new(FakeTables::default(), 7, one_in);
        let mut reconciler = Reconciler::new(tables);
        reconciler.listed();
        let desired = Desired::new(NodeFacts::default());
        Self { model: Model::default(), desired, reconciler, problems: Problems::default() }
    }

    fn set_facts(&mut self, facts: NodeFacts) {
        let delta = self.desired.set_facts(&self.model, facts);
        self.problems.clash.extend(delta.problems.clone());
        let outcome = self.reconciler.apply(delta);
        self.settle(outcome);
    }

    fn apply(&mut self, event: Event) {
        let Change::Services(names) = self.model.apply(event) else { return };
        let delta = self.desired.update(&self.model, &names);
        self.problems.clash.extend(delta.problems.clone());
        let outcome = self.reconciler.apply(delta);
        self.settle(outcome);
    }

    fn settle(&mut self, mut outcome: Outcome) {
        for _ in 0..1000 {
            self.problems.room.extend(outcome.problems);
            if !self.reconciler.is_pending() {
                return;
            }
            outcome = self.reconciler.retry();
        }
        panic!("never done");
    }

    fn lines(&mut self) -> BTreeSet<String> {
        self.reconciler.tables().set_rate(0);
        dump::lines(&mut self.reconciler, &self.problems)
    }
}

/// Order of the objects of one document.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    AsWritten,
    Reverse,
}

/// What each document's expectation should be.
fn tell(documents: &[Document], order: Order, one_in: u64) -> Vec<String> {
    let mut agent = Agent::new(one_in);
    let mut before = BTreeSet::new();
    let mut told = Vec::new();
    for (place, document) in documents.iter().enumerate() {
        if let Some(node) = &document.node {
            agent.set_facts(node.facts());
        }
        let mut events = document.events();
        if order == Order::Reverse {
            events.reverse();
        }
        for event in events {
            agent.apply(event);
        }
        let after = agent.lines();
        agent.reconciler.tables().set_rate(one_in);
        told.push(if place == 0 { dump::whole(&after) } else { dump::difference(&before, &after) });
        before = after;
    }
    told
}

/// The text of a document with another expectation.
fn with_expectation(text: &str, expectation: &str) -> String {
    let input: String = text
        .lines()
        .take_while(|line| !line.starts_with("expect:"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let body: String = expectation.lines().flat_map(|line| ["  ", line, "\n"]).collect();
    format!("{input}expect: |\n{body}")
}

fn run(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let texts: Vec<&str> = text.split("---\n").collect();
    let parse = |text: &&str| -> Document {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let documents: Vec<Document> = texts.iter().map(parse).collect();
    let told = tell(&documents, Order::AsWritten, 0);
    assert_eq!(told, tell(&documents, Order::Reverse, 10), "{}: reversed", path.display());
    let written: Vec<String> =
        texts.iter().zip(&told).map(|(text, told)| with_expectation(text, told)).collect();
    let written = written.join("---\n");
    if env::var_os("UPDATE").is_some() {
        fs::write(path, written).unwrap();
    } else {
        assert_eq!(text, written, "{}: UPDATE=1 accepts what is right", path.display());
    }
}

#[test]
fn every_scenario_gives_the_tables_it_expects() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        run(&path);
    }
}
