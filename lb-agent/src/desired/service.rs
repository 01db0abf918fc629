//! One Service with its slices: what this node should hold for it.

use std::{collections::BTreeSet, sync::Arc};

use crate::model::{EndpointSlice, Family, Problem, ProblemKey, Service, ServicePort};

use super::{
    FrontendAddress, NodeFacts, PortKey, PortTables, ServiceTables,
    endpoints::{Candidates, MAX_ENDPOINTS},
    frontends::Exposure,
    health::health_check,
};

/// Applies the rules to one Service. What other Services claim plays no part here.
pub fn service<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    facts: &NodeFacts,
) -> ServiceTables {
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    let mut tables = ServiceTables {
        created: service.created,
        health_check: health_check(service, &slices, facts),
        ..ServiceTables::default()
    };
    for port in &service.ports {
        let made = port_tables(service, port, &slices, facts);
        tables.problems.extend(too_many_endpoints(service, port, &made));
        tables.ports.insert(key(service, port), Arc::new(made));
    }
    tables
}

fn key(service: &Service, port: &ServicePort) -> PortKey {
    PortKey { service: service.name.clone(), port: Arc::clone(&port.name), protocol: port.protocol }
}

/// A Service has the families of its cluster IPs: other addresses of it have no endpoints.
fn port_tables(
    service: &Service,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    facts: &NodeFacts,
) -> PortTables {
    let families: BTreeSet<Family> = service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
    let held = service.cluster_ips.iter().filter(|ip| facts.local_addresses.contains(ip));
    let (number, protocol) = (port.port.get(), port.protocol);
    let left_alone = held.map(|ip| FrontendAddress { ip: *ip, port: number, protocol }).collect();
    let tables = families.into_iter().map(|family| {
        let candidates = Candidates::collect(slices, port, family, facts);
        let exposure = Exposure { service, port, family, facts, left_alone: &left_alone };
        (family, exposure.tables(&candidates))
    });
    PortTables {
        affinity_timeout: service.affinity_timeout.unwrap_or(0),
        families: tables.filter(|(_, tables)| !tables.frontends.is_empty()).collect(),
        left_alone,
    }
}

fn too_many_endpoints(
    service: &Service,
    port: &ServicePort,
    tables: &PortTables,
) -> Option<Problem> {
    let most = tables.families.values().map(|family| family.backends.len()).max()?;
    (most > MAX_ENDPOINTS).then(|| Problem {
        key: problem_key(&service.name),
        field: String::new(),
        message: format!(
            "port {} has {most} endpoints, and only the first {MAX_ENDPOINTS} are used",
            port.port
        ),
        mend: "split the Service".to_owned(),
    })
}

/// What a problem with a Service is about.
pub(crate) fn problem_key(service: &crate::model::ObjectName) -> ProblemKey {
    ProblemKey { kind: "Service", name: service.to_string().into() }
}
