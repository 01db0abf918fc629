//! Packets that are not ours, or that cannot be read: byte for byte as they were.

use lb_common::abi::{BackendFlags, Counter, FrontendFlags};

use super::{Device, Hook, Host, Net};

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

/// Neither TCP nor UDP, or not IP at all.
pub fn other_protocols(net: &mut Net<'_>) {
    serve(net);
    let frame = net.first(net.client(), net.vip(1)).encode();
    let protocol = IP + if net.kind.is_v4 { 9 } else { 6 };
    for hook in HOOKS {
        for other in [1, 47, 58, 132, 255] {
            let mut bytes = frame.clone();
            bytes[protocol] = other;
            net.expect_untouched(hook, &bytes, &[]);
        }
        let mut arp = frame.clone();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        net.expect_untouched(hook, &arp, &[]);
    }
}

/// They hold no ports, or would leave the rest of their packet behind.
pub fn fragments_are_counted(net: &mut Net<'_>) {
    serve(net);
    let frame = net.first(net.client(), net.vip(1)).encode();
    for hook in HOOKS {
        if net.kind.is_v4 {
            for field in [[0x20, 0], [0x00, 0xb9], [0x20, 0xb9]] {
                let mut bytes = frame.clone();
                bytes[IP + 6..IP + 8].copy_from_slice(&field);
                net.expect_untouched(hook, &bytes, &[Counter::Fragment]);
            }
        } else {
            let mut bytes = frame.clone();
            bytes[IP + 6] = 44;
            net.expect_untouched(hook, &bytes, &[Counter::Fragment]);
        }
    }
}

/// Headers that end before their ports, or that say that they do.
pub fn truncated_headers_are_counted(net: &mut Net<'_>) {
    serve(net);
    let frame = net.first(net.client(), net.vip(1));
    let header = IP + frame.ip_header_length();
    let whole = header + if net.is_tcp() { 14 } else { 4 };
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
