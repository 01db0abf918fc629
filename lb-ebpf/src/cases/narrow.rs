//! Links between nodes that are narrower than the device towards them.

use std::net::SocketAddr;

use lb_common::abi::{Counter, FrontendFlags, Ipv4, Ipv6};

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, Transport},
};

const IN: Hook = Hook::Ingress(Device::Uplink);
const ETHERNET: usize = 14;
const MTU: u16 = 1400;

/// What a router tells this node of one of its carriers, with as much of it as fits.
fn too_long(net: &Net<'_>, carrier: &Frame) -> Frame {
    let kind = net.too_big();
    let rest = [[0; 2], MTU.to_be_bytes()].concat();
    let transport = Transport::Icmp { kind, rest: rest.try_into().expect("four bytes") };
    let [src, dst] = [net.at(Host::PodB, 0), net.at(Host::Node, 0)];
    let most = if net.kind.is_v4 { 548 } else { 1232 };
    let quote = &carrier.encode()[ETHERNET..];
    let payload = quote[..most.min(quote.len())].to_vec();
    Frame { ttl: 63, transport, payload, ..net.first(src, dst) }
}

/// The client learns what its packets leave of such a link.
pub fn a_client_is_told_of_a_narrow_link_between_nodes(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend_with(vip, FrontendFlags::DSR, [&[id], &[id]]);
    let sent = Fate::Sent(Device::Uplink);
    let _ = net.pass(IN, &net.first(client, vip), sent);
    let large = Frame { payload: vec![7; 1350], ..net.later(client, vip) };
    let carrier = net.pass(IN, &large, sent);
    let error = too_long(net, &carrier);
    let told = net.expect_answer(IN, &error, Counter::PacketTooBig);
    let kind = net.carrier_kind();
    let is_v4 = net.kind.is_v4;
    let overhead = if is_v4 { kind.overhead::<Ipv4>() } else { kind.overhead::<Ipv6>() };
    let left = (usize::from(MTU) - overhead).to_be_bytes();
    let about = Frame { ttl: large.ttl - 1, ..large }.encode();
    let quoted = ETHERNET + net.later(client, vip).ip_header_length() + 8;
    let expected = Frame {
        macs: told.macs,
        src: net.at(Host::Node, 0),
        dst: SocketAddr::new(client.ip(), 0),
        class: 0,
        ttl: 64,
        options: Vec::new(),
        transport: Transport::Icmp { kind: net.too_big(), rest: [0, 0, left[6], left[7]] },
        payload: about[ETHERNET..quoted].to_vec(),
    };
    assert_eq!(told, expected);
    leaves_other_errors(net, &carrier);
}

/// Anybody can make such errors up; the stack has tunnels of its own.
fn leaves_other_errors(net: &mut Net<'_>, carrier: &Frame) {
    let error = too_long(net, carrier);
    let mut untouched = |frame: &Frame| net.expect_untouched(IN, &frame.encode(), &[]);
    let ip = carrier.ip_header_length();
    untouched(&Frame { payload: error.payload[..ip + 8].to_vec(), ..error.clone() });
    // Another backend, another node, another client: last bytes of addresses.
    let inner = match carrier.transport {
        Transport::Ip => ip,
        _ => ip + 8 + 8,
    };
    let of_source = ip - 1 - if error.src.is_ipv4() { 4 } else { 16 };
    for place in [ip - 1, of_source, inner + of_source] {
        let mut other = error.clone();
        other.payload[place] ^= 1;
        untouched(&other);
    }
    let kind = if ip == 20 { [3, 1] } else { [1, 0] };
    let transport = Transport::Icmp { kind, rest: [0; 4] };
    untouched(&Frame { transport, ..error.clone() });
    let pod = SocketAddr::new(Host::PodA.address(error.src.is_ipv4()), 0);
    untouched(&Frame { dst: pod, ..error });
}
