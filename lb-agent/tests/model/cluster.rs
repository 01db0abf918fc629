//! Random clusters: Services, slices and a node that meet often, and what happens to them.

use std::{collections::BTreeMap, fmt};

use lb_agent::{
    model::{Event, ObjectName},
    source::convert,
};
use proptest::{prelude::*, sample::subsequence};
use serde_json::{Value, json};

use super::node::{HERE, Node, any_node};

/// Namespace and name.
pub(crate) type Name = (String, String);

/// Addresses that are asked about, whether something has them or not. Cluster IPs are of two
/// Service CIDRs, and one is an external address of others.
pub(crate) const CLUSTER_IPS: [(&str, &str); 3] = [
    ("10.96.0.10", "fd00:96::10"),
    ("10.97.0.20", "fd00:97::20"),
    ("203.0.113.9", "2001:db8:1::9"),
];
pub(crate) const OUTER_IPS: [&str; 6] = [
    "203.0.113.9",
    "203.0.113.10",
    "198.51.100.2",
    "10.96.0.10",
    "2001:db8:1::9",
    "2001:db8:1::10",
];
/// Ports as name, protocol and number; node ports are of the same protocols.
pub(crate) const PORTS: [(&str, &str, u16); 4] =
    [("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("http", "TCP", 80), ("sctp", "SCTP", 80)];
pub(crate) const NODE_PORTS: [u16; 2] = [30_053, 30_080];

/// An object as Kubernetes has it; shown in one line.
#[derive(Clone)]
pub(crate) struct Object(pub(crate) Value);

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One thing that happens to a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Service(Name, Object),
    ServiceGone(Name),
    Slice(Name, Object),
    SliceGone(Name),
    Node(Node),
}

/// All objects of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    services: BTreeMap<Name, Object>,
    slices: BTreeMap<Name, Object>,
}

impl Objects {
    pub(crate) fn services(&self) -> impl Iterator<Item = (&Name, &Value)> {
        self.services.iter().map(|(name, object)| (name, &object.0))
    }

    /// The slices of a Service, in order of their names.
    pub(crate) fn slices_of(&self, (namespace, name): &Name) -> impl Iterator<Item = &Value> {
        let owner =
            |slice: &Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name;
        let own = self
            .slices
            .iter()
            .filter(move |((space, _), slice)| space == namespace && owner(&slice.0));
        own.map(|(_, slice)| &slice.0)
    }

    /// Takes in a change of an object.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Service(name, object) => drop(self.services.insert(name, object)),
            Change::ServiceGone(name) => drop(self.services.remove(&name)),
            Change::Slice(name, object) => drop(self.slices.insert(name, object)),
            Change::SliceGone(name) => drop(self.slices.remove(&name)),
            Change::Node(_) => {}
        }
    }
}

impl Change {
    /// As a source tells of it.
    pub(crate) fn event(&self) -> Event {
        let named = |(namespace, name): &Name| ObjectName::new(namespace, name);
        match self {
            Self::Service(name, Object(value)) => {
                let object = serde_json::from_value(value.clone()).unwrap();
                let gone = || Event::ServiceDeleted(named(name));
                convert::service(&object).object.map_or_else(gone, Event::ServiceApplied)
            }
            Self::ServiceGone(name) => Event::ServiceDeleted(named(name)),
            Self::Slice(name, Object(value)) => {
                let object = serde_json::from_value(value.clone()).unwrap();
                let gone = || Event::SliceDeleted(named(name));
                convert::slice(&object).object.map_or_else(gone, Event::SliceApplied)
            }
            Self::SliceGone(name) => Event::SliceDeleted(named(name)),
            Self::Node(node) => {
                let object = serde_json::from_value(node.object()).unwrap();
                Event::NodeApplied(convert::node(&object).object.unwrap())
            }
        }
    }
}

pub(crate) fn any_change() -> BoxedStrategy<Change> {
    let owner = || (0..4_usize).prop_map(owner);
    prop_oneof![
        8 => (owner(), any_service()).prop_map(|(name, spec)| service(name, spec)),
        1 => owner().prop_map(Change::ServiceGone),
        16 => (owner(), 0..4_u8, any_slice()).prop_map(|(owner, n, form)| slice(&owner, n, &form)),
        1 => (owner(), 0..4_u8).prop_map(|(owner, n)| Change::SliceGone(slice_name(&owner, n))),
        1 => any_node().prop_map(Change::Node),
    ]
    .boxed()
}

