//! Who asks decides: source ranges of load balancer addresses (S9), who is local (S6), and whom
//! backends see under `--masquerade-all`.

use std::net::{IpAddr, SocketAddr};

use lb_test::PATIENT;
use lb_test::address::DualStack;
use lb_test::manifests::{Service, cluster_ips, external_ips, list};
use lb_test::{Family, Host, SocketLb};
use serde_json::{Value, json};

use crate::ask::{assert_answering, assert_silent, client_seen, echoed_client, echoing};
use crate::source::{ask, connect_from, one_each};
use crate::{BACKENDS, Cluster, WEB, cluster_sockets, on_both_paths};

on_both_paths! {
    allowed => s9_only_allowed_sources_are_let_in_by_the_socket_path, s9_only_allowed_sources_are_let_in_by_the_packet_path, s9_only_allowed_sources_are_let_in_with_xdp;
    masqueraded => masquerade_all_shows_the_node_by_the_socket_path, masquerade_all_shows_the_node_by_the_packet_path;
}

/// A Service with every kind of address, whose load balancer address these may ask.
fn guarded(hosts: &[&Host]) -> Value {
    let range = |host: &&Host, family| match host.ip(family) {
        IpAddr::V4(ip) => format!(" {ip}/32"),
        IpAddr::V6(ip) => format!("{ip}/128\n"),
    };
    let ranges: Vec<_> =
        hosts.iter().flat_map(|host| Family::BOTH.map(|family| range(host, family))).collect();
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let service = service.udp(80, 5353).node_port(30080).external_ips(external_ips(1));
    let service = service.ingress(external_ips(101), "VIP");
    service.spec("loadBalancerSourceRanges", json!(ranges)).object()
}

fn balancers() -> [SocketAddr; 2] {
    Family::BOTH.map(|family| external_ips(101).socket(family, 80))
}

#[track_caller]
fn assert_let_in(from: &Host) {
    for to in balancers() {
        assert_answering(from, to, &BACKENDS);
        echoing(from, to, &["--count", "3", "--connected"]);
    }
}

#[track_caller]
fn assert_kept_out(cluster: &Cluster, from: &Host) {
    for to in balancers() {
        let before = cluster.counted("source_not_allowed");
        assert_silent(from, to);
        let after = cluster.counted("source_not_allowed");
        assert!(after >= before + 2, "{} to {to}", from.name());
    }
}

fn allowed(path: SocketLb) {
    let mut cluster = Cluster::start_with(path, lb_test::NodeSpec::new("node1"), |topology| {
        vec![guarded(&[topology.client("client"), topology.pod("shell")])]
    });
    cluster.route_services();
    assert_let_in(cluster.outside());
    assert_let_in(cluster.pod("shell"));
    for from in [cluster.pod("side"), cluster.pod("kata"), &**cluster.node("node1")] {
        assert_kept_out(&cluster, from);
    }
    answers_elsewhere(&cluster);
    let client = cluster.outside();
    let mut streams: Vec<_> = balancers().map(|to| connection(client, to)).into();
    cluster.agents[0].kill9().unwrap();
    assert_let_in(cluster.outside());
    assert_silent(cluster.pod("kata"), balancers()[0]);
    // The ranges change while nobody looks.
    let others = [cluster.pod("side"), cluster.pod("kata"), &**cluster.node("node1")];
    cluster.apply("objects.yaml", &list(&[guarded(&others)])).unwrap();
    let agent = &mut cluster.agents[0];
    agent.restart().unwrap();
    agent.wait_synced(lb_test::agent::START).unwrap();
    for from in [cluster.pod("side"), cluster.pod("kata"), &**cluster.node("node1")] {
        assert_let_in(from);
    }
    assert_kept_out(&cluster, cluster.outside());
    assert_kept_out(&cluster, cluster.pod("shell"));
    // Only new connections are checked.
    for stream in &mut streams {
        assert!(ask(stream).contains("web-"));
    }
}

/// A connection from a port that nobody else has.
fn connection(from: &Host, to: SocketAddr) -> std::net::TcpStream {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    from.enter(|| connect_from((from.ip(family), 23456).into(), to)).unwrap()
}

/// S9 is for load balancer addresses alone.
fn answers_elsewhere(cluster: &Cluster) {
    for from in [cluster.pod("side"), cluster.pod("kata")] {
        for family in Family::BOTH {
            assert_answering(from, external_ips(1).socket(family, 80), &BACKENDS);
            assert_answering(from, cluster.node("node1").socket(family, 30080), &BACKENDS);
        }
        for to in cluster_sockets(1, 80) {
            assert_answering(from, to, &BACKENDS);
        }
    }
}

