//! Direct server return: clients that are carried to another node, and those that are carried here.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::{
    abi::{BackendFlags, Counter, FrontendFlags, Ipv4, Ipv6, L4Proto},
    carrier::{self, Kind},
};

use super::{
    Device, Fate, Hook, Host, Net, carried,
    frame::{Frame, Transport, fragments},
    narrow,
    net::{FIN_ACK, TARGET_PORT},
    snat::source_of,
};

const IN: Hook = Hook::Ingress(Device::Uplink);
const OUT: Hook = Hook::Egress(Device::Uplink);
const SENT: Fate = Fate::Sent(Device::Uplink);
const ETHERNET: usize = 14;
const FIRST_PORT: u16 = 0xc000;

/// All of them, for each kind of carriers.
pub const ALL: [fn(&mut Net<'_>); 17] = [
    a_carried_packet_is_answered_from_its_service,
    a_carrier_is_believed_of_its_service_s_local_backends_alone,
    a_client_is_carried_to_a_remote_backend,
    a_client_on_the_backend_s_own_node_is_answered,
    a_connection_stays_where_it_was_carried_to,
    a_node_port_of_another_node_is_known_by_its_guard,
    clients_that_are_not_carried,
    congestion_that_a_carrier_met_is_told,
    errors_about_answers_go_to_who_answered,
    fragments_are_carried_and_unpacked,
    other_datagrams_to_the_port_are_left_alone,
    carried::a_packet_from_its_own_destination_is_dropped,
    carried::errors_to_others_are_left_alone,
    carried::fragments_in_tunnels_of_others_are_left_alone,
    carried::s12_a_connection_outlives_a_new_owner_of_its_backend_s_id,
    narrow::a_client_is_told_of_a_narrow_link_between_nodes,
    s9_a_carried_client_must_be_allowed,
];

/// The GUE header that names a backend's port.
fn gue(net: &Net<'_>, port: u16) -> Vec<u8> {
    let within = if net.kind.is_v4 { 4 } else { 41 };
    [&[1, within, 0, 0], &b"lb"[..], &port.to_be_bytes()].concat()
}

/// The carrier of a packet, with its source port as the node chooses it.
fn carrier(net: &Net<'_>, packet: &Frame, ends: [SocketAddr; 2]) -> Frame {
    carrier_of(net, &packet.encode(), ends)
}

/// The same of a packet as bytes.
fn carrier_of(net: &Net<'_>, packet: &[u8], ends: [SocketAddr; 2]) -> Frame {
    match net.carrier_kind() {
        Kind::Gue => by_gue(net, packet, ends),
        Kind::Ipip => by_ipip(net, packet, ends),
    }
}

/// A packet as bytes, carried by IPIP.
pub(super) fn by_ipip(net: &Net<'_>, packet: &[u8], [src, dst]: [SocketAddr; 2]) -> Frame {
    let [src, dst] = [src, dst].map(|end| SocketAddr::new(end.ip(), 0));
    let (transport, payload) = (Transport::Ip, packet[ETHERNET..].to_vec());
    Frame { class: Frame::class_of(packet), ttl: 64, transport, payload, ..net.first(src, dst) }
}

/// A packet as bytes, carried by GUE.
pub(super) fn by_gue(net: &Net<'_>, packet: &[u8], [src, dst]: [SocketAddr; 2]) -> Frame {
    let payload = [&gue(net, dst.port())[..], &packet[ETHERNET..]].concat();
    Frame {
        macs: net.first(src, dst).macs,
        src,
        dst: SocketAddr::new(dst.ip(), carrier::PORT),
        class: Frame::class_of(packet),
        ttl: 64,
        options: Vec::new(),
        transport: Transport::UdpWithoutChecksum,
        payload,
    }
}

/// A packet as another node carries it to a backend here.
pub(super) fn carried(net: &Net<'_>, packet: &Frame, backend: SocketAddr) -> Frame {
    carrier(net, packet, [net.at(Host::Remote, FIRST_PORT), backend])
}

/// Passes a client's packet and expects it in a carrier to the remote backend.
#[track_caller]
pub(super) fn expect_carried(net: &mut Net<'_>, packet: &Frame) {
    let became = net.pass(IN, packet, SENT);
    let is_gue = net.carrier_kind() == Kind::Gue;
    assert_eq!(became.src.port() >= FIRST_PORT, is_gue, "{became:?}");
    let inner = Frame { ttl: packet.ttl - 1, ..packet.clone() };
    let ends = [net.at(Host::Node, became.src.port()), net.target(Host::Remote)];
    assert_eq!(became, carrier(net, &inner, ends));
}

/// Passes what was carried here and expects it on its way to the backend.
#[track_caller]
pub(super) fn expect_unpacked(net: &mut Net<'_>, packet: &Frame, backend: SocketAddr) {
    let became = net.pass(IN, &carried(net, packet, backend), Fate::Next);
    assert_eq!(became, Frame { dst: backend, ..packet.clone() });
}

/// Routers see nothing but the carrier (RFC 6040, section 4.2).
pub fn congestion_that_a_carrier_met_is_told(net: &mut Net<'_>) {
    const MARK: u8 = 3;
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.frontend_with(vip, FrontendFlags::DSR, [&[id], &[id]]);
    for packet in [net.first(client, vip), net.later(client, vip), net.later(client, vip)] {
        let class = packet.class;
        for (inner, outer) in [(class, class), (class ^ MARK, class | MARK), (class, class | MARK)]
        {
            let packet = Frame { class: inner, ..packet.clone() };
            let carrier = Frame { class: outer, ..carried(net, &packet, pod) };
            let became = net.pass(IN, &carrier, Fate::Next);
            let class = inner | outer & MARK;
            assert_eq!(became, Frame { class, dst: pod, ..packet });
        }
        let packet = Frame { class: class & !MARK, ..packet };
        let carrier = Frame { class: class | MARK, ..carried(net, &packet, pod) };
        net.expect_drop(IN, &carrier, Counter::CarrierCongested);
    }
}

/// Passes what was carried here and expects it not to go anywhere: by IPIP, it may be somebody else's.
#[track_caller]
fn expect_refused(net: &mut Net<'_>, packet: &Frame, backend: SocketAddr) {
    let carrier = carried(net, packet, backend);
    match net.carrier_kind() {
        Kind::Gue => net.expect_drop(IN, &carrier, Counter::CarrierRefused),
        Kind::Ipip => net.expect_untouched(IN, &carrier.encode(), &[]),
    }
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
    let first = net.first(client, vip);
    let elsewhere = net.target(Host::Remote);
    expect_refused(net, &first, elsewhere);
    let other = net.target(Host::PodB);
    expect_refused(net, &first, other);
    if net.carrier_kind() == Kind::Gue {
        expect_refused(net, &first, net.at(Host::PodA, TARGET_PORT + 1));
    }
    let other = net.first(client, net.vip(2));
    expect_refused(net, &other, pod);
    // What is carried within a carrier is no packet of a Service either.
    let twice = carried(net, &first, pod);
    expect_refused(net, &twice, pod);
    // Not even where conntrack knows a way to another node.
    net.frontend_with(net.vip(3), FrontendFlags::NONE, [&[remote], &[remote]]);
    let _ = net.pass(IN, &net.first(client, net.vip(3)), SENT);
    let later = net.later(client, net.vip(3));
    expect_refused(net, &later, elsewhere);
    let bytes = carried(net, &first, pod).encode();
    net.expect_untouched(Hook::Ingress(Device::PodB), &bytes, &[]);
}

/// All of a packet's fragments go one way, and are whole where they come out.
pub fn fragments_are_carried_and_unpacked(net: &mut Net<'_>) {
    if net.kind.protocol == L4Proto::SCTP {
        return;
    }
    let (remote, local) = (net.backend(Host::Remote), net.backend(Host::PodA));
    let (client, far, near) = (net.client(), net.vip(1), net.vip(2));
    frontend(net, far, &[remote]);
    frontend(net, near, &[local]);
    let large = |net: &Net<'_>, vip| Frame { payload: vec![7; 2000], ..net.later(client, vip) };
    let request = large(net, far);
    let forwarded = Frame { ttl: request.ttl - 1, ..request.clone() };
    let mut ports = BTreeSet::new();
    for (piece, expected) in pieces(&request).iter().zip(pieces(&forwarded)) {
        let outcome = net.judge(IN, piece, SENT);
        assert_eq!((outcome.fate, &outcome.counted[..]), (SENT, &[][..]));
        let became = Frame::decode(&outcome.bytes).expect("a carrier");
        let ends = [net.at(Host::Node, became.src.port()), net.target(Host::Remote)];
        assert_eq!(became, carrier_of(net, &expected, ends));
        ports.insert(became.src.port());
    }
    assert_eq!(ports.len(), 1, "one way for all");
    let (request, pod) = (large(net, near), net.target(Host::PodA));
    let ends = [net.at(Host::Remote, FIRST_PORT), pod];
    let lonely = carrier_of(net, &fragments(&request, 8, 800)[1], ends).encode();
    let lost = if net.carrier_kind() == Kind::Gue { Fate::Dropped } else { Fate::Next };
    assert_eq!(net.judge(IN, &lonely, lost).fate, lost);
    let carriers = pieces(&request).map(|piece| carrier_of(net, &piece, ends).encode());
    let unpacked = Frame { dst: pod, ..request };
    for (carrier, expected) in carriers.iter().zip(pieces(&unpacked)) {
        let outcome = net.judge(IN, carrier, Fate::Next);
        assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Next, &[][..]));
        assert_eq!(outcome.bytes, expected);
    }
}

