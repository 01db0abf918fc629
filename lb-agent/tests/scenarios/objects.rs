//! The compact form in which scenarios give objects.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_agent::{
    desired::NodeFacts,
    model::{
        Endpoint, EndpointSlice, Event, Family, ObjectName, Protocol, Service, ServicePort,
        ServiceType, SlicePort, TrafficPolicy,
    },
};
use serde::Deserialize;

/// One chapter of a scenario.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    /// What it is about, for the reader.
    #[serde(rename = "story")]
    _story: String,
    /// The node that the tables are for.
    pub(crate) node: Option<NodeForm>,
    /// Services to apply, by `namespace/name`.
    #[serde(default)]
    services: BTreeMap<String, ServiceForm>,
    /// Slices to apply, by `namespace/name`.
    #[serde(default)]
    slices: BTreeMap<String, SliceForm>,
    /// Objects to delete: `service namespace/name`, `slice namespace/name`.
    #[serde(default)]
    delete: Vec<String>,
    /// Compared as text.
    #[serde(default, rename = "expect")]
    _expect: String,
}

/// The facts of the node.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeForm {
    name: String,
    zone: Option<String>,
    addresses: Vec<IpAddr>,
    #[serde(default, rename = "localAddresses")]
    local_addresses: Vec<IpAddr>,
    #[serde(default, rename = "localSources")]
    local_sources: Vec<IpNet>,
    #[serde(default, rename = "masqueradeAll")]
    masquerade_all: bool,
}

/// A Service; its ports as `NAME PORT/PROTOCOL [NODEPORT]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceForm {
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
    #[serde(default, rename = "externalIPs")]
    external_ips: Vec<IpAddr>,
    #[serde(default, rename = "loadBalancerIPs")]
    load_balancer_ips: Vec<IpAddr>,
    ports: Vec<String>,
    #[serde(default)]
    internal_policy: Policy,
    #[serde(default)]
    external_policy: Policy,
    affinity: Option<u32>,
    #[serde(default)]
    source_ranges: Vec<IpNet>,
    #[serde(default)]
    created: i64,
}

#[derive(Clone, Copy, Default, Deserialize)]
enum Policy {
    #[default]
    Cluster,
    Local,
}

/// A slice; its ports as `NAME PORT/PROTOCOL`, its endpoints as `ADDRESS NODE [WORD]...` with the
/// words `notready`, `terminating`, `serving`, `zone=ZONE`, `node=NODE`, `pod=NAMESPACE/NAME`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SliceForm {
    service: String,
    ports: Vec<String>,
    endpoints: Vec<String>,
}

impl Document {
    /// Its objects as a source would tell of them.
    pub(crate) fn events(&self) -> Vec<Event> {
        let services = self.services.iter();
        let services = services.map(|(name, form)| Event::ServiceApplied(form.service(name)));
        let slices = self.slices.iter();
        let slices = slices.map(|(name, form)| Event::SliceApplied(form.slice(name)));
        services.chain(slices).chain(self.delete.iter().map(|text| deletion(text))).collect()
    }
}

impl NodeForm {
    /// As the rules take them.
    pub(crate) fn facts(&self) -> NodeFacts {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        NodeFacts {
            name: self.name.as_str().into(),
            zone: self.zone.as_deref().map(Arc::from),
            // As `--nodeport-addresses all` has it.
            node_port_addresses: loopback
                .into_iter()
                .chain(self.addresses.iter().copied())
                .collect(),
            local_addresses: self.local_addresses.iter().copied().collect(),
            primary_addresses: self.addresses.iter().copied().take(1).collect(),
            local_sources: self.local_sources.iter().copied().collect(),
            masquerade_all: self.masquerade_all,
        }
    }
}

impl From<Policy> for TrafficPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Cluster => Self::Cluster,
            Policy::Local => Self::Local,
        }
    }
}

impl ServiceForm {
    fn service(&self, name: &str) -> Service {
        Service {
            name: object(name),
            service_type: ServiceType::ClusterIp,
            created: self.created,
            cluster_ips: self.cluster_ips.clone(),
            external_ips: self.external_ips.clone(),
            load_balancer_ips: self.load_balancer_ips.clone(),
            ports: self.ports.iter().map(|port| service_port(port)).collect(),
            internal_policy: self.internal_policy.into(),
            external_policy: self.external_policy.into(),
            affinity_timeout: self.affinity,
            source_ranges: self.source_ranges.clone(),
            health_check_node_port: None,
        }
    }
}

impl SliceForm {
    fn slice(&self, name: &str) -> EndpointSlice {
        let endpoints: Vec<Endpoint> = self.endpoints.iter().map(|text| endpoint(text)).collect();
        EndpointSlice {
            name: object(name),
            service: object(&self.service),
            family: endpoints.first().map_or(Family::V4, |e| Family::of(e.address)),
            ports: self.ports.iter().map(|port| slice_port(port)).collect(),
            endpoints,
        }
    }
}

fn object(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect(text);
    ObjectName::new(namespace, name)
}

fn deletion(text: &str) -> Event {
    match text.split_once(' ') {
        Some(("service", name)) => Event::ServiceDeleted(object(name)),
        Some(("slice", name)) => Event::SliceDeleted(object(name)),
        _ => panic!("{text}"),
    }
}

fn service_port(text: &str) -> ServicePort {
    let mut words = text.split(' ');
    let SlicePort { name, protocol, port } =
        slice_port(&words.by_ref().take(2).collect::<Vec<_>>().join(" "));
    let node_port = words.next().map(|number| number.parse().expect(text));
    ServicePort { name, port, protocol, node_port }
}

fn slice_port(text: &str) -> SlicePort {
    let (name, rest) = text.split_once(' ').expect(text);
    let (port, protocol) = rest.split_once('/').expect(text);
    let protocol = match protocol {
        "SCTP" => Protocol::Sctp,
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => panic!("{text}"),
    };
    SlicePort { name: name.into(), protocol, port: port.parse().expect(text) }
}

fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let address = words.next().and_then(|word| word.parse().ok()).expect(text);
    let mut endpoint = Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: words.next().map(Arc::from),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        pod: None,
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("notready", _) => (endpoint.ready, endpoint.serving) = (false, false),
            ("terminating", _) => (endpoint.ready, endpoint.terminating) = (false, true),
            ("serving", _) => endpoint.serving = true,
            ("zone", zone) => endpoint.zone_hints.push(zone.into()),
            ("node", node) => endpoint.node_hints.push(node.into()),
            ("pod", pod) => endpoint.pod = Some(object(pod)),
            _ => panic!("{text}: {word}"),
        }
    }
    endpoint
}
