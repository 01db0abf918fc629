//! IPv6 extension headers between the IP header and the ports: walked, and left as they are.

use lb_common::abi::Counter;

use super::{Device, Fate, Hook, Host, Net, frame::Frame};

const UPLINK: Hook = Hook::Ingress(Device::Uplink);
const NEXT_HEADER: usize = 14 + 6;
const HEADER_END: usize = 14 + 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// A frame with extension headers: number and bytes of each, the first two of which are written here.
fn with(frame: &Frame, chain: &[(u8, usize)]) -> Vec<u8> {
    let mut bytes = frame.encode();
    let mut next = bytes[NEXT_HEADER];
    for (number, length) in chain.iter().rev() {
        let mut header = vec![0; *length];
        let units = if *number == FRAGMENT { 0 } else { length / 8 - 1 };
        header[..2].copy_from_slice(&[next, u8::try_from(units).unwrap_or(u8::MAX)]);
        bytes.splice(HEADER_END..HEADER_END, header);
        next = *number;
    }
    bytes[NEXT_HEADER] = next;
    let length = u16::try_from(bytes.len() - HEADER_END).unwrap_or(u16::MAX).to_be_bytes();
    bytes[NEXT_HEADER - 2..NEXT_HEADER].copy_from_slice(&length);
    bytes
}

/// Ports and checksum are found behind them, near and far.
pub fn headers_before_the_ports_stay(net: &mut Net<'_>) {
    if net.kind.is_v4 {
        return;
    }
    let (near, far) = (net.backend(Host::PodA), net.backend(Host::Remote));
    let chains: [&[(u8, usize)]; 5] = [
        &[(HOP_BY_HOP, 8)],
        // An atomic fragment (RFC 6946) is a whole packet.
        &[(DESTINATION, 24), (FRAGMENT, 8)],
        &[(HOP_BY_HOP, 8), (DESTINATION, 8), (ROUTING, 24), (DESTINATION, 16)],
        &[(DESTINATION, 136)],
        &[(HOP_BY_HOP, 64), (DESTINATION, 64)],
    ];
    for (number, chain) in (1..).zip(chains) {
        let client = net.at(Host::Client, 40000 + u16::from(number));
        for (id, host, fate) in
            [(near, Host::PodA, Fate::Next), (far, Host::Remote, Fate::Sent(Device::Uplink))]
        {
            let (vip, backend) = (net.vip(number + 10 * host as u8), net.target(host));
            net.frontend(vip, &[id]);
            let request = net.first(client, vip);
            let outcome = net.judge(UPLINK, &with(&request, chain), fate);
            assert_eq!((outcome.fate, &outcome.counted[..]), (fate, &[][..]), "{chain:?}");
            let (src, ttl) = match host {
                Host::Remote => {
                    let again = net.pass(UPLINK, &net.later(client, vip), fate);
                    (again.src, request.ttl - 1)
                }
                _ => (client, request.ttl),
            };
            let became = Frame { src, dst: backend, ttl, ..request };
            assert_eq!(outcome.bytes, with(&became, chain), "{chain:?}");
        }
    }
}

/// More headers than are looked through, longer ones, or such as lead the packet on to another node.
pub fn other_chains_are_left_alone(net: &mut Net<'_>) {
    if net.kind.is_v4 {
        return;
    }
    let [client, vip, _] = net.serve(Host::PodA);
    let frame = net.first(client, vip);
    let chains: [&[(u8, usize)]; 4] = [
        &[(DESTINATION, 8); 5],
        &[(DESTINATION, 200)],
        &[(DESTINATION, 2048)],
        &[(AUTHENTICATION, 24)],
    ];
    for chain in chains {
        net.expect_untouched(UPLINK, &with(&frame, chain), &[]);
    }
    let mut leads_on = with(&frame, &[(ROUTING, 24)]);
    leads_on[HEADER_END + 3] = 1;
    net.expect_untouched(UPLINK, &leads_on, &[]);
}

/// Wherever it ends, it is counted as what is cut off.
pub fn chains_that_are_cut_off_are_counted(net: &mut Net<'_>) {
    if net.kind.is_v4 {
        return;
    }
    let [client, vip, _] = net.serve(Host::PodA);
    let bytes = with(&net.first(client, vip), &[(HOP_BY_HOP, 8), (DESTINATION, 16)]);
    for length in HEADER_END..HEADER_END + 24 + 4 {
        net.expect_untouched(UPLINK, &bytes[..length], &[Counter::Truncated]);
    }
}

/// What a refusal would quote is not where it is quoted from.
pub fn without_endpoints_they_are_dropped(net: &mut Net<'_>) {
    if net.kind.is_v4 {
        return;
    }
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend(vip, &[]);
    let bytes = with(&net.first(client, vip), &[(DESTINATION, 8)]);
    net.expect_bytes_drop(UPLINK, &bytes, Counter::NoEndpoint);
}
