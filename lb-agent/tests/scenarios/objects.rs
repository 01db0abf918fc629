//! The compact form in which scenarios give objects, and Kubernetes' own form of them.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// Fields of an object as the file has them.
pub(crate) type Form = Map<String, Value>;

/// A Service; its ports as `NAME PORT/PROTOCOL [NODEPORT]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceForm {
    /// If missing: what the node ports and load balancer addresses need.
    #[serde(rename = "type")]
    service_type: Option<String>,
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(default, rename = "externalIPs")]
    external_ips: Vec<String>,
    /// `ADDRESS [IPMODE]`, or `HOST host`.
    #[serde(default, rename = "loadBalancerIPs")]
    load_balancer_ips: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    internal_policy: Option<String>,
    external_policy: Option<String>,
    affinity: Option<u32>,
    #[serde(default)]
    source_ranges: Vec<String>,
    /// Seconds since the epoch.
    #[serde(default)]
    created: i64,
}

/// A slice; its ports as `NAME PORT/PROTOCOL`, its endpoints as `ADDRESS [NODE [WORD]...]` with the
/// words `notready`, `terminating`, `serving`, `zone=ZONE`, `node=NODE`, `pod=NAMESPACE/NAME`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SliceForm {
    service: String,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    endpoints: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// If missing: the family of the first endpoint.
    address_type: Option<String>,
}

/// A Service as Kubernetes has it.
pub(crate) fn service<T: DeserializeOwned>(name: &str, form: &Form) -> T {
    let form: ServiceForm = read(name, form);
    let ports: Vec<Value> = form.ports.iter().map(|text| port(text)).collect();
    let service_type = form.service_type.clone().unwrap_or_else(|| {
        let has_node_port = ports.iter().any(|port| port.get("nodePort").is_some());
        match (form.load_balancer_ips.is_empty(), has_node_port) {
            (false, _) => "LoadBalancer".to_owned(),
            (true, true) => "NodePort".to_owned(),
            (true, false) => "ClusterIP".to_owned(),
        }
    });
    let ingress: Vec<Value> = form.load_balancer_ips.iter().map(|text| ingress(text)).collect();
    let affinity = form.affinity.map(|seconds| json!({"clientIP": {"timeoutSeconds": seconds}}));
    let created = jiff::Timestamp::from_second(form.created).expect(name).to_string();
    let (namespace, short) = split(name);
    kubernetes(json!({
        "metadata": {
            "namespace": namespace, "name": short, "labels": form.labels,
            "creationTimestamp": created,
        },
        "spec": {
            "type": service_type, "clusterIP": form.cluster_ips.first(),
            "clusterIPs": form.cluster_ips, "externalIPs": form.external_ips, "ports": ports,
            "internalTrafficPolicy": form.internal_policy,
            "externalTrafficPolicy": form.external_policy,
            "sessionAffinity": form.affinity.map(|_| "ClientIP"),
            "sessionAffinityConfig": affinity,
            "loadBalancerSourceRanges": form.source_ranges,
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
}

/// A slice as Kubernetes has it.
pub(crate) fn slice<T: DeserializeOwned>(name: &str, form: &Form) -> T {
    let form: SliceForm = read(name, form);
    let endpoints: Vec<Value> = form.endpoints.iter().map(|text| endpoint(text)).collect();
    let is_v6 = form.endpoints.first().is_some_and(|text| text.contains(':'));
    let address_type = form.address_type.unwrap_or(if is_v6 { "IPv6" } else { "IPv4" }.to_owned());
    let (namespace, short) = split(name);
    let (space, service) = split(&form.service);
    assert_eq!(namespace, space, "{name}: a slice is in the namespace of its Service");
    let mut labels = form.labels;
    labels.insert("kubernetes.io/service-name".to_owned(), service.to_owned());
    let ports: Vec<Value> = form.ports.iter().map(|text| port(text)).collect();
    kubernetes(json!({
        "metadata": {"namespace": namespace, "name": short, "labels": labels},
        "addressType": address_type, "ports": ports, "endpoints": endpoints,
    }))
}

/// A node as Kubernetes has it.
pub(crate) fn node<T: DeserializeOwned>(name: &str, zone: Option<&str>) -> T {
    let labels: BTreeMap<_, _> =
        zone.map(|zone| ("topology.kubernetes.io/zone", zone)).into_iter().collect();
    kubernetes(json!({"metadata": {"name": name, "labels": labels}}))
}

/// Namespace and name.
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or_else(|| panic!("{name}: write namespace/name"))
}

fn read<T: DeserializeOwned>(name: &str, form: &Form) -> T {
    serde_json::from_value(Value::Object(form.clone()))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn kubernetes<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("the form gives what Kubernetes' types have")
}

fn ingress(text: &str) -> Value {
    match text.split_once(' ') {
        None => json!({"ip": text}),
        Some((host, "host")) => json!({"hostname": host}),
        Some((ip, mode)) => json!({"ip": ip, "ipMode": mode}),
    }
}

/// `NAME PORT/PROTOCOL [NODEPORT]`; `unnamed` is the port without a name.
fn port(text: &str) -> Value {
    let words: Vec<&str> = text.split(' ').collect();
    let [name, port, ref rest @ ..] = words[..] else { panic!("{text}: no port") };
    let (number, protocol) = port.split_once('/').expect(text);
    let number: u16 = number.parse().expect(text);
    let mut port = json!({"port": number, "protocol": protocol});
    if name != "unnamed" {
        port["name"] = json!(name);
    }
    if let [node_port] = rest {
        port["nodePort"] = json!(node_port.parse::<u16>().expect(text));
    }
    port
}

fn endpoint(text: &str) -> Value {
    let mut words = text.split(' ');
    let (address, node) = (words.next().expect(text), words.next());
    let (mut ready, mut serving, mut terminating) = (true, true, false);
    let (mut zones, mut nodes, mut pod) = (Vec::new(), Vec::new(), None);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("notready", _) => (ready, serving) = (false, false),
            ("terminating", _) => (ready, terminating) = (false, true),
            ("serving", _) => serving = true,
            ("zone", zone) => zones.push(json!({"name": zone})),
            ("node", node) => nodes.push(json!({"name": node})),
            ("pod", name) => pod = Some(split(name)),
            _ => panic!("{text}: {word}"),
        }
    }
    let pod = pod.map(|(space, name)| json!({"kind": "Pod", "namespace": space, "name": name}));
    json!({
        "addresses": [address], "nodeName": node, "targetRef": pod,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "hints": {"forZones": zones, "forNodes": nodes},
    })
}
