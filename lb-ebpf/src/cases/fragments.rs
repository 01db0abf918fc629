//! Packets in fragments: the ports are in the first one alone, and all of them reach one backend.

use std::net::SocketAddr;

use lb_common::abi::{Counter, FrontendFlags, L4Proto};

use super::{
    DEVICE_MAC, Device, Fate, Hook, Host, Net,
    frame::{Frame, fragments},
};
use crate::path::hold::SLOTS;

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

/// Passes a packet whose fragments come in this order, the first one not ahead of all, and expects one of
/// another kind to come of it once they have waited.
#[track_caller]
fn expect_late(net: &mut Net<'_>, frame: &Frame, (order, id): ([usize; 3], u16), became: &Frame) {
    let fate = if became.ttl == frame.ttl { Fate::Next } else { Fate::Sent(Device::Uplink) };
    let pieces = fragments(frame, id, PIECE);
    let waiting = order.iter().take_while(|piece| **piece != 0).count();
    for piece in &order[..waiting] {
        net.expect_bytes_drop(UPLINK, &pieces[*piece], Counter::FragmentHeld);
    }
    let outcome = net.judge(UPLINK, &pieces[0], Fate::Dropped);
    assert_eq!(outcome.fate, Fate::Dropped, "sent in again");
    assert_eq!(outcome.counted, vec![Counter::FragmentReleased; waiting]);
    // As they come in again, and the rest.
    let again = [&[0], &order[..waiting], &order[waiting + 1..]].concat();
    for piece in again {
        let outcome = net.judge(UPLINK, &pieces[piece], fate);
        assert_eq!((outcome.fate, &outcome.counted[..]), (fate, &[][..]), "{frame:?}");
        let expected = fragments(became, id, PIECE).swap_remove(piece);
        assert_eq!(outcome.bytes, expected, "fragment {piece} of {frame:?}");
    }
}

const LATE: [([usize; 3], u16); 4] =
    [([1, 0, 2], 21), ([2, 0, 1], 22), ([1, 2, 0], 23), ([2, 1, 0], 24)];

/// They wait for it: to a backend here, to one of another node and back.
pub fn fragments_that_overtake_the_first_one_wait_for_it(net: &mut Net<'_>) {
    if is_sctp(net) {
        return;
    }
    let (client, sent) = (net.client(), Fate::Sent(Device::Uplink));
    let [near, far] = [Host::PodA, Host::Remote].map(|host| net.backend(host));
    let [near_vip, far_vip] = [net.vip(1), net.vip(2)];
    net.frontend(near_vip, &[near]);
    net.frontend(far_vip, &[far]);
    net.expect(UPLINK, &net.first(client, near_vip), Fate::Next, [client, net.target(Host::PodA)]);
    let node = net.pass(UPLINK, &net.first(client, far_vip), sent).src;
    for late in LATE {
        let request = large(net, client, near_vip);
        let became = Frame { dst: net.target(Host::PodA), ..request.clone() };
        expect_late(net, &request, late, &became);
        let request = large(net, client, far_vip);
        let dst = net.target(Host::Remote);
        let became = Frame { src: node, dst, ttl: request.ttl - 1, ..request.clone() };
        expect_late(net, &request, late, &became);
        let answer = large(net, net.target(Host::Remote), node);
        let became = Frame { src: far_vip, dst: client, ttl: answer.ttl - 1, ..answer.clone() };
        expect_late(net, &answer, late, &became);
    }
}

/// Packets of others, to an address of Services or of the node, wait as well, and come out as they were.
pub fn packets_of_others_come_out_as_they_were(net: &mut Net<'_>) {
    let [client, mut vip, _] = net.serve(Host::PodA);
    vip.set_port(81);
    for dst in [vip, net.at(Host::Node, 9)] {
        let packet = large(net, client, dst);
        for late in LATE {
            expect_late(net, &packet, late, &packet);
        }
    }
}

/// The node's own stack sends them in order; what is longer than the room for one does not wait.
pub fn a_later_fragment_that_cannot_wait_is_dropped_and_counted(net: &mut Net<'_>) {
    let [client, vip, _] = net.serve(Host::PodA);
    let pieces = fragments(&large(net, client, vip), 8, PIECE);
    for piece in &pieces[1..] {
        let hook = Hook::HostEgress(Device::Uplink);
        net.expect_bytes_drop(hook, piece, Counter::FragmentOutOfOrder);
    }
    // What is forwarded came in before, and another address is no Service's.
    net.expect_untouched(Hook::Egress(Device::Uplink), &pieces[1], &[]);
    let other = fragments(&large(net, client, net.vip(2)), 8, PIECE);
    net.expect_untouched(UPLINK, &other[1], &[]);
    let long = |net: &Net<'_>, dst| {
        let packet = Frame { payload: vec![7; 3400], ..net.later(client, dst) };
        fragments(&packet, 8, 1600).swap_remove(1)
    };
    net.expect_bytes_drop(UPLINK, &long(net, vip), Counter::FragmentOutOfOrder);
    net.expect_untouched(UPLINK, &long(net, net.at(Host::Node, 9)), &[]);
}

/// As many as 64 KiB have wait for one packet, and no more.
pub fn so_many_fragments_of_a_packet_wait(net: &mut Net<'_>) {
    if is_sctp(net) {
        return;
    }
    let [client, vip, _] = net.serve(Host::PodA);
    let packet = Frame { payload: vec![7; 64 * 50], ..net.later(client, vip) };
    let pieces = fragments(&packet, 9, 64);
    let (waiting, rest) = pieces[1..].split_at(SLOTS as usize);
    for piece in waiting {
        net.expect_bytes_drop(UPLINK, piece, Counter::FragmentHeld);
    }
    for piece in rest {
        net.expect_bytes_drop(UPLINK, piece, Counter::FragmentOutOfOrder);
    }
    let counted = net.judge(UPLINK, &pieces[0], Fate::Dropped).counted;
    assert_eq!(counted, vec![Counter::FragmentReleased; SLOTS as usize]);
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

/// Ports are enough to tell whose it is; without flags a Service is not asked (RFC 1858, 3).
pub fn a_first_fragment_too_short_for_flags_takes_its_rest_along(net: &mut Net<'_>) {
    let [client, vip, _] = net.serve(Host::PodA);
    for dst in [net.at(Host::Node, 9), SocketAddr::new(vip.ip(), 81)] {
        for piece in fragments(&net.later(client, dst), 11, 8) {
            net.expect_untouched(UPLINK, &piece, &[]);
        }
    }
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
    // Also those that came before.
    let pieces = fragments(&large(net, client, vip), 10, PIECE);
    net.expect_bytes_drop(UPLINK, &pieces[1], Counter::FragmentHeld);
    net.expect_bytes_drop(UPLINK, &pieces[0], Counter::NoLocalEndpoint);
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
