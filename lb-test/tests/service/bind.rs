//! Node ports belong to their Services: no process of the node can bind one, nothing listens on
//! one, and each answers on the addresses of the node that it should.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use lb_agent::dataplane::Reader;
use lb_common::abi::FrontendKind;
use lb_test::PATIENT;
use lb_test::manifests::{Service, list};
use lb_test::{Family, Host, SocketLb, eventually, programs};
use serde_json::Value;

use crate::ask::{answering, assert_answering, assert_refused, echoing, probe};
use crate::{BACKENDS, Cluster, WEB, on_both_paths};

on_both_paths! {
    protected => s8_node_ports_cannot_be_bound_beside_the_socket_path, s8_node_ports_cannot_be_bound_beside_the_packet_path;
}

/// TCP 30080 and UDP 30081, each protocol by itself.
fn services() -> [Value; 2] {
    let web = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let echo = Service::new("echo", 2).select(WEB).udp(53, 5353).node_port(30081);
    [web.object(), echo.object()]
}

/// Addresses that a process of node1 may ask for, at a port.
fn local(cluster: &Cluster, port: u16) -> Vec<String> {
    let node = cluster.node("node1");
    let own = Family::BOTH.map(|family| node.ip(family));
    let fixed = ["0.0.0.0", "127.0.0.1", "::", "::1", "::ffff:0.0.0.0", "::ffff:127.0.0.1"];
    let all = fixed.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).chain(own);
    all.map(|ip| SocketAddr::new(ip, port).to_string()).collect()
}

/// What cannot be bound on a host, as `TCP 0.0.0.0:30080`; the reason is that it is in use.
#[track_caller]
fn in_use(host: &Host, addresses: &[String]) -> BTreeSet<String> {
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let lines = probe(host, &[&["bind"], &addresses[..]].concat());
    let failed = lines.iter().filter(|line| line["event"] == "failure");
    let asked = failed.map(|line| {
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("Address already in use"), "{line}");
        line["asked"].as_str().unwrap().to_owned()
    });
    asked.collect()
}

fn prefixed(protocol: &str, addresses: &[String]) -> BTreeSet<String> {
    addresses.iter().map(|address| format!("{protocol} {address}")).collect()
}

fn protected(path: SocketLb) {
    let cluster = Cluster::start(path, &services());
    let (node, pod) = (cluster.node("node1"), cluster.pod("shell"));
    let at = |port| local(&cluster, port);
    assert_eq!(in_use(node, &at(30080)), prefixed("TCP", &at(30080)));
    assert_eq!(in_use(node, &at(30081)), prefixed("UDP", &at(30081)));
    assert_eq!(in_use(node, &at(30082)), BTreeSet::new());
    assert_eq!(in_use(node, &at(0)), BTreeSet::new());
    let any = ["0.0.0.0:30080", "[::]:30081", "127.0.0.1:30081", "[::1]:30080"].map(str::to_owned);
    assert_eq!(in_use(pod, &any), BTreeSet::new());

    // Not by a listener: what looks for one finds none.
    let listening =
        node.run("ss", &["-H", "-lntu", "sport >= :30080 and sport <= :30081"]).unwrap();
    assert_eq!(listening, "");
    for family in Family::BOTH {
        answering(cluster.outside(), node.socket(family, 30080));
        echoing(cluster.outside(), node.socket(family, 30081), &[]);
    }
    // Linux takes a connection to the unspecified address as one to loopback.
    if path == SocketLb::All {
        for to in ["0.0.0.0:30080", "[::]:30080"] {
            assert_answering(node, to.parse().unwrap(), &BACKENDS);
        }
    }
    let rows = cluster.agents[0].services().unwrap();
    let shown = rows.as_array().unwrap().iter().map(|row| row["frontend"]["ip"].as_str().unwrap());
    let shown: BTreeSet<_> = shown.collect();
    assert!(shown.contains("::1") && !shown.contains("::") && !shown.contains("0.0.0.0"), "{rows}");
}

#[track_caller]
fn wait_in_use(host: &Host, address: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|&asked| asked.to_owned()).collect();
    eventually(PATIENT, &format!("{expected:?} in use"), || {
        let found = in_use(host, &[address.to_owned()]);
        ensure!(found == expected, "{found:?}");
        Ok(())
    });
}

#[track_caller]
fn wait_problem(cluster: &Cluster, sentence: &str, count: usize) {
    eventually(PATIENT, &format!("{count} times: {sentence}"), || {
        let problems = cluster.agents[0].status()?["problems"].to_string();
        ensure!(problems.matches(sentence).count() == count, "{problems}");
        Ok(())
    });
}

