//! Small Services and endpoints for tests, the same in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{
    Endpoint, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, ServiceType,
    SlicePort, TrafficPolicy,
};

use super::NodeFacts;

/// Both families.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Address number `n` of a net: `10.NET.0.N` or `fd00:NET::N`.
pub(crate) fn ip(family: Family, net: u8, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, net, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// Net of the cluster IPs.
pub(crate) const CLUSTER: u8 = 96;
/// Net of the pods.
pub(crate) const PODS: u8 = 248;
/// Net of the nodes.
pub(crate) const NODES: u8 = 1;
/// Net outside the cluster.
pub(crate) const OUTSIDE: u8 = 9;

/// Node `here` in zone `a`.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        name: "here".into(),
        zone: Some("a".into()),
        node_port_addresses: FAMILIES
            .into_iter()
            .flat_map(|family| [ip(family, NODES, 1), ip(family, NODES, 2)])
            .collect(),
        ..NodeFacts::default()
    }
}

/// Service `default/NAME` with cluster IP number `n` and one port, `http` 80/TCP.
pub(crate) fn service(family: Family, name: &str, n: u8) -> Service {
    Service {
        name: ObjectName::new("default", name),
        service_type: ServiceType::ClusterIp,
        created: 1000,
        cluster_ips: vec![ip(family, CLUSTER, n)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: vec![port("http", 80)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_timeout: None,
        source_ranges: Vec::new(),
        forwarding: None,
        health_check_node_port: None,
    }
}

/// A TCP port.
pub(crate) fn port(name: &str, port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        port: port.try_into().unwrap(),
        protocol: Protocol::Tcp,
        node_port: None,
    }
}

/// A ready endpoint, pod number `n`.
pub(crate) fn endpoint(family: Family, n: u8, node: &str) -> Endpoint {
    Endpoint {
        address: ip(family, PODS, n),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        pod: Some(ObjectName::new("default", &format!("pod-{n}"))),
    }
}

/// Terminating, and still serving.
pub(crate) fn leaving(endpoint: Endpoint) -> Endpoint {
    Endpoint { ready: false, terminating: true, ..endpoint }
}

/// Neither ready nor serving.
pub(crate) fn unready(endpoint: Endpoint) -> Endpoint {
    Endpoint { ready: false, serving: false, ..endpoint }
}

/// Slice `default/NAME` of `default/SERVICE`: port `http` is 8080/TCP.
pub(crate) fn slice(
    family: Family,
    name: &str,
    service: &str,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: ObjectName::new("default", service),
        family,
        ports: vec![slice_port("http", 8080)],
        endpoints,
        last_change: None,
    }
}

/// A TCP port of a slice.
pub(crate) fn slice_port(name: &str, port: u16) -> SlicePort {
    SlicePort { name: name.into(), protocol: Protocol::Tcp, port: port.try_into().unwrap() }
}
