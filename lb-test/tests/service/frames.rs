//! Frames as networks have them besides plain ones: with VLAN tags, and larger than usual.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use lb_ebpf::cases::frame::{Frame, Transport};
use lb_test::manifests::cluster_ips;
use lb_test::{Family, Host, SocketLb};

use crate::ask::probe;
use crate::wire::{mac, receive, send_by, tap};
use crate::{BACKENDS, Cluster, echo_services};

/// Bytes of both link-layer addresses.
const MACS: usize = 12;
/// A tag of VLAN 100, and one that tells of a priority alone.
const VLAN: [u8; 4] = [0x81, 0, 0, 100];
const PRIORITY: [u8; 4] = [0x81, 0, 0xa0, 0];
/// An outer tag (802.1ad) of VLAN 100, and one of a priority alone.
const OUTER_VLAN: [u8; 4] = [0x88, 0xa8, 0, 100];
const OUTER_PRIORITY: [u8; 4] = [0x88, 0xa8, 0xa0, 0];

fn datagram(macs: [[u8; 6]; 2], src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let (options, payload) = (Vec::new(), b"tagged".to_vec());
    Frame { macs, src, dst, class: 0, ttl: 64, options, transport: Transport::Udp, payload }
        .encode()
}

/// What belongs to a VLAN is for its device, and none of the node's other devices; a tag that tells of a
/// priority alone changes nothing.
#[test]
fn tagged_frames_are_for_the_device_of_their_vlan() {
    lb_test::require_topology!();
    let cluster = Cluster::start(SocketLb::Off, &echo_services());
    let (node, client) = (cluster.node("node1"), cluster.outside());
    for name in BACKENDS {
        cluster.pod(name).complete_checksums("eth0").unwrap();
    }
    let macs = [mac(node, "eth0"), mac(cluster.fabric(), "br0")];
    let send = |tags: &[[u8; 4]], src: SocketAddr, dst: SocketAddr| {
        let mut frame = datagram(macs, src, dst);
        frame.splice(MACS..MACS, tags.concat());
        send_by(cluster.fabric(), "br0", &frame);
    };
    for family in Family::BOTH {
        for (number, name) in (1..).zip(BACKENDS) {
            let to = node.socket(family, 30000 + number);
            let at_client = tap(client);
            let elsewhere: [&[_]; 4] =
                [&[VLAN], &[OUTER_VLAN, VLAN], &[OUTER_VLAN, PRIORITY], &[OUTER_PRIORITY, VLAN]];
            for tags in elsewhere {
                send(tags, client.socket(family, 41000), to);
            }
            // The second datagram of each proves its flow.
            let priorities = [(42000, PRIORITY), (43000, OUTER_PRIORITY)];
            for (port, tag) in priorities.into_iter().chain(priorities) {
                let src = client.socket(family, port);
                send(&[tag], src, to);
                // What was sent before would be answered before.
                let answer = receive(&at_client, |frame| frame.src == to).unwrap();
                let payload = String::from_utf8_lossy(&answer.payload);
                assert_eq!(answer.dst, src, "{payload}");
                assert!(payload.starts_with(name) && payload.ends_with("tagged"), "{payload}");
            }
        }
    }
    // Two flows to each backend, two entries each.
    assert_eq!(cluster.flows(), [2 * 2 * 3; 2]);
}

/// Frames of 9,000 bytes are translated by their headers, near and far, and stay whole.
#[test]
fn jumbo_frames_stay_whole() {
    lb_test::require_topology!();
    let cluster = Cluster::start(SocketLb::Off, &echo_services());
    cluster.route_services();
    for host in cluster.hosts().chain([cluster.fabric()]) {
        for device in devices(host) {
            host.run("ip", &["link", "set", &device, "mtu", "9000"]).unwrap();
            host.complete_checksums(&device).unwrap();
        }
    }
    for family in Family::BOTH {
        for (number, name) in (1..).zip(BACKENDS) {
            let to = cluster_ips(number).socket(family, 80);
            for from in [cluster.outside(), cluster.pod("shell"), cluster.node("node1")] {
                let (asked, answered) = (tap(cluster.pod(name)), tap(from));
                let lines = probe(from, &["udp", &to.to_string(), "--size", "8500"]);
                assert_eq!(lines[0]["source"], to.to_string(), "{lines:?}");
                assert!(lines[0]["payload"].as_str().unwrap().len() > 8500);
                assert_large(&asked, |frame| frame.dst.port() == 5353);
                // A tap hears a reply to the node itself before it is mended.
                if from.name() != "node1" {
                    assert_large(&answered, |frame| frame.src == to);
                }
            }
        }
    }
}

#[track_caller]
fn assert_large(tap: &OwnedFd, is_it: impl Fn(&Frame) -> bool) {
    let frame = receive(tap, is_it).unwrap();
    assert!(frame.payload.len() >= 8500, "{frame:?}");
}

/// All devices of a host but loopback.
fn devices(host: &Host) -> Vec<String> {
    let links = host.run("ip", &["-j", "link", "show"]).unwrap();
    let links: Vec<serde_json::Value> = serde_json::from_str(&links).unwrap();
    let names = links.iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
    names.filter(|name| name != "lo").collect()
}