/// A packet as three fragments.
fn pieces(packet: &Frame) -> [Vec<u8>; 3] {
    fragments(packet, 7, 800).try_into().expect("three fragments")
}

/// A router tells the Service's address that an answer was too long: the node that was asked does not
/// know the answer, and the one that gave it has another address.
pub fn errors_about_answers_go_to_who_answered(net: &mut Net<'_>) {
    let (remote, local) = (net.backend(Host::Remote), net.backend(Host::PodA));
    let (client, far, near) = (net.client(), net.vip(1), net.vip(2));
    frontend(net, far, &[remote]);
    frontend(net, near, &[local]);
    expect_carried(net, &net.first(client, far));
    let error = too_long(net, &net.later(far, client));
    expect_carried(net, &error);
    let pod = net.target(Host::PodA);
    // Nothing is known of what the error is about, and it must not come to the pod.
    let error = too_long(net, &net.later(near, client));
    expect_refused(net, &error, pod);
    let carried_error = carried(net, &error, pod);
    expect_unpacked(net, &net.first(client, near), pod);
    let became = net.pass(IN, &carried_error, Fate::Next);
    assert_eq!((became.src, became.dst), (error.src, SocketAddr::new(pod.ip(), 0)));
    let about = &became.payload[..net.later(pod, client).ip_header_length()];
    assert_eq!(about, &net.later(pod, client).encode()[ETHERNET..][..about.len()]);
}

