//! Associations: both ends made of raw packets, since few kernels have sockets for them at hand.
//!
//! What an end gets is looked at as the frame that arrived, with its CRC taken anew.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use lb_ebpf::cases::frame::{Frame, Transport};
use lb_test::manifests::{Service, cluster_ips};
use lb_test::{Family, Host, SocketLb};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::wire::{receive, tap};
use crate::{BACKENDS, Cluster};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const TAG: u32 = 0x0bad_cafe;
const TARGET_PORT: u16 = 38412;
const PORT: u16 = 36412;
/// Past the 20 bytes that a refusal of an INIT quotes.
const VALUE: &[u8] = b"initiate tag and more";

/// A Service for each backend, and one without any.
fn services() -> Vec<serde_json::Value> {
    let service = |(number, group): (u8, &str)| {
        let service = Service::new(&format!("sctp-{number}"), number).select(group);
        service.sctp(PORT, TARGET_PORT).node_port(30400 + u16::from(number)).object()
    };
    (1..).zip(BACKENDS).chain([(9, "nobody")]).map(service).collect()
}

/// Whether the node reads sockets or not: it never sees those of SCTP.
#[test]
fn associations_reach_their_backends_and_get_their_answers() {
    lb_test::require_topology!();
    let cluster = Cluster::start(SocketLb::All, &services());
    for family in Family::BOTH {
        for (number, name) in (1..).zip(BACKENDS) {
            let backend = cluster.pod(name);
            let node_port = cluster.node("node1").socket(family, 30400 + u16::from(number));
            begin(cluster.outside(), node_port, backend);
            for from in cluster.inside() {
                // A tap hears a reply before it is mended, if it comes in where it is delivered.
                if from.name() == "node1" && name == "web-2" {
                    continue;
                }
                begin(from, cluster_ips(number).socket(family, PORT), backend);
            }
        }
        let node_port = cluster.node("node1").socket(family, 30409);
        is_refused(cluster.outside(), node_port);
        is_refused(cluster.pod("shell"), cluster_ips(9).socket(family, PORT));
    }
}

/// Sends an INIT to a Service, answers it at the backend, and expects the answer.
#[track_caller]
fn begin(from: &Host, to: SocketAddr, backend: &Host) {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let (client, target) = (from.socket(family, 40000), backend.socket(family, TARGET_PORT));
    let (at_client, at_backend) = (tap(from), tap(backend));
    send(from, &packet([client, to], INIT));
    let asked = receive(&at_backend, |frame| frame.dst == target && chunk(frame) == Some(INIT));
    let asked = asked.unwrap_or_else(|| panic!("{} to {to}: no INIT", from.name()));
    assert_eq!(asked.payload, VALUE);
    send(backend, &packet([target, asked.src], INIT_ACK));
    let answer = receive(&at_client, |frame| (frame.src, frame.dst) == (to, client));
    let answer = answer.unwrap_or_else(|| panic!("{} to {to}: no INIT ACK", from.name()));
    assert_eq!((chunk(&answer), &answer.payload[..]), (Some(INIT_ACK), VALUE));
}

/// An ICMP error, with as much of the INIT as its sender needs to know it again.
#[track_caller]
fn is_refused(from: &Host, to: SocketAddr) {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let at_client = tap(from);
    let asked = packet([from.socket(family, 40000), to], INIT);
    send(from, &asked);
    let kind = if to.is_ipv4() { [3, 3] } else { [1, 4] };
    let refusal = receive(
        &at_client,
        |frame| matches!(frame.transport, Transport::Icmp { kind: found, .. } if found == kind),
    );
    let refusal = refusal.unwrap_or_else(|| panic!("{} to {to}: no refusal", from.name()));
    assert_eq!(refusal.src.ip(), to.ip());
    let (begin, length) = (14 + asked.ip_header_length(), 20);
    assert!(refusal.payload.ends_with(&asked.encode()[begin..begin + length]), "{refusal:?}");
}

fn packet([src, dst]: [SocketAddr; 2], chunk: u8) -> Frame {
    Frame {
        macs: [[0; 6]; 2],
        src,
        dst,
        class: 0,
        ttl: 64,
        options: Vec::new(),
        transport: Transport::Sctp { tag: TAG, chunk },
        payload: VALUE.to_vec(),
    }
}

/// The type of the chunk of a packet whose checksum is there, and right.
fn chunk(frame: &Frame) -> Option<u8> {
    match frame.transport {
        Transport::Sctp { tag: TAG, chunk } => Some(chunk),
        _ => None,
    }
}

/// Sends a packet from its IP header on.
fn send(from: &Host, packet: &Frame) {
    let family = if packet.dst.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let to = SockaddrStorage::from(SocketAddr::new(packet.dst.ip(), 0));
    let bytes = packet.encode().split_off(14);
    let sent = from.enter(|| {
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        sendto(raw.as_raw_fd(), &bytes, &to, MsgFlags::empty()).unwrap()
    });
    assert_eq!(sent.unwrap(), bytes.len());
}
