//! Four nodes, each with an agent and another way to its pod: routed, bridged, and by VXLAN.

use lb_test::manifests::{Service, cluster_ips, list};
use lb_test::{Family, NodeSpec, PodSpec, Process, Topology, programs};

use crate::ask::{assert_answering, client_seen, echoing};
use crate::{NODE_PORT, ip, start, start_agents, start_with};

const PODS: [&str; 4] = ["pod1", "pod2", "pod3", "pod4"];
const NODES: [&str; 4] = ["node1", "node2", "node3", "node4"];
/// The node port of what iperf3 asks.
const BULK: u16 = 30090;

fn four_nodes(spec: fn(&str) -> NodeSpec) -> Topology {
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .node(spec("node2"))
        .node(spec("node3"))
        .node(spec("node4"))
        .pod(PodSpec::routed("pod1", "node1"))
        .pod(PodSpec::bridged("pod2", "node2"))
        .pod(PodSpec::routed("pod3", "node3").sandboxed())
        .pod(PodSpec::routed("pod4", "node4"))
        .client("client")
        .build()
        .unwrap();
    (1..=4).for_each(|number| add_overlay(&topology, number));
    topology
}

/// Gives a node a VXLAN device to all others, by which node4's pods and the others' reach each other.
fn add_overlay(topology: &Topology, number: u8) {
    let node = topology.node(&format!("node{number}"));
    ip(
        node,
        &[
            &format!(
                "link add vx0 mtu 1450 type vxlan id 42 dstport 8472 local 172.20.0.1{number}"
            ),
            &format!("addr add 172.25.0.{number}/24 dev vx0"),
            &format!("addr add fd00:25::{number}/64 dev vx0 nodad"),
            "link set vx0 up",
        ],
    );
    for other in (1..=4).filter(|other| *other != number) {
        let remote = format!("172.20.0.1{other}");
        let flood = ["fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", &remote];
        node.run("bridge", &flood).unwrap();
        if number == 4 || other == 4 {
            ip(
                node,
                &[
                    &format!("route replace 10.248.{other}.0/24 via 172.25.0.{other} dev vx0"),
                    &format!("route del fd00:248:{other}::/64"),
                    &format!("route add fd00:248:{other}::/64 via fd00:25::{other} dev vx0"),
                ],
            );
        }
    }
    if number == 4 {
        ip(topology.pod("pod4"), &["link set eth0 mtu 1450"]);
    }
}

#[test]
fn every_node_serves_every_pod_of_four_nodes() {
    lb_test::require_topology!();
    let topology = four_nodes(|name| NodeSpec::new(name).strict_rp_filter());
    let _bulk = serve_bulk(&topology);
    let _running = start(&topology, &PODS, &NODES);
    for family in Family::BOTH {
        for node in NODES.map(|name| topology.node(name)) {
            let to = node.socket(family, NODE_PORT);
            assert_answering(topology.client("client"), to, &PODS);
            for _ in 0..4 {
                echoing(topology.client("client"), to, &["--count", "2"]);
            }
        }
        for pod in PODS.map(|name| topology.pod(name)) {
            let to = cluster_ips(1).socket(family, 80);
            assert_answering(pod, to, &PODS);
            let url = format!("http://{to}/");
            assert!(programs::curl(pod, &url, &[]).unwrap().starts_with("pod"));
        }
        assert_bulk(&topology, family);
    }
}

/// Carriers are packets as others: the overlay takes them, and what comes out of it is unpacked. Nodes let in
/// clients that their routes lead to by another device.
#[test]
fn direct_server_return_of_four_nodes() {
    lb_test::require_topology!();
    let topology = four_nodes(NodeSpec::new);
    let _bulk = serve_bulk(&topology);
    let by = |kind| ["--forwarding=dsr", kind];
    let (gue, ipip) = NODES.split_at(2);
    let _by_gue = start_with(&topology, &PODS, gue, &by("--dsr-dispatch=gue"));
    let _by_ipip = start_agents(&topology, ipip, &by("--dsr-dispatch=ipip"));
    let client = topology.client("client");
    for family in Family::BOTH {
        for node in NODES.map(|name| topology.node(name)) {
            let to = node.socket(family, NODE_PORT);
            assert_answering(client, to, &PODS);
            for _ in 0..8 {
                assert_eq!(client_seen(client, to).0, client.ip(family), "asked {}", node.name());
                echoing(client, to, &["--count", "2"]);
            }
        }
        assert_bulk(&topology, family);
    }
}

/// A Service for iperf3, behind the overlay.
fn serve_bulk(topology: &Topology) -> Process {
    let bulk = Service::new("bulk", 2).select("pod4").tcp(5201, 5201).node_port(BULK);
    topology.apply("bulk.yaml", &list(&[bulk.object()])).unwrap();
    programs::iperf3_server(topology.pod("pod4")).unwrap()
}

#[track_caller]
fn assert_bulk(topology: &Topology, family: Family) {
    let to = topology.node("node1").socket(family, BULK);
    for direction in [&["-n", "8M"][..], &["-n", "8M", "--reverse"]] {
        let report = programs::iperf3(topology.client("client"), to, direction).unwrap();
        let sent = &report["end"]["sum_sent"]["bytes"];
        assert!(sent.as_u64().unwrap() >= 8 << 20, "{to}: {sent}");
    }
}
