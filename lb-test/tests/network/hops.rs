//! Known flows follow the network: what is cached of a next hop ends with it.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_test::{Family, Host, NodeSpec, PodSpec, Topology, eventually, hold_once};

use crate::stream::Stream;
use crate::{NODE_PORT, ip, start, sysctl};

/// What is cached is asked again by time alone after this long on a kernel of 250 Hz, a little less
/// for some flows: a change that nobody tells of shows within it.
const TICK: Duration = Duration::from_millis(1100);
/// The longest silence after a change: what is promised, and twice as much for a machine that runs other
/// tests.
const SHORT: Duration = Duration::from_millis(300);

/// Two nodes with a second cable between them, a pod on node2, a client, and node1's route to that
/// pod by the first cable.
pub(crate) fn two_cables() -> Topology {
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("web", "node2"))
        .client("client")
        .build()
        .unwrap();
    let (node1, node2) = (topology.node("node1"), topology.node("node2"));
    let peer = node2.netns().name();
    ip(node1, &[&format!("link add eth1 type veth peer name eth1 netns {peer}")]);
    for (node, number) in [(node1, 1), (node2, 2)] {
        ip(
            node,
            &[
                &format!("addr add 172.22.0.{number}/24 dev eth1"),
                &format!("addr add fd00:22::{number}/64 dev eth1 nodad"),
                "link set eth1 up",
            ],
        );
        for (kind, name) in [("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")] {
            sysctl(node, &format!("net/{kind}/conf/eth0/{name}"), "1");
        }
    }
    // It would be better than all that follow.
    ip(node1, &["route del 10.248.2.0/24 via 172.20.0.12"]);
    ip(node1, &by_first_cable());
    topology
}

/// The same, fit for XDP at both cables.
pub(crate) fn two_cables_for_xdp() -> Topology {
    let topology = two_cables();
    topology.ready_for_xdp().unwrap();
    let node2 = topology.node("node2");
    node2.complete_checksums("eth1").unwrap();
    node2.run("ethtool", &["-K", "eth1", "gro", "on"]).unwrap();
    topology
}

fn by_first_cable() -> [&'static str; 2] {
    [
        "route replace 10.248.2.0/24 via 172.20.0.12 dev eth0 metric 10",
        "route replace fd00:248:2::/64 via fd00:20::12 dev eth0 metric 10",
    ]
}

pub(crate) fn by_second_cable() -> [&'static str; 2] {
    [
        "route replace 10.248.2.0/24 via 172.22.0.2 dev eth1 metric 5",
        "route replace fd00:248:2::/64 via fd00:22::2 dev eth1 metric 5",
    ]
}

fn streams(topology: &Topology) -> [Stream; 2] {
    let node1 = topology.node("node1");
    Family::BOTH
        .map(|family| Stream::start(topology.client("client"), node1.socket(family, NODE_PORT)))
}

/// The longest silence of any stream after a change, for as long as one that is missed would last.
fn silence_after(streams: &[Stream], wait: Duration, change: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    change();
    for stream in streams {
        stream.flows_until(begin + wait);
    }
    streams.iter().map(|stream| stream.longest_silence(begin)).max().unwrap()
}

#[test]
fn known_flows_follow_routes_neighbours_and_links_at_once() {
    lb_test::require_topology!();
    hold_once(follow_at_once);
}

fn follow_at_once() {
    let topology = two_cables();
    let _running = start(&topology, &["web"], &["node1"]);
    let (node1, node2) = (topology.node("node1"), topology.node("node2"));
    let streams = streams(&topology);
    let changes: [(&str, &dyn Fn()); 4] = [
        ("another address", &|| ip(node2, &["link set eth0 address 02:00:00:00:22:01"])),
        ("another again", &|| ip(node2, &["link set eth0 address 02:00:00:00:22:02"])),
        ("a better route", &|| ip(node1, &by_second_cable())),
        ("a link that goes down", &|| ip(node1, &["link set eth1 down"])),
    ];
    for (name, change) in changes {
        let silence = silence_after(&streams, TICK, change);
        assert!(silence < SHORT, "{name}: {silence:?} without an answer");
    }
    fill_table(node1);
    let before = sent_by_second(node1);
    add_rules(node1);
    eventually(SHORT, "packets of both streams by the second cable", || {
        let sent = sent_by_second(node1) - before;
        ensure!(sent > 30, "{sent} so far");
        Ok(())
    });
}

/// Has packets to pods leave by a rule, whose table has them by the second cable.
fn add_rules(node1: &Host) {
    for rule in ["-4 rule add to 10.248.2.0/24", "-6 rule add to fd00:248:2::/64"] {
        let words: Vec<_> = rule.split(' ').chain(["table", "77", "pref", "50"]).collect();
        node1.run("ip", &words).unwrap();
    }
}

/// Prepares the second cable once more, for a rule alone.
fn fill_table(node1: &Host) {
    ip(node1, &["link set eth1 up", "addr replace fd00:22::1/64 dev eth1 nodad"]);
    for line in by_second_cable() {
        ip(node1, &[&format!("{line} table 77")]);
    }
}

/// Packets that a host has sent by its second cable.
pub(crate) fn sent_by_second(host: &Host) -> u64 {
    let shown = host.run("ip", &["-s", "-j", "link", "show", "eth1"]).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn known_flows_follow_a_route_without_an_agent_within_seconds() {
    lb_test::require_topology!();
    hold_once(follow_within_seconds);
}

fn follow_within_seconds() {
    let topology = two_cables();
    let mut running = start(&topology, &["web"], &["node1"]);
    let streams = streams(&topology);
    running.agents[0].kill9().unwrap();
    let silence = silence_after(&streams, 2 * TICK, || {
        ip(topology.node("node1"), &by_second_cable());
        // What was on its way is answered; from here on the first cable leads nowhere.
        ip(topology.node("node2"), &["link set eth0 address 02:00:00:00:22:01"]);
    });
    assert!(silence < 2 * TICK, "{silence:?} without an answer");
}
