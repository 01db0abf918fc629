//! The rules one by one, by their numbers in the list of Service semantics.

mod clashes;
mod endpoints;
mod exposure;
mod health;
mod sources;

use std::net::{IpAddr, SocketAddr};

use super::fixture::{service, *};
use super::*;
use crate::model::{Endpoint, EndpointSlice, Family, Protocol, Service, TrafficPolicy};

/// One Service with one port and one slice, in one family.
struct Case {
    family: Family,
    tables: FamilyTables,
}

fn case(family: Family, service: &Service, endpoints: Vec<Endpoint>) -> Case {
    case_of_slices(family, service, &[slice(family, "web-1", "web", endpoints)])
}

fn case_of_slices(family: Family, service: &Service, slices: &[EndpointSlice]) -> Case {
    let tables = tables_of(service, slices, &facts());
    let port = tables.ports.first_key_value().unwrap().1;
    Case { family, tables: port.families[&family].clone() }
}

impl Case {
    fn numbers(list: &[SocketAddr]) -> Vec<u8> {
        list.iter()
            .map(|address| match address.ip() {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(v6) => v6.octets()[15],
            })
            .collect()
    }

    fn cluster(&self) -> Vec<u8> {
        Self::numbers(&self.tables.cluster)
    }

    fn local(&self) -> Vec<u8> {
        Self::numbers(&self.tables.local)
    }

    fn backends(&self) -> Vec<u8> {
        Self::numbers(&self.tables.backends.keys().copied().collect::<Vec<_>>())
    }

    fn frontend(&self, net: u8, n: u8, port: u16) -> Frontend {
        self.tables.frontends[&tcp(ip(self.family, net, n), port)]
    }
}

fn tcp(ip: IpAddr, port: u16) -> FrontendAddress {
    FrontendAddress { ip, port, protocol: Protocol::Tcp }
}

/// A Service with every kind of address: cluster IP 1, LB IP 5, external IP 6, node port 30080.
fn exposed(family: Family, internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    let mut service = service(family, "web", 1);
    service.load_balancer_ips = vec![ip(family, OUTSIDE, 5)];
    service.external_ips = vec![ip(family, OUTSIDE, 6)];
    service.ports[0].node_port = Some(30080.try_into().unwrap());
    service.internal_policy = internal;
    service.external_policy = external;
    service
}

const CLUSTER_POLICY: TrafficPolicy = TrafficPolicy::Cluster;

fn tables_of(service: &Service, slices: &[EndpointSlice], facts: &NodeFacts) -> ServiceTables {
    super::service(service, slices, facts)
}
