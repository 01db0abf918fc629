//! Service ports that the tables have no room for.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    dataplane::TableError,
    desired::{PortKey, problem_key},
    model::{ObjectName, Problem, Protocol},
};

use super::restore::SERVICE_IDS;

/// The problem of each blocked Service port, and the Services whose problems changed.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    problems: BTreeMap<PortKey, Problem>,
    changed: BTreeSet<ObjectName>,
}

impl Blocked {
    /// A Service port has no room.
    pub(super) fn add(&mut self, key: &PortKey, error: &TableError) {
        let problem = no_room(key, error);
        if self.problems.get(key) != Some(&problem) {
            self.changed.insert(key.service.clone());
            self.problems.insert(key.clone(), problem);
        }
    }

    /// A Service port has room, or is gone.
    pub(super) fn remove(&mut self, key: &PortKey) {
        if self.problems.remove(key).is_some() {
            self.changed.insert(key.service.clone());
        }
    }

    /// There is no id left for a Service port.
    pub(super) fn wait_for_id(&mut self, key: &PortKey) {
        let full = TableError::Full { map: "service ids", capacity: SERVICE_IDS, flag: "" };
        self.add(key, &full);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Is there a port of the Service among them?
    pub(super) fn has(&self, service: &ObjectName) -> bool {
        self.ports_of(service).next().is_some()
    }

    pub(super) fn keys(&self) -> Vec<PortKey> {
        self.problems.keys().cloned().collect()
    }

    /// All problems of the Services whose problems changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeMap<ObjectName, Vec<Problem>> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|service| (service.clone(), self.of(&service))).collect()
    }

    fn of(&self, service: &ObjectName) -> Vec<Problem> {
        self.ports_of(service).cloned().collect()
    }

    fn ports_of(&self, service: &ObjectName) -> impl Iterator<Item = &Problem> {
        let first = PortKey { service: service.clone(), port: "".into(), protocol: Protocol::Sctp };
        let ports =
            self.problems.range(first..).take_while(move |(key, _)| key.service == *service);
        ports.map(|(_, problem)| problem)
    }
}

fn no_room(key: &PortKey, error: &TableError) -> Problem {
    let (message, mend) = match error {
        TableError::Full { map, capacity, flag: "" } => (
            format!("{map} is full at {capacity} entries"),
            "use fewer Services or endpoints".to_owned(),
        ),
        TableError::Full { map, capacity, flag } => {
            (format!("map {map} is full at {capacity} entries"), format!("raise --{flag}"))
        }
        shape @ TableError::Shape { .. } => {
            (shape.to_string(), "stop the agent and run it".to_owned())
        }
        system @ TableError::System { .. } => {
            (system.to_string(), "it is tried again by itself".to_owned())
        }
    };
    Problem {
        key: problem_key(&key.service),
        field: "spec.ports".to_owned(),
        message: format!("port {:?} ({}): {message}", &*key.port, key.protocol),
        mend,
    }
}
