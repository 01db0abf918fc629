//! Nodes with several uplinks: replies that leave by another device than requests came in by, routes by
//! rules, and routes with several next hops.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_test::address::DualStack;
use lb_test::manifests::cluster_ips;
use lb_test::{Agent, AgentOptions, Family, Host, NodeSpec, PodSpec, SocketLb, Topology};

use crate::ask::{assert_answering, client_seen, echoing};
use crate::{NODE_PORT, hops, ip, start, start_with};

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

/// Leads node1's packets to node2's pods by both cables.
fn by_both_cables(topology: &Topology) {
    ip(
        topology.node("node1"),
        &[
            "route replace 10.248.2.0/24 metric 10 nexthop via 172.20.0.12 dev eth0 nexthop via 172.22.0.2 dev eth1",
            "route del fd00:248:2::/64 metric 10",
            "route add fd00:248:2::/64 metric 10 nexthop via fd00:20::12 dev eth0 nexthop via fd00:22::2 dev eth1",
        ],
    );
}

#[test]
fn a_route_with_two_next_hops_leads_to_backends_by_either() {
    lb_test::require_topology!();
    let topology = hops::two_cables();
    let node1 = topology.node("node1");
    let _running = start(&topology, &["web"], &["node1"]);
    by_both_cables(&topology);
    for change in ["link set eth1 up", "link set eth1 down"] {
        ip(node1, &[change]);
        for family in Family::BOTH {
            let to = node1.socket(family, NODE_PORT);
            assert_answering(topology.client("client"), to, &["web"]);
            echoing(topology.client("client"), to, &["--count", "3"]);
        }
    }
}

/// What has decided on a next hop is not asked again while the neighbour is found: the kernel might choose
/// the other one, and look for it behind the wrong device.
fn unknown_neighbours(arguments: &[&str]) {
    let topology = hops::two_cables_for_xdp();
    let node1 = topology.node("node1");
    let _running = start_with(&topology, &["web"], &["node1"], arguments);
    by_both_cables(&topology);
    let before = sent(node1);
    for family in Family::BOTH {
        for from in client_addresses(&topology, family) {
            node1.run("ip", &["neigh", "flush", "all"]).unwrap();
            ask_from(&topology, from, node1.socket(family, NODE_PORT));
        }
        for _ in 0..16 {
            node1.run("ip", &["neigh", "flush", "all"]).unwrap();
            echoing(node1, cluster_ips(1).socket(family, 80), &[]);
        }
    }
    assert!(sent(node1) > before + 4, "some went by the second cable");
}

#[test]
fn unknown_neighbours_of_two_next_hops_are_found_where_they_are() {
    lb_test::require_topology!();
    unknown_neighbours(&[]);
}

#[test]
fn unknown_neighbours_of_two_next_hops_are_found_behind_xdp() {
    lb_test::require_topology!();
    unknown_neighbours(&["--xdp=native"]);
}

/// The stack would choose by the client, too, and give the packet an address of the device that it chose.
#[test]
fn rules_by_source_choose_the_way_to_a_backend_and_the_address_it_sees() {
    lb_test::require_topology!();
    let topology = hops::two_cables_for_xdp();
    let node1 = topology.node("node1");
    let mut running = start(&topology, &["web"], &["node1"]);
    let [v4, v6] = hops::by_second_cable();
    ip(node1, &[&format!("{v4} table 77"), &format!("{v6} table 77")]);
    for rule in ["-4 rule add from 172.21.0.0/24", "-6 rule add from fd00:21::/64"] {
        let words: Vec<_> = rule.split(' ').chain(["table", "77", "pref", "50"]).collect();
        node1.run("ip", &words).unwrap();
    }
    for xdp in ["off", "native"] {
        running.agents.clear();
        let options = AgentOptions::manifests(topology.manifests()).socket_lb(SocketLb::Off);
        let options = options.argument(&format!("--xdp={xdp}"));
        let _agent = Agent::start_synced(node1, options).unwrap();
        for (family, address) in [(Family::V4, "172.22.0.1"), (Family::V6, "fd00:22::1")] {
            let (to, before) = (node1.socket(family, NODE_PORT), sent(node1));
            assert_eq!(client_seen(topology.client("client"), to).0.to_string(), address);
            assert_answering(topology.client("client"), to, &["web"]);
            assert!(sent(node1) > before + 60, "requests go by the second cable");
        }
    }
}

/// Addresses of the client, enough that by chance not all choose the same next hop.
fn client_addresses(topology: &Topology, family: Family) -> Vec<IpAddr> {
    let host = |number: u8| DualStack::of_client(number).family(family);
    let addresses: Vec<_> = (101..117).map(host).collect();
    for address in &addresses {
        let address = match address {
            IpAddr::V4(v4) => format!("addr add {v4}/24 dev eth0"),
            IpAddr::V6(v6) => format!("addr add {v6}/64 dev eth0 nodad"),
        };
        ip(topology.client("client"), &[&address]);
    }
    addresses
}

/// One datagram from an address of the client, and its answer.
#[track_caller]
fn ask_from(topology: &Topology, from: IpAddr, to: SocketAddr) {
    let open = || UdpSocket::bind((from, 0)).unwrap();
    let socket = topology.client("client").enter(open).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.send_to(b"x", to).unwrap();
    let mut answer = [0; 256];
    let received = socket.recv_from(&mut answer);
    assert_eq!(received.ok().map(|(_, from)| from), Some(to), "an answer to {from}");
}
