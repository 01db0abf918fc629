//! Endpoints of a Service with a selector, worked out from Pods as the `EndpointSlice` controller
//! does (S17, S19). Pure.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU16,
    sync::Arc,
};

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};

use super::objects::Pod;
use crate::{
    model::{Endpoint, EndpointSlice, Family, ObjectName, Problem, Protocol, SlicePort},
    source::convert::{Faults, family_name, parse_protocol},
};

/// Pods by namespace and by each of their labels.
#[derive(Debug, Default)]
pub(super) struct PodIndex<'a>(HashMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>);

impl<'a> PodIndex<'a> {
    pub(super) fn new(pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        let mut index = Self::default();
        for pod in pods {
            for (key, value) in &pod.labels {
                let label = (&*pod.name.namespace, key.as_str(), value.as_str());
                index.0.entry(label).or_default().push(pod);
            }
        }
        index
    }

    /// The Pods that carry every label of a selector.
    fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<&'a Pod> {
        let with_each = selector.iter().map(|(key, value)| {
            self.0.get(&(namespace, key.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice)
        });
        let fewest = with_each.min_by_key(|pods| pods.len());
        let carries =
            |pod: &&&Pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        fewest.unwrap_or_default().iter().filter(carries).copied().collect()
    }
}

/// A port of a slice in an order, so that Pods with the same ports share a slice.
type PortKey = (Arc<str>, Protocol, NonZeroU16);

/// The slices of a Service, one for each family and each set of target ports that its Pods have.
pub(super) fn slices(
    name: &ObjectName,
    service: &core::Service,
    pods: &PodIndex,
) -> (Vec<EndpointSlice>, Vec<Problem>) {
    let mut faults = Faults::new("Service", name);
    let Some(spec) = &service.spec else { return (Vec::new(), Vec::new()) };
    let Some(selector) = &spec.selector else { return (Vec::new(), Vec::new()) };
    let selected = pods.selected(&name.namespace, selector);
    let mut groups: BTreeMap<(Family, Vec<PortKey>), Vec<Endpoint>> = BTreeMap::new();
    for pod in selected.into_iter().filter(|pod| !pod.finished) {
        let ports = target_ports(spec, pod, &mut faults);
        for family in families(spec) {
            let address = pod.addresses.iter().find(|ip| Family::of(**ip) == family);
            if let Some(address) = address.filter(|_| !ports.is_empty()) {
                let group = groups.entry((family, ports.clone())).or_default();
                group.push(endpoint(spec, pod, *address));
            }
        }
    }
    let slices = groups
        .into_iter()
        .map(|((family, ports), endpoints)| slice(name, family, &ports, endpoints));
    (slices.collect(), faults.into_problems())
}

fn families(spec: &core::ServiceSpec) -> impl Iterator<Item = Family> {
    let named = spec.ip_families.iter().flatten();
    named.filter_map(|name| match name.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    })
}

fn target_ports(spec: &core::ServiceSpec, pod: &Pod, faults: &mut Faults) -> Vec<PortKey> {
    let mut ports = Vec::new();
    for (index, object) in spec.ports.iter().flatten().enumerate() {
        let protocol = object.protocol.as_deref().unwrap_or("TCP");
        let Some(protocol) = parse_protocol(protocol) else { continue };
        let field = || format!("spec.ports[{index}].targetPort");
        let number = match &object.target_port {
            Some(IntOrString::String(wanted)) => {
                let number = named_port(pod, wanted, protocol);
                if number.is_none() {
                    let message = format!("Pod {} has no {protocol} port \"{wanted}\"", pod.name);
                    faults.add(field(), message, "name a container port of its Pods, or a number");
                }
                number
            }
            Some(IntOrString::Int(number)) => target_number(*number, object.port, field, faults),
            None => target_number(object.port, object.port, field, faults),
        };
        let name = object.name.as_deref().unwrap_or_default().into();
        ports.extend(number.map(|number| (name, protocol, number)));
    }
    ports.sort();
    ports
}

fn named_port(pod: &Pod, wanted: &str, protocol: Protocol) -> Option<NonZeroU16> {
    let same =
        |port: &&super::objects::ContainerPort| port.name == wanted && port.protocol == protocol;
    pod.ports.iter().find(same).map(|port| port.port)
}

/// A number out of range is told here only if it is not the Service port's own, told elsewhere.
fn target_number(
    number: i32,
    port: i32,
    field: impl Fn() -> String,
    faults: &mut Faults,
) -> Option<NonZeroU16> {
    let read = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if read.is_none() && number != port && !faults.has(&field()) {
        let message = format!("port {number} is out of range");
        faults.add(field(), message, "use a number from 1 to 65535, or a container port's name");
    }
    read
}

/// Conditions as the controller sets them: a terminating Pod is never ready, unless addresses
/// are published whatever the Pods' state (S17).
fn endpoint(spec: &core::ServiceSpec, pod: &Pod, address: std::net::IpAddr) -> Endpoint {
    let published = spec.publish_not_ready_addresses.unwrap_or(false);
    Endpoint {
        address,
        ready: published || (pod.ready && !pod.terminating),
        serving: pod.ready,
        terminating: pod.terminating,
        node: pod.node.clone(),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        pod: Some(pod.name.clone()),
    }
}

/// A name that no object can have (`~`), so that it never hides a slice of the folder.
fn slice(
    service: &ObjectName,
    family: Family,
    ports: &[PortKey],
    mut endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    endpoints.sort_by(|a, b| a.pod.cmp(&b.pod));
    let labels: Vec<_> = ports.iter().map(|(name, _, number)| format!("{name}-{number}")).collect();
    let family_part = family_name(family).to_ascii_lowercase();
    let name = format!("{}~{family_part}~{}", service.name, labels.join("."));
    let ports = ports.iter().map(|(name, protocol, port)| SlicePort {
        name: name.clone(),
        protocol: *protocol,
        port: *port,
    });
    EndpointSlice {
        name: ObjectName::new(&service.namespace, &name),
        service: service.clone(),
        family,
        ports: ports.collect(),
        endpoints,
        last_change: None,
    }
}
