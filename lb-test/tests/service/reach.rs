//! Every kind of frontend answers everyone it is for, and no one else.

use std::net::SocketAddr;

use lb_test::PATIENT;
use lb_test::manifests::{
    Condition, Service, cluster_ips, external_ips, list, pod, slices, with_port,
};
use lb_test::{Family, Host, SocketLb, Topology, programs};
use serde_json::Value;

use crate::ask::{answering, assert_answering, echoing, probe};
use crate::{BACKENDS, Cluster, WEB, cluster_sockets, mapped, on_both_paths};

on_both_paths! {
    every_frontend => every_frontend_answers_by_the_socket_path, every_frontend_answers_by_the_packet_path, every_frontend_answers_with_xdp;
    loopback => loopback_node_ports_belong_to_the_host, loopback_node_ports_are_no_business_of_the_packet_path;
    ports => ports_lead_where_they_say_by_the_socket_path, ports_lead_where_they_say_by_the_packet_path;
    ignored => other_proxies_services_are_left_alone_by_sockets, other_proxies_services_are_left_alone_by_packets;
}

/// TCP port 80 and UDP port 80 share the numbers of their node ports (S8).
fn every_frontend(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB);
    let service = service.tcp(80, 8080).node_port(30080).udp(80, 5353).node_port(30080);
    let service = service.external_ips(external_ips(1)).ingress(external_ips(2), "VIP");
    let cluster = Cluster::without_agents(path, &[service.object()]);
    let cluster = cluster.with_agents(&["node1", "node2"], &[]);
    cluster.route_services();
    let own = |family| cluster.node("node1").socket(family, 30080);
    let others = |family| cluster.node("node2").socket(family, 30080);
    let bridge = |family| lb_test::address::DualStack::of_pod(1, 1).socket(family, 30080);
    for family in Family::BOTH {
        let frontends = [
            cluster_ips(1).socket(family, 80),
            external_ips(1).socket(family, 80),
            external_ips(2).socket(family, 80),
            // Backends of the other node are asked again afterwards, past its frontends: what it
            // remembers of these connections must not touch those.
            others(family),
            own(family),
        ];
        let inside: [SocketAddr; 1] = [bridge(family)];
        for to in frontends {
            asks_all(&cluster, cluster.outside(), to);
        }
        for from in cluster.inside() {
            for to in frontends.iter().chain(&inside) {
                // A reply that is mended on `lo` would be a martian: needs the socket path.
                let is_own = *to == own(family) || inside.contains(to);
                if from.name() != "node1" || !is_own || path == SocketLb::All {
                    asks_all(&cluster, from, *to);
                }
            }
        }
    }
}

#[track_caller]
fn asks_all(cluster: &Cluster, from: &Host, to: SocketAddr) {
    assert_answering(from, to, &BACKENDS);
    echoing(from, to, &["--count", "3"]);
    echoing(from, to, &["--count", "3", "--connected"]);
    let lines = probe(from, &["peername", &to.to_string()]);
    assert_eq!(lines[0]["address"], to.to_string(), "{}", from.name());
    if let Some(to) = mapped(to).filter(|_| cluster.has_socket_path(from)) {
        assert_answering(from, to, &BACKENDS);
        echoing(from, to, &["--count", "2"]);
        echoing(from, to, &["--connected"]);
        let lines = probe(from, &["peername", &to.to_string()]);
        assert_eq!(lines[0]["address"], to.to_string(), "{}", from.name());
    }
}

fn loopback(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let service = service.udp(80, 5353).node_port(30080);
    let cluster = Cluster::start(path, &[service.object()]);
    let shell = cluster.pod("shell");
    let _own = programs::nginx(shell, &[30080]).unwrap();
    let _echo = programs::udp_echo(shell, 30080).unwrap();
    for to in ["127.0.0.1:30080", "[::1]:30080"].map(|to| to.parse().unwrap()) {
        assert_answering(shell, to, &["shell"]);
        assert_eq!(echoing(shell, to, &[]), "shell");
        if path == SocketLb::All {
            assert_answering(cluster.node("node1"), to, &BACKENDS);
            echoing(cluster.node("node1"), to, &["--count", "3"]);
        }
    }
    for family in Family::BOTH {
        // Straight to a pod, getpeername shows that pod.
        let to = cluster.pod("web-2").socket(family, 8080);
        let lines = probe(shell, &["peername", &to.to_string()]);
        assert_eq!(lines[0]["address"], to.to_string());
    }
}

