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
/// Slow enough for the short queue of a veth that merges, and for what is lost until somebody is told.
const PACED: [&str; 2] = ["--fq-rate", "400M"];
/// MTU of a link between nodes; less would leave IPv6 less than it needs.
const LINK: u32 = 1400;
/// What is said in place of `--forwarding` by a Service.
const ANNOTATION: &str = "lb-agent/forwarding";

/// A node, a pod of the other one, and what is added to the numbers of the Services of that pod: node1 carries by
/// IPIP and node2 by GUE, and each takes out what the other carries.
const WAYS: [(&str, &str, u8); 2] = [("node1", "web-2", 0), ("node2", "web-1", 20)];

/// Agents on both nodes, with this way to other nodes.
fn cluster(forwarding: &str, services: &[serde_json::Value]) -> Cluster {
    let cluster = Cluster::without_agents(SocketLb::Off, services);
    let forwarding = format!("--forwarding={forwarding}");
    let mut cluster = cluster.with_agents(&["node2"], &[&forwarding, "--dsr-dispatch=gue"]);
    let by_gue = std::mem::take(&mut cluster.agents);
    let mut cluster = cluster.with_agents(&["node1"], &[&forwarding, "--dsr-dispatch=ipip"]);
    cluster.agents.extend(by_gue);
    cluster
}

/// A Service of a pod, by TCP and UDP.
fn of(pod: &str, number: u8) -> Service {
    let node_port = 30000 + u16::from(number);
    let service = Service::new(&format!("far-{number}"), number).select(pod);
    service.tcp(80, 8080).node_port(node_port).udp(80, 5353).node_port(node_port)
}

/// One of a pod that transfers.
fn bulk(pod: &str, number: u8) -> serde_json::Value {
    let service = Service::new(&format!("bulk-{number}"), number).select(pod);
    service.tcp(5201, 5201).node_port(30000 + u16::from(number)).object()
}

/// Whom the backend sees of a client outside that asks a node, by TCP and by UDP.
fn seen(cluster: &Cluster, (node, number): (&str, u8), family: Family) -> [std::net::IpAddr; 2] {
    let to = cluster.node(node).socket(family, 30000 + u16::from(number));
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
    let all = Service::new("all", 5).select(WEB).tcp(80, 8080).udp(80, 5353);
    let mut services = vec![all.external_ips(external_ips(5)).object()];
    for (_, pod, more) in WAYS {
        services.extend([of(pod, 2 + more).object(), bulk(pod, 3 + more)]);
    }
    services.push(of("web-2", 4).external_local().object());
    let cluster = cluster("dsr", &services);
    cluster.route_services();
    let client = cluster.outside();
    for family in Family::BOTH {
        let vip = external_ips(5).socket(family, 80);
        assert_answering(client, vip, &BACKENDS);
        assert_eq!(client_seen(client, vip).0, client.ip(family));
        echoing(client, vip, &["--count", "3"]);
        // Of node1's own endpoints there are none.
        assert_silent(client, cluster.node("node1").socket(family, 30004));
    }
    let _servers = WAYS.map(|(_, pod, _)| programs::iperf3_server(cluster.pod(pod)).unwrap());
    for way in &WAYS {
        assert_direct(&cluster, way);
    }
    // The pods' answers get too long for a router: it tells the address that they come from, the other node's.
    cluster.fabric().run("ip", &["link", "set", "outside0", "mtu", NARROW]).unwrap();
    for (node, pod, more) in WAYS {
        for family in Family::BOTH {
            let to = cluster.node(node).socket(family, 30003 + u16::from(more));
            transfers(client, to, &["--reverse"]);
            assert_narrow(cluster.pod(pod), client.ip(family));
        }
    }
    for agent in &cluster.agents {
        let refused = agent.status().unwrap()["counters"]["carrier_refused"].as_u64();
        assert_eq!(refused, Some(0));
    }
}

/// The pod sees its client, and answers it past the node that was asked.
#[track_caller]
fn assert_direct(cluster: &Cluster, &(name, _, more): &(&str, &str, u8)) {
    let (client, node) = (cluster.outside(), cluster.node(name));
    for family in Family::BOTH {
        assert_eq!(seen(cluster, (name, 2 + more), family), [client.ip(family); 2], "{name}");
        let to = node.socket(family, 30003 + u16::from(more));
        transfers(client, to, &[]);
        let before = sent(node);
        transfers(client, to, &["--reverse"]);
        let passed = sent(node) - before;
        assert!(passed < 4 << 20, "{passed} bytes of 16 MiB came by {name}");
    }
}

/// Segments that nobody cuts later are too long for a carrier as they come: the client is told.
#[test]
fn clients_learn_what_fits_a_carrier() {
    lb_test::require_topology!();
    let services = WAYS.map(|(_, pod, more)| [of(pod, 2 + more).object(), bulk(pod, 3 + more)]);
    let cluster = cluster("dsr", services.as_flattened());
    let _servers = WAYS.map(|(_, pod, _)| programs::iperf3_server(cluster.pod(pod)).unwrap());
    cluster.outside().complete_checksums("eth0").unwrap();
    for (node, pod, _) in WAYS {
        cluster.pod(pod).complete_checksums("eth0").unwrap();
        cluster.node(node).complete_checksums("eth0").unwrap();
    }
    for (way, overheads) in WAYS.iter().zip([[20, 40], [36, 56]]) {
        assert_learned(&cluster, way, overheads);
    }
    for agent in &cluster.agents {
        let counters = &agent.status().unwrap()["counters"];
        assert!(counters["packet_too_big"].as_u64() >= Some(2), "{counters}");
        assert_eq!(counters["fragment_out_of_order"].as_u64(), Some(0));
    }
    for way in &WAYS {
        assert_cut_as_sent(&cluster, way);
    }
}

