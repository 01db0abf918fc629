//! Errors of ICMP and ICMPv6 about packets of Services: whoever sent a packet is told about it as
//! the one that was sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::Context;
use lb_test::PATIENT;
use lb_test::address::OUTSIDE;
use lb_test::manifests::{Service, cluster_ips};
use lb_test::{Family, Host, SocketLb, eventually, programs, try_eventually};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::ask::assert_refused;
use crate::{BACKENDS, Cluster, WEB, cluster_sockets, on_both_paths};

on_both_paths! {
    pings => addresses_of_services_answer_pings_by_the_socket_path, addresses_of_services_answer_pings_by_the_packet_path;
    unreachable => a_closed_port_of_a_backend_refuses_by_the_socket_path, a_closed_port_of_a_backend_refuses_by_the_packet_path, a_closed_port_of_a_backend_refuses_with_xdp;
}

/// The MTU of the narrow link: large enough for IPv6.
pub(crate) const NARROW: &str = "1300";

/// A Service for each backend, at a port where iperf3 listens.
fn bulk() -> Vec<serde_json::Value> {
    let service = |(number, name): (u8, &str)| {
        let service = Service::new(name, number).select(name).tcp(5201, 5201);
        service.node_port(30000 + u16::from(number)).object()
    };
    (1..).zip(BACKENDS).map(service).collect()
}

/// A router between client and node tells the Service's address that its replies are too big: the
/// pod that sent them must be told, near or far, routed or bridged.
#[test]
fn a_pod_learns_of_a_narrow_link_towards_its_client() {
    lb_test::require_topology!();
    let cluster = Cluster::start(SocketLb::Off, &bulk());
    let _servers = BACKENDS.map(|name| programs::iperf3_server(cluster.pod(name)).unwrap());
    cluster.fabric().run("ip", &["link", "set", "outside0", "mtu", NARROW]).unwrap();
    let (client, node) = (cluster.outside(), cluster.node("node1"));
    for family in Family::BOTH {
        for (number, name) in (1..).zip(BACKENDS) {
            let to = node.socket(family, 30000 + number);
            transfers(client, to, &["--reverse", "--rcv-timeout", "20000"]);
            let peer = if name == "web-2" { node.ip(family) } else { client.ip(family) };
            assert_narrow(cluster.pod(name), peer);
        }
    }
}

/// The same towards the pod: a client outside, a pod and a process of the node must be told.
#[test]
fn clients_learn_of_a_narrow_link_towards_a_pod() {
    lb_test::require_topology!();
    let cluster = Cluster::start(SocketLb::Off, &bulk());
    cluster.route_services();
    let _servers = BACKENDS.map(|name| programs::iperf3_server(cluster.pod(name)).unwrap());
    for (node, name) in [("node1", "web-1"), ("node2", "web-2")] {
        let device = cluster.pod(name).device();
        cluster.node(node).run("ip", &["link", "set", &device, "mtu", NARROW]).unwrap();
    }
    let clients = [cluster.outside(), cluster.pod("kata"), cluster.node("node1")];
    for family in Family::BOTH {
        // The node itself sends straight to its own pod's device: nobody could tell it.
        for (number, clients) in [(1, &clients[..2]), (2, &clients[..])] {
            let vip = cluster_ips(number).socket(family, 5201);
            for client in clients {
                transfers(client, vip, &["--snd-timeout", "20000"]);
                assert_narrow(client, vip.ip());
            }
        }
    }
}

/// A datagram that does not fit the device towards its backend, where this node forwards in place of its
/// stack: the client is told, and sends fragments from then on.
#[test]
fn clients_learn_of_a_narrow_device_of_this_node() {
    lb_test::require_topology!();
    let service = Service::new("web-1", 1).select("web-1").udp(80, 5353).object();
    let cluster = Cluster::without_agents(SocketLb::Off, &[service]);
    let cluster = cluster.with_agents(&["node1"], &["--masquerade-all"]);
    cluster.route_services();
    let (node, pod) = (cluster.node("node1"), cluster.pod("web-1"));
    node.run("ip", &["link", "set", &pod.device(), "mtu", NARROW]).unwrap();
    pod.run("ip", &["link", "set", "eth0", "mtu", NARROW]).unwrap();
    for vip in cluster_sockets(1, 80) {
        for from in [cluster.outside(), cluster.pod("shell"), node] {
            let told = cluster.counted("packet_too_big");
            let to = vip.to_string();
            let arguments = ["udp", &to, "--size", "1400", "--timeout", "500"];
            eventually(PATIENT, "an answer", || {
                let lines = programs::probe(from, &arguments)?;
                anyhow::ensure!(lines[0]["source"] == to, "{}: {lines:?}", from.name());
                Ok(())
            });
            assert_eq!(cluster.counted("packet_too_big"), told + 1, "{}", from.name());
            assert_narrow(from, vip.ip());
        }
    }
}

#[track_caller]
fn transfers(from: &Host, to: SocketAddr, options: &[&str]) {
    let arguments = [&["-n", "4M"], options].concat();
    let report = programs::iperf3(from, to, &arguments).unwrap();
    // A receiver may stop counting before the end; one that gets no large segment counts none.
    let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
    assert!(received > 20_000, "{} to {to}: {report}", from.name());
}

