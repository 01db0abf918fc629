//! Hands out cluster IPs and node ports, as an API server does.
//!
//! A number follows from the Service's name, so an allocation without a record gives the same one;
//! taken ones are probed around. What a manifest names always wins over what was handed out, and
//! what was handed out before wins over what is new. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use super::{claims::Claims, ranges::Ranges};
use crate::{
    model::{Family, ObjectName, Protocol},
    source::{
        convert::{family_name, parse_address, parse_protocol},
        standing::ProblemsByKey,
    },
};

/// Port name under which a health check's node port is recorded.
const HEALTH_CHECK: &str = "healthCheck";

/// What was handed out to Services that name none themselves, by `namespace/name`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Allocations {
    pub(super) services: BTreeMap<String, Allocation>,
}

/// What was handed out to one Service.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Allocation {
    /// By family.
    pub(super) cluster_ips: BTreeMap<String, std::net::IpAddr>,
    /// By protocol and port, as `TCP/80`.
    pub(super) node_ports: BTreeMap<String, u16>,
}

/// What goes for each Service.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    /// What was handed out; nothing for Services that need nothing.
    pub(super) allocations: Allocations,
    /// Cluster IPs that a Service names and another one holds.
    pub(super) lost_addresses: BTreeSet<(ObjectName, std::net::IpAddr)>,
    /// Node ports that a Service names and may not have.
    pub(super) lost_ports: BTreeSet<(ObjectName, Protocol, u16)>,
    /// One for each loss.
    pub(super) problems: ProblemsByKey,
}

/// Services by name, with the API's defaults applied.
pub(super) type Services<'a> = BTreeMap<&'a ObjectName, &'a core::Service>;

/// Works out what goes for each of `services`. Records of Services that are not there hold their
/// numbers against new allocations, if `kept` still has them.
pub(super) fn assign(services: &Services, kept: &Allocations, ranges: &Ranges) -> Assigned {
    let mut claims = Claims::default();
    claims.take_named(services, ranges);
    let mut next = Allocations::default();
    for (name, record) in &kept.services {
        claims.take_kept(name, record);
    }
    for (name, service) in services {
        let record = kept.services.get(&name.to_string());
        let given = give(name, service, record, &mut claims, ranges);
        if given != Allocation::default() {
            next.services.insert(name.to_string(), given);
        }
    }
    claims.into_assigned(next)
}

fn give(
    name: &ObjectName,
    service: &core::Service,
    record: Option<&Allocation>,
    claims: &mut Claims,
    ranges: &Ranges,
) -> Allocation {
    let key = name.to_string();
    let mut given = Allocation::default();
    for family in wanted_families(service) {
        let kept = record.and_then(|record| record.cluster_ips.get(family_name(family)));
        let kept = kept.copied().filter(|ip| ranges.contains(*ip) && claims.holds_ip(&key, *ip));
        let fresh = || claims.free_ip(ranges.addresses(family, &key));
        let Some(address) = kept.or_else(fresh) else {
            let message = format!("no {} cluster IP is free", family_name(family));
            claims.exhausted(name, "spec.clusterIPs", message);
            continue;
        };
        claims.hold_ip(&key, address);
        given.cluster_ips.insert(family_name(family).to_owned(), address);
    }
    for (protocol, port) in wanted_ports(service) {
        let kept = record.and_then(|record| record.node_ports.get(&port));
        let kept = kept.copied().filter(|number| {
            ranges.node_ports.contains(number) && claims.holds_port(&key, protocol, *number)
        });
        let fresh = || claims.free_port(protocol, ranges.numbers(&format!("{key}/{port}")));
        let Some(number) = kept.or_else(fresh) else {
            claims.exhausted(name, "spec.ports", format!("no node port is free for {port}"));
            continue;
        };
        claims.hold_port(&key, protocol, number);
        given.node_ports.insert(port, number);
    }
    given
}

/// The families of which the Service names no address itself.
fn wanted_families(service: &core::Service) -> Vec<Family> {
    let Some(spec) = service.spec.as_ref().filter(|spec| has_cluster_ip(spec)) else {
        return Vec::new();
    };
    let given: Vec<_> = spec.cluster_ips.iter().flatten().collect();
    let named = spec.ip_families.as_deref().unwrap_or_default();
    if given.len() >= named.len() {
        return Vec::new();
    }
    let given: Vec<_> =
        given.into_iter().filter_map(|text| parse_address(text)).map(Family::of).collect();
    let wanted = named.iter().filter_map(|name| match name.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    wanted.filter(|family| !given.contains(family)).collect()
}

fn has_cluster_ip(spec: &core::ServiceSpec) -> bool {
    let first = spec.cluster_ips.iter().flatten().next().map(String::as_str);
    spec.type_.as_deref() != Some("ExternalName") && first != Some("None")
}

/// Ports without a node port, in a Service that has them; the health check's as well.
fn wanted_ports(service: &core::Service) -> Vec<(Protocol, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let mut wanted = Vec::new();
    if has_node_ports(spec) {
        for port in spec.ports.iter().flatten() {
            let text = port.protocol.as_deref().unwrap_or("TCP");
            let Some(protocol) = parse_protocol(text) else { continue };
            if port.node_port.unwrap_or(0) == 0 && (1..=65_535).contains(&port.port) {
                wanted.push((protocol, port_key(protocol, port.port)));
            }
        }
    }
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    if is_load_balancer && is_local && spec.health_check_node_port.unwrap_or(0) == 0 {
        wanted.push((Protocol::Tcp, HEALTH_CHECK.to_owned()));
    }
    wanted
}

fn has_node_ports(spec: &core::ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports.unwrap_or(true),
        _ => false,
    }
}

fn port_key(protocol: Protocol, port: i32) -> String {
    format!("{protocol}/{port}")
}

impl Allocation {
    /// Writes what was handed out into a Service, as the API server would have.
    pub(super) fn fill_in(&self, service: &mut core::Service) {
        let Some(spec) = &mut service.spec else { return };
        let given = spec.cluster_ips.take().unwrap_or_default();
        spec.cluster_ips = Some(self.in_family_order(spec.ip_families.as_deref(), given));
        for port in spec.ports.iter_mut().flatten() {
            let protocol = parse_protocol(port.protocol.as_deref().unwrap_or("TCP"));
            let key = protocol.map(|protocol| port_key(protocol, port.port));
            if let Some(number) = key.and_then(|key| self.node_ports.get(&key))
                && port.node_port.unwrap_or(0) == 0
            {
                port.node_port = Some(i32::from(*number));
            }
        }
        if let Some(number) = self.node_ports.get(HEALTH_CHECK) {
            spec.health_check_node_port = Some(i32::from(*number));
        }
    }

    fn in_family_order(&self, families: Option<&[String]>, mut given: Vec<String>) -> Vec<String> {
        let mut addresses = Vec::new();
        for family in families.unwrap_or_default() {
            let of_family = |text: &String| {
                parse_address(text).is_some_and(|ip| family_name(Family::of(ip)) == family)
            };
            if let Some(index) = given.iter().position(of_family) {
                addresses.push(given.remove(index));
            } else if let Some(address) = self.cluster_ips.get(family) {
                addresses.push(address.to_string());
            }
        }
        addresses.extend(given);
        addresses
    }
}