#[test]
fn s8_a_node_port_can_be_bound_when_its_service_or_the_protection_has_gone() {
    lb_test::require_topology!();
    let mut cluster = Cluster::start(SocketLb::Off, &services());
    let node = Host::clone(cluster.node("node1"));
    for address in ["0.0.0.0:30080", "[::]:30080"] {
        cluster.apply("objects.yaml", &list(&services()[1..])).unwrap();
        wait_in_use(&node, address, &[]);
        cluster.apply("objects.yaml", &list(&services())).unwrap();
        wait_in_use(&node, address, &[&format!("TCP {address}")]);
    }
    // What listens already goes on, and is told of.
    cluster.apply("objects.yaml", &list(&services()[1..])).unwrap();
    wait_in_use(&node, "0.0.0.0:30080", &[]);
    let before = programs::nginx(&node, &[30080]).unwrap();
    let told = "node port 30080/TCP is used by a process of this node";
    cluster.apply("objects.yaml", &list(&services())).unwrap();
    wait_problem(&cluster, told, 1);
    drop(before);
    cluster.apply("objects.yaml", &list(&services()[1..])).unwrap();
    wait_problem(&cluster, told, 0);
    cluster.apply("objects.yaml", &list(&services())).unwrap();

    let taken = ["TCP 0.0.0.0:30080"];
    wait_in_use(&node, "0.0.0.0:30080", &taken);
    cluster.agents[0].kill9().unwrap();
    wait_in_use(&node, "0.0.0.0:30080", &taken);
    cluster = cluster.with_agents(&["node1"], &["--nodeport-bind-protection=false"]);
    wait_in_use(&node, "0.0.0.0:30080", &[]);
    cluster = cluster.with_agents(&["node1"], &[]);
    wait_in_use(&node, "0.0.0.0:30080", &taken);
    // The address that connections to 0.0.0.0 go to has no node ports: nobody answers there.
    cluster.path = SocketLb::All;
    cluster = cluster.with_agents(&["node1"], &["--nodeport-addresses=primary"]);
    wait_in_use(&node, "0.0.0.0:30080", &taken);
    assert_refused(&node, "0.0.0.0:30080".parse().unwrap());
    cluster.agents[0].term().unwrap();
    cluster.agents[0].command(&["cleanup"]).unwrap();
    wait_in_use(&node, "0.0.0.0:30080", &[]);
}

/// The addresses of node1 that answer on node port 30080.
fn node_port_addresses(cluster: &Cluster) -> BTreeSet<String> {
    let reader = Reader::open(&cluster.node("node1").bpffs().join("lb")).unwrap();
    let frontends = reader.snapshot().unwrap().frontends;
    let ports = frontends.iter().filter(|(address, entry)| {
        entry.kind == FrontendKind::NODE_PORT && !address.ip.is_unspecified()
    });
    ports.filter(|(at, _)| at.port == 30080).map(|(at, _)| at.ip.to_string()).collect()
}

#[track_caller]
fn wait_addresses(cluster: &Cluster, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|&ip| ip.to_owned()).collect();
    eventually(PATIENT, "addresses with node ports", || {
        let found = node_port_addresses(cluster);
        ensure!(found == expected, "{found:?}, not {expected:?}");
        Ok(())
    });
}

/// Devices of other kinds are bridges here: what counts is their names.
const ADDRESSES: &str = "link add kube-ipvs0 type bridge
addr add 10.96.0.77/32 dev kube-ipvs0
link add nodelocaldns type bridge
addr add 10.96.0.10/32 dev nodelocaldns
addr add fd00:10:96::a/128 dev nodelocaldns nodad
addr add 169.254.20.10/32 dev nodelocaldns
addr add 198.51.100.7/32 dev lo
addr add 172.20.0.77/24 dev eth0
addr add 169.254.7.7/32 dev eth0
addr add fd00:20::77/64 dev eth0 nodad";

#[test]
fn s8_node_ports_answer_on_the_addresses_that_are_asked_for() {
    lb_test::require_topology!();
    let mut cluster = Cluster::start(SocketLb::Off, &services());
    let node = Host::clone(cluster.node("node1"));
    let lines: Vec<_> = ADDRESSES.lines().map(str::to_owned).collect();
    node.netns().ip_batch(&lines).unwrap();
    let (loopback, first) = (["127.0.0.1", "::1"], ["172.20.0.11", "fd00:20::11"]);
    let bridge = ["10.248.1.1", "fd00:248:1::1"];
    let more = ["172.20.0.77", "fd00:20::77"];
    let all = [&loopback[..], &first, &bridge, &more, &["198.51.100.7"]].concat();
    wait_addresses(&cluster, &all);
    for (argument, expected) in [
        // The kernel lists the newest IPv6 address of a device first, and prefers it as source.
        ("primary", vec!["172.20.0.11", "fd00:20::77"]),
        ("localhost", loopback.to_vec()),
        ("localhost,primary", [&loopback[..], &["172.20.0.11", "fd00:20::77"]].concat()),
        ("fd00:248:1::/64,198.51.100.0/24,::1/128", vec!["::1", "198.51.100.7", "fd00:248:1::1"]),
        ("169.254.0.0/16,fe80::/10,10.96.0.0/16,fd00:10:96::/112", vec![]),
        ("172.20.0.0/24,fd00:20::/64", [first, more].concat()),
    ] {
        let argument = format!("--nodeport-addresses={argument}");
        cluster = cluster.with_agents(&["node1"], &[&argument]);
        wait_addresses(&cluster, &expected);
    }
    for family in Family::BOTH {
        let ip: IpAddr = more[usize::from(family == Family::V6)].parse().unwrap();
        assert_answering(cluster.outside(), (ip, 30080).into(), &BACKENDS);
    }
    for ip in ["172.20.0.77/24", "fd00:20::77/64"] {
        node.run("ip", &["addr", "del", ip, "dev", "eth0"]).unwrap();
    }
    wait_addresses(&cluster, &first);
    for ip in ["172.20.0.78/24", "fd00:20::78/64"] {
        node.run("ip", &["addr", "add", ip, "dev", "eth0", "nodad"]).unwrap();
    }
    wait_addresses(&cluster, &["172.20.0.11", "fd00:20::11", "172.20.0.78", "fd00:20::78"]);
}
