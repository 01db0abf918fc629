//! Devices whose packets begin with the IP header: backends behind them, and clients.

use std::net::{SocketAddr, UdpSocket};

use anyhow::ensure;
use lb_ebpf::cases::frame::{Frame, Transport, fragments};
use lb_test::PATIENT;
use lb_test::address::DualStack;
use lb_test::manifests::{Service, cluster_ips, list};
use lb_test::{
    Agent, AgentOptions, Family, Host, NodeSpec, PodSpec, SocketLb, Topology, eventually, programs,
};

use crate::ask::{assert_answering, assert_refused, client_seen, echoing};
use crate::tun::{Tunnel, lead};
use crate::wire::{mac, send_by};
use crate::{NODE_PORT, start, start_agents, start_with};

/// Two nodes that reach each other's pods by a tunnel, with a pod that serves and one that asks on each.
fn topology(node1: NodeSpec) -> Topology {
    Topology::builder()
        .node(node1)
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("near", "node1"))
        .pod(PodSpec::routed("far", "node2"))
        .pod(PodSpec::bridged("shell", "node1"))
        .pod(PodSpec::routed("asker", "node2"))
        .client("client")
        .build()
        .unwrap()
}

#[track_caller]
fn asks(from: &Host, to: SocketAddr) {
    assert_answering(from, to, &["near", "far"]);
    echoing(from, to, &["--count", "3"]);
    echoing(from, to, &["--count", "3"]);
}

/// All that ask, by either end of the tunnel.
#[track_caller]
fn all_ask(topology: &Topology) {
    let tunnel =
        DualStack { v4: [172, 23, 0, 1].into(), v6: [0xfd00, 0x23, 0, 0, 0, 0, 0, 1].into() };
    for family in Family::BOTH {
        let vip = cluster_ips(1).socket(family, 80);
        asks(topology.client("client"), topology.node("node1").socket(family, NODE_PORT));
        asks(topology.pod("shell"), vip);
        asks(topology.node("node1"), vip);
        asks(topology.pod("asker"), vip);
        asks(topology.pod("asker"), tunnel.socket(family, NODE_PORT));
        assert_refused(topology.pod("asker"), cluster_ips(2).socket(family, 80));
    }
}

/// Fragments that overtake the first one of their datagram on their way to node1 wait for it.
#[track_caller]
fn asks_out_of_order(topology: &Topology) {
    let asker = topology.pod("asker");
    let macs = [mac(topology.node("node2"), &asker.device()), mac(asker, "eth0")];
    for (family, id) in Family::BOTH.into_iter().zip([1, 2]) {
        let src = asker.socket(family, 43000);
        let socket = asker.enter(|| UdpSocket::bind(src).unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENT)).unwrap();
        let (dst, options, transport) =
            (cluster_ips(1).socket(family, 80), Vec::new(), Transport::Udp);
        // What the tunnel takes whole, so that the answer is not to be told of its MTU first.
        let payload = vec![b'x'; 1100];
        let frame = Frame { macs, src, dst, class: 0, ttl: 64, options, transport, payload };
        for piece in fragments(&frame, id, 400).iter().rev() {
            send_by(asker, "eth0", piece);
        }
        let mut answer = [0; 1 << 12];
        let (length, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(from, dst);
        assert!(answer[..length].ends_with(&frame.payload));
    }
}

#[test]
fn backends_and_clients_behind_a_device_without_ethernet_headers() {
    lb_test::require_topology!();
    let topology = topology(NodeSpec::new("node1").strict_rp_filter());
    let _tunnel = Tunnel::between_nodes(&topology);
    let mut running = start(&topology, &["near", "far"], &["node1"]);
    let empty = Service::new("empty", 2).select("nobody").tcp(80, 8080).udp(80, 5353);
    topology.apply("empty.yaml", &list(&[empty.object()])).unwrap();
    running.wait_for_service("empty");
    // Also what answers a process of node1, which asks under the address of another device.
    for network in ["10.96.0.0/16", "fd00:10:96::/112", "172.20.0.11/32", "fd00:20::11/128"] {
        lead(topology.node("node2"), network);
    }
    all_ask(&topology);
    for family in Family::BOTH {
        let (asker, near) = (topology.pod("asker"), topology.pod("near").socket(family, 8080));
        assert_eq!(client_seen(asker, near).0, asker.ip(family), "what is not ours is left alone");
        // The route to a Service's address leads into the tunnel, too.
        lead(topology.node("node1"), &prefix(cluster_ips(1), family));
        asks(topology.node("node1"), cluster_ips(1).socket(family, 80));
    }
    asks_out_of_order(&topology);
    running.agents.clear();
    let options = AgentOptions::manifests(topology.manifests()).socket_lb(SocketLb::Off);
    let options = options.argument("--tc-attach=clsact");
    let _agent = Agent::start_synced(topology.node("node1"), options).unwrap();
    all_ask(&topology);
    asks_out_of_order(&topology);
}

/// Carriers are packets as others: the tunnel takes them, and what comes out of it is unpacked. Its source is a
/// client that is behind another device, which strict reverse path filtering would not let in.
#[test]
fn direct_server_return_by_a_device_without_ethernet_headers() {
    lb_test::require_topology!();
    let topology = topology(NodeSpec::new("node1"));
    let _tunnel = Tunnel::between_nodes(&topology);
    let pods = ["near", "far"];
    let _running = start_with(&topology, &pods, &["node2"], &["--forwarding=dsr"]);
    let by_ipip = ["--forwarding=dsr", "--dsr-dispatch=ipip"];
    let _by_ipip = start_agents(&topology, &["node1"], &by_ipip);
    let client = topology.client("client");
    for family in Family::BOTH {
        for node in ["node1", "node2"] {
            let to = topology.node(node).socket(family, NODE_PORT);
            assert_answering(client, to, &pods);
            for _ in 0..8 {
                assert_eq!(client_seen(client, to).0, client.ip(family), "asked {node}");
                echoing(client, to, &["--count", "3"]);
            }
            // Longer than the tunnel takes at a time: the client learns that.
            let arguments = ["udp", &to.to_string(), "--size", "2000", "--timeout", "500"];
            eventually(PATIENT, "an answer", || {
                let lines = programs::probe(client, &arguments)?;
                ensure!(lines[0]["source"] == to.to_string(), "{lines:?}");
                Ok(())
            });
        }
    }
}

fn prefix(address: DualStack, family: Family) -> String {
    match family {
        Family::V4 => format!("{}/32", address.v4),
        Family::V6 => format!("{}/128", address.v6),
    }
}
