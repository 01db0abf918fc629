//! Direct server return: backends on another node see clients outside, and answer them past the node
//! that was asked.

use std::net::SocketAddr;

use lb_test::PATIENT;
use lb_test::manifests::{Service, external_ips};
use lb_test::{Family, Host, SocketLb, eventually, hold_once, programs};

use crate::ask::{assert_answering, assert_silent, client_seen, echoed_client, echoing};
use crate::icmp::{NARROW, assert_narrow};
use crate::source::{ask, connect_from};
use crate::{BACKENDS, Cluster, WEB};

/// MTU of all devices of a topology.
const MTU: u32 = 1500;
/// What is said in place of `--forwarding` by a Service.
const ANNOTATION: &str = "lb-agent/forwarding";

/// Agents on both nodes, with this way to other nodes.
fn cluster(forwarding: &str, services: &[serde_json::Value]) -> Cluster {
    let cluster = Cluster::without_agents(SocketLb::Off, services);
    let forwarding = format!("--forwarding={forwarding}");
    cluster.with_agents(&["node1", "node2"], &[&forwarding])
}

/// A Service of a pod on node2, by TCP and UDP.
fn far(number: u8) -> Service {
    let node_port = 30000 + u16::from(number);
    let service = Service::new(&format!("far-{number}"), number).select("web-2");
    service.tcp(80, 8080).node_port(node_port).udp(80, 5353).node_port(node_port)
}

/// Whom the backend sees of a client outside that asks node1, by TCP and by UDP.
fn seen(cluster: &Cluster, family: Family, number: u8) -> [std::net::IpAddr; 2] {
    let to = cluster.node("node1").socket(family, 30000 + u16::from(number));
    let client = cluster.outside();
    [client_seen(client, to).0, echoed_client(client, to)]
}

#[test]
fn backends_of_another_node_see_clients_and_answer_them_directly() {
    lb_test::require_topology!();
    answered_directly(SocketLb::Off);
}

#[test]
fn backends_of_another_node_see_clients_and_answer_them_directly_with_xdp() {
    lb_test::require_topology!();
    crate::with_xdp(answered_directly);
}

fn answered_directly(_: SocketLb) {
    let bulk = Service::new("bulk", 3).select("web-2").tcp(5201, 5201).node_port(30003);
    let local = far(4).external_local();
    let all = Service::new("all", 5).select(WEB).tcp(80, 8080).udp(80, 5353);
    let all = all.external_ips(external_ips(5)).object();
    let cluster = cluster("dsr", &[far(2).object(), bulk.object(), local.object(), all]);
    cluster.route_services();
    let _server = programs::iperf3_server(cluster.pod("web-2")).unwrap();
    let (client, node) = (cluster.outside(), cluster.node("node1"));
    for family in Family::BOTH {
        assert_eq!(seen(&cluster, family, 2), [client.ip(family); 2]);
        let vip = external_ips(5).socket(family, 80);
        assert_answering(client, vip, &BACKENDS);
        assert_eq!(client_seen(client, vip).0, client.ip(family));
        echoing(client, vip, &["--count", "3"]);
        let to = node.socket(family, 30003);
        transfers(client, to, &[]);
        let before = sent(node);
        transfers(client, to, &["--reverse"]);
        let passed = sent(node) - before;
        assert!(passed < 4 << 20, "{passed} bytes of 16 MiB came by node1");
        // Of node1's own endpoints there are none.
        assert_silent(client, node.socket(family, 30004));
    }
    // The pod's answers get too long for a router: it tells the address that they come from, node1's.
    cluster.fabric().run("ip", &["link", "set", "outside0", "mtu", NARROW]).unwrap();
    for family in Family::BOTH {
        transfers(client, node.socket(family, 30003), &["--reverse"]);
        assert_narrow(cluster.pod("web-2"), client.ip(family));
    }
    for agent in &cluster.agents {
        let refused = agent.status().unwrap()["counters"]["carrier_refused"].as_u64();
        assert_eq!(refused, Some(0));
    }
}

