//! What this node's tables should hold: a pure function of the model and the node's facts.
//!
//! All rules of Kubernetes live here. [`service`] works out one Service by itself; [`Desired`]
//! keeps the results of all, settles who has an address that several ask for, and says after each
//! change which Service ports came out different. Not for: ids, slots, and the order of writes.

mod claims;
mod endpoints;
#[cfg(test)]
pub(crate) mod fixture;
mod frontends;
mod health;
mod service;
mod tables;
#[cfg(test)]
mod tests;
mod topology;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use lb_common::abi::{FrontendFlags, FrontendKind};

use crate::model::{Family, Model, ObjectName, Problem};

use claims::{Claim, Claims};
pub use endpoints::MAX_ENDPOINTS;
pub use health::{HealthCheck, NoLocalEndpoints};
pub(crate) use service::problem_key;
pub use service::service;
pub use tables::{
    Backend, FamilyTables, Frontend, FrontendAddress, ListKind, NodeFacts, PortKey, PortTables,
    ServiceTables,
};

/// What an update changed. Deltas in a row may be merged, the later one on top.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Service ports that differ, whole; `None` for those that are gone.
    pub ports: BTreeMap<PortKey, Option<Arc<PortTables>>>,
    /// All problems of each Service whose problems changed; empty where they are solved.
    pub problems: BTreeMap<ObjectName, Vec<Problem>>,
    /// Health checks that differ; `None` for those that are gone.
    pub health_checks: BTreeMap<ObjectName, Option<HealthCheck>>,
}

/// The results for all Services.
#[derive(Debug, Default)]
pub struct Desired {
    facts: NodeFacts,
    services: HashMap<ObjectName, ServiceTables>,
    claims: Claims,
    problems: HashMap<ObjectName, Vec<Problem>>,
    no_local_endpoints: BTreeMap<Family, NoLocalEndpoints>,
    left_alone: BTreeSet<(FrontendAddress, PortKey)>,
}

/// Ports and Services that an update may have changed.
#[derive(Default)]
struct Touched {
    ports: BTreeSet<PortKey>,
    services: BTreeSet<ObjectName>,
    health_checks: BTreeMap<ObjectName, Option<HealthCheck>>,
}

impl Desired {
    /// Nothing yet, on a node with these facts.
    pub fn new(facts: NodeFacts) -> Self {
        Self { facts, ..Self::default() }
    }

