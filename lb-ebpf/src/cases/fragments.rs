//! Packets in fragments: the ports are in the first one alone, and all of them reach one backend.

use std::net::SocketAddr;

use lb_common::abi::{Counter, FrontendFlags, L4Proto};

use super::{
    DEVICE_MAC, Device, Fate, Hook, Host, Net,
    frame::{Frame, fragments},
};

const UPLINK: Hook = Hook::Ingress(Device::Uplink);
/// Bytes of payload, more than two fragments hold.
const LARGE: usize = 2000;
/// The most bytes behind the IP header of a fragment.
const PIECE: usize = 800;

/// A packet that takes three fragments.
fn large(net: &Net<'_>, src: SocketAddr, dst: SocketAddr) -> Frame {
    let payload = (0..LARGE).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
    Frame { payload, ..net.later(src, dst) }
}

/// SCTP cannot be translated in fragments: its checksum covers the whole packet.
fn is_sctp(net: &Net<'_>) -> bool {
    net.kind.protocol == L4Proto::SCTP
}

/// Passes a packet in fragments, in this order, and expects one of another kind to come of it.
#[track_caller]
fn expect(net: &mut Net<'_>, hook: Hook, frame: &Frame, fate: Fate, expected: &Frame) {
    let pieces = fragments(frame, 7, PIECE);
    assert_eq!(pieces.len(), 3);
    // What comes of the first one, of the others and of a copy does not depend on their order.
    for order in [[0, 1, 2], [0, 2, 1], [0, 2, 2]] {
        let outcomes = order.map(|piece| net.judge(hook, &pieces[piece], fate));
        for (outcome, piece) in outcomes.iter().zip(order) {
            assert_eq!((outcome.fate, &outcome.counted[..]), (fate, &[][..]), "{frame:?}");
            let expected = fragments(expected, 7, PIECE).swap_remove(piece);
            assert_eq!(outcome.bytes, expected, "fragment {piece} of {frame:?}");
        }
    }
}

/// The client's address stays, and the answer comes from the Service.
pub fn packets_to_a_local_backend_and_back(net: &mut Net<'_>) {
    if is_sctp(net) {
        return;
    }
    let (id, client, vip) = (net.backend(Host::PodA), net.client(), net.vip(1));
    let backend = net.target(Host::PodA);
    net.frontend(vip, &[id]);
    net.expect(UPLINK, &net.first(client, vip), Fate::Next, [client, backend]);
    let request = large(net, client, vip);
    expect(net, UPLINK, &request, Fate::Next, &Frame { dst: backend, ..request.clone() });
    let answer = large(net, backend, client);
    // At the pod's device it is not translated yet, nor is it where it was remembered.
    for _ in 0..2 {
        expect(net, Hook::Ingress(Device::PodA), &answer, Fate::Next, &answer);
        let from_vip = Frame { src: vip, ..answer.clone() };
        expect(net, Hook::Egress(Device::Uplink), &answer, Fate::Next, &from_vip);
    }
}

/// Both ends change, and each fragment takes a hop.
pub fn packets_to_a_remote_backend_and_back(net: &mut Net<'_>) {
    if is_sctp(net) {
        return;
    }
    let (id, client, vip) = (net.backend(Host::Remote), net.client(), net.vip(1));
    let (backend, sent) = (net.target(Host::Remote), Fate::Sent(Device::Uplink));
    net.frontend(vip, &[id]);
    let node = net.pass(UPLINK, &net.first(client, vip), sent).src;
    let request = large(net, client, vip);
    let forwarded = Frame { src: node, dst: backend, ttl: request.ttl - 1, ..request.clone() };
    expect(net, UPLINK, &request, sent, &forwarded);
    let answer = large(net, backend, node);
    let returned = Frame { src: vip, dst: client, ttl: answer.ttl - 1, ..answer.clone() };
    expect(net, UPLINK, &answer, sent, &returned);
}