/// An error of a router outside about an answer to a client.
pub(super) fn too_long(net: &Net<'_>, answer: &Frame) -> Frame {
    let kind = net.too_big();
    let [src, dst] = [net.at(Host::PodB, 0), SocketAddr::new(answer.src.ip(), 0)];
    let transport = Transport::Icmp { kind, rest: [0, 0, 5, 0] };
    let payload = answer.encode()[ETHERNET..].to_vec();
    Frame { src, dst, transport, payload, ..answer.clone() }
}

/// A process of the backend's node that asked another node: the stack would drop its packet as one of
/// a stranger who uses its address.
pub fn a_client_on_the_backend_s_own_node_is_answered(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (process, vip, pod) = (net.at(Host::Node, 40000), net.vip(1), net.target(Host::PodA));
    frontend(net, vip, &[id]);
    let mut seen = BTreeSet::new();
    for packet in [net.first(process, vip), net.later(process, vip), net.later(process, vip)] {
        let packet_in = carried(net, &packet, pod);
        let became = net.pass(IN, &packet_in, Fate::Sent(Device::PodA));
        let node = source_of(net, &became);
        assert_eq!(became, Frame { src: node, dst: pod, ttl: packet.ttl - 1, ..packet });
        net.expect_delivery(Device::PodA, &net.later(pod, node), [vip, process]);
        seen.insert(node);
    }
    assert_eq!(seen.len(), 1);
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
    let other = net.first(client, net.at(Host::PodB, 30081));
    expect_refused(net, &other, pod);
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
    if net.carrier_kind() == Kind::Ipip {
        return;
    }
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
    let kind = net.carrier_kind();
    let is_v4 = net.kind.is_v4;
    let most = 1500 - if is_v4 { kind.overhead::<Ipv4>() } else { kind.overhead::<Ipv6>() };
    let headers =
        net.later(client, vip).encode().len() - ETHERNET - net.later(client, vip).payload.len();
    let fits = Frame { payload: vec![7; most - headers], ..net.later(client, vip) };
    expect_carried(net, &fits);
    let long = Frame { payload: vec![7; most - headers + 1], ..fits };
    let told = net.expect_answer(IN, &long, Counter::PacketTooBig);
    let Transport::Icmp { kind, rest } = told.transport else { panic!("{told:?}") };
    let most = u16::try_from(most).expect("an MTU").to_be_bytes();
    let expected = net.too_big();
    assert_eq!((kind, rest), (expected, [0, 0, most[0], most[1]]));
}
