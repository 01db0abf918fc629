//! What this node answers in place of what is behind an address of Services: pings, and packets that it
//! cannot forward.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::abi::{Counter, L4Proto};

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, Transport, fragments},
};

const UPLINK: Hook = Hook::Ingress(Device::Uplink);
const FROM_HOST: Hook = Hook::HostEgress(Device::Uplink);
/// Identifier and sequence number.
const REST: [u8; 4] = [0x12, 0x34, 0, 1];
const TTL: u8 = 64;

/// Types of an echo request and of its reply.
fn echo(net: &Net<'_>) -> [u8; 2] {
    if net.kind.is_v4 { [8, 0] } else { [128, 129] }
}

/// A ping from one address to another.
fn ping(net: &Net<'_>, src: SocketAddr, dst: SocketAddr) -> Frame {
    let transport = Transport::Icmp { kind: [echo(net)[0], 0], rest: REST };
    let [src, dst] = [src, dst].map(|end| SocketAddr::new(end.ip(), 0));
    Frame { transport, ..net.first(src, dst) }
}

/// Pings know no ports: once is enough for each family.
fn serve(net: &mut Net<'_>) -> Option<SocketAddr> {
    let (id, vip) = (net.backend(Host::PodA), net.vip(1));
    net.frontend(vip, &[id]);
    (net.kind.protocol == L4Proto::UDP).then_some(vip)
}

/// From outside, from a pod and from the node itself; with or without usable backends.
pub fn pings_to_addresses_of_services_are_answered(net: &mut Net<'_>) {
    let Some(vip) = serve(net) else { return };
    let empty = net.vip(3);
    net.frontend(empty, &[]);
    let askers = [
        (UPLINK, Host::Client),
        (Hook::Ingress(Device::PodB), Host::PodB),
        (FROM_HOST, Host::Node),
    ];
    for (hook, host) in askers {
        for (to, length) in [(vip, 56), (vip, 0), (vip, 1400), (empty, 57)] {
            let asked = Frame { payload: vec![0xa5; length], ..ping(net, net.at(host, 0), to) };
            let answer = net.expect_answer(hook, &asked, Counter::Ping);
            let [dst, src] = asked.macs;
            let transport = Transport::Icmp { kind: [echo(net)[1], 0], rest: REST };
            let (macs, ends) = ([src, dst], (asked.dst, asked.src));
            let expected =
                Frame { macs, src: ends.0, dst: ends.1, ttl: TTL, transport, ..asked.clone() };
            assert_eq!(answer, expected);
        }
    }
}

/// Nobody who floods is helped by this node: not one who pretends to be another one, or many.
pub fn pings_of_no_single_host_are_dropped(net: &mut Net<'_>) {
    let Some(vip) = serve(net) else { return };
    let strange: [IpAddr; 4] = if net.kind.is_v4 {
        [[224, 0, 0, 1], [255; 4], [0; 4], [127, 0, 0, 1]].map(|ip| Ipv4Addr::from(ip).into())
    } else {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        [all_nodes, all_nodes, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST].map(Into::into)
    };
    let own = [net.at(Host::Node, 0).ip(), vip.ip()];
    for src in strange.into_iter().chain(own) {
        let asked = ping(net, SocketAddr::new(src, 0), vip);
        net.expect_drop(UPLINK, &asked, Counter::PingUnanswered);
    }
    let mut to_all = ping(net, net.client(), vip);
    to_all.macs[0] = [0xff; 6];
    net.expect_drop(UPLINK, &to_all, Counter::PingUnanswered);
}

/// Other addresses, other messages, and what cannot become its own answer.
pub fn other_messages_are_left_alone(net: &mut Net<'_>) {
    let Some(vip) = serve(net) else { return };
    let client = net.client();
    let asked = ping(net, client, vip);
    for hook in [UPLINK, FROM_HOST] {
        for to in [net.vip(2), net.at(Host::PodB, 0)] {
            net.expect_untouched(hook, &ping(net, client, to).encode(), &[]);
        }
        for kind in [[echo(net)[1], 0], [echo(net)[0], 1]] {
            let transport = Transport::Icmp { kind, rest: REST };
            net.expect_untouched(hook, &Frame { transport, ..asked.clone() }.encode(), &[]);
        }
        for piece in fragments(&Frame { payload: vec![1; 1000], ..asked.clone() }, 3, 800) {
            net.expect_untouched(hook, &piece, &[]);
        }
        if net.kind.is_v4 {
            let options = vec![1, 1, 1, 0];
            net.expect_untouched(hook, &Frame { options, ..asked.clone() }.encode(), &[]);
        }
    }
    // What is forwarded was looked at where it came in.
    net.expect_untouched(Hook::Egress(Device::Uplink), &asked.encode(), &[]);
}

/// This node forwards in place of its stack, so it counts the hop, and tells of it as a router does.
pub fn a_time_to_live_that_ends_here_is_told(net: &mut Net<'_>) {
    let (remote, local) = (net.backend(Host::Remote), net.backend(Host::PodA));
    let (client, far, near) = (net.client(), net.vip(1), net.vip(2));
    net.frontend(far, &[remote]);
    net.frontend(near, &[local]);
    for ttl in [0, 1] {
        let asked = Frame { ttl, ..net.first(client, far) };
        let told = net.expect_answer(UPLINK, &asked, Counter::TtlExpired);
        let kind = if net.kind.is_v4 { [11, 0] } else { [3, 0] };
        let quote = &asked.encode()[14..][..asked.ip_header_length() + 8];
        assert_eq!((told.src.ip(), told.dst.ip()), (net.at(Host::Node, 0).ip(), client.ip()));
        assert_eq!((told.ttl, told.transport), (TTL, Transport::Icmp { kind, rest: [0; 4] }));
        assert_eq!((&told.payload[..], told.macs[0]), (quote, asked.macs[1]));
    }
    let own = Frame { ttl: 1, ..net.first(net.at(Host::Node, 1), far) };
    net.expect_drop(UPLINK, &own, Counter::TtlExpired);
    let asked = Frame { ttl: 2, ..net.first(client, far) };
    assert_eq!(net.pass(UPLINK, &asked, Fate::Sent(Device::Uplink)).ttl, 1);
    // The stack counts for itself where the packet goes on to it.
    let asked = Frame { ttl: 1, ..net.first(client, near) };
    net.expect(UPLINK, &asked, Fate::Next, [client, net.target(Host::PodA)]);
}
