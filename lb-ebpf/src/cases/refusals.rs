//! Rule S5: what a client is told where no backend can be had.

use lb_common::abi::{Counter, FrontendFlags};

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, Transport},
    net::{ACK, FIN_ACK, INIT, RST, RST_ACK, SYN},
};

const FROM_OUTSIDE: Hook = Hook::Ingress(Device::Uplink);
const FROM_POD: Hook = Hook::Ingress(Device::PodA);
const TTL: u8 = 64;

/// The answer to a segment or datagram at a closed port.
fn refusal(net: &Net<'_>, asked: &Frame) -> Frame {
    let turned = |transport, payload: &[u8]| Frame {
        macs: [asked.macs[1], asked.macs[0]],
        src: asked.dst,
        dst: asked.src,
        class: 0,
        ttl: TTL,
        options: Vec::new(),
        transport,
        payload: payload.to_vec(),
    };
    let Transport::Tcp { sequence, acknowledgement, flags } = asked.transport else {
        let kind = if net.kind.is_v4 { [3, 3] } else { [1, 4] };
        let is_init = matches!(asked.transport, Transport::Sctp { chunk: INIT, .. });
        let mut quote = asked.encode().split_off(14);
        // Up to the tag that an INIT offers (RFC 9260, 3.3.2); one that holds none is filled up.
        quote.resize(asked.ip_header_length() + if is_init { 20 } else { 8 }, 0);
        let mut answer = turned(Transport::Icmp { kind, rest: [0; 4] }, &quote);
        answer.src.set_port(0);
        answer.dst.set_port(0);
        return answer;
    };
    if flags & ACK != 0 {
        let numbers = Transport::Tcp { sequence: acknowledgement, acknowledgement: 0, flags: RST };
        return turned(numbers, &[]);
    }
    let length = u32::try_from(asked.payload.len()).unwrap_or_default() + 1;
    let acknowledgement = sequence.wrapping_add(length);
    turned(Transport::Tcp { sequence: 0, acknowledgement, flags: RST_ACK }, &[])
}

#[track_caller]
fn expect_refused(net: &mut Net<'_>, hook: Hook, asked: &Frame) {
    let answer = net.expect_refusal(hook, asked);
    assert_eq!(answer, refusal(net, asked));
}

/// The e2e tests of Kubernetes want REFUSED, not a time-out.
pub fn without_endpoints_a_client_is_refused(net: &mut Net<'_>) {
    let (client, pod, vip) = (net.client(), net.at(Host::PodA, 40000), net.vip(1));
    net.frontend(vip, &[]);
    expect_refused(net, FROM_OUTSIDE, &net.first(client, vip));
    expect_refused(net, FROM_POD, &net.first(pod, vip));
    for length in [0, 1, 1400] {
        let payload = vec![0xa5; length];
        expect_refused(net, FROM_OUTSIDE, &Frame { payload, ..net.first(client, vip) });
    }
}

/// The same at the other hook: the answer comes in by the device that the question leaves by.
pub fn without_endpoints_a_host_process_is_refused(net: &mut Net<'_>) {
    let (node, vip) = (net.at(Host::Node, 40000), net.vip(1));
    net.frontend(vip, &[]);
    expect_refused(net, Hook::HostEgress(Device::Uplink), &net.first(node, vip));
    // What is only forwarded was looked at where it came in.
    let forwarded = net.first(net.client(), vip).encode();
    net.expect_untouched(Hook::Egress(Device::Uplink), &forwarded, &[]);
}

/// RFC 9293, 3.10.7.1: the sequence number of a reset is the one that the other end waits for.
pub fn a_segment_of_no_connection_is_refused(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend(vip, &[]);
    for flags in [ACK, FIN_ACK, SYN | ACK] {
        expect_refused(net, FROM_OUTSIDE, &net.segment(client, vip, flags));
    }
}

/// RFC 9293, 3.10.7.1; RFC 9260, 8.4: or two ends would reset each other for ever.
pub fn a_reset_is_not_answered(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend(vip, &[]);
    for flags in [RST, RST_ACK] {
        net.expect_drop(FROM_OUTSIDE, &net.segment(client, vip, flags), Counter::NoEndpoint);
    }
}

/// Policy Local without an endpoint on this node: dropped for those whom it is for alone.
pub fn without_local_endpoints_the_policy_s_clients_are_dropped(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (client, pod, node) = (net.client(), net.at(Host::PodA, 40000), net.at(Host::Node, 40000));
    let (external, internal) = (net.vip(1), net.vip(2));
    net.frontend_with(external, FrontendFlags::DROP_EXTERNAL, [&[id], &[]]);
    net.expect_drop(FROM_OUTSIDE, &net.first(client, external), Counter::NoLocalEndpoint);
    let remote = net.target(Host::Remote);
    net.expect(FROM_POD, &net.first(pod, external), Fate::Next, [pod, remote]);
    net.frontend_with(internal, FrontendFlags::DROP_INTERNAL, [&[], &[]]);
    net.expect_drop(FROM_POD, &net.first(pod, internal), Counter::NoLocalEndpoint);
    let from_host = Hook::HostEgress(Device::Uplink);
    net.expect_drop(from_host, &net.first(node, internal), Counter::NoLocalEndpoint);
    expect_refused(net, FROM_OUTSIDE, &net.first(client, internal));
}

/// RFC 1122, 3.2.2: each node of a link would answer what is sent to all of them.
pub fn nobody_is_refused_what_he_asked_many(net: &mut Net<'_>) {
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend(vip, &[]);
    for first in [0x01, 0x33, 0xff] {
        let mut asked = net.first(client, vip);
        asked.macs[0] = [first; 6];
        net.expect_drop(FROM_OUTSIDE, &asked, Counter::NoEndpoint);
    }
}

/// S11: a client that goes on asking from one port is served as soon as there is an endpoint.
pub fn nothing_is_remembered_of_a_refusal(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.frontend(vip, &[]);
    expect_refused(net, FROM_OUTSIDE, &net.first(client, vip));
    net.frontend_with(vip, FrontendFlags::DROP_EXTERNAL, [&[], &[]]);
    net.expect_drop(FROM_OUTSIDE, &net.first(client, vip), Counter::NoLocalEndpoint);
    net.frontend(vip, &[id]);
    net.expect(FROM_OUTSIDE, &net.first(client, vip), Fate::Next, [client, pod]);
}
