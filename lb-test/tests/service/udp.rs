//! Datagrams: a real DNS server, sockets that talk to several Services, and backends that leave.

use std::net::SocketAddr;

use lb_test::PATIENT;
use lb_test::address::DualStack;
use lb_test::manifests::{Service, cluster_ips};
use lb_test::programs::{self, dig, dnsmasq, json_lines};
use lb_test::{Family, Host, Process, SocketLb, eventually, try_eventually};
use serde_json::Value;

use crate::ask::probe;
use crate::{BACKENDS, Cluster, WEB, cluster_sockets, echo_services, on_both_paths};

on_both_paths! {
    dns => dns_answers_by_the_socket_path, dns_answers_by_the_packet_path, dns_answers_with_xdp;
    several => one_socket_asks_several_services_by_the_socket_path, one_socket_asks_several_services_by_the_packet_path;
    large => large_datagrams_go_by_the_socket_path, large_datagrams_go_by_the_packet_path;
    moves => datagrams_leave_a_removed_backend_by_the_socket_path, datagrams_leave_a_removed_backend_by_the_packet_path, datagrams_leave_a_removed_backend_with_xdp;
}

fn dns(path: SocketLb) {
    let service = Service::new("dns", 10).select(WEB).udp(53, 53).node_port(30053);
    let service = service.tcp(53, 53).node_port(30053);
    let large = Service::new("large", 11).select("web-3").udp(53, 5300);
    // A client outside may be given none but endpoints of node1 by the others.
    let far = Service::new("far", 12).select("web-2").udp(53, 53).node_port(30054);
    let far = far.tcp(53, 53).node_port(30054);
    let services = [service.object(), large.object(), far.object()];
    let cluster = Cluster::without_agents(path, &services);
    let cluster = cluster.with_agents(&["node1", "node2"], &[]);
    let start = |name: &str| dnsmasq(cluster.pod(name), "web.test", DualStack::of_pod(1, 21));
    let _servers = ["web-1", "web-2", "web-3"].map(|name| start(name).unwrap());
    let (_large, text) = large_answers(cluster.pod("web-3"));
    for family in Family::BOTH {
        let vip = cluster_ips(10).socket(family, 53);
        for from in cluster.inside() {
            assert_resolves(from, vip);
            let to = cluster_ips(11).socket(family, 53);
            assert_eq!(large_question(from, to).unwrap(), text);
        }
        assert_resolves(cluster.pod("shell"), cluster.node("node2").socket(family, 30053));
        for port in [30053, 30054] {
            assert_resolves(cluster.outside(), cluster.node("node1").socket(family, port));
        }
    }
}

#[track_caller]
fn assert_resolves(from: &Host, server: SocketAddr) {
    for (record, address) in [("A", "10.248.1.21"), ("AAAA", "fd00:248:1::21")] {
        // dig itself refuses an answer from another address than it asked.
        assert_eq!(dig(from, server, "web.test", record).unwrap(), address, "{}", from.name());
        let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
        let arguments =
            ["+short", "+tcp", "+tries=1", "+time=10", "-p", &port, &at, "web.test", record];
        let answer = from.run("dig", &arguments).unwrap();
        assert_eq!(answer.trim_end(), address, "{} by TCP", from.name());
    }
}

/// A DNS server on port 5300 with an answer of 2,000 bytes, and that answer.
fn large_answers(host: &Host) -> (Process, String) {
    let strings: Vec<_> = ('a'..='h').map(|letter| letter.to_string().repeat(250)).collect();
    let record = format!("--txt-record=large.test,{}", strings.join(","));
    let fixed = "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root \
                 --log-facility=- --pid-file= --port=5300 --edns-packet-max=4096";
    let arguments: Vec<_> = fixed.split_whitespace().chain([record.as_str()]).collect();
    let server = host.start("dnsmasq-large", "dnsmasq", &arguments).unwrap();
    let text = strings.iter().map(|string| format!("\"{string}\"")).collect::<Vec<_>>().join(" ");
    eventually(PATIENT, "large answer", || {
        let answer = large_question(host, host.socket(Family::V4, 5300))?;
        anyhow::ensure!(answer == text, "{answer}");
        Ok(())
    });
    (server, text)
}

fn large_question(from: &Host, server: SocketAddr) -> anyhow::Result<String> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let short = ["+short", "+notcp", "+ignore", "+tries=1", "+time=10", "+bufsize=4096", "-p"];
    let arguments = [&short[..], &[&port, &at, "large.test", "TXT"]].concat();
    Ok(from.run("dig", &arguments)?.trim_end().to_owned())
}

/// On the packet path two of the Services may even have the same backend: from one port of the
/// client, the replies of both would look alike if its port stayed. A socket program can't help
/// that.
fn several(path: SocketLb) {
    let service = |name, number, group| Service::new(name, number).select(group).udp(80, 5353);
    let services = [
        service("one", 1, "web-1").node_port(30001).object(),
        service("two", 2, "web-2").node_port(30002).object(),
        service("three", 3, "web-3").node_port(30003).object(),
        service("one-more", 4, "web-1").node_port(30004).object(),
        service("two-more", 5, "web-2").node_port(30005).object(),
    ];
    let cluster = Cluster::start(path, &services);
    for family in Family::BOTH {
        for from in cluster.inside() {
            let numbers = if cluster.has_socket_path(from) { 1..=3 } else { 1..=5 };
            let vips = numbers.map(|number| cluster_ips(number).socket(family, 80));
            asks_in_turn(from, &vips.collect::<Vec<_>>());
        }
        let node_ports = (30001..=30005).map(|port| cluster.node("node1").socket(family, port));
        asks_in_turn(cluster.outside(), &node_ports.collect::<Vec<_>>());
    }
}

