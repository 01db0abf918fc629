//! Direct server return: clients that are carried to another node, and those that are carried here.

use std::net::SocketAddr;

use lb_common::{
    abi::{BackendFlags, Counter, FrontendFlags},
    carrier,
};

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, Transport},
    net::{FIN_ACK, TARGET_PORT},
};

const IN: Hook = Hook::Ingress(Device::Uplink);
const OUT: Hook = Hook::Egress(Device::Uplink);
const SENT: Fate = Fate::Sent(Device::Uplink);
const ETHERNET: usize = 14;
const FIRST_PORT: u16 = 0xc000;

/// The GUE header that names a backend's port.
fn gue(net: &Net<'_>, port: u16) -> Vec<u8> {
    let within = if net.kind.is_v4 { 4 } else { 41 };
    [&[1, within, 0, 0], &b"lb"[..], &port.to_be_bytes()].concat()
}

/// The carrier of a packet, with its source port as the node chooses it.
fn carrier(net: &Net<'_>, packet: &Frame, [src, dst]: [SocketAddr; 2]) -> Frame {
    let payload = [&gue(net, dst.port())[..], &packet.encode()[ETHERNET..]].concat();
    Frame {
        macs: packet.macs,
        src,
        dst: SocketAddr::new(dst.ip(), carrier::PORT),
        ttl: 64,
        options: Vec::new(),
        transport: Transport::UdpWithoutChecksum,
        payload,
    }
}

/// A packet as another node carries it to a backend here.
fn carried(net: &Net<'_>, packet: &Frame, backend: SocketAddr) -> Frame {
    carrier(net, packet, [net.at(Host::Remote, FIRST_PORT), backend])
}

/// Passes a client's packet and expects it in a carrier to the remote backend.
#[track_caller]
fn expect_carried(net: &mut Net<'_>, packet: &Frame) {
    let became = net.pass(IN, packet, SENT);
    assert!(became.src.port() >= FIRST_PORT, "{became:?}");
    let inner = Frame { ttl: packet.ttl - 1, ..packet.clone() };
    let ends = [net.at(Host::Node, became.src.port()), net.target(Host::Remote)];
    assert_eq!(became, carrier(net, &inner, ends));
}

/// Passes what was carried here and expects it on its way to the backend.
#[track_caller]
fn expect_unpacked(net: &mut Net<'_>, packet: &Frame, backend: SocketAddr) {
    let became = net.pass(IN, &carried(net, packet, backend), Fate::Next);
    assert_eq!(became, Frame { dst: backend, ..packet.clone() });
}

/// A frontend at a VIP whose clients from outside are carried.
fn frontend(net: &mut Net<'_>, vip: SocketAddr, backends: &[u32]) {
    net.frontend_with(vip, FrontendFlags::DSR, [backends, backends]);
}

/// It reaches the backend's node whole, but for the hop that this node counts; flows without a reply
/// go on so, also after their entries have gone.
pub fn a_client_is_carried_to_a_remote_backend(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (client, vip) = (net.client(), net.vip(1));
    frontend(net, vip, &[id]);
    expect_carried(net, &net.first(client, vip));
    for _ in 0..3 {
        expect_carried(net, &net.later(client, vip));
    }
    let options = if net.kind.is_v4 { vec![1; 8] } else { Vec::new() };
    expect_carried(net, &Frame { options, ..net.later(client, vip) });
    expect_carried(net, &net.segment(client, vip, FIN_ACK));
    // Another node takes over in the middle.
    expect_carried(net, &net.later(net.at(Host::Client, 40001), vip));
}

/// The backend sees its client, and the client its Service.
pub fn a_carried_packet_is_answered_from_its_service(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    frontend(net, vip, &[id]);
    expect_unpacked(net, &net.first(client, vip), pod);
    for _ in 0..3 {
        net.expect(OUT, &net.later(pod, client), Fate::Next, [vip, client]);
        expect_unpacked(net, &net.later(client, vip), pod);
    }
    // Nothing but the carrier tells such a flow from one that came here at once.
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
    let options = if net.kind.is_v4 { vec![1; 8] } else { Vec::new() };
    expect_unpacked(net, &Frame { options, ..net.later(client, vip) }, pod);
}

/// Else anybody could reach what no Service exposes.
pub fn a_carrier_is_believed_of_its_service_s_local_backends_alone(net: &mut Net<'_>) {
    let (local, remote) = (net.backend(Host::PodA), net.backend(Host::Remote));
    let (client, vip) = (net.client(), net.vip(1));
    frontend(net, vip, &[local, remote]);
    let pod = net.target(Host::PodA);
    let expect_refused = |net: &mut Net<'_>, packet: &Frame, backend| {
        let outcome = carried(net, packet, backend);
        net.expect_drop(IN, &outcome, Counter::CarrierRefused);
    };
    let first = net.first(client, vip);
    expect_refused(net, &first, net.target(Host::Remote));
    expect_refused(net, &first, net.target(Host::PodB));
    expect_refused(net, &first, net.at(Host::PodA, TARGET_PORT + 1));
    expect_refused(net, &net.first(client, net.vip(2)), pod);
    // What is carried within a carrier is no packet of a Service either.
    expect_refused(net, &carried(net, &first, pod), pod);
    // Not even where conntrack knows a way to another node.
    net.frontend_with(net.vip(3), FrontendFlags::NONE, [&[remote], &[remote]]);
    let _ = net.pass(IN, &net.first(client, net.vip(3)), SENT);
    expect_refused(net, &net.later(client, net.vip(3)), net.target(Host::Remote));
    let bytes = carried(net, &first, pod).encode();
    net.expect_untouched(Hook::Ingress(Device::PodB), &bytes, &[]);
}