/// Named target ports that differ from pod to pod (S19), and a Service with a hundred ports.
fn ports(path: SocketLb) {
    let named = Service::new("named", 1).select("named").tcp(80, "http");
    let hundred = (0..100).fold(Service::new("hundred", 2).select("web-1"), |service, index| {
        service.tcp(7000 + index, if index % 2 == 0 { 8080 } else { 8081 })
    });
    let cluster = Cluster::start(path, &[named.object(), hundred.object()]);
    let _odd = programs::nginx_with_body(cluster.pod("web-1"), &[8081], "odd").unwrap();
    let _other = programs::nginx(cluster.pod("shell"), &[8090]).unwrap();
    let at = |name, pod_name, port| {
        with_port(pod(name, cluster.pod(pod_name), &["named"], Condition::Ready), "http", port)
    };
    let pods = [at("a", "web-1", 8080), at("b", "shell", 8090), at("c", "web-2", 8080)];
    cluster.apply("named.yaml", &list(&pods)).unwrap();
    let [named, _] = cluster_sockets(1, 80);
    lb_test::eventually(PATIENT, "three named backends", || {
        let services = cluster.agents[0].services()?.to_string();
        anyhow::ensure!(services.contains("8090"), "{services}");
        Ok(())
    });
    assert_answering(cluster.pod("side"), named, &["web-1", "shell", "web-2"]);
    for from in [cluster.pod("side"), cluster.pod("kata")] {
        assert_answering(from, cluster_sockets(1, 80)[1], &["web-1", "shell", "web-2"]);
        for index in (0..100).step_by(9) {
            let body = if index % 2 == 0 { "web-1" } else { "odd" };
            for to in cluster_sockets(2, 7000 + index) {
                let lines = probe(from, &["tcp-get", &to.to_string()]);
                assert_eq!(lines[0]["body"], body, "{to}: {lines:?}");
            }
        }
    }
}

/// S13 and S14: labels of other proxies, aliases, headless Services, addresses of a real proxy.
fn ignored(path: SocketLb) {
    let cluster = Cluster::start_with(path, lb_test::NodeSpec::new("node1"), others_and_ours);
    let listed = cluster.agents[0].services().unwrap();
    let mut names: Vec<_> =
        listed.as_array().unwrap().iter().map(|row| row["service"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, ["default/proxied:tcp-80", "default/sliced:tcp-80"], "{listed:#}");
    for from in cluster.inside() {
        for to in cluster_sockets(4, 80) {
            assert_answering(from, to, &["web-1"]);
        }
        for to in cluster_sockets(3, 80) {
            assert_eq!(answering(from, to).len(), BACKENDS.len());
        }
        for family in Family::BOTH {
            let alias = cluster_ips(2).socket(family, 80);
            let others = cluster_ips(1).socket(family, 80);
            for to in [others, alias, external_ips(3).socket(family, 80)] {
                let lines = probe(from, &["tcp-get", &to.to_string(), "--timeout", "100"]);
                assert_eq!(lines[1]["failures"], 1, "{} to {to}: {lines:?}", from.name());
            }
        }
    }
}

/// Services that are none of ours, and two that are: `proxied` and `sliced`.
fn others_and_ours(topology: &Topology) -> Vec<Value> {
    let other = "service.kubernetes.io/service-proxy-name";
    let service = |name, number| Service::new(name, number).tcp(80, 8080);
    let mut objects = vec![
        service("other", 1).select(WEB).label(other, "x").object(),
        service("alias", 2).select(WEB).spec("type", "ExternalName".into()).object(),
        service("proxied", 3).select(WEB).ingress(external_ips(3), "Proxy").object(),
        service("sliced", 4).object(),
    ];
    let mut headless = service("headless", 5).select(WEB);
    for field in ["clusterIP", "clusterIPs"] {
        let none = if field == "clusterIP" { "None".into() } else { ["None"].into() };
        headless = headless.spec(field, none);
    }
    objects.push(headless.object());
    let [one, two] = ["web-1", "web-2"].map(|name| topology.pod(name));
    objects.extend(slices("seen", "sliced", ("tcp-80", 8080), &[one], &[]));
    let label = [("service.kubernetes.io/headless", "")];
    objects.extend(slices("unseen", "sliced", ("tcp-80", 8080), &[two], &label));
    objects
}
