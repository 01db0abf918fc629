//! Who holds which cluster IP and node port, while they are handed out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1 as core;

use super::{
    allocate::{Allocation, Allocations, Assigned, Services},
    ranges::Ranges,
};
use crate::{
    model::{ObjectName, Problem, ProblemKey, Protocol},
    source::{
        convert::{parse_address, parse_protocol},
        standing::ProblemsByKey,
    },
};

/// Holders by `namespace/name`.
#[derive(Debug, Default)]
pub(super) struct Claims {
    addresses: BTreeMap<IpAddr, String>,
    ports: BTreeMap<(Protocol, u16), String>,
    lost_addresses: BTreeSet<(ObjectName, IpAddr)>,
    lost_ports: BTreeSet<(ObjectName, Protocol, u16)>,
    problems: ProblemsByKey,
}

impl Claims {
    /// What manifests name: the elder Service wins, then the one first by name (S21).
    pub(super) fn take_named(&mut self, services: &Services, ranges: &Ranges) {
        let mut by_age: Vec<_> = services.iter().collect();
        by_age.sort_by_key(|(name, service)| {
            let created = &service.metadata.creation_timestamp;
            (created.as_ref().map_or(0, |time| time.0.as_second()), **name)
        });
        for (name, service) in by_age {
            let Some(spec) = &service.spec else { continue };
            self.take_named_addresses(name, spec);
            if matches!(spec.type_.as_deref(), Some("LoadBalancer" | "NodePort")) {
                self.take_named_ports(name, spec, ranges);
            }
        }
    }

    /// What was handed out before holds, unless a manifest names it.
    pub(super) fn take_kept(&mut self, key: &str, record: &Allocation) {
        for address in record.cluster_ips.values() {
            self.addresses.entry(*address).or_insert_with(|| key.to_owned());
        }
        for (port, number) in &record.node_ports {
            let protocol = port.split('/').next().and_then(parse_protocol);
            let slot = (protocol.unwrap_or(Protocol::Tcp), *number);
            self.ports.entry(slot).or_insert_with(|| key.to_owned());
        }
    }

    pub(super) fn holds_ip(&self, key: &str, address: IpAddr) -> bool {
        self.addresses.get(&address).is_some_and(|holder| holder == key)
    }

    pub(super) fn holds_port(&self, key: &str, protocol: Protocol, number: u16) -> bool {
        self.ports.get(&(protocol, number)).is_some_and(|holder| holder == key)
    }

    /// The first free one.
    pub(super) fn free_ip(&self, mut candidates: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        candidates.find(|address| !self.addresses.contains_key(address))
    }

    /// The first free one.
    pub(super) fn free_port(
        &self,
        protocol: Protocol,
        mut candidates: impl Iterator<Item = u16>,
    ) -> Option<u16> {
        candidates.find(|number| !self.ports.contains_key(&(protocol, *number)))
    }

    pub(super) fn hold_ip(&mut self, key: &str, address: IpAddr) {
        self.addresses.insert(address, key.to_owned());
    }

    pub(super) fn hold_port(&mut self, key: &str, protocol: Protocol, number: u16) {
        self.ports.insert((protocol, number), key.to_owned());
    }

    /// Ends the handing out; `allocations` is what was given.
    pub(super) fn into_assigned(self, allocations: Allocations) -> Assigned {
        Assigned {
            allocations,
            lost_addresses: self.lost_addresses,
            lost_ports: self.lost_ports,
            problems: self.problems,
        }
    }

    /// Tells of a Service for which nothing was left.
    pub(super) fn exhausted(&mut self, name: &ObjectName, field: &str, message: String) {
        let mend = "free some, or widen the range".to_owned();
        self.problem(name, field.to_owned(), message, mend);
    }

    fn take_named_addresses(&mut self, name: &ObjectName, spec: &core::ServiceSpec) {
        for (index, text) in spec.cluster_ips.iter().flatten().enumerate() {
            let Some(address) = parse_address(text) else { continue };
            let key = name.to_string();
            let holder = self.addresses.entry(address).or_insert_with(|| key.clone());
            if *holder == key {
                continue;
            }
            let message = format!("cluster IP {address} belongs to Service {holder}");
            self.lost_addresses.insert((name.clone(), address));
            let field = format!("spec.clusterIPs[{index}]");
            self.problem(name, field, message, "choose another, or leave it out".into());
        }
    }

    fn take_named_ports(&mut self, name: &ObjectName, spec: &core::ServiceSpec, ranges: &Ranges) {
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = parse_protocol(port.protocol.as_deref().unwrap_or("TCP"));
            let field = format!("spec.ports[{index}].nodePort");
            if let Some(protocol) = protocol {
                self.take_named_port(name, (protocol, port.node_port), field, ranges);
            }
        }
        let health = (Protocol::Tcp, spec.health_check_node_port);
        self.take_named_port(name, health, "spec.healthCheckNodePort".into(), ranges);
    }

    fn take_named_port(
        &mut self,
        name: &ObjectName,
        (protocol, number): (Protocol, Option<i32>),
        field: String,
        ranges: &Ranges,
    ) {
        let number = number.and_then(|number| u16::try_from(number).ok());
        let Some(number) = number.filter(|number| *number != 0) else { return };
        let (low, high) = (ranges.node_ports.start(), ranges.node_ports.end());
        let key = name.to_string();
        let message = if ranges.node_ports.contains(&number) {
            if let Some(holder) = self.ports.get(&(protocol, number)) {
                format!("node port {number}/{protocol} belongs to Service {holder}")
            } else {
                self.hold_port(&key, protocol, number);
                return;
            }
        } else {
            format!("node port {number} is outside {low}-{high}")
        };
        self.lost_ports.insert((name.clone(), protocol, number));
        let mend = format!("choose a free one in {low}-{high}, or leave it out");
        self.problem(name, field, message, mend);
    }

    fn problem(&mut self, name: &ObjectName, field: String, message: String, mend: String) {
        let key = ProblemKey { kind: "Service", name: name.to_string().into() };
        let problem = Problem { key: key.clone(), field, message, mend };
        self.problems.entry(key).or_default().push(problem);
    }
}
