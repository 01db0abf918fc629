//! Datagrams that are sent as one large packet, to be cut where they leave the machine (`UDP_SEGMENT`), as QUIC's:
//! they come to a node uncut where client and node share a machine.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use lb_test::{Family, PATIENT, SocketLb, eventually, hold_once};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::{BACKENDS, Cluster, echo_services, with_xdp};

/// Bytes of a datagram: with the headers of a carrier it fits a link.
const SIZE: u16 = 1300;
const COUNT: u8 = 5;
/// MTU of all links.
const MTU: u16 = 1500;

#[test]
fn datagrams_to_be_cut_reach_backends_here_and_of_another_node() {
    lb_test::require_topology!();
    reached(SocketLb::Off);
}

#[test]
fn datagrams_to_be_cut_reach_backends_with_xdp() {
    lb_test::require_topology!();
    with_xdp(reached);
}

/// By each way to another node, and by each kind of carriers.
fn reached(_: SocketLb) {
    let mut cluster = Cluster::without_agents(SocketLb::Off, &echo_services());
    // Between nodes is a wire: what is carried by it is cut.
    let tunnels = ["udp_tnl", "ipxip4", "ipxip6"].map(|kind| format!("tx-{kind}-segmentation"));
    for feature in &tunnels {
        cluster.node("node1").run("ethtool", &["-K", "eth0", feature, "off"]).unwrap();
    }
    for way in [["snat", "gue"], ["dsr", "gue"], ["dsr", "ipip"]] {
        let arguments = [format!("--forwarding={}", way[0]), format!("--dsr-dispatch={}", way[1])];
        let arguments = arguments.each_ref().map(String::as_str);
        cluster = cluster.with_agents(&["node1", "node2"], &arguments);
        for family in Family::BOTH {
            for (number, name) in (1..).zip(BACKENDS) {
                let to = cluster.node("node1").socket(family, 30000 + number);
                eprintln!("{way:?}: {name} at {to}");
                hold_once(|| assert_all_answered(&cluster, family, to).unwrap());
            }
            let far = cluster.node("node1").socket(family, 30002);
            if way[0] == "dsr" {
                assert_told(&cluster, family, far);
            }
        }
    }
}

/// Sends datagrams at once that fill a link and no carrier, and expects the client to learn that.
fn assert_told(cluster: &Cluster, family: Family, to: SocketAddr) {
    let header = if family == Family::V4 { 20 } else { 40 };
    let size = MTU - header - 8;
    let socket = socket(cluster, family, (to, size));
    eventually(PATIENT, "a smaller MTU", || {
        // It may have been told already.
        let _ = socket.send(&vec![b'a'; usize::from(size) * 3]);
        let route = cluster.outside().run("ip", &["route", "get", &to.ip().to_string()])?;
        anyhow::ensure!(route.contains(" mtu "), "{route}");
        Ok(())
    });
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    cluster.outside().run("ip", &[flag, "route", "flush", "cache"]).unwrap();
}

/// A socket of the client's that has what it sends cut into datagrams of so many bytes.
fn socket(cluster: &Cluster, family: Family, (to, size): (SocketAddr, u16)) -> UdpSocket {
    let client = cluster.outside();
    client
        .enter(|| {
            let socket = UdpSocket::bind(client.socket(family, 0)).unwrap();
            setsockopt(&socket, UdpGsoSegment, &i32::from(size)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        })
        .unwrap()
}

/// Sends datagrams at once, and expects an answer to each.
fn assert_all_answered(cluster: &Cluster, family: Family, to: SocketAddr) -> anyhow::Result<()> {
    let socket = socket(cluster, family, (to, SIZE));
    let text = |number: u8| vec![b'a' + number; SIZE.into()];
    socket.send(&(0..COUNT).flat_map(text).collect::<Vec<_>>())?;
    let mut answered = BTreeSet::new();
    let mut answer = [0; 2048];
    while answered.len() < usize::from(COUNT) {
        let length = match socket.recv(&mut answer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        };
        assert!(answer[..length].ends_with(&text(answer[length - 1] - b'a')));
        answered.insert(answer[length - 1]);
    }
    anyhow::ensure!(answered.len() == usize::from(COUNT), "{answered:?} of {COUNT}");
    Ok(())
}
