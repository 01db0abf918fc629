//! kube-proxy's rules once more, for comparison: plain and slow, and without a line of what they
//! are compared with. Reads Kubernetes objects as JSON. Numbers are those of the rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

use super::{
    cluster::{Name, Objects},
    node::Node,
};

/// Who sends the packet.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Client {
    Host,
    Outside,
    Pod,
}

/// Where it goes: address, port, protocol.
pub(crate) type At = (IpAddr, u16, String);

/// What becomes of a new connection.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Answer {
    Drop,
    NotOurs,
    /// One of these endpoints, and with affinity (S10) the same for that many seconds.
    OneOf(BTreeSet<SocketAddr>, u64),
    Reject,
}

/// Who answers at an address, and which endpoints its known connections stay with (S11), each
/// with whether it is on this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) service: Name,
    pub(crate) port: String,
    pub(crate) serving: BTreeMap<SocketAddr, bool>,
}

/// All answers of a node at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Truth(BTreeMap<At, Claim>);

/// S21: the least wins.
type Rank = (bool, u64, Name, String, Kind);

/// The order is that of the kinds of one Service port that name the same address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    NodePort,
}

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a rule by itself")]
struct Claim {
    rank: Rank,
    left_alone: bool,
    host_only: bool,
    local_inside: bool,
    local_outside: bool,
    affinity: u64,
    lists: Lists,
}

/// The endpoints of a Service port in one family.
#[derive(Clone, Debug, Default)]
struct Lists {
    cluster: BTreeSet<SocketAddr>,
    local: BTreeSet<SocketAddr>,
    serving: BTreeMap<SocketAddr, bool>,
    has_any: bool,
}

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "as the API has them")]
struct Endpoint {
    here: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl Truth {
    /// Works everything out.
    pub(crate) fn of(objects: &Objects, node: &Node) -> Self {
        let mut claims = BTreeMap::<At, Claim>::new();
        for (name, service) in objects.services().filter(|(_, service)| is_programmed(service)) {
            for (at, claim) in claims_of(name, service, objects, node) {
                let best = claims.entry(at).or_insert_with(|| claim.clone());
                if claim.rank < best.rank {
                    *best = claim;
                }
            }
        }
        Self(claims)
    }

    /// Every address that somebody claims.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &At> {
        self.0.keys()
    }

    /// What becomes of a new connection.
    pub(crate) fn answer(&self, client: Client, at: &At) -> Answer {
        let Some(claim) = self.0.get(at) else { return Answer::NotOurs };
        // S22: left alone. S8: a pod's own 127.0.0.1 is its business.
        if claim.left_alone || claim.host_only && client != Client::Host {
            return Answer::NotOurs;
        }
        let is_local =
            if client == Client::Outside { claim.local_outside } else { claim.local_inside };
        let list = if is_local { &claim.lists.local } else { &claim.lists.cluster };
        // S5.
        match (list.is_empty(), claim.lists.has_any) {
            (false, _) => Answer::OneOf(list.clone(), claim.affinity),
            (true, true) => Answer::Drop,
            (true, false) => Answer::Reject,
        }
    }