/// Asks all, three times in turn, over one socket.
#[track_caller]
fn asks_in_turn(from: &Host, services: &[SocketAddr]) {
    let names: Vec<_> = services.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["udp", &names[0], "--count", "3"];
    arguments.extend(names[1..].iter().flat_map(|name| ["--also", name]));
    let lines = probe(from, &arguments);
    let sources: Vec<_> = lines.iter().map(|line| line["source"].as_str().unwrap_or("")).collect();
    let expected = names.iter().map(String::as_str).cycle().take(3 * names.len());
    assert_eq!(sources, expected.collect::<Vec<_>>(), "{}: {lines:?}", from.name());
    let pods = ["web-1:", "web-2:", "web-3:", "web-1:", "web-2:"];
    for (index, line) in lines.iter().enumerate() {
        let payload = line["payload"].as_str().unwrap();
        assert!(payload.starts_with(pods[index % names.len()]), "{}: {line}", from.name());
    }
}

/// S11: one socket stays with its backend as long as that serves, and loses nothing when it goes.
fn moves(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).udp(80, 5353).node_port(30080);
    let cluster = Cluster::start(path, &[service.object()]);
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let vip = cluster_ips(1).socket(family, 80);
        let node_port = cluster.node("node1").socket(family, 30080);
        streams.extend(cluster.inside().map(|from| stream(from, vip, family)));
        streams.push(stream(cluster.outside(), node_port, family));
    }
    let first: Vec<String> = streams.iter().map(|stream| only_backend(stream, 20)).collect();
    assert!(first.iter().any(|name| name != "web-2"), "{first:?}");
    cluster.put_pods(&["web-2"]);
    for stream in &streams {
        eventually(PATIENT, "answers of web-2", || {
            let answers = answers(&stream.log())?;
            let last = answers.last().map(|(name, _)| name.as_str());
            anyhow::ensure!(last == Some("web-2"), "{answers:?}");
            Ok(())
        });
        let lines = json_lines(complete(&stream.log())).unwrap();
        assert!(lines.iter().all(|line| line["event"] == "answer"), "{lines:?}");
    }
}

fn stream(from: &Host, to: SocketAddr, family: Family) -> Process {
    let arguments = ["udp", &to.to_string(), "--seconds", "600", "--interval", "10"];
    programs::start_probe(from, &format!("stream-{family:?}"), &arguments).unwrap()
}

/// The one pod that gave at least `count` answers.
#[track_caller]
fn only_backend(stream: &Process, count: usize) -> String {
    let answers = try_eventually(PATIENT, "answers", || {
        let answers = answers(&stream.log())?;
        anyhow::ensure!(answers.len() >= count, "{answers:?}");
        Ok(answers)
    });
    let answers = answers.unwrap_or_else(|error| panic!("{error:#}: {}", stream.log()));
    assert!(answers.iter().all(|(name, _)| *name == answers[0].0), "{answers:?}");
    answers[0].0.clone()
}

/// Who answered each datagram, and from which address.
fn answers(log: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let lines = json_lines(complete(log))?;
    let answers = lines.into_iter().filter(|line| line["event"] == "answer");
    let named = answers.map(|line| {
        let payload = line["payload"].as_str().unwrap_or_default();
        (payload.split(':').next().unwrap_or_default().to_owned(), line["source"].clone())
    });
    Ok(named.collect())
}

/// Whole lines: the last one may still be written.
fn complete(log: &str) -> &str {
    log.rfind('\n').map_or("", |end| &log[..end])
}

/// A datagram in fragments is whole again when the backend gets it, and its answer when the client
/// does: backends near and far, routed and bridged.
fn large(path: SocketLb) {
    let cluster = Cluster::start(path, &echo_services());
    cluster.route_services();
    for (number, name) in (1..).zip(BACKENDS) {
        for to in cluster_sockets(number, 80) {
            for from in cluster.inside().into_iter().chain([cluster.outside()]) {
                assert_echoes(from, to, name);
            }
        }
        let port = 30000 + u16::from(number);
        for to in Family::BOTH.map(|family| cluster.node("node1").socket(family, port)) {
            assert_echoes(cluster.outside(), to, name);
        }
    }
    assert_eq!(cluster.counted("fragment_out_of_order"), 0);
}

#[track_caller]
fn assert_echoes(from: &Host, to: SocketAddr, name: &str) {
    for size in ["2000", "8000"] {
        let lines = probe(from, &["udp", &to.to_string(), "--size", size, "--count", "3"]);
        for line in &lines {
            assert_eq!(line["source"], to.to_string(), "{} to {name}: {line}", from.name());
            let payload = line["payload"].as_str().unwrap();
            assert!(payload.starts_with(name), "{}: {payload}", from.name());
            assert!(payload.len() > size.parse().unwrap(), "{}: {payload}", from.name());
        }
    }
}

/// A packet that waits for its backend's link-layer address goes there in the end, and not to the
/// router that the Service's address leads to.
#[test]
fn the_first_datagram_of_a_node_waits_for_its_backends_neighbour() {
    lb_test::require_topology!();
    let services = [(1, "web-1"), (2, "web-2"), (3, "web-3")]
        .map(|(number, name)| Service::new(name, number).select(name).udp(80, 5353).object());
    let cluster = Cluster::start(SocketLb::Off, &services);
    let node = cluster.node("node1");
    for number in 1..=3 {
        for to in cluster_sockets(number, 80) {
            node.run("ip", &["neigh", "flush", "all"]).unwrap();
            let lines = probe(node, &["udp", &to.to_string()]);
            assert_eq!(lines[0]["source"], to.to_string(), "{lines:?}");
        }
    }
}
