//! A corpus of frames that no honest sender makes, through every hook: at most the ends of a packet
//! change, and what is answered is answered by a correct frame.

use std::net::SocketAddr;

use lb_common::abi::{Counter, L4Proto};

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, fragments},
};

const HOOKS: [Hook; 4] = [
    Hook::Ingress(Device::Uplink),
    Hook::Ingress(Device::PodB),
    Hook::Egress(Device::Uplink),
    Hook::HostEgress(Device::Uplink),
];
const IP: usize = 14;
/// Both MAC addresses, both IP addresses, time to live, its checksum, ports and their checksum.
const MOST_CHANGES: usize = 12 + 32 + 1 + 2 + 4 + 4;

/// Before a Service with a backend here, one with a backend on another node, and one without any.
pub fn nothing_but_ends_is_changed(net: &mut Net<'_>) {
    let (near, far) = (net.backend(Host::PodA), net.backend(Host::Remote));
    let [here, there, empty] = [1, 2, 3].map(|number| net.vip(number));
    net.frontend(here, &[near]);
    net.frontend(there, &[far]);
    net.frontend(empty, &[]);
    for vip in [here, there, empty] {
        for bytes in corpus(net, vip) {
            for hook in HOOKS {
                check(net, hook, &bytes);
            }
        }
    }
    // And the next honest one is served.
    let (client, backend) = (net.at(Host::Client, 50000), net.target(Host::PodA));
    net.expect(HOOKS[0], &net.first(client, here), Fate::Next, [client, backend]);
}

#[track_caller]
fn check(net: &mut Net<'_>, hook: Hook, bytes: &[u8]) {
    let outcome = net.judge(hook, bytes, Fate::Next);
    if let (Fate::Sent(_), [counter]) = (outcome.fate, &outcome.counted[..]) {
        let answer = Frame::decode(&outcome.bytes);
        assert!(answer.is_ok(), "{counter:?} {answer:?} to {bytes:02x?}");
        return;
    }
    if outcome.fate == Fate::Dropped && outcome.counted.contains(&Counter::FragmentReleased) {
        // Others went in by it.
        return;
    }
    assert_eq!(outcome.bytes.len(), bytes.len(), "{outcome:?} of {bytes:02x?}");
    let changed = outcome.bytes.iter().zip(bytes).filter(|(new, old)| new != old).count();
    let most = if outcome.counted.is_empty() { MOST_CHANGES } else { 0 };
    assert!(changed <= most || outcome.fate == Fate::Dropped, "{outcome:02x?} of {bytes:02x?}");
}

fn corpus(net: &Net<'_>, vip: SocketAddr) -> Vec<Vec<u8>> {
    let whole = net.first(net.client(), vip);
    let bytes = whole.encode();
    let l4 = IP + whole.ip_header_length();
    // What is shorter, the kernel runs no program on.
    let cut = (l4..bytes.len()).map(|length| bytes[..length].to_vec());
    let mut corpus: Vec<_> = cut.collect();
    corpus.extend(if net.kind.is_v4 { headers_v4(&bytes) } else { headers_v6(&bytes) });
    corpus.extend(transports(net.kind.protocol, &bytes, l4));
    corpus.extend(pieces(&whole));
    let ends = [vip, net.at(Host::Node, 80), net.at(Host::PodA, 0), SocketAddr::new(vip.ip(), 0)];
    corpus.extend(ends.map(|src| net.first(src, vip).encode()));
    corpus.push(Frame { ttl: 0, ..whole }.encode());
    corpus
}

/// The frame with these bytes at an offset.
fn with(bytes: &[u8], offset: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + new.len()].copy_from_slice(new);
    bytes
}

/// Versions, header lengths, total lengths, and fragments that are none.
fn headers_v4(bytes: &[u8]) -> Vec<Vec<u8>> {
    let first = [0x00, 0x05, 0x15, 0x55, 0x65, 0x40, 0x44, 0x4f, 0xff];
    let lengths = [[0, 0], [0, 19], [0, 20], [0, 27], [0xff, 0xff]];
    let fragment = [[0x3f, 0xff], [0x1f, 0xff], [0x60, 0x00], [0x80, 0x00], [0x20, 0x01]];
    let first = first.map(|first| with(bytes, IP, &[first]));
    let lengths = lengths.map(|length| with(bytes, IP + 2, &length));
    let fragment = fragment.map(|fragment| with(bytes, IP + 6, &fragment));
    [&first[..], &lengths, &fragment].concat()
}

/// Versions, payload lengths, and chains of extension headers that lead nowhere.
fn headers_v6(bytes: &[u8]) -> Vec<Vec<u8>> {
    let chain = IP + 40;
    let mut corpus: Vec<_> = [0x00, 0x40, 0xf0].map(|first| with(bytes, IP, &[first])).into();
    corpus.extend([[0, 0], [0, 1], [0xff, 0xff]].map(|length| with(bytes, IP + 4, &length)));
    for number in [0, 43, 44, 60] {
        let starts = with(bytes, IP + 6, &[number]);
        for next in [0, 6, 17, 43, 44, 59, 60, 132, 255] {
            for length in [0, 1, 3, 0x7f, 0xff] {
                corpus.push(with(&starts, chain, &[next, length]));
                // Segments left, or a later fragment with all reserved bits.
                corpus.push(with(&starts, chain, &[next, length, 0xff, 0xff]));
            }
        }
    }
    corpus
}

/// Lengths, offsets and flags of transport headers.
fn transports(protocol: L4Proto, bytes: &[u8], l4: usize) -> Vec<Vec<u8>> {
    let mut corpus = vec![with(bytes, l4, &[0; 4])];
    match protocol {
        L4Proto::TCP => {
            corpus.extend([0x00, 0x40, 0xf0].map(|offset| with(bytes, l4 + 12, &[offset])));
            corpus.extend([0x00, 0x3f, 0xff, 0x07].map(|flags| with(bytes, l4 + 13, &[flags])));
        }
        L4Proto::UDP => {
            let lengths = [[0, 0], [0, 7], [0xff, 0xff]];
            corpus.extend(lengths.map(|length| with(bytes, l4 + 4, &length)));
        }
        _ => {
            let chunks = [[1, 0, 0, 0], [0xff; 4], [1, 0, 0xff, 0xff]];
            corpus.extend(chunks.map(|chunk| with(bytes, l4 + 12, &chunk)));
        }
    }
    corpus
}

/// Fragments that overlap, are cut off, repeat, or begin within the transport header (RFC 1858).
fn pieces(whole: &Frame) -> Vec<Vec<u8>> {
    let large = Frame { payload: vec![0x5a; 400], ..whole.clone() };
    let (tiny, small, wide) =
        (fragments(&large, 1, 8), fragments(&large, 1, 200), fragments(&large, 1, 264));
    let cut = small
        .iter()
        .flat_map(|piece| [54, 60, 70].map(|cut| piece[..cut.min(piece.len())].to_vec()));
    let (first, last) = (&small[..1], &small[small.len() - 1..]);
    let cut: Vec<_> = cut.collect();
    [&tiny[..4], first, &wide[1..], first, last, last, first, &cut[..]].concat()
}