/// By the packet path: sent to the backend's device, answered as if by the device to the Service.
pub fn packets_of_a_host_process_and_back(net: &mut Net<'_>) {
    if is_sctp(net) {
        return;
    }
    let (id, process, vip) = (net.backend(Host::PodA), net.at(Host::Node, 40000), net.vip(1));
    let backend = net.target(Host::PodA);
    net.frontend(vip, &[id]);
    let (hook, sent) = (Hook::HostEgress(Device::Uplink), Fate::Sent(Device::PodA));
    net.expect(hook, &net.first(process, vip), sent, [process, backend]);
    let request = large(net, process, vip);
    expect(net, hook, &request, sent, &Frame { dst: backend, ..request.clone() });
    let answer = large(net, backend, process);
    let [_, sender] = answer.macs;
    let delivered = Frame { src: vip, macs: [DEVICE_MAC, sender], ..answer.clone() };
    expect(net, Hook::Ingress(Device::PodA), &answer, Fate::Sent(Device::Uplink), &delivered);
}

/// Nobody knows for whom it is, and nothing here can hold it.
pub fn a_later_fragment_that_comes_first_is_dropped_and_counted(net: &mut Net<'_>) {
    let [client, vip, _] = net.serve(Host::PodA);
    let pieces = fragments(&large(net, client, vip), 8, PIECE);
    for hook in [UPLINK, Hook::Ingress(Device::PodB), Hook::HostEgress(Device::Uplink)] {
        for piece in &pieces[1..] {
            net.expect_bytes_drop(hook, piece, Counter::FragmentOutOfOrder);
        }
    }
    // What is forwarded came in before, and another address is no Service's.
    net.expect_untouched(Hook::Egress(Device::Uplink), &pieces[1], &[]);
    let other = fragments(&large(net, client, net.vip(2)), 8, PIECE);
    net.expect_untouched(UPLINK, &other[1], &[]);
}

/// A packet that is not a Service's, at its address too, or from a flow whose identification was another's.
pub fn packets_of_others_pass_whole(net: &mut Net<'_>) {
    let [client, vip, _] = net.serve(Host::PodA);
    let mut other_port = vip;
    other_port.set_port(81);
    for dst in [net.vip(2), other_port, net.at(Host::PodB, 9)] {
        let packet = large(net, client, dst);
        expect(net, UPLINK, &packet, Fate::Next, &packet);
        expect(net, Hook::HostEgress(Device::Uplink), &packet, Fate::Next, &packet);
    }
    if is_sctp(net) {
        return;
    }
    let (served, backend) = (large(net, client, vip), net.target(Host::PodA));
    expect(net, UPLINK, &served, Fate::Next, &Frame { dst: backend, ..served.clone() });
    let packet = large(net, client, other_port);
    expect(net, UPLINK, &packet, Fate::Next, &packet);
}

/// What is refused or dropped is counted once.
pub fn a_refused_packet_takes_its_rest_along(net: &mut Net<'_>) {
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend_with(vip, FrontendFlags::DROP_EXTERNAL, [&[], &[]]);
    let pieces = fragments(&large(net, client, vip), 9, PIECE);
    net.expect_bytes_drop(UPLINK, &pieces[0], Counter::NoLocalEndpoint);
    for piece in &pieces[1..] {
        let outcome = net.judge(UPLINK, piece, Fate::Dropped);
        assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Dropped, &[][..]));
    }
}

/// Its checksum cannot be mended without the length of the whole packet.
pub fn sctp_in_fragments_is_dropped_and_counted(net: &mut Net<'_>) {
    if !is_sctp(net) {
        return;
    }
    let [client, vip, _] = net.serve(Host::PodA);
    let pieces = fragments(&large(net, client, vip), 10, PIECE);
    net.expect_bytes_drop(UPLINK, &pieces[0], Counter::SctpFragment);
}
