//! Nodes with several uplinks: replies that leave by another device than requests came in by, routes by
//! rules, and routes with several next hops.

use lb_test::{Family, Host, NodeSpec, PodSpec, Topology};

use crate::ask::{assert_answering, echoing};
use crate::{NODE_PORT, hops, ip, start};

/// Node1 with a second way to the fabric, a pod on each node, and a client.
fn two_uplinks() -> Topology {
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("near", "node1"))
        .pod(PodSpec::routed("far", "node2"))
        .client("client")
        .build()
        .unwrap();
    let (node1, fabric) = (topology.node("node1"), topology.fabric());
    let peer = node1.netns().name();
    ip(
        fabric,
        &[
            &format!("link add second type veth peer name eth1 netns {peer}"),
            "addr add 172.22.0.254/24 dev second",
            "addr add fd00:22::254/64 dev second nodad",
            "link set second up",
        ],
    );
    ip(
        node1,
        &[
            "addr add 172.22.0.1/24 dev eth1",
            "addr add fd00:22::1/64 dev eth1 nodad",
            "link set eth1 up",
        ],
    );
    topology
}

/// A client asks by the first uplink, for pods here and there.
#[track_caller]
fn client_asks(topology: &Topology) {
    for family in Family::BOTH {
        let to = topology.node("node1").socket(family, NODE_PORT);
        assert_answering(topology.client("client"), to, &["near", "far"]);
        for _ in 0..4 {
            echoing(topology.client("client"), to, &["--count", "3"]);
        }
    }
}

/// Packets that a host has sent by `eth1`.
fn sent(host: &Host) -> u64 {
    hops::sent_by_second(host)
}

#[test]
fn replies_leave_by_another_uplink_than_requests_come_in_by() {
    lb_test::require_topology!();
    let topology = two_uplinks();
    let node1 = topology.node("node1");
    let _running = start(&topology, &["near", "far"], &["node1"]);
    // By source: what pods answer goes by the second uplink, what this node sends by the first.
    for rule in ["-4 rule add from 10.248.1.0/24", "-6 rule add from fd00:248:1::/64"] {
        let words: Vec<_> = rule.split(' ').chain(["table", "77", "pref", "50"]).collect();
        node1.run("ip", &words).unwrap();
    }
    ip(
        node1,
        &[
            "route add default via 172.22.0.254 dev eth1 table 77",
            "route add default via fd00:22::254 dev eth1 table 77",
        ],
    );
    let before = sent(node1);
    client_asks(&topology);
    assert!(sent(node1) > before + 100, "replies of the pod here go by the second uplink");
    // By default: also what comes back from the other node, whose address is put back at ingress.
    ip(
        node1,
        &[
            "route replace default via 172.22.0.254 dev eth1",
            "route del default via fd00:20::1 dev eth0",
            "route add default via fd00:22::254 dev eth1",
        ],
    );
    let before = sent(node1);
    client_asks(&topology);
    assert!(sent(node1) > before + 200, "all replies go by the second uplink");
}

#[test]
fn a_route_with_two_next_hops_leads_to_backends_by_either() {
    lb_test::require_topology!();
    let topology = hops::two_cables();
    let node1 = topology.node("node1");
    let _running = start(&topology, &["web"], &["node1"]);
    ip(
        node1,
        &[
            "route replace 10.248.2.0/24 metric 10 nexthop via 172.20.0.12 dev eth0 nexthop via 172.22.0.2 dev eth1",
            "route del fd00:248:2::/64 metric 10",
            "route add fd00:248:2::/64 metric 10 nexthop via fd00:20::12 dev eth0 nexthop via fd00:22::2 dev eth1",
        ],
    );
    for change in ["link set eth1 up", "link set eth1 down"] {
        ip(node1, &[change]);
        for family in Family::BOTH {
            let to = node1.socket(family, NODE_PORT);
            assert_answering(topology.client("client"), to, &["web"]);
            echoing(topology.client("client"), to, &["--count", "3"]);
        }
    }
}
