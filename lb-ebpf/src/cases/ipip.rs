//! Carriers of IPIP at a node, whatever it carries packets in itself.

use std::net::SocketAddr;

use lb_common::abi::FrontendFlags;

use super::{
    Device, Fate, Hook, Host, Net,
    dsr::{by_gue, by_ipip},
    frame::{Frame, Transport, fragments},
    net::TARGET_PORT,
};

const IN: Hook = Hook::Ingress(Device::Uplink);
const ETHERNET: usize = 14;

/// A packet as another node carries it to a backend here, by IPIP.
fn carried(net: &Net<'_>, packet: &Frame, backend: SocketAddr) -> Frame {
    by_ipip(net, &packet.encode(), [net.at(Host::Remote, 0), backend])
}

/// Nodes may change from one kind to the other one by one.
pub fn carriers_of_either_kind_are_taken(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.frontend_with(vip, FrontendFlags::DSR, [&[id], &[id]]);
    for packet in [net.first(client, vip), net.later(client, vip), net.later(client, vip)] {
        let ends = [net.at(Host::Remote, 0xc000), pod];
        let carriers = [by_ipip, by_gue].map(|by| by(net, &packet.encode(), ends));
        for carrier in carriers {
            let became = net.pass(IN, &carrier, Fate::Next);
            assert_eq!(became, Frame { dst: pod, ..packet.clone() });
        }
    }
}

/// Nothing tells which is meant: a connection stays with the port that it began with.
pub fn of_two_ports_at_an_address_the_lowest_id_is_meant(net: &mut Net<'_>) {
    let [a, b] = [TARGET_PORT, TARGET_PORT + 1].map(|port| net.at(Host::PodA, port));
    net.local_backend(3, b);
    net.local_backend(2, a);
    let vip = net.vip(1);
    net.frontend_with(vip, FrontendFlags::DSR, [&[2, 3], &[2, 3]]);
    let expect = |net: &mut Net<'_>, packet: Frame, backend| {
        let carrier = carried(net, &packet, backend);
        let became = net.pass(IN, &carrier, Fate::Next);
        assert_eq!(became, Frame { dst: backend, ..packet });
    };
    let client = net.client();
    expect(net, net.first(client, vip), a);
    let other = net.at(Host::Client, 40001);
    // Another node names the port.
    let packet = net.first(other, vip);
    let carrier = by_gue(net, &packet.encode(), [net.at(Host::Remote, 0xc000), b]);
    let became = net.pass(IN, &carrier, Fate::Next);
    assert_eq!(became, Frame { dst: b, ..packet });
    expect(net, net.later(other, vip), b);
    net.no_backend(2, a);
    expect(net, net.first(net.at(Host::Client, 40002), vip), b);
    net.no_backend(3, b);
    let packet = net.first(net.at(Host::Client, 40003), vip);
    net.expect_untouched(IN, &carried(net, &packet, a).encode(), &[]);
}

/// A pod may end tunnels of its own, and networks between nodes are made of them.
pub fn packets_of_others_are_left_as_they_are(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.frontend_with(vip, FrontendFlags::DSR, [&[id], &[id]]);
    let ours = net.first(client, vip);
    let carrier = carried(net, &ours, pod);
    let untouched = |net: &mut Net<'_>, frame: &Frame| {
        net.expect_untouched(IN, &frame.encode(), &[]);
    };
    let elsewhere = carried(net, &ours, net.at(Host::Node, 0));
    untouched(net, &elsewhere);
    let of_no_service = carried(net, &net.first(client, net.vip(9)), pod);
    untouched(net, &of_no_service);
    let answer = carried(net, &net.first(pod, client), pod);
    untouched(net, &answer);
    let cut_off = Frame { payload: carrier.payload[..21].to_vec(), ..carrier.clone() };
    untouched(net, &cut_off);
    let ping =
        Transport::Icmp { kind: if net.kind.is_v4 { [8, 0] } else { [128, 0] }, rest: [0; 4] };
    let [from, to] = [client, vip].map(|end| SocketAddr::new(end.ip(), 0));
    let ping = Frame { transport: ping, ..net.first(from, to) };
    let ping = carried(net, &ping, pod);
    untouched(net, &ping);
    for piece in fragments(&carrier, 9, 24) {
        net.expect_untouched(IN, &piece, &[]);
    }
    let mut other_family = carrier.encode();
    let protocol = ETHERNET + if net.kind.is_v4 { 9 } else { 6 };
    other_family[protocol] = if net.kind.is_v4 { 41 } else { 4 };
    net.expect_untouched(IN, &other_family, &[]);
    if net.kind.is_v4 {
        untouched(net, &Frame { options: vec![1; 4], ..carrier.clone() });
    }
    let leaves = [Hook::Egress(Device::PodA), Hook::HostEgress(Device::Uplink)];
    for hook in leaves.into_iter().chain([Hook::Ingress(Device::PodB)]) {
        net.expect_untouched(hook, &carrier.encode(), &[]);
    }
}