/// Segments that nobody cuts later are too long for a carrier as they come: the client is told.
#[test]
fn clients_learn_what_fits_a_carrier() {
    lb_test::require_topology!();
    let bulk = Service::new("bulk", 3).select("web-2").tcp(5201, 5201).node_port(30003);
    let datagrams = far(2).object();
    let cluster = cluster("dsr", &[bulk.object(), datagrams]);
    let _server = programs::iperf3_server(cluster.pod("web-2")).unwrap();
    let (client, node) = (cluster.outside(), cluster.node("node1"));
    for host in [client, cluster.pod("web-2"), node, cluster.node("node2")] {
        host.complete_checksums("eth0").unwrap();
    }
    for (family, overhead) in Family::BOTH.into_iter().zip([36, 56]) {
        transfers(client, node.socket(family, 30003), &[]);
        let ip = node.ip(family).to_string();
        let route = client.run("ip", &["-j", "route", "get", &ip]).unwrap();
        let learned = format!("\"mtu\":{}", MTU - overhead);
        assert!(route.contains(&learned), "{route} without {learned}");
        let to = node.socket(family, 30002);
        for size in ["1400", "1472", "3000"] {
            let arguments = ["udp", &to.to_string(), "--size", size, "--timeout", "500"];
            eventually(PATIENT, "an answer", || {
                let lines = programs::probe(client, &arguments)?;
                anyhow::ensure!(lines[0]["source"] == to.to_string(), "{size}: {lines:?}");
                Ok(())
            });
        }
    }
    assert!(cluster.counted("packet_too_big") >= 2);
    assert_eq!(cluster.counted("fragment_out_of_order"), 0);
}

#[test]
fn hybrid_carries_tcp_alone() {
    lb_test::require_topology!();
    hybrid(SocketLb::Off);
}

/// XDP puts packets into carriers, and leaves it to TC to take them out.
#[test]
fn hybrid_carries_tcp_alone_with_xdp() {
    lb_test::require_topology!();
    crate::with_xdp(hybrid);
}

fn hybrid(_: SocketLb) {
    let annotated = |number, way| far(number).annotation(ANNOTATION, way).object();
    let services = [far(2).object(), annotated(3, "snat"), annotated(4, "dsr")];
    let cluster = cluster("hybrid", &services);
    for family in Family::BOTH {
        let (client, node) = (cluster.outside().ip(family), cluster.node("node1").ip(family));
        assert_eq!(seen(&cluster, family, 2), [client, node], "hybrid");
        assert_eq!(seen(&cluster, family, 3), [node; 2], "a Service that wants SNAT");
        assert_eq!(seen(&cluster, family, 4), [client; 2], "a Service that wants DSR");
    }
}

/// A node that forgets all, and another one that takes over, find the same backend.
#[test]
fn connections_go_on_by_another_node_and_by_one_that_forgot() {
    lb_test::require_topology!();
    let service = Service::new("all", 5).select(WEB).tcp(80, 8080);
    let service = service.external_ips(external_ips(5)).object();
    let mut cluster = cluster("dsr", &[service]);
    cluster.route_services();
    let client = cluster.outside();
    let mut open = Vec::new();
    for family in Family::BOTH {
        let from = SocketAddr::new(client.ip(family), 0);
        let to = external_ips(5).socket(family, 80);
        // One by each backend at least.
        open.extend((0..24).map(|_| client.enter(|| connect_from(from, to)).unwrap()));
    }
    let bodies = |open: &mut Vec<_>| -> Vec<String> {
        open.iter_mut().map(|stream| ask(stream).lines().last().unwrap().to_owned()).collect()
    };
    let before = bodies(&mut open);
    assert!(BACKENDS.iter().all(|name| before.iter().any(|body| body == name)), "{before:?}");
    let first = &mut cluster.agents[0];
    first.term().unwrap();
    first.command(&["cleanup"]).unwrap();
    first.restart().unwrap();
    first.wait_synced(lb_test::agent::START).unwrap();
    assert_eq!(bodies(&mut open), before);
    for network in ["192.0.2.0/24", "2001:db8::/64"] {
        cluster.route_vip(network, "node2").unwrap();
    }
    assert_eq!(bodies(&mut open), before);
}

/// Bytes that a node has sent to the fabric.
fn sent(node: &Host) -> u64 {
    let links = node.run("ip", &["-j", "-s", "link", "show", "dev", "eth0"]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
}

#[track_caller]
fn transfers(from: &Host, to: SocketAddr, options: &[&str]) {
    let arguments = [&["-n", "16M", "--snd-timeout", "20000"], options].concat();
    hold_once(|| {
        let report = programs::iperf3(from, to, &arguments).unwrap();
        let sent = report["end"]["sum_sent"].clone();
        assert!(sent["bytes"].as_u64().unwrap() >= 16 << 20, "{to}: {sent}");
        assert!(sent["retransmits"].as_u64().unwrap() < 200, "{to}: {sent}");
    });
}
