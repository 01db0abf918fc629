//! `EndpointSlices` (S1.9, S13).

use std::{num::NonZeroU16, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as discovery;

use super::{
    Converted, Faults, SERVICE_NAME,
    address::usable_address,
    is_excluded,
    port::{port, protocol},
    shared,
};
use crate::model::{Endpoint, EndpointSlice, Family, ObjectName, SlicePort};

/// Annotation with the time of the change that a slice's newest state follows from.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Reads a slice; it is ignored if another proxy serves it, if it names no Service, or if it holds
/// host names.
#[must_use]
pub fn slice(object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    let metadata = &object.metadata;
    if is_excluded(metadata.labels.as_ref()) || object.address_type == "FQDN" {
        return Converted::ignored();
    }
    let Some(owner) = shared(metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME))) else {
        return Converted::ignored();
    };
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = ObjectName::new(namespace, metadata.name.as_deref().unwrap_or_default());
    let mut faults = Faults::new("EndpointSlice", &name);
    let slice = family(&object.address_type, &mut faults).map(|family| EndpointSlice {
        service: ObjectName::new(namespace, &owner),
        family,
        ports: ports(object.ports.as_deref().unwrap_or_default(), &mut faults),
        endpoints: endpoints(&object.endpoints, family, &mut faults),
        last_change: last_change(object),
        name,
    });
    Converted { object: slice, problems: faults.into_problems() }
}

/// One that is no time is no fault: it is only measured by.
fn last_change(object: &discovery::EndpointSlice) -> Option<Timestamp> {
    object.metadata.annotations.as_ref()?.get(LAST_CHANGE)?.parse().ok()
}

fn family(address_type: &str, faults: &mut Faults) -> Option<Family> {
    match address_type {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        other => {
            let message = format!("unknown address type \"{other}\"");
            faults.add("addressType", message, "use IPv4 or IPv6");
            None
        }
    }
}

fn ports(objects: &[discovery::EndpointPort], faults: &mut Faults) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let field = format!("ports[{index}]");
        let Some(number) = slice_port_number(object, &field, faults) else { continue };
        let Some(protocol) = protocol(object.protocol.as_deref(), &field, faults) else { continue };
        let name = object.name.as_deref().unwrap_or_default().into();
        ports.push(SlicePort { name, protocol, port: number });
    }
    ports
}

/// A missing or zero number is no fault: such a port is ignored (S1.9).
fn slice_port_number(
    object: &discovery::EndpointPort,
    field: &str,
    faults: &mut Faults,
) -> Option<NonZeroU16> {
    let number = object.port.filter(|number| *number != 0)?;
    port(number, &format!("{field}.port"), faults)
}

fn endpoints(
    objects: &[discovery::Endpoint],
    family: Family,
    faults: &mut Faults,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let Some(text) = object.addresses.first() else {
            faults.add(field, "no address", "give the endpoint an address");
            continue;
        };
        if let Some(address) = usable_address(text, &[family], &format!("{field}[0]"), faults) {
            endpoints.push(endpoint(object, address));
        }
    }
    endpoints
}

fn endpoint(object: &discovery::Endpoint, address: std::net::IpAddr) -> Endpoint {
    let conditions = object.conditions.as_ref();
    let hints = object.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Endpoint {
        address,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: shared(object.node_name.as_ref()),
        zone_hints: zones.iter().map(|zone| Arc::from(zone.name.as_str())).collect(),
        node_hints: nodes.iter().map(|node| Arc::from(node.name.as_str())).collect(),
        pod: pod(object),
    }
}

fn pod(object: &discovery::Endpoint) -> Option<ObjectName> {
    let target = object.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"))?;
    let namespace = target.namespace.as_deref().unwrap_or_default();
    Some(ObjectName::new(namespace, target.name.as_deref()?))
}