/// The host knows that packets to `peer` must be smaller.
#[track_caller]
pub(crate) fn assert_narrow(host: &Host, peer: IpAddr) {
    let route = host.run("ip", &["route", "get", &peer.to_string()]).unwrap();
    assert!(route.contains(&format!("mtu {NARROW}")), "{} to {peer}: {route}", host.name());
}

/// An address of Services answers as a host does, also one without endpoints; an address of the node
/// is the node's own.
fn pings(path: SocketLb) {
    let services = [
        Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080).object(),
        Service::new("nobody", 2).select("nobody").tcp(80, 8080).object(),
    ];
    let cluster = Cluster::start(path, &services);
    cluster.route_services();
    let asked = cluster.counted("ping");
    for family in Family::BOTH {
        for number in [1, 2] {
            let vip = cluster_ips(number).family(family).to_string();
            for from in cluster.inside().into_iter().chain([cluster.outside()]) {
                for size in ["0", "56", "1400"] {
                    ping(from, &["-s", size, &vip]);
                }
            }
        }
    }
    // Families, Services, askers, sizes, and twice each.
    let answered = asked + 2 * 2 * 5 * 3 * 2;
    assert_eq!(cluster.counted("ping"), answered);
    for family in Family::BOTH {
        ping(cluster.outside(), &[&cluster.node("node1").ip(family).to_string()]);
        let gone = cluster_ips(9).family(family).to_string();
        let arguments = ["-c", "1", "-W", "0.2", &gone];
        cluster.pod("shell").run("ping", &arguments).expect_err("nobody has this address");
    }
    assert_eq!(cluster.counted("ping"), answered, "the node answers for itself");
}

/// Two pings, both answered.
#[track_caller]
fn ping(from: &Host, arguments: &[&str]) {
    let fixed = ["-n", "-c", "2", "-i", "0.01", "-W", "10"];
    let answer = from.run("ping", &[&fixed[..], arguments].concat()).unwrap();
    assert!(answer.contains("2 received, 0% packet loss"), "{}: {answer}", from.name());
}

/// A Service whose backends listen at another port: a datagram is refused as by the pod itself.
fn unreachable(path: SocketLb) {
    let service = |(number, name): (u8, &str)| {
        let service = Service::new(name, number).select(name).tcp(80, 9).udp(80, 9);
        service.node_port(30000 + u16::from(number)).object()
    };
    let services: Vec<_> = (1..).zip(BACKENDS).map(service).collect();
    let cluster = Cluster::start(path, &services);
    for family in Family::BOTH {
        for number in (1..).take(BACKENDS.len()) {
            let vip = cluster_ips(number).socket(family, 80);
            for from in cluster.inside() {
                assert_refused(from, vip);
            }
            let port = 30000 + u16::from(number);
            assert_refused(cluster.outside(), cluster.node("node1").socket(family, port));
        }
    }
}

/// Each hop that a packet's time to live ends at is seen, this node too, and all are asked about the
/// Service's address. Under SNAT, the way behind this node has the Service's address.
#[test]
fn traceroute_shows_the_way_to_a_service() {
    lb_test::require_topology!();
    let services: Vec<_> = (1..)
        .zip(["web-1", "web-2"])
        .map(|(number, name)| Service::new(name, number).select(name).udp(80, 5353).object())
        .collect();
    let cluster = Cluster::start(SocketLb::Off, &services);
    cluster.route_services();
    let (client, node) = (cluster.outside(), cluster.node("node1"));
    for family in Family::BOTH {
        let [near, far] = [1, 2].map(|number| cluster_ips(number).socket(family, 80));
        let way = |to, ttl| client.enter(|| hop(to, ttl)).unwrap();
        let fabric = OUTSIDE.family(family);
        assert_eq!([1, 2].map(|ttl| way(near, ttl)), [fabric, node.ip(family)]);
        assert_eq!([1, 2, 3].map(|ttl| way(far, ttl)), [fabric, node.ip(family), far.ip()]);
    }
}

/// Who tells that the time to live of a datagram ended.
fn hop(to: SocketAddr, ttl: u8) -> IpAddr {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
        setsockopt(&socket, sockopt::Ipv4Ttl, &ttl.into()).unwrap();
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
        setsockopt(&socket, sockopt::Ipv6Ttl, &ttl.into()).unwrap();
    }
    socket.connect(to).unwrap();
    socket.send(b"hop").unwrap();
    try_eventually(PATIENT, "an error", || source_of_error(&socket)).unwrap()
}

/// Who sent the error that a connected socket got.
fn source_of_error(socket: &UdpSocket) -> anyhow::Result<IpAddr> {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(&mut space), flags)?;
    let source = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(_, Some(from)) => {
            Some(Ipv4Addr::from_bits(u32::from_be(from.sin_addr.s_addr)).into())
        }
        ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => {
            Some(Ipv6Addr::from(from.sin6_addr.s6_addr).into())
        }
        _ => None,
    });
    source.context("an error without a source")
}