    /// Who answers there, or keeps processes of the host from binding the port.
    pub(crate) fn owner(&self, at: &At) -> Option<Owner> {
        let claim = self.0.get(at).filter(|claim| !claim.left_alone || at.0.is_unspecified())?;
        let (_, _, service, port, _) = claim.rank.clone();
        Some(Owner { service, port, serving: claim.lists.serving.clone() })
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// Leading zeros are decimal.
fn ip(text: &str) -> IpAddr {
    let plain = |part: &str| match part.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    };
    if text.contains(':') {
        return text.parse().expect("an address");
    }
    let parts: Vec<String> = text.split('.').map(plain).collect();
    parts.join(".").parse().expect("an address")
}

/// S13, of Services and slices alike.
fn is_for_another_proxy(object: &Value) -> bool {
    ["service-proxy-name", "headless"].iter().any(|label| {
        object["metadata"]["labels"].get(format!("service.kubernetes.io/{label}")).is_some()
    })
}

/// S13.
fn is_programmed(service: &Value) -> bool {
    !is_for_another_proxy(service)
        && text(service, "/spec/type") != "ExternalName"
        && !["", "None"].contains(&text(service, "/spec/clusterIPs/0"))
}

/// What one Service asks for.
fn claims_of(name: &Name, service: &Value, objects: &Objects, node: &Node) -> Vec<(At, Claim)> {
    let mut claims = Vec::new();
    for cluster_ip in items(service, "/spec/clusterIPs").filter_map(Value::as_str).map(ip) {
        for port in items(service, "/spec/ports") {
            let wishes = wishes(service, port, cluster_ip, node);
            let lists = lists(name, port, cluster_ip, objects, node);
            for ((ip, number), kind) in wishes {
                let claim = claim(name, service, port, (kind, ip), &lists);
                let held = kind == Kind::ClusterIp && node.holds(ip);
                // The unspecified address means loopback, which may have no node ports.
                let left_alone = held || ip.is_unspecified() && !node.has_loopback_node_ports();
                claims.push(((ip, number, protocol(port)), Claim { left_alone, ..claim }));
            }
        }
    }
    claims
}

/// Addresses of one Service port in the family of a cluster IP. An address of a family without a
/// cluster IP has no endpoints.
fn wishes(
    service: &Value,
    port: &Value,
    cluster_ip: IpAddr,
    node: &Node,
) -> Vec<((IpAddr, u16), Kind)> {
    let as_port = |number: u64| u16::try_from(number).expect("a port");
    let own = as_port(number(port, "/port"));
    // S14.
    let balancer = items(service, "/status/loadBalancer/ingress")
        .filter(|ingress| ["", "VIP"].contains(&text(ingress, "/ipMode")))
        .filter_map(|ingress| Some((ip(ingress["ip"].as_str()?), Kind::LoadBalancer)));
    let external = items(service, "/spec/externalIPs")
        .filter_map(|entry| Some((ip(entry.as_str()?), Kind::ExternalIp)));
    let mut wishes: Vec<_> = balancer.chain(external).map(|(ip, kind)| ((ip, own), kind)).collect();
    let node_port = as_port(number(port, "/nodePort"));
    if node_port != 0 && text(service, "/spec/type") != "ClusterIP" {
        let addresses = node.node_port_addresses().into_iter();
        wishes.extend(addresses.map(|ip| ((ip, node_port), Kind::NodePort)));
    }
    wishes.retain(|((ip, _), _)| ip.is_ipv4() == cluster_ip.is_ipv4());
    // S8: where a node port answers at all, no process of the host can bind it.
    if wishes.iter().any(|(_, kind)| *kind == Kind::NodePort) {
        let any = if cluster_ip.is_ipv4() { "0.0.0.0" } else { "::" };
        wishes.push(((ip(any), node_port), Kind::NodePort));
    }
    wishes.push(((cluster_ip, own), Kind::ClusterIp));
    wishes
}

fn claim(
    name: &Name,
    service: &Value,
    port: &Value,
    (kind, ip): (Kind, IpAddr),
    lists: &Lists,
) -> Claim {
    let is_local = |policy: &str| text(service, policy) == "Local";
    let cluster_ip = kind == Kind::ClusterIp;
    let internal = is_local("/spec/internalTrafficPolicy");
    let affinity = match text(service, "/spec/sessionAffinity") {
        "ClientIP" => number(service, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds"),
        _ => 0,
    };
    let created = objects_age(service);
    let port = text(port, "/name").to_owned();
    Claim {
        rank: (!cluster_ip, created, name.clone(), port, kind),
        left_alone: false,
        host_only: ip.is_loopback() || ip.is_unspecified(),
        // S7, S6.3, S6.4.
        local_inside: cluster_ip && internal,
        // S1.3, S6.2.
        local_outside: if cluster_ip { internal } else { is_local("/spec/externalTrafficPolicy") },
        affinity,
        lists: lists.clone(),
    }
}

/// Seconds, from a time that ends in `:SSZ`.
fn objects_age(service: &Value) -> u64 {
    let time = text(service, "/metadata/creationTimestamp");
    time.rsplit(':').next().and_then(|end| end.trim_end_matches('Z').parse().ok()).unwrap_or(0)
}

fn protocol(port: &Value) -> String {
    match text(port, "/protocol") {
        "" => "TCP".to_owned(),
        other => other.to_owned(),
    }
}

/// S1.4 to S1.7 of one Service port in one family.
fn lists(name: &Name, port: &Value, cluster_ip: IpAddr, objects: &Objects, node: &Node) -> Lists {
    let endpoints = endpoints(name, port, cluster_ip, objects, node);
    let those = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
        endpoints.iter().filter(|(_, e)| wanted(e)).map(|(at, _)| *at).collect()
    };
    let leaving = |e: &Endpoint| e.serving && e.terminating;
    let or_else = |ready: BTreeSet<SocketAddr>, leaving: BTreeSet<SocketAddr>| {
        if ready.is_empty() { leaving } else { ready }
    };
    let near = nearness(endpoints.values().filter(|e| e.ready), node);
    Lists {
        cluster: or_else(those(&|e| e.ready && near(e)), those(&leaving)),
        local: or_else(those(&|e| e.ready && e.here), those(&|e| leaving(e) && e.here)),
        has_any: endpoints.values().any(|e| e.ready || leaving(e)),
        serving: endpoints
            .iter()
            .filter(|(_, e)| e.ready || e.serving)
            .map(|(at, e)| (*at, e.here))
            .collect(),
    }
}

/// S2.
fn nearness<'a>(
    ready: impl Iterator<Item = &'a Endpoint>,
    node: &Node,
) -> Box<dyn Fn(&Endpoint) -> bool> {
    let ready: Vec<&Endpoint> = ready.collect();
    let (name, zone) = (node.name.clone(), node.zone.clone());
    let same_node = move |e: &Endpoint| e.nodes.contains(&name);
    let same_zone = move |e: &Endpoint| zone.as_ref().is_some_and(|zone| e.zones.contains(zone));
    if ready.iter().all(|e| !e.nodes.is_empty()) && ready.iter().any(|e| same_node(e)) {
        Box::new(same_node)
    } else if ready.iter().all(|e| !e.zones.is_empty()) && ready.iter().any(|e| same_zone(e)) {
        Box::new(same_zone)
    } else {
        Box::new(|_| true)
    }
}