    /// Works the `changed` Services out again.
    pub fn update<'a>(
        &mut self,
        model: &Model,
        changed: impl IntoIterator<Item = &'a ObjectName>,
    ) -> Delta {
        let mut touched = Touched::default();
        for name in changed {
            let new = model
                .service(name)
                .map(|found| service(found, model.slices(name), &self.facts))
                .unwrap_or_default();
            self.replace(name, new, &mut touched);
        }
        self.delta(model, touched)
    }

    /// Takes in new facts of the node: every Service is worked out again, if any fact differs.
    pub fn set_facts(&mut self, model: &Model, facts: NodeFacts) -> Delta {
        if self.facts == facts {
            return Delta::default();
        }
        self.facts = facts;
        self.update(model, model.services().map(|service| &service.name))
    }

    /// Service ports that drop clients for want of an endpoint on this node.
    pub fn no_local_endpoints(&self, family: Family) -> NoLocalEndpoints {
        self.no_local_endpoints.get(&family).copied().unwrap_or_default()
    }

    /// Cluster IPs that a device of this node holds (S22), and whose they would be.
    pub fn left_alone(&self) -> &BTreeSet<(FrontendAddress, PortKey)> {
        &self.left_alone
    }

    fn replace(&mut self, name: &ObjectName, new: ServiceTables, touched: &mut Touched) {
        let old = self.services.remove(name).unwrap_or_default();
        let keys: BTreeSet<&PortKey> = old.ports.keys().chain(new.ports.keys()).collect();
        for key in keys {
            let (before, after) = (old.ports.get(key), new.ports.get(key));
            if before == after && old.created == new.created {
                continue;
            }
            touched.ports.insert(key.clone());
            for address in before.into_iter().flat_map(|tables| &tables.left_alone) {
                self.left_alone.remove(&(*address, key.clone()));
            }
            for address in after.into_iter().flat_map(|tables| &tables.left_alone) {
                self.left_alone.insert((*address, key.clone()));
            }
            for (address, _) in before.into_iter().flat_map(|tables| claimed(tables)) {
                self.claims.withdraw(address, key);
                touched.ports.extend(self.claims.claimants(address).cloned());
            }
            for (address, kind) in after.into_iter().flat_map(|tables| claimed(tables)) {
                touched.ports.extend(self.claims.claimants(address).cloned());
                self.claims.add(*address, Claim::new(kind, new.created, key));
            }
        }
        for family in [Family::V4, Family::V6] {
            let total = self.no_local_endpoints.entry(family).or_default();
            *total -= NoLocalEndpoints::of(&old, family);
            *total += NoLocalEndpoints::of(&new, family);
        }
        if old.health_check != new.health_check {
            touched.health_checks.insert(name.clone(), new.health_check.clone());
        }
        touched.services.insert(name.clone());
        if !new.ports.is_empty() || new.health_check.is_some() {
            self.services.insert(name.clone(), new);
        }
    }

    fn delta(&mut self, model: &Model, touched: Touched) -> Delta {
        let mut delta = Delta { health_checks: touched.health_checks, ..Delta::default() };
        let mut services = touched.services;
        for key in touched.ports {
            services.insert(key.service.clone());
            let tables = self.granted(&key);
            delta.ports.insert(key, tables);
        }
        for name in services {
            let problems = self.problems_of(model, &name);
            if self.problems.get(&name).map_or(&[][..], Vec::as_slice) != problems {
                self.keep_problems(&name, &problems);
                delta.problems.insert(name, problems);
            }
        }
        delta
    }

    /// A port's tables without the frontends that others have.
    fn granted(&self, key: &PortKey) -> Option<Arc<PortTables>> {
        let tables = self.services.get(&key.service)?.ports.get(key)?;
        if self.lost(key, tables).next().is_none() {
            return Some(Arc::clone(tables));
        }
        let mut rest = PortTables::clone(tables);
        for family in rest.families.values_mut() {
            family.frontends.retain(|address, _| self.claims.winner(address) == Some(key));
        }
        rest.families.retain(|_, family| !family.frontends.is_empty());
        Some(Arc::new(rest))
    }

    /// The frontends of a port that another has, and who.
    fn lost<'a>(
        &'a self,
        key: &'a PortKey,
        tables: &'a PortTables,
    ) -> impl Iterator<Item = (&'a FrontendAddress, &'a Frontend, &'a PortKey)> {
        tables.frontends().filter_map(move |(address, frontend)| {
            let winner = self.claims.winner(address).filter(|winner| *winner != key)?;
            Some((address, frontend, winner))
        })
    }

    fn problems_of(&self, model: &Model, name: &ObjectName) -> Vec<Problem> {
        let Some(tables) = self.services.get(name) else {
            return Vec::new();
        };
        let mut problems = tables.problems.clone();
        // A NodePort clashes on every address of the node: one problem says it, and names an
        // address that others can reach.
        let mut told = BTreeSet::new();
        for (key, port) in &tables.ports {
            let mut lost: Vec<_> = self.lost(key, port).collect();
            lost.sort_by_key(|(_, frontend, _)| frontend.flags.has(FrontendFlags::HOST_ONLY));
            for (address, frontend, winner) in lost {
                let field = field(model, key, frontend.kind);
                if told.insert((field.clone(), winner)) {
                    problems.push(clash(name, field, address, winner));
                }
            }
        }
        problems
    }

    fn keep_problems(&mut self, name: &ObjectName, problems: &[Problem]) {
        if problems.is_empty() {
            self.problems.remove(name);
        } else {
            self.problems.insert(name.clone(), problems.to_vec());
        }
    }
}

/// What a Service port asks for: its frontends, and the cluster IPs that are left alone.
fn claimed(tables: &PortTables) -> impl Iterator<Item = (&FrontendAddress, FrontendKind)> {
    let left_alone = tables.left_alone.iter().map(|address| (address, FrontendKind::CLUSTER_IP));
    tables.frontends().map(|(address, frontend)| (address, frontend.kind)).chain(left_alone)
}

/// Where in the object an address of that kind comes from.
fn field(model: &Model, key: &PortKey, kind: FrontendKind) -> String {
    let place = || {
        let ports = &model.service(&key.service)?.ports;
        ports.iter().position(|port| port.name == key.port && port.protocol == key.protocol)
    };
    match kind {
        FrontendKind::CLUSTER_IP => "spec.clusterIPs".to_owned(),
        FrontendKind::EXTERNAL_IP => "spec.externalIPs".to_owned(),
        FrontendKind::LOAD_BALANCER => "status.loadBalancer.ingress".to_owned(),
        _ => format!("spec.ports[{}].nodePort", place().unwrap_or(0)),
    }
}

fn clash(name: &ObjectName, field: String, address: &FrontendAddress, by: &PortKey) -> Problem {
    let other = if by.service == *name {
        format!("port {} of this Service", by.port)
    } else {
        format!("Service {}", by.service)
    };
    Problem {
        key: problem_key(name),
        field,
        message: format!("{address} is taken by {other}"),
        mend: "change the address or the port of one of them".to_owned(),
    }
}