/// S6.1: kube-proxy's way, on request. Policy Local keeps the client's address (S6.2).
fn masqueraded(path: SocketLb) {
    let mut services = one_each();
    let local = Service::new("local", 20).select("web-1").tcp(80, 8080).node_port(30020);
    services.push(local.external_local().object());
    let cluster =
        Cluster::without_agents(path, &services).with_agents(&["node1"], &["--masquerade-all"]);
    let (client, node) = (cluster.outside(), cluster.node("node1"));
    for family in Family::BOTH {
        // The bridge of the pods is the node as its pods see it.
        let own = [node.ip(family), DualStack::of_pod(1, 1).socket(family, 80).ip()];
        for (number, name) in (1..).zip(BACKENDS) {
            let to = node.socket(family, 30000 + number);
            let mut asked = vec![(client, to)];
            let vip = cluster_ips(u8::try_from(number).unwrap()).socket(family, 80);
            asked.extend(["shell", "side", "kata"].map(|name| (&**cluster.pod(name), vip)));
            for (from, to) in asked {
                let (tcp, udp) = (client_seen(from, to).0, echoed_client(from, to));
                let seen = format!("{} to {name} at {to} is {tcp}, {udp}", from.name());
                assert!(own.contains(&tcp) && own.contains(&udp), "{seen}");
                assert_answering(from, to, &[name]);
            }
            assert_answering(node, vip, &[name]);
        }
        let to = node.socket(family, 30020);
        assert_eq!(client_seen(client, to).0, client.ip(family));
    }
}

/// S6.3 by kube-proxy's ways to tell who is local: the only endpoint is on the other node.
#[test]
fn s6_local_clients_are_told_as_kube_proxy_tells_them() {
    lb_test::require_topology!();
    let service = Service::new("web", 1).select("web-2").tcp(80, 8080).node_port(30001);
    let service = service.udp(80, 5353).node_port(30001).external_local().object();
    let cluster = Cluster::start(SocketLb::Off, &[service]);
    assert_told(&cluster, Told::Outside);
    let own = Family::BOTH.map(|family| cluster.outside().ip(family));
    let cidrs = [format!("{}/24", own[0]), format!("{}/64", own[1])];
    let cluster_cidr = format!("--cluster-cidr={}", cidrs.join(","));
    let cluster = cluster.with_agents(&["node1"], &[&cluster_cidr]);
    assert_told(&cluster, Told::Outside);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"},
        "spec": {"podCIDRs": cidrs}});
    cluster.apply("node.yaml", &list(&[node])).unwrap();
    let cluster = cluster.with_agents(&["node1"], &[&cluster_cidr]);
    assert_told(&cluster, Told::Local);
    let cluster = cluster.with_agents(&["node1"], &["--detect-local-mode=NodeCIDR", &cluster_cidr]);
    assert_told(&cluster, Told::Local);
    cluster.delete("node.yaml").unwrap();
    lb_test::eventually(PATIENT, "a client outside", || {
        let target = node_port(&cluster, Family::V6).to_string();
        let lines = crate::ask::probe(cluster.outside(), &["tcp-get", &target, "--timeout", "50"]);
        anyhow::ensure!(lines[0].to_string().contains("timed out"), "{lines:?}");
        Ok(())
    });
    assert_told(&cluster, Told::Outside);
    let arguments =
        ["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth-k"];
    let cluster = cluster.with_agents(&["node1"], &arguments);
    let target = node_port(&cluster, Family::V4);
    assert_answering(cluster.pod("kata"), target, &["web-2"]);
    assert_silent(cluster.pod("shell"), target);
}

/// What the client outside is taken for.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Local,
    Outside,
}

fn node_port(cluster: &Cluster, family: Family) -> SocketAddr {
    cluster.node("node1").socket(family, 30001)
}

#[track_caller]
fn assert_told(cluster: &Cluster, told: Told) {
    let client = cluster.outside();
    for family in Family::BOTH {
        let to = node_port(cluster, family);
        if told == Told::Outside {
            assert_silent(client, to);
            continue;
        }
        assert_answering(client, to, &["web-2"]);
        echoing(client, to, &["--count", "3"]);
        let node = cluster.node("node1").ip(family);
        assert_eq!(client_seen(client, to).0, node, "or its reply goes astray");
    }
    assert_answering(cluster.pod("kata"), node_port(cluster, Family::V4), &["web-2"]);
}
