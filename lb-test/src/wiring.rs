//! The `ip` commands that connect a topology's namespaces: pure text, run by `topology`.
//!
//! Duplicate address detection is off everywhere, so that addresses can be used at once.

use crate::address::{DualStack, FABRIC, OUTSIDE, pod_networks};
use crate::builder::Wiring;
use crate::topology::{Node, Pod};

/// The bridge of a node whose pods are bridged.
pub(crate) const POD_BRIDGE: &str = "cbr0";
/// The MAC address of every routed pod's gateway, and the link-local address that follows from it.
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
const GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";
const GATEWAY_V4: &str = "169.254.1.1";

const NO_DAD: [(&str, &str); 2] =
    [("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")];

/// The sysctls of a host that only sends and receives.
pub(crate) fn endpoint_sysctls() -> Vec<(&'static str, &'static str)> {
    NO_DAD.to_vec()
}

/// The sysctls of a host that forwards.
pub(crate) fn router_sysctls(rp_filter: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut sysctls = NO_DAD.to_vec();
    sysctls.extend([
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", rp_filter),
        ("net/ipv4/conf/default/rp_filter", rp_filter),
    ]);
    sysctls
}

/// The fabric's two bridges, run in the fabric before anything is plugged in.
pub(crate) fn bridges() -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(bridge("br0", FABRIC));
    lines.extend(bridge("outside0", OUTSIDE));
    lines
}

/// A cable from the fabric's bridge `bridge` to `eth0` in namespace `netns`, run in the fabric.
pub(crate) fn uplink(bridge: &str, port: &str, netns: &str) -> Vec<String> {
    vec![
        format!("link add name {port} mtu 1500 type veth peer name eth0 mtu 1500 netns {netns}"),
        format!("link set {port} master {bridge} up"),
    ]
}

/// A cable from a node to a pod's `eth0`, run in the fabric.
pub(crate) fn pod_link(pod: &Pod, node: &Node) -> String {
    let mac = match pod.wiring() {
        Wiring::Bridged => String::new(),
        Wiring::Routed => format!("address {GATEWAY_MAC} "),
    };
    let (node, netns) = (node.netns().name(), pod.netns().name());
    let device = pod.device();
    format!(
        "link add name {device} mtu 1500 netns {node} {mac}type veth peer name eth0 mtu 1500 netns {netns}"
    )
}

/// The fabric's routes to a node's pods, run in the fabric.
pub(crate) fn routes_to_pods(node: &Node) -> Vec<String> {
    let [v4, v6] = pod_networks(node.number());
    let via = node.addresses();
    vec![format!("route add {v4} via {}", via.v4), format!("route add {v6} via {}", via.v6)]
}

/// A host with one cable to the fabric: its address and its default route, run in the host.
pub(crate) fn endpoint(addresses: DualStack, gateway: DualStack) -> Vec<String> {
    let DualStack { v4, v6 } = addresses;
    vec![
        "link set lo up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {}", gateway.v4),
        format!("route add default via {}", gateway.v6),
    ]
}

/// The node's ends of its pods' cables, run in the node.
pub(crate) fn node_ports(node: &Node, pods: &[&Pod]) -> Vec<String> {
    let (bridged, routed): (Vec<&Pod>, Vec<&Pod>) =
        pods.iter().partition(|pod| pod.wiring() == Wiring::Bridged);
    let mut lines = Vec::new();
    for pod in routed {
        let (device, DualStack { v4, v6 }) = (pod.device(), pod.addresses());
        lines.push(format!("link set {device} up"));
        lines.push(format!("route add {v4}/32 dev {device}"));
        lines.push(format!("route add {v6}/128 dev {device}"));
    }
    if !bridged.is_empty() {
        lines.extend(bridge(POD_BRIDGE, bridge_gateway(node.number())));
    }
    let ports = bridged.iter().map(|pod| pod.device());
    lines.extend(ports.map(|device| format!("link set {device} master {POD_BRIDGE} up")));
    lines
}

/// A pod's own end: its address and its routes, run in the pod.
pub(crate) fn pod_end(pod: &Pod, node: &Node, neighbours: &[&Pod]) -> Vec<String> {
    match pod.wiring() {
        Wiring::Bridged => bridged_end(pod, node, neighbours),
        Wiring::Routed => routed_end(pod),
    }
}

/// A bridged pod takes its node's whole pod network for its own link, so it needs to be told which
/// neighbours are behind the node.
fn bridged_end(pod: &Pod, node: &Node, neighbours: &[&Pod]) -> Vec<String> {
    let gateway = bridge_gateway(node.number());
    let mut lines = endpoint(pod.addresses(), gateway);
    for neighbour in neighbours.iter().filter(|pod| pod.wiring() == Wiring::Routed) {
        let DualStack { v4, v6 } = neighbour.addresses();
        lines.push(format!("route add {v4}/32 via {}", gateway.v4));
        lines.push(format!("route add {v6}/128 via {}", gateway.v6));
    }
    lines
}

fn routed_end(pod: &Pod) -> Vec<String> {
    let DualStack { v4, v6 } = pod.addresses();
    vec![
        "link set lo up".to_owned(),
        format!("addr add {v4}/32 dev eth0"),
        format!("addr add {v6}/128 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add {GATEWAY_V4} dev eth0 scope link"),
        format!("route add default via {GATEWAY_V4} dev eth0"),
        format!("neigh replace {GATEWAY_V4} lladdr {GATEWAY_MAC} dev eth0 nud permanent"),
        format!("neigh replace {GATEWAY_V6} lladdr {GATEWAY_MAC} dev eth0 nud permanent"),
        format!("route add default via {GATEWAY_V6} dev eth0"),
    ]
}

/// The node's bridge has the first address of the node's pod network.
fn bridge_gateway(node: u8) -> DualStack {
    DualStack::of_pod(node, 1)
}

fn bridge(name: &str, addresses: DualStack) -> Vec<String> {
    let DualStack { v4, v6 } = addresses;
    vec![
        format!("link add {name} mtu 1500 type bridge mcast_snooping 0"),
        format!("addr add {v4}/24 dev {name}"),
        format!("addr add {v6}/64 dev {name} nodad"),
        format!("link set {name} up"),
    ]
}
