//! What is kept of a Pod.

use std::num::NonZeroU16;

use k8s_openapi::api::core::v1 as core;

use super::objects::{ContainerPort, Pod};
use crate::{
    model::ObjectName,
    source::convert::{Faults, parse_protocol, usable_address},
};

/// Keeps of a Pod what endpoints follow from.
pub(super) fn slim(name: &ObjectName, object: &core::Pod) -> Pod {
    let mut faults = Faults::new("Pod", name);
    let status = object.status.clone().unwrap_or_default();
    let spec = object.spec.as_ref();
    Pod {
        name: name.clone(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        addresses: addresses(&status, &mut faults),
        ready: is_ready(&status),
        terminating: object.metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        node: spec.and_then(|spec| spec.node_name.as_deref()).map(Into::into),
        ports: spec.map(ports).unwrap_or_default(),
        problems: faults.into_problems(),
    }
}

fn addresses(status: &core::PodStatus, faults: &mut Faults) -> Vec<std::net::IpAddr> {
    let many = status.pod_ips.as_deref().unwrap_or_default();
    if many.is_empty() {
        let single = status.pod_ip.as_deref().filter(|text| !text.is_empty());
        let read = single.and_then(|text| usable_address(text, &[], "status.podIP", faults));
        return read.into_iter().collect();
    }
    let texts = many.iter().enumerate();
    let read = texts.filter_map(|(index, entry)| {
        usable_address(&entry.ip, &[], &format!("status.podIPs[{index}].ip"), faults)
    });
    read.collect()
}

fn is_ready(status: &core::PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.is_empty()
        || conditions.iter().any(|other| other.type_ == "Ready" && other.status == "True")
}

/// Ports of the containers, and of init containers that keep running beside them.
fn ports(spec: &core::PodSpec) -> Vec<ContainerPort> {
    let init = spec.init_containers.iter().flatten();
    let sidecars = init.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    containers.flat_map(|container| container.ports.iter().flatten()).filter_map(port).collect()
}

fn port(object: &core::ContainerPort) -> Option<ContainerPort> {
    let protocol = object.protocol.as_deref().filter(|text| !text.is_empty()).unwrap_or("TCP");
    Some(ContainerPort {
        name: object.name.clone()?,
        protocol: parse_protocol(protocol)?,
        port: NonZeroU16::new(u16::try_from(object.container_port).ok()?)?,
    })
}
