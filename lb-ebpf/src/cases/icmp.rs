//! Errors of ICMP and ICMPv6 about packets of flows.

use std::net::SocketAddr;

use lb_common::abi::Counter;

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, Transport, fragments},
    net::RST,
    snat::source_of,
};

const IN: Hook = Hook::Ingress(Device::Uplink);
const OUT: Hook = Hook::Egress(Device::Uplink);
const IP: usize = 14;
/// Bytes of a quoted transport header that an error holds at least (RFC 792).
const LEAST: usize = 8;
/// An MTU where "packet too big" has one.
const REST: [u8; 4] = [0, 0, 5, 0];

/// Types and codes of the errors of a family.
fn kinds(net: &Net<'_>) -> &'static [[u8; 2]] {
    if net.kind.is_v4 {
        &[[3, 1], [3, 3], [3, 4], [11, 0], [12, 0]]
    } else {
        &[[1, 4], [2, 0], [3, 0], [4, 1]]
    }
}

/// A router's address that is no end of a flow.
fn router(net: &Net<'_>) -> SocketAddr {
    net.at(Host::PodB, 0)
}

/// An error about a packet, to its sender, with so much of the transport header quoted.
fn error(about: &Frame, from: SocketAddr, kind: [u8; 2], quoted: usize) -> Frame {
    let length = about.ip_header_length() + quoted;
    let payload = about.encode()[IP..].iter().take(length).copied().collect();
    let [src, dst] = [from, about.src].map(|end| SocketAddr::new(end.ip(), 0));
    let transport = Transport::Icmp { kind, rest: REST };
    Frame { src, dst, transport, payload, options: Vec::new(), ..about.clone() }
}

/// The same about another packet: the one that the error's receiver knows. Its transport checksum
/// is still that of the packet that was quoted.
fn about(error: &Frame, other: &Frame, from: SocketAddr) -> Frame {
    let Transport::Icmp { kind, .. } = error.transport else { panic!("{error:?}") };
    let quoted = error.payload.len() - other.ip_header_length();
    let mut expected = self::error(other, from, kind, quoted);
    let checksum = match other.transport {
        Transport::Sctp { .. } => 8..12,
        Transport::Tcp { .. } => 16..18,
        _ => 6..8,
    };
    let header = other.ip_header_length();
    let place = header + checksum.start..header + checksum.end;
    if let Some(bytes) = expected.payload.get_mut(place.clone()) {
        bytes.copy_from_slice(&error.payload[place]);
    }
    Frame { ttl: error.ttl, ..expected }
}

/// An error comes by `hook` about a packet between `from` and its receiver, who must see it as one
/// about a packet between `seen`; each end is the packet's source and destination.
struct Way {
    hook: Hook,
    fate: Fate,
    quoted: [SocketAddr; 2],
    seen: [SocketAddr; 2],
    /// The source that a router's error must have; `None` for its own.
    router: Option<SocketAddr>,
}

/// Passes errors of all types, from the end and from a router, with short and long quotes.
#[track_caller]
fn expect(net: &mut Net<'_>, way: &Way) {
    let [sent, known] = [way.quoted, way.seen].map(|[src, dst]| net.later(src, dst));
    for &kind in kinds(net) {
        for (from, source) in
            [(sent.dst, known.dst), (router(net), way.router.unwrap_or_else(|| router(net)))]
        {
            for quoted in [LEAST, usize::MAX] {
                let quoted = quoted.min(sent.encode().len() - IP - sent.ip_header_length());
                let error = error(&sent, from, kind, quoted);
                let became = net.pass(way.hook, &error, way.fate);
                let hops = u8::from(way.router.is_some());
                let expected = about(&error, &known, source);
                assert_eq!(became, Frame { ttl: error.ttl - hops, ..expected });
            }
        }
    }
}

/// What the client's side says of a reply, the pod must take for its own packet; what the pod's side
/// says of a request, the client.
pub fn errors_of_a_flow_to_a_local_backend(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    let fate = Fate::Next;
    let to_pod = Way { hook: IN, fate, quoted: [vip, client], seen: [pod, client], router: None };
    let to_client =
        Way { hook: OUT, fate, quoted: [client, pod], seen: [client, vip], router: None };
    expect(net, &to_pod);
    expect(net, &to_client);
    let mut by_host = to_client;
    by_host.hook = Hook::HostEgress(Device::Uplink);
    expect(net, &by_host);
}

/// Under SNAT both ends are this node's business, and so is the source of a router's error.
pub fn errors_of_a_flow_under_snat(net: &mut Net<'_>) {
    let [client, vip, remote] = net.serve(Host::Remote);
    let fate = Fate::Sent(Device::Uplink);
    let became = net.pass(IN, &net.first(client, vip), fate);
    let node = source_of(net, &became);
    let (to_remote, to_client) = ([remote, node], [client, vip]);
    expect(
        net,
        &Way { hook: IN, fate, quoted: [vip, client], seen: to_remote, router: Some(node) },
    );
    expect(
        net,
        &Way { hook: IN, fate, quoted: [node, remote], seen: to_client, router: Some(vip) },
    );
    let expiring = Frame { ttl: 1, ..error(&net.later(vip, client), client, [3, 3], LEAST) };
    if net.kind.is_v4 {
        net.expect_drop(IN, &expiring, Counter::TtlExpired);
    }
}

/// A process of the node learns of its own packet, and its own errors reach the pod.
pub fn errors_of_a_host_process_s_flow(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (process, vip, pod) = (net.at(Host::Node, 40000), net.vip(1), net.target(Host::PodA));
    net.frontend(vip, &[id]);
    let (out, sent) = (Hook::HostEgress(Device::Uplink), Fate::Sent(Device::PodA));
    net.expect(out, &net.first(process, vip), sent, [process, pod]);
    let quoted = net.later(process, pod);
    for &kind in kinds(net) {
        for (from, source) in [(pod, vip), (router(net), router(net))] {
            let error = error(&quoted, from, kind, LEAST);
            let expected = about(&error, &net.later(process, vip), source);
            // A router's error comes in where the router is, as reverse path filtering has it.
            let at = if from == pod { Device::PodA } else { Device::Uplink };
            net.expect_delivered(at, &error, &expected);
        }
    }
    let to_pod = net.later(vip, process);
    let error = error(&to_pod, process, kinds(net)[0], LEAST);
    let became = net.pass(out, &error, sent);
    assert_eq!(became, about(&error, &net.later(pod, process), process));
}

/// IPv4 options of the error and of the packet that it quotes.
pub fn errors_with_options(net: &mut Net<'_>) {
    if !net.kind.is_v4 {
        return;
    }
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    for length in (0..=40).step_by(4) {
        let options = vec![1; length];
        let [sent, known] = [[vip, client], [pod, client]]
            .map(|[src, dst]| Frame { options: options.clone(), ..net.later(src, dst) });
        let plain = error(&sent, client, [3, 4], LEAST);
        for outer in [Vec::new(), options] {
            let error = Frame { options: outer.clone(), ..plain.clone() };
            let expected = Frame { options: outer, ..about(&error, &known, client) };
            assert_eq!(net.pass(IN, &error, Fate::Next), expected);
        }
    }
}

/// Not about a flow, not to the packet's sender, not whole, no error, or not at this hook.
pub fn other_errors_are_left_alone(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    let kind = kinds(net)[0];
    let of = |net: &Net<'_>, src, dst| error(&net.later(src, dst), dst, kind, LEAST);
    let (to_pod, to_client) = (of(net, vip, client), of(net, client, pod));
    net.expect_untouched(IN, &to_pod.encode(), &[]);
    net.expect_untouched(OUT, &to_client.encode(), &[]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.expect_untouched(OUT, &to_pod.encode(), &[]);
    net.expect_untouched(IN, &to_client.encode(), &[]);
    net.expect_untouched(IN, &of(net, net.vip(2), client).encode(), &[]);
    let not_to_sender = Frame { dst: net.at(Host::PodB, 0), ..to_pod.clone() };
    net.expect_untouched(IN, &not_to_sender.encode(), &[]);
    let header = to_pod.payload.len() - LEAST;
    for length in [0, 1, 12, header, header + 3] {
        let payload = to_pod.payload[..length].to_vec();
        net.expect_untouched(IN, &Frame { payload, ..to_pod.clone() }.encode(), &[]);
    }
    for other in [0, 5, 129, 135, 136, 255] {
        let transport = Transport::Icmp { kind: [other, 0], rest: REST };
        net.expect_untouched(IN, &Frame { transport, ..to_pod.clone() }.encode(), &[]);
    }
    if net.kind.is_v4 {
        let mut later_fragment = to_pod;
        later_fragment.payload[6..8].copy_from_slice(&[0x00, 0xb9]);
        net.expect_untouched(IN, &later_fragment.encode(), &[]);
    }
}

/// Its client may have begun a flow past this node's frontends, which the error is about.
pub fn errors_of_a_closed_connection_are_left_alone(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.expect(IN, &net.segment(client, vip, RST), Fate::Next, [client, pod]);
    let error = error(&net.later(client, pod), pod, kinds(net)[0], LEAST);
    net.expect_untouched(OUT, &error.encode(), &[]);
}

/// Path MTU discovery of a sender of large datagrams: what does not fit is a fragment.
pub fn errors_about_a_first_fragment(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    let [sent, known] = [vip, pod].map(|src| {
        let large = Frame { payload: vec![7; 1000], ..net.later(src, client) };
        fragments(&large, 5, 600)
    });
    let kind = net.too_big();
    let header = if net.kind.is_v4 { 20 } else { 48 };
    let [to_pod, expected] = [(&sent, vip), (&known, pod)].map(|(pieces, src)| {
        // Without the transport checksum, which stays.
        let payload = pieces[0][IP..][..header + 6].to_vec();
        Frame { payload, ..error(&net.later(src, client), client, kind, LEAST) }
    });
    assert_eq!(net.pass(IN, &to_pod, Fate::Next), expected);
    // Of a later one, nobody knows whose it is.
    let payload = sent[1][IP..][..header + 8].to_vec();
    net.expect_untouched(IN, &Frame { payload, ..to_pod }.encode(), &[]);
}
