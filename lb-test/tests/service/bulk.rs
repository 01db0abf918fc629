//! Much traffic: bulk transfers and very many connections lose nothing.

use std::net::SocketAddr;

use lb_test::manifests::{Service, cluster_ips};
use lb_test::{Family, Host, SocketLb, hold_once, programs};

use crate::ask::probe;
use crate::{BACKENDS, Cluster, WEB, on_both_paths};

on_both_paths! {
    transfers => bulk_transfers_flow_by_the_socket_path, bulk_transfers_flow_by_the_packet_path, bulk_transfers_flow_with_xdp;
    connections => twenty_thousand_connections_by_the_socket_path, twenty_thousand_connections_by_the_packet_path;
}

/// Bytes of one transfer, as iperf3 takes it, and the size of a segment.
const TRANSFER: &str = "32M";
const SEGMENT: u64 = 1448;

fn transfers(path: SocketLb) {
    let service = |name, number: u8, group| {
        let service = Service::new(name, number).select(group).tcp(5201, 5201);
        service.node_port(30000 + u16::from(number)).object()
    };
    let services = [service("near", 1, "web-1"), service("far", 2, "web-2")];
    let cluster = Cluster::start(path, &services);
    let _servers =
        ["web-1", "web-2"].map(|name| programs::iperf3_server(cluster.pod(name)).unwrap());
    for number in [1, 2] {
        for family in Family::BOTH {
            let vip = cluster_ips(number).socket(family, 5201);
            for from in [&**cluster.pod("shell"), cluster.pod("side"), cluster.node("node1")] {
                transfers_well(from, vip);
            }
            let port = 30000 + u16::from(number);
            transfers_well(cluster.outside(), cluster.node("node1").socket(family, port));
        }
    }
}

/// Up and down, with less than one segment in fifty sent again. A queue that runs over while others have the
/// CPU is none of ours, and does not do so each time.
#[track_caller]
fn transfers_well(from: &Host, to: SocketAddr) {
    for direction in [&["-n", TRANSFER][..], &["-n", TRANSFER, "--reverse"]] {
        hold_once(|| {
            let report = programs::iperf3(from, to, direction).unwrap();
            let sent = report["end"]["sum_sent"].clone();
            let (bytes, again) = (&sent["bytes"], &sent["retransmits"]);
            let (bytes, again) = (bytes.as_u64().unwrap(), again.as_u64().unwrap());
            assert!(bytes >= 32 << 20, "{} to {to}: {sent}", from.name());
            assert!(again < bytes / SEGMENT / 50, "{} to {to}: {sent}", from.name());
        });
    }
}

/// From outside, more than SNAT has ports; half of all over IPv4 from a pod, half over IPv6 from
/// outside.
fn connections(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let cluster = Cluster::start(path, &[service.object()]);
    let vip = cluster_ips(1).socket(Family::V4, 80);
    let node_port = cluster.node("node1").socket(Family::V6, 30080);
    std::thread::scope(|scope| {
        for (from, to) in [(&**cluster.pod("shell"), vip), (cluster.outside(), node_port)] {
            scope.spawn(move || connects_often(from, to));
        }
    });
}

#[track_caller]
fn connects_often(from: &Host, to: SocketAddr) {
    let to = to.to_string();
    let lines = probe(from, &["tcp-get", &to, "--count", "2500", "--parallel", "4"]);
    let summary = lines.last().unwrap();
    let failed: Vec<_> = lines.iter().filter(|line| line["event"] == "failure").take(5).collect();
    assert_eq!(summary["answers"], 10_000, "{} to {to}: {failed:?}", from.name());
    assert_eq!(summary["bodies"].as_object().unwrap().len(), BACKENDS.len());
}