/// The node that carries may change its mind; a connection that was begun goes on as that node says.
pub fn a_connection_stays_where_it_was_carried_to(net: &mut Net<'_>) {
    let [a, b] = [Host::PodA, Host::PodB];
    let ids = [a, b].map(|pod| net.backend(pod));
    let (client, vip, [pod_a, pod_b]) = (net.client(), net.vip(1), [a, b].map(|p| net.target(p)));
    frontend(net, vip, &ids);
    expect_unpacked(net, &net.first(client, vip), pod_a);
    expect_unpacked(net, &net.later(client, vip), pod_a);
    expect_unpacked(net, &net.first(client, vip), pod_b);
    expect_unpacked(net, &net.later(client, vip), pod_b);
    net.expect(OUT, &net.later(pod_b, client), Fate::Next, [vip, client]);
    // S12: a connection outlives its backend's place in the tables.
    net.backend_with(b, BackendFlags::NONE, 0);
    if net.has_connections() {
        expect_unpacked(net, &net.later(client, vip), pod_b);
    } else {
        let packet = carried(net, &net.later(client, vip), pod_b);
        net.expect_drop(IN, &packet, Counter::CarrierRefused);
    }
}

/// Each node has frontends at its own addresses alone, and one that stands for all nodes'.
pub fn a_node_port_of_another_node_is_known_by_its_guard(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, pod) = (net.client(), net.target(Host::PodA));
    let any: SocketAddr =
        if net.kind.is_v4 { ([0; 4], 30080).into() } else { ([0_u16; 8], 30080).into() };
    net.frontend_with(any, FrontendFlags::HOST_ONLY, [&[id], &[id]]);
    let asked = net.at(Host::PodB, 30080);
    expect_unpacked(net, &net.first(client, asked), pod);
    net.expect(OUT, &net.later(pod, client), Fate::Next, [asked, client]);
    let other = carried(net, &net.first(client, net.at(Host::PodB, 30081)), pod);
    net.expect_drop(IN, &other, Counter::CarrierRefused);
}

/// Those on this node are answered by it, and so is who is to be masqueraded; a backend on this node
/// needs no carrier.
pub fn clients_that_are_not_carried(net: &mut Net<'_>) {
    let (remote, local) = (net.backend(Host::Remote), net.backend(Host::PodA));
    let [far, near, hidden] = [1, 2, 3].map(|number| net.vip(number));
    frontend(net, far, &[remote]);
    frontend(net, near, &[local]);
    let flags = FrontendFlags::DSR.with(FrontendFlags::MASQUERADE);
    net.frontend_with(hidden, flags, [&[remote], &[remote]]);
    let (client, pod) = (net.client(), net.at(Host::PodB, 40000));
    let ends = [pod, net.target(Host::Remote)];
    net.expect(Hook::Ingress(Device::PodB), &net.first(pod, far), Fate::Next, ends);
    let ends = [client, net.target(Host::PodA)];
    net.expect(IN, &net.first(client, near), Fate::Next, ends);
    let became = net.pass(IN, &net.first(client, hidden), SENT);
    assert_eq!(became.dst, net.target(Host::Remote));
}

/// The port is a number that others may use as well.
pub fn other_datagrams_to_the_port_are_left_alone(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (vip, pod) = (net.vip(1), net.target(Host::PodA));
    frontend(net, vip, &[id]);
    let carried = carried(net, &net.first(net.client(), vip), pod);
    for place in 0..6 {
        let mut other = carried.clone();
        other.payload[place] ^= 0x40;
        net.expect_untouched(IN, &other.encode(), &[]);
    }
    let short = Frame { payload: carried.payload[..7].to_vec(), ..carried };
    net.expect_untouched(IN, &short.encode(), &[]);
}

/// S9: by the node that answers as well, since anybody can send a carrier.
pub fn s9_a_carried_client_must_be_allowed(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    let flags = FrontendFlags::DSR.with(FrontendFlags::CHECK_SOURCE);
    net.frontend_with(vip, flags, [&[id], &[id]]);
    net.sources(super::SERVICE, &[(Host::Remote, net.whole())]);
    let packet = carried(net, &net.first(client, vip), pod);
    net.expect_drop(IN, &packet, Counter::SourceNotAllowed);
    net.sources(super::SERVICE, &[(Host::Client, net.whole())]);
    expect_unpacked(net, &net.first(client, vip), pod);
}

/// The client learns what is left of the MTU. Not for each bench: some know no next hop.
pub fn what_does_not_fit_a_carrier_is_told(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (client, vip) = (net.client(), net.vip(1));
    frontend(net, vip, &[id]);
    let most = if net.kind.is_v4 { 1500 - 36 } else { 1500 - 56 };
    let headers =
        net.later(client, vip).encode().len() - ETHERNET - net.later(client, vip).payload.len();
    let fits = Frame { payload: vec![7; most - headers], ..net.later(client, vip) };
    expect_carried(net, &fits);
    let long = Frame { payload: vec![7; most - headers + 1], ..fits };
    let told = net.expect_answer(IN, &long, Counter::PacketTooBig);
    let Transport::Icmp { kind, rest } = told.transport else { panic!("{told:?}") };
    let most = u16::try_from(most).expect("an MTU").to_be_bytes();
    let expected = if net.kind.is_v4 { [3, 4] } else { [2, 0] };
    assert_eq!((kind, rest), (expected, [0, 0, most[0], most[1]]));
}