/// Carriers that may be longer are merged as they come in; what was in them is cut towards the pod as the client
/// had sent it, or it would be too long there.
#[track_caller]
fn assert_cut_as_sent(cluster: &Cluster, &(node, pod, more): &(&str, &str, u8)) {
    let (client, pod) = (cluster.outside(), cluster.pod(pod));
    let far = cluster.node(pod.node());
    for name in [node, pod.node()] {
        cluster.node(name).run("ip", &["link", "set", "eth0", "mtu", "1600"]).unwrap();
        cluster.fabric().run("ip", &["link", "set", name, "mtu", "1600"]).unwrap();
    }
    cluster.fabric().complete_checksums(far.name()).unwrap();
    far.run("ethtool", &["-K", "eth0", "gro", "on"]).unwrap();
    far.run("ethtool", &["-K", &pod.device(), "tx", "off", "gso", "off"]).unwrap();
    for (family, flag) in Family::BOTH.into_iter().zip(["-4", "-6"]) {
        client.run("ip", &[flag, "route", "flush", "cache"]).unwrap();
        let to = cluster.node(node).socket(family, 30003 + u16::from(more));
        transfers(client, to, &PACED);
        let route = client.run("ip", &["route", "get", &to.ip().to_string()]).unwrap();
        assert!(!route.contains("mtu"), "{route}");
    }
    far.run("ethtool", &["-K", "eth0", "gro", "off"]).unwrap();
}

/// The client outside learns that there is so much less room, in each family, and goes on with that.
#[track_caller]
fn assert_learned(cluster: &Cluster, &(name, _, more): &(&str, &str, u8), overheads: [u32; 2]) {
    let (client, node) = (cluster.outside(), cluster.node(name));
    for (family, overhead) in Family::BOTH.into_iter().zip(overheads) {
        transfers(client, node.socket(family, 30003 + u16::from(more)), &PACED);
        let ip = node.ip(family).to_string();
        let route = client.run("ip", &["-j", "route", "get", &ip]).unwrap();
        let learned = format!("\"mtu\":{}", MTU - overhead);
        assert!(route.contains(&learned), "{route} without {learned}");
        let to = node.socket(family, 30002 + u16::from(more));
        for size in ["1400", "1472", "3000"] {
            let arguments = ["udp", &to.to_string(), "--size", size, "--timeout", "500"];
            eventually(PATIENT, "an answer", || {
                let lines = programs::probe(client, &arguments)?;
                anyhow::ensure!(lines[0]["source"] == to.to_string(), "{size}: {lines:?}");
                Ok(())
            });
        }
    }
}

/// A router between the nodes, whose link is narrower than theirs, tells the node that carries, and that the client.
#[test]
fn clients_learn_of_a_narrow_link_between_nodes() {
    lb_test::require_topology!();
    let services = WAYS.map(|(_, pod, more)| bulk(pod, 3 + more));
    let cluster = cluster("dsr", &services);
    let _servers = WAYS.map(|(_, pod, _)| programs::iperf3_server(cluster.pod(pod)).unwrap());
    for ((name, pod, more), overheads) in WAYS.into_iter().zip([[20, 40], [36, 56]]) {
        let (client, node, pod) = (cluster.outside(), cluster.node(name), cluster.pod(pod));
        for (family, overhead) in Family::BOTH.into_iter().zip(overheads) {
            let [to, router] = [pod, cluster.fabric()].map(|host| host.ip(family).to_string());
            let far = cluster.node(pod.node()).ip(family).to_string();
            node.run("ip", &["route", "replace", &to, "via", &router]).unwrap();
            let link = LINK.to_string();
            let narrow = ["route", "replace", &to, "via", &far, "mtu", "lock", &link];
            cluster.fabric().run("ip", &narrow).unwrap();
            let to = node.socket(family, 30003 + u16::from(more));
            // What is on its way when the client learns is lost: not too much.
            transfers(client, to, &PACED);
            let route = client.run("ip", &["route", "get", &to.ip().to_string()]).unwrap();
            let learned = format!("mtu {}", LINK - overhead);
            assert!(route.contains(&learned), "{route} without {learned}");
        }
    }
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
    let annotated = |pod, number, way| of(pod, number).annotation(ANNOTATION, way).object();
    let services = WAYS.map(|(_, pod, more)| {
        let [snat, dsr] = [(3, "snat"), (4, "dsr")].map(|(it, way)| annotated(pod, it + more, way));
        [of(pod, 2 + more).object(), snat, dsr]
    });
    let cluster = cluster("hybrid", services.as_flattened());
    for (name, _, more) in WAYS {
        for family in Family::BOTH {
            let seen = |number| seen(&cluster, (name, number + more), family);
            let (client, node) = (cluster.outside().ip(family), cluster.node(name).ip(family));
            assert_eq!(seen(2), [client, node], "hybrid");
            assert_eq!(seen(3), [node; 2], "a Service that wants SNAT");
            assert_eq!(seen(4), [client; 2], "a Service that wants DSR");
        }
    }
}

/// A node that forgets all, and another one that takes over and carries in another way, find the same backend.
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
