//! Services (S3, S9, S10, S13, S14).

use std::num::NonZeroU16;
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{
    Converted, Faults,
    address::usable_address,
    annotation, is_excluded, parse_cidr,
    port::{port, protocol},
};
use crate::model::{Family, ObjectName, Service, ServicePort, ServiceType, TrafficPolicy};

/// `ClientIP` affinity's timeout in seconds where none is given (S10), and the longest one.
const AFFINITY_TIMEOUT: u32 = 10_800;
const LONGEST_AFFINITY_TIMEOUT: u32 = 86_400;

/// Reads a Service; it is ignored if it has no cluster IP, is an alias or is another proxy's (S13).
#[must_use]
pub fn service(object: &core::Service) -> Converted<Service> {
    let metadata = &object.metadata;
    let Some(spec) = object.spec.as_ref().filter(|spec| is_programmed(object, spec)) else {
        return Converted::ignored();
    };
    let name = ObjectName::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    );
    let mut faults = Faults::new("Service", &name);
    let service = read(object, spec, name, &mut faults);
    Converted { object: Some(service), problems: faults.into_problems() }
}

fn read(
    object: &core::Service,
    spec: &core::ServiceSpec,
    name: ObjectName,
    faults: &mut Faults,
) -> Service {
    let families = families(spec);
    let cluster_ips = cluster_ips(spec, &families, faults);
    let service_type = service_type(spec, faults);
    let external_policy =
        policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", faults);
    let internal_policy =
        policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy", faults);
    let source_ranges = source_ranges(spec, faults);
    let load_balancer_ips = load_balancer_ips(object, &families, faults);
    let load_balancer_ips = guarded(load_balancer_ips, spec, &source_ranges, faults);
    let created = metadata_created(object);
    Service {
        service_type,
        created,
        external_ips: external_ips(spec, &families, faults),
        load_balancer_ips,
        ports: ports(spec, service_type, faults),
        internal_policy,
        external_policy,
        affinity_timeout: affinity_timeout(spec, faults),
        source_ranges,
        forwarding: annotation::forwarding(object.metadata.annotations.as_ref(), faults),
        health_check_node_port: health_check_node_port(spec, service_type, external_policy, faults),
        name,
        cluster_ips,
    }
}

/// S13.
fn is_programmed(object: &core::Service, spec: &core::ServiceSpec) -> bool {
    let first = cluster_ip_texts(spec).next().unwrap_or_default();
    !is_excluded(object.metadata.labels.as_ref())
        && spec.type_.as_deref() != Some("ExternalName")
        && !matches!(first, "" | "None")
}

/// Seconds since the epoch; 0, the eldest, where the object does not say.
fn metadata_created(object: &core::Service) -> i64 {
    object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

fn cluster_ip_texts(spec: &core::ServiceSpec) -> impl Iterator<Item = &str> {
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_ref().filter(|_| many.is_empty());
    many.iter().chain(single).map(String::as_str)
}

fn families(spec: &core::ServiceSpec) -> Vec<Family> {
    let named = spec.ip_families.iter().flatten().filter_map(|name| match name.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    let named: Vec<_> = named.collect();
    if !named.is_empty() {
        return named;
    }
    cluster_ip_texts(spec).filter_map(super::parse_address).map(Family::of).collect()
}

fn cluster_ips(spec: &core::ServiceSpec, families: &[Family], faults: &mut Faults) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, text) in cluster_ip_texts(spec).enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        let Some(address) = usable_address(text, families, &field, faults) else { continue };
        if addresses.iter().any(|other| Family::of(*other) == Family::of(address)) {
            faults.add(
                field,
                format!("{address} is the second of its family"),
                "keep one a family",
            );
            continue;
        }
        addresses.push(address);
    }
    addresses
}

fn external_ips(spec: &core::ServiceSpec, families: &[Family], faults: &mut Faults) -> Vec<IpAddr> {
    let texts = spec.external_ips.iter().flatten().enumerate();
    let read = texts.filter_map(|(index, text)| {
        usable_address(text, families, &format!("spec.externalIPs[{index}]"), faults)
    });
    read.collect()
}

/// S14: those whose `ipMode` is absent or `VIP`; a host name alone programs nothing.
fn load_balancer_ips(
    object: &core::Service,
    families: &[Family],
    faults: &mut Faults,
) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut addresses = Vec::new();
    for (index, entry) in ingress.iter().enumerate() {
        if !matches!(entry.ip_mode.as_deref(), None | Some("" | "VIP")) {
            continue;
        }
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        let field = format!("status.loadBalancer.ingress[{index}].ip");
        addresses.extend(usable_address(text, families, &field, faults));
    }
    addresses
}

