//! Packets that are not ours, or that cannot be read: byte for byte as they were.

use lb_common::abi::{BackendFlags, Counter, FrontendFlags, L4Proto};

use super::{Device, Fate, Hook, Host, Net};

const HOOKS: [Hook; 4] = [
    Hook::Ingress(Device::Uplink),
    Hook::Ingress(Device::PodA),
    Hook::Egress(Device::Uplink),
    Hook::HostEgress(Device::Uplink),
];
const IP: usize = 14;

/// A frontend with a backend, so that there is something to hit.
fn serve(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    net.frontend(net.vip(1), &[id]);
}

/// Another address, another port, a backend asked directly.
pub fn packets_of_no_service(net: &mut Net<'_>) {
    serve(net);
    let mut other_port = net.vip(1);
    other_port.set_port(81);
    for destination in [net.vip(2), other_port, net.target(Host::PodA)] {
        for hook in HOOKS {
            let frame = net.first(net.client(), destination);
            net.expect_untouched(hook, &frame.encode(), &[]);
        }
    }
}

/// Neither TCP, UDP nor SCTP, or not IP at all.
pub fn other_protocols(net: &mut Net<'_>) {
    serve(net);
    let frame = net.first(net.client(), net.vip(1)).encode();
    let protocol = IP + if net.kind.is_v4 { 9 } else { 6 };
    for hook in HOOKS {
        for other in [1, 47, 58, 136, 255] {
            let mut bytes = frame.clone();
            bytes[protocol] = other;
            net.expect_untouched(hook, &bytes, &[]);
        }
        let mut arp = frame.clone();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        net.expect_untouched(hook, &arp, &[]);
    }
}

/// Headers that end before their ports, or that say that they do.
pub fn truncated_headers_are_counted(net: &mut Net<'_>) {
    serve(net);
    let frame = net.first(net.client(), net.vip(1));
    let header = IP + frame.ip_header_length();
    let whole = header
        + match net.kind.protocol {
            L4Proto::SCTP => 13,
            L4Proto::TCP => 14,
            _ => 4,
        };
    for hook in HOOKS {
        for length in [header, header + 3, whole - 1] {
            let bytes = frame.encode()[..length].to_vec();
            net.expect_untouched(hook, &bytes, &[Counter::Truncated]);
        }
        if net.kind.is_v4 {
            let mut short_header = frame.encode();
            short_header[IP] = 0x44;
            net.expect_untouched(hook, &short_header, &[Counter::Truncated]);
        }
    }
}

/// A loopback NodePort: sockets use it, and no packet may.
pub fn a_frontend_for_the_host_is_no_matter_of_packets(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let vip = net.vip(1);
    net.frontend_with(vip, FrontendFlags::HOST_ONLY, [&[id], &[id]]);
    for hook in HOOKS {
        net.expect_untouched(hook, &net.first(net.client(), vip).encode(), &[]);
    }
}

/// The agent never leaves one; if it did, the packet is not sent anywhere.
pub fn a_slot_without_a_backend_is_counted(net: &mut Net<'_>) {
    let id = net.backend_with(Host::PodB, BackendFlags::SERVING, 0);
    let (client, vip) = (net.client(), net.vip(1));
    for slots in [[id], [0]] {
        net.frontend(vip, &slots);
        let frame = net.first(client, vip);
        net.expect_drop(Hook::Ingress(Device::Uplink), &frame, Counter::DanglingSlot);
    }
}

/// The node tells a pod on a bridge to send to the backend directly: of a translated flow, that is
/// dropped and counted; of any other, it is the network's business.
pub fn redirects_that_quote_a_translated_flow_are_dropped(net: &mut Net<'_>) {
    serve(net);
    let (pod, vip, backend) = (net.at(Host::PodB, 40000), net.vip(1), net.target(Host::PodA));
    let out = Hook::HostEgress(Device::PodB);
    let translated = net.first(pod, backend).encode();
    for with_link_layer in [false, true] {
        let bytes = redirect(net, &translated[IP..], with_link_layer);
        net.expect_untouched(out, &bytes, &[]);
    }
    net.expect(Hook::Ingress(Device::PodB), &net.first(pod, vip), Fate::Next, [pod, backend]);
    for with_link_layer in [false, true] {
        let bytes = redirect(net, &translated[IP..], with_link_layer);
        net.expect_bytes_drop(out, &bytes, Counter::IcmpRedirect);
        net.expect_untouched(Hook::Ingress(Device::PodB), &bytes, &[]);
    }
    let other = net.first(pod, net.at(Host::Remote, 9)).encode();
    net.expect_untouched(out, &redirect(net, &other[IP..], true), &[]);
}

/// An ICMP redirect (RFC 792; RFC 4861, 4.5) that quotes `packet`. Nobody looks at its checksum.
fn redirect(net: &Net<'_>, packet: &[u8], with_link_layer: bool) -> Vec<u8> {
    let frame = net.first(net.at(Host::Node, 1), net.at(Host::PodB, 1));
    let mut bytes = frame.encode()[..IP + frame.ip_header_length()].to_vec();
    if net.kind.is_v4 {
        bytes[IP + 9] = 1;
        bytes.extend([5, 1, 0, 0, 0, 0, 0, 0]);
    } else {
        bytes[IP + 6] = 58;
        bytes.extend([137, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0; 32]);
        bytes.extend([2, 1, 2, 0, 0, 0, 0, 1].iter().filter(|_| with_link_layer));
        bytes.extend([4, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend(packet);
    bytes
}