fn owner(n: usize) -> Name {
    let (namespace, name) = [("a", "dns"), ("a", "web"), ("b", "api"), ("b", "web")][n];
    (namespace.into(), name.into())
}

fn slice_name((namespace, _): &Name, n: u8) -> Name {
    (namespace.clone(), format!("slice-{n}"))
}

/// Another proxy's label, now and then.
fn any_label() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![
        18 => Just(None),
        1 => Just(Some("service.kubernetes.io/service-proxy-name")),
        1 => Just(Some("service.kubernetes.io/headless")),
    ]
}

fn any_policy() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![Just(None), Just(Some("Cluster")), Just(Some("Local"))]
}

/// A Service without its name.
#[derive(Clone, Debug)]
pub(crate) struct ServiceForm {
    label: Option<&'static str>,
    created: u8,
    cluster_ips: Vec<String>,
    spec: Value,
    ingress: Vec<Value>,
}

prop_compose! {
    fn any_service()(
        label in any_label(), created in 0..3_u8, cluster_ips in any_cluster_ips(),
        kind in prop_oneof![4 => Just("ClusterIP"), 4 => Just("NodePort"), 4 => Just("LoadBalancer"), 1 => Just("ExternalName")],
        external_ips in prop_oneof![Just(vec![]), subsequence(OUTER_IPS.to_vec(), 0..3)],
        ingress in prop::collection::vec(any_ingress(), 0..3),
        ports in subsequence(PORTS.to_vec(), 1..=3), unnamed in prop::bool::weighted(0.1),
        node_ports in any::<[bool; 4]>(), policies in (any_policy(), any_policy()),
        affinity in prop_oneof![Just(None), (1..100_u32).prop_map(Some)],
    ) -> ServiceForm {
        let spec = json!({
            "type": kind, "externalIPs": external_ips,
            "internalTrafficPolicy": policies.0, "externalTrafficPolicy": policies.1,
            "sessionAffinity": affinity.map(|_| "ClientIP"),
            "sessionAffinityConfig": affinity.map(|s| json!({"clientIP": {"timeoutSeconds": s}})),
            "ports": service_ports(&ports, kind, unnamed, node_ports),
        });
        ServiceForm { label, created, cluster_ips, spec, ingress }
    }
}

/// Without node ports as with `allocateLoadBalancerNodePorts: false`. One port may have no name.
fn service_ports(
    ports: &[(&str, &str, u16)],
    kind: &str,
    unnamed: bool,
    node_ports: [bool; 4],
) -> Vec<Value> {
    let ports = if unnamed { &ports[..1] } else { ports };
    let port = |(place, (name, protocol, number)): (usize, &(&str, &str, u16))| {
        let mut port = json!({"port": number, "protocol": protocol});
        if !unnamed {
            port["name"] = json!(name);
        }
        if node_ports[place] && kind != "ClusterIP" {
            port["nodePort"] = json!(NODE_PORTS[usize::from(*number == 80)]);
        }
        port
    };
    ports.iter().enumerate().map(port).collect()
}

fn any_cluster_ips() -> impl Strategy<Value = Vec<String>> {
    (0..CLUSTER_IPS.len(), 0..12_u8).prop_map(|(n, form)| {
        let (v4, v6) = CLUSTER_IPS[n];
        // A leading zero is decimal.
        let (stem, last) = v4.rsplit_once('.').unwrap();
        let texts: &[String] = match form {
            0 => &["None".into()],
            1 => &[],
            2 => &[format!("{stem}.0{last}")],
            3..6 => &[v4.into()],
            6..8 => &[v6.into()],
            8..10 => &[v6.into(), v4.into()],
            _ => &[v4.into(), v6.into()],
        };
        texts.to_vec()
    })
}

fn any_ingress() -> impl Strategy<Value = Value> {
    let mode = prop_oneof![2 => Just(None), 1 => Just(Some("VIP")), 1 => Just(Some("Proxy"))];
    prop_oneof![
        6 => (prop::sample::select(&OUTER_IPS[..]), mode)
            .prop_map(|(ip, mode)| json!({"ip": ip, "ipMode": mode})),
        1 => Just(json!({"hostname": "lb.example.com"})),
    ]
}