fn service_type(spec: &core::ServiceSpec, faults: &mut Faults) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("NodePort") => ServiceType::NodePort,
        Some(other) => {
            let message = format!("unknown type \"{other}\", read as ClusterIP");
            faults.add(
                "spec.type",
                message,
                "use ClusterIP, NodePort, LoadBalancer or ExternalName",
            );
            ServiceType::ClusterIp
        }
    }
}

fn policy(text: Option<&str>, field: &str, faults: &mut Faults) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            let message = format!("unknown policy \"{other}\", read as Cluster");
            faults.add(field, message, "use Cluster or Local");
            TrafficPolicy::Cluster
        }
    }
}

fn ports(
    spec: &core::ServiceSpec,
    service_type: ServiceType,
    faults: &mut Faults,
) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, object) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(read) = service_port(object, &field, service_type, faults) else { continue };
        if !numbers.insert((read.port, read.protocol)) {
            let message = format!("port {}/{} is there twice", read.port, read.protocol);
            faults.add(format!("{field}.port"), message, "keep one of them");
        } else if names.insert(read.name.clone()) {
            ports.push(read);
        } else {
            let message = format!("name \"{}\" is there twice", read.name);
            faults.add(format!("{field}.name"), message, "give each port a name of its own");
        }
    }
    ports
}

fn service_port(
    object: &core::ServicePort,
    field: &str,
    service_type: ServiceType,
    faults: &mut Faults,
) -> Option<ServicePort> {
    let protocol = protocol(object.protocol.as_deref(), field, faults)?;
    let number = port(object.port, &format!("{field}.port"), faults)?;
    let field = format!("{field}.nodePort");
    let node_port = match object.node_port.filter(|number| *number != 0) {
        Some(number) if service_type == ServiceType::ClusterIp => {
            let message = format!("node port {number} on a Service of type ClusterIP is not used");
            faults.add(field, message, "set spec.type to NodePort, or remove it");
            None
        }
        Some(number) => port(number, &field, faults),
        None => None,
    };
    let name = object.name.as_deref().unwrap_or_default().into();
    Some(ServicePort { name, port: number, protocol, node_port })
}

/// S10.
fn affinity_timeout(spec: &core::ServiceSpec, faults: &mut Faults) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let message = format!("unknown affinity \"{other}\", read as None");
            faults.add("spec.sessionAffinity", message, "use ClientIP or None");
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
    let Some(seconds) = seconds else { return Some(AFFINITY_TIMEOUT) };
    if let Ok(seconds @ 1..=LONGEST_AFFINITY_TIMEOUT) = u32::try_from(seconds) {
        Some(seconds)
    } else {
        faults.add(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} s is out of range, read as {AFFINITY_TIMEOUT}"),
            format!("use 1 to {LONGEST_AFFINITY_TIMEOUT}"),
        );
        Some(AFFINITY_TIMEOUT)
    }
}

/// S9: what can be read of the ranges.
fn source_ranges(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (index, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let field = format!("spec.loadBalancerSourceRanges[{index}]");
        match parse_cidr(text) {
            Some(range) => ranges.push(range),
            None => faults.add(
                field,
                format!("\"{text}\" is not a prefix"),
                "write address/length, as 203.0.113.0/24",
            ),
        }
    }
    ranges
}

/// S9: the addresses that are not left open to all because a range cannot be read.
fn guarded(
    addresses: Vec<IpAddr>,
    spec: &core::ServiceSpec,
    ranges: &[IpNet],
    faults: &mut Faults,
) -> Vec<IpAddr> {
    if ranges.len() == spec.load_balancer_source_ranges.as_ref().map_or(0, Vec::len) {
        return addresses;
    }
    let is_of_family = |ip: IpAddr, range: &IpNet| Family::of(range.addr()) == Family::of(ip);
    let has_range = |ip: &IpAddr| ranges.iter().any(|range| is_of_family(*ip, range));
    let (guarded, open): (Vec<_>, Vec<_>) = addresses.into_iter().partition(has_range);
    if let Some(ip) = open.first() {
        let message = format!("no range for {ip} can be read, so it is not served");
        faults.add("spec.loadBalancerSourceRanges", message, "mend one, or remove all");
    }
    guarded
}

/// S3: only for load balancers with policy Local.
fn health_check_node_port(
    spec: &core::ServiceSpec,
    service_type: ServiceType,
    external_policy: TrafficPolicy,
    faults: &mut Faults,
) -> Option<NonZeroU16> {
    if service_type != ServiceType::LoadBalancer || external_policy != TrafficPolicy::Local {
        return None;
    }
    let number = spec.health_check_node_port.filter(|number| *number != 0)?;
    port(number, "spec.healthCheckNodePort", faults)
}