/// S1.9, S19: of entries for one address the one on this node counts, then the better one.
fn endpoints(
    name: &Name,
    port: &Value,
    cluster_ip: IpAddr,
    objects: &Objects,
    node: &Node,
) -> BTreeMap<SocketAddr, Endpoint> {
    let family = if cluster_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut found = Vec::new();
    for slice in objects.slices_of(name) {
        if is_for_another_proxy(slice) || text(slice, "/addressType") != family {
            continue;
        }
        let fits = |other: &&Value| {
            text(other, "/name") == text(port, "/name") && protocol(other) == protocol(port)
        };
        for number in items(slice, "/ports").filter(fits).map(|port| number(port, "/port")) {
            let Some(number) = u16::try_from(number).ok().filter(|number| *number != 0) else {
                continue;
            };
            for object in items(slice, "/endpoints") {
                let at = SocketAddr::new(ip(text(object, "/addresses/0")), number);
                found.push((at, endpoint(object, node)));
            }
        }
    }
    // The last one put in stays: the best one, and of equals the first.
    found.reverse();
    found.sort_by_key(|(_, e)| (e.here, e.ready, e.serving));
    found.into_iter().collect()
}

fn endpoint(object: &Value, node: &Node) -> Endpoint {
    let condition = |name: &str, missing| object["conditions"][name].as_bool().unwrap_or(missing);
    let hints = |path| items(object, path).map(|hint| text(hint, "/name").to_owned()).collect();
    Endpoint {
        here: text(object, "/nodeName") == node.name,
        ready: condition("ready", true),
        serving: condition("serving", true),
        terminating: condition("terminating", false),
        zones: hints("/hints/forZones"),
        nodes: hints("/hints/forNodes"),
    }
}