fn service((namespace, name): Name, form: ServiceForm) -> Change {
    let ServiceForm { label, created, cluster_ips, mut spec, ingress } = form;
    spec["clusterIP"] = json!(cluster_ips.first());
    spec["clusterIPs"] = json!(cluster_ips);
    let labels: BTreeMap<_, _> = label.map(|label| (label, "")).into_iter().collect();
    let object = json!({
        "metadata": {
            "namespace": namespace, "name": name, "labels": labels,
            "creationTimestamp": format!("2024-05-01T10:00:0{created}Z"),
        },
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    Change::Service((namespace, name), Object(object))
}

/// A slice without its name and owner.
#[derive(Clone, Debug)]
pub(crate) struct SliceForm {
    label: Option<&'static str>,
    ports: Vec<Value>,
    family: Family,
    endpoints: Vec<Value>,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    V6,
    Names,
}

fn any_slice() -> impl Strategy<Value = SliceForm> {
    let family =
        prop_oneof![12 => Just(Family::V4), 8 => Just(Family::V6), 1 => Just(Family::Names)];
    let ports = (subsequence(PORTS.to_vec(), 3..=4), 0..20_u8)
        .prop_map(|(ports, form)| slice_ports(&ports, form));
    // With hints on all endpoints, on none, or here and there.
    let hinted = prop_oneof![Just(0_u32), Just(50), Just(100)];
    (any_label(), ports, family, hinted).prop_flat_map(|(label, ports, family, hinted)| {
        let endpoints = prop::collection::vec(any_endpoint(family, hinted), 0..6);
        let form = move |endpoints| SliceForm { label, ports: ports.clone(), family, endpoints };
        endpoints.prop_map(form)
    })
}

/// Target ports differ from slice to slice; one may have no number, or no name.
fn slice_ports(ports: &[(&str, &str, u16)], form: u8) -> Vec<Value> {
    let port = |(name, protocol, number): &(&str, &str, u16)| {
        let target = match form {
            0 => json!(null),
            1 => json!(0),
            2..9 => json!(number + 10_000),
            _ => json!(number + 8_000),
        };
        let name = if form == 9 { json!(null) } else { json!(name) };
        json!({"name": name, "protocol": protocol, "port": target})
    };
    ports.iter().map(port).collect()
}

prop_compose! {
    fn any_endpoint(family: Family, hinted: u32)(
        n in 1..5_u8,
        conditions in prop_oneof![
            3 => Just(json!({})),
            2 => Just(json!({"ready": true, "serving": true, "terminating": false})),
            1 => Just(json!({"ready": false, "serving": false, "terminating": false})),
            2 => Just(json!({"ready": false, "serving": true, "terminating": true})),
            1 => Just(json!({"ready": false, "serving": false, "terminating": true})),
            // As with `publishNotReadyAddresses`.
            1 => Just(json!({"ready": true, "serving": false, "terminating": true})),
            1 => any::<[Option<bool>; 3]>().prop_map(|[ready, serving, terminating]| {
                json!({"ready": ready, "serving": serving, "terminating": terminating})
            }),
        ],
        node in prop_oneof![3 => Just(Some(HERE)), 3 => Just(Some("there")), 1 => Just(None)],
        dice in (0..100_u32, 0..100_u32), near in (any::<bool>(), any::<bool>()),
    ) -> Value {
        let address = match family {
            Family::V4 => format!("10.244.0.{n}"),
            Family::V6 => format!("fd00:244::{n}"),
            Family::Names => format!("host-{n}.example.com"),
        };
        let zone = if near.0 { "a" } else { "b" };
        let host = if near.1 { HERE } else { "there" };
        let mut hints = json!({});
        if dice.0 < hinted {
            hints["forZones"] = json!([{"name": zone}]);
        }
        if dice.1 < hinted {
            hints["forNodes"] = json!([{"name": host}]);
        }
        // Only the first address counts.
        json!({"addresses": [address, "10.244.9.9"], "conditions": conditions, "nodeName": node, "hints": hints})
    }
}

fn slice(owner: &Name, n: u8, form: &SliceForm) -> Change {
    let (namespace, name) = slice_name(owner, n);
    let mut labels = json!({"kubernetes.io/service-name": owner.1});
    if let Some(label) = form.label {
        labels[label] = json!("");
    }
    let family = match form.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
        Family::Names => "FQDN",
    };
    let object = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "addressType": family, "ports": form.ports, "endpoints": form.endpoints,
    });
    Change::Slice((namespace, name), Object(object))
}
