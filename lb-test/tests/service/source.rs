//! Whose address a backend sees, and that replies find their way back under it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lb_test::manifests::{Service, cluster_ips};
use lb_test::{Family, Host, NodeSpec, SocketLb};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::ask::{assert_answering, client_seen, echoed_client, echoing};
use crate::{BACKENDS, Cluster, WEB, on_both_paths};

on_both_paths! {
    kept_or_masqueraded => the_client_is_seen_by_local_backends_by_the_socket_path, the_client_is_seen_by_local_backends_by_the_packet_path, the_client_is_seen_by_local_backends_with_xdp;
    hairpin => a_pod_reaches_itself_by_the_socket_path, a_pod_reaches_itself_by_the_packet_path;
    strict => strict_rp_filter_drops_nothing_by_the_socket_path, strict_rp_filter_drops_nothing_by_the_packet_path;
    checksums => checksums_are_whole_by_the_socket_path, checksums_are_whole_by_the_packet_path, checksums_are_whole_with_xdp;
}

/// A Service for each backend, with node ports 30001 to 30003, and again with 30011 to 30013.
pub(crate) fn one_each() -> Vec<serde_json::Value> {
    let mut services = Vec::new();
    for (number, name) in (1..).zip(BACKENDS) {
        for more in [0, 10] {
            let number: u8 = number + more;
            let service = Service::new(&format!("s-{number}"), number).select(name);
            let node_port = 30000 + u16::from(number);
            let service = service.tcp(80, 8080).node_port(node_port);
            services.push(service.udp(80, 5353).node_port(node_port).object());
        }
    }
    services
}

fn kept_or_masqueraded(path: SocketLb) {
    let cluster = Cluster::start(path, &one_each());
    let (client, node) = (cluster.outside(), cluster.node("node1"));
    for family in Family::BOTH {
        for (number, seen) in [(1, client.ip(family)), (2, node.ip(family)), (3, client.ip(family))]
        {
            let to = node.socket(family, 30000 + u16::from(number));
            assert_eq!(client_seen(client, to).0, seen, "{to}");
            assert_eq!(echoed_client(client, to), seen, "{to}");
            let to = cluster_ips(number).socket(family, 80);
            for pod in ["shell", "side", "kata"].map(|name| cluster.pod(name)) {
                assert_eq!(client_seen(pod, to).0, pod.ip(family), "{} to {to}", pod.name());
                assert_eq!(echoed_client(pod, to), pod.ip(family), "{} to {to}", pod.name());
            }
        }
    }
}

/// S15.
fn hairpin(path: SocketLb) {
    let cluster = Cluster::without_agents(path, &one_each()).with_agents(&["node1", "node2"], &[]);
    for (number, name) in (1..).zip(BACKENDS) {
        let pod = cluster.pod(name);
        for family in Family::BOTH {
            let to = cluster_ips(number).socket(family, 80);
            assert_answering(pod, to, &[name]);
            assert_eq!(echoing(pod, to, &["--count", "3"]), name);
            assert_eq!(echoing(pod, to, &["--count", "3", "--connected"]), name);
            let seen = client_seen(pod, to).0;
            assert_eq!(seen == pod.ip(family), path == SocketLb::All, "{name} is seen as {seen}");
        }
    }
}

/// Replies of one backend to one port of a client belong to two Services.
#[test]
fn one_client_port_talks_to_two_services_with_one_backend() {
    lb_test::require_topology!();
    let cluster = Cluster::start(SocketLb::Off, &one_each());
    let node = cluster.node("node1");
    for family in Family::BOTH {
        for (number, body) in (1..).zip(BACKENDS) {
            let vips = [number, number + 10].map(|number| cluster_ips(number).socket(family, 80));
            let node_ports =
                [30000, 30010].map(|base| node.socket(family, base + u16::from(number)));
            for (from, services) in
                [(&**cluster.pod("kata"), &vips[..]), (cluster.outside(), &node_ports[..])]
            {
                from.enter(|| talks_to_both(from.ip(family), services, body)).unwrap();
            }
        }
    }
}

/// Opens a connection to each from one port, and then asks over each in turn.
#[track_caller]
fn talks_to_both(ip: IpAddr, services: &[SocketAddr], body: &str) {
    let mut streams: Vec<_> =
        services.iter().map(|to| connect_from((ip, 23456).into(), *to)).collect();
    for _ in 0..3 {
        for stream in &mut streams {
            let answer = ask(stream);
            assert!(answer.contains(&format!("\r\n\r\n{body}\n")), "{services:?}: {answer}");
        }
    }
}

pub(crate) fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // The body is one line.
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    String::from_utf8(answer).unwrap()
}

pub(crate) fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    let descriptor = socket.as_raw_fd();
    bind(descriptor, &SockaddrStorage::from(from)).unwrap();
    connect(descriptor, &SockaddrStorage::from(to)).unwrap_or_else(|e| panic!("{to}: {e}"));
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn strict(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let service = service.udp(80, 5353).node_port(30080);
    let node1 = NodeSpec::new("node1").strict_rp_filter();
    let cluster = Cluster::start_with(path, node1, |_| vec![service.object()]);
    for family in Family::BOTH {
        for from in cluster.inside() {
            let to = cluster_ips(1).socket(family, 80);
            assert_answering(from, to, &BACKENDS);
            echoing(from, to, &["--count", "3"]);
        }
        let to = cluster.node("node1").socket(family, 30080);
        assert_answering(cluster.outside(), to, &BACKENDS);
        echoing(cluster.outside(), to, &["--count", "3"]);
    }
}

/// Frames that carry whole checksums, as those of a real wire, are checked by who gets them.
fn checksums(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let service = service.udp(80, 5353).node_port(30080);
    let cluster = Cluster::start(path, &[service.object()]);
    let ends: Vec<&Host> =
        cluster.pods().iter().map(|pod| &**pod).chain(cluster.clients()).collect();
    for host in &ends {
        host.complete_checksums("eth0").unwrap();
    }
    cluster.node("node1").complete_checksums("eth0").unwrap();
    for family in Family::BOTH {
        let (vip, node) = (cluster_ips(1).socket(family, 80), cluster.node("node1"));
        for from in cluster.inside() {
            assert_answering(from, vip, &BACKENDS);
            echoing(from, vip, &["--count", "3"]);
        }
        let to = node.socket(family, 30080);
        assert_answering(cluster.outside(), to, &BACKENDS);
        echoing(cluster.outside(), to, &["--count", "3"]);
    }
    for host in ends {
        let wrong = host.enter(wrong_checksums).unwrap();
        assert!(wrong.values().all(|count| *count == 0), "{}: {wrong:?}", host.name());
    }
}

/// The counters of packets with a wrong checksum, in the thread's network namespace.
fn wrong_checksums() -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let lines: Vec<_> = snmp.lines().map(|line| line.split_whitespace()).collect();
    for pair in lines.chunks_exact(2) {
        for (name, value) in pair[0].clone().zip(pair[1].clone()) {
            if name == "InCsumErrors" {
                let protocol = pair[0].clone().next().unwrap();
                counts.insert(format!("{protocol}{name}"), value.parse().unwrap());
            }
        }
    }
    let snmp6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    for (name, value) in snmp6.lines().filter_map(|line| line.split_once(char::is_whitespace)) {
        if name.ends_with("InCsumErrors") {
            counts.insert(name.to_owned(), value.trim().parse().unwrap());
        }
    }
    assert!(counts.len() >= 4, "{snmp}{snmp6}");
    counts
}
