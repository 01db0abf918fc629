//! Flows of which only the destination is translated, and when they choose again.

use lb_common::abi::{BackendFlags, L4Proto};

use super::{
    Device, Fate, Hook, Host, Net,
    frame::{Frame, Transport},
    net::{FIN_ACK, INIT, SYN_ACK, TAG},
};

const IN: Hook = Hook::Ingress(Device::Uplink);
const OUT: Hook = Hook::Egress(Device::Uplink);

/// S6: the backend on this node sees the client's address; the client sees its Service's.
pub fn a_local_backend_sees_the_client_and_answers_as_its_service(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    for _ in 0..2 {
        net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
        net.expect(OUT, &net.later(pod, client), Fate::Next, [vip, client]);
        net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
    }
    // At the pod's own device the reply is one of pod and client.
    let reply = net.later(pod, client).encode();
    net.expect_untouched(Hook::Ingress(Device::PodA), &reply, &[]);
}

/// The CNI routes it, and brings the reply back to the pod's device.
pub fn a_pod_reaches_a_remote_backend_without_snat(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (pod, vip, remote) = (net.at(Host::PodA, 40000), net.vip(1), net.target(Host::Remote));
    net.frontend(vip, &[id]);
    let (request, reply) = (net.first(pod, vip), net.later(remote, pod));
    net.expect(Hook::Ingress(Device::PodA), &request, Fate::Next, [pod, remote]);
    net.expect_untouched(IN, &reply.encode(), &[]);
    net.expect(Hook::Egress(Device::PodA), &reply, Fate::Next, [vip, pod]);
}

/// Without the socket path; the reply comes in by the device that the request left by.
pub fn a_host_process_reaches_a_backend_and_gets_its_answer(net: &mut Net<'_>) {
    let (local, remote) = (net.backend(Host::PodA), net.backend(Host::Remote));
    let node = net.at(Host::Node, 40000);
    let hook = Hook::HostEgress(Device::Uplink);
    for (number, id, host, device) in
        [(1, local, Host::PodA, Device::PodA), (2, remote, Host::Remote, Device::Uplink)]
    {
        let (vip, target) = (net.vip(number), net.target(host));
        net.frontend(vip, &[id]);
        net.expect(hook, &net.first(node, vip), Fate::Sent(device), [node, target]);
        net.expect_delivery(device, &net.later(target, node), [vip, node]);
        net.expect(hook, &net.later(node, vip), Fate::Sent(device), [node, target]);
    }
}

/// A client that has closed its connection through the Service reaches the backend directly from
/// the same port.
pub fn a_connection_past_the_service_from_a_used_port_is_left_alone(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.expect(OUT, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
    // A SYN and ACK that is sent again belongs to the same connection.
    net.expect(OUT, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
    net.expect(IN, &net.segment(client, vip, FIN_ACK), Fate::Next, [client, pod]);
    net.expect(OUT, &net.segment(pod, client, FIN_ACK), Fate::Next, [vip, client]);
    net.expect_untouched(IN, &net.first(client, pod).encode(), &[]);
    net.expect_untouched(OUT, &net.segment(pod, client, SYN_ACK).encode(), &[]);
    net.expect_untouched(OUT, &net.later(pod, client).encode(), &[]);
    // And from a process of the node, whose replies come in.
    let (node, host) = (net.at(Host::Node, 40000), Hook::HostEgress(Device::Uplink));
    let back = Hook::Ingress(Device::PodA);
    net.expect(host, &net.first(node, vip), Fate::Sent(Device::PodA), [node, pod]);
    net.expect_delivery(Device::PodA, &net.segment(pod, node, FIN_ACK), [vip, node]);
    net.expect_untouched(back, &net.segment(pod, node, SYN_ACK).encode(), &[]);
    net.expect_untouched(back, &net.later(pod, node).encode(), &[]);
}

/// S11: a client that goes on sending gets a backend that serves.
pub fn a_datagram_leaves_a_backend_that_no_longer_serves(net: &mut Net<'_>) {
    if net.has_connections() {
        return;
    }
    let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend(vip, &[a]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, net.target(Host::PodA)]);
    net.frontend(vip, &[b]);
    let (pod_a, pod_b) = (net.target(Host::PodA), net.target(Host::PodB));
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod_a]);
    net.backend_with(Host::PodA, BackendFlags::NONE, 1);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod_b]);
    net.expect(OUT, &net.later(pod_b, client), Fate::Next, [vip, client]);
}

/// S11: also one that nobody has proven, answered or not, kept here or under SNAT, and known by the cache.
pub fn s11_a_half_open_flow_leaves_a_backend_at_once(net: &mut Net<'_>) {
    if net.has_connections() {
        return;
    }
    let vip = net.vip(1);
    let mut port = 40000;
    for [old, new] in [[Host::PodA, Host::Remote], [Host::Remote, Host::PodB]] {
        for is_answered in [false, true] {
            port += 1;
            let asked = net.first(net.at(Host::Client, port), vip);
            let ids = [old, new].map(|host| net.backend(host));
            net.frontend(vip, &ids[..1]);
            let first = passed(net, &asked, old);
            if is_answered {
                answered(net, &asked, &first, old);
            } else {
                (0..3).for_each(|_| assert_eq!(passed(net, &asked, old), first));
            }
            net.frontend(vip, &ids[1..]);
            net.backend_with(old, BackendFlags::NONE, 1);
            let second = passed(net, &asked, new);
            answered(net, &asked, &second, new);
        }
    }
}

/// Passes a client's packet to the backend on a host.
#[track_caller]
fn passed(net: &mut Net<'_>, asked: &Frame, host: Host) -> Frame {
    let fate = if host == Host::Remote { Fate::Sent(Device::Uplink) } else { Fate::Next };
    let became = net.pass(IN, asked, fate);
    assert_eq!(became.dst, net.target(host));
    became
}

/// Passes the answer of the backend on a host back to the client.
#[track_caller]
fn answered(net: &mut Net<'_>, asked: &Frame, became: &Frame, host: Host) {
    let (reply, ends) = (net.later(became.dst, became.src), [asked.dst, asked.src]);
    if host == Host::Remote {
        net.expect_hop(IN, &reply, Fate::Sent(Device::Uplink), ends);
    } else {
        net.expect(OUT, &reply, Fate::Next, ends);
    }
}

/// A backend id that was given to another endpoint is no reason to go there.
pub fn a_datagram_leaves_a_backend_whose_id_has_a_new_owner(net: &mut Net<'_>) {
    if net.has_connections() {
        return;
    }
    let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
    let (client, vip) = (net.client(), net.vip(1));
    net.frontend(vip, &[a]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, net.target(Host::PodA)]);
    net.frontend(vip, &[b]);
    net.backend_with(Host::PodA, BackendFlags::SERVING, 2);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, net.target(Host::PodB)]);
}

/// S12: a connection goes on to its pod until the pod itself ends.
pub fn a_connection_stays_with_a_removed_backend(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.frontend(vip, &[a]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.frontend(vip, &[b]);
    // A SYN that is sent again belongs to the same connection.
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.backend_with(Host::PodA, BackendFlags::NONE, 0);
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
    net.expect(OUT, &net.later(pod, client), Fate::Next, [vip, client]);
}

/// Nobody closes the connections of a node that fails; a client uses its ports again all the same.
pub fn a_connection_does_not_begin_with_a_removed_backend(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
    let (client, vip, pod_b) = (net.client(), net.vip(1), net.target(Host::PodB));
    let (node, out) = (net.at(Host::Node, 40000), Hook::HostEgress(Device::Uplink));
    net.frontend(vip, &[a]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, net.target(Host::PodA)]);
    let to_a = [node, net.target(Host::PodA)];
    net.expect(out, &net.first(node, vip), Fate::Sent(Device::PodA), to_a);
    net.frontend(vip, &[b]);
    net.backend_with(Host::PodA, BackendFlags::NONE, 0);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod_b]);
    net.expect(OUT, &net.later(pod_b, client), Fate::Next, [vip, client]);
    net.expect(out, &net.first(node, vip), Fate::Sent(Device::PodB), [node, pod_b]);
}

/// A client that uses its port again gets a backend of now, whichever end closed before.
pub fn a_closed_connection_lets_its_port_begin_another(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
    let (client, vip) = (net.client(), net.vip(1));
    let (pod_a, pod_b) = (net.target(Host::PodA), net.target(Host::PodB));
    net.frontend(vip, &[a]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod_a]);
    net.expect(IN, &net.segment(client, vip, FIN_ACK), Fate::Next, [client, pod_a]);
    // What follows a FIN still belongs to the connection.
    net.expect(OUT, &net.later(pod_a, client), Fate::Next, [vip, client]);
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod_a]);
    net.frontend(vip, &[b]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod_b]);
    net.expect(OUT, &net.segment(pod_b, client, FIN_ACK), Fate::Next, [vip, client]);
    net.frontend(vip, &[a]);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod_a]);
}

/// The transport header is found behind them.
pub fn options_of_the_header_stay(net: &mut Net<'_>) {
    if !net.kind.is_v4 {
        return;
    }
    let [client, vip, pod] = net.serve(Host::PodA);
    for length in [4, 40] {
        let options = vec![1; length];
        let request = Frame { options: options.clone(), ..net.first(client, vip) };
        net.expect(IN, &request, Fate::Next, [client, pod]);
        let reply = Frame { options, ..net.later(pod, client) };
        net.expect(OUT, &reply, Fate::Next, [vip, client]);
    }
}

/// RFC 768: zero means that the sender made none, so there is none to repair.
pub fn udp_without_a_checksum_stays_without(net: &mut Net<'_>) {
    if net.kind.protocol != L4Proto::UDP || !net.kind.is_v4 {
        return;
    }
    expect_both_ways(net, Transport::UdpWithoutChecksum);
}

/// What is made on this machine is summed where it leaves it, with the ports that it has there.
pub fn sctp_without_a_checksum_stays_without(net: &mut Net<'_>) {
    if net.kind.protocol != L4Proto::SCTP {
        return;
    }
    expect_both_ways(net, Transport::SctpWithoutChecksum { tag: TAG, chunk: INIT });
}

/// Passes a request and a reply with this transport header, and expects it in what becomes of them.
#[track_caller]
fn expect_both_ways(net: &mut Net<'_>, transport: Transport) {
    let [client, vip, pod] = net.serve(Host::PodA);
    let request = Frame { transport, ..net.first(client, vip) };
    net.expect(IN, &request, Fate::Next, [client, pod]);
    let reply = Frame { transport, ..net.first(pod, client) };
    net.expect(OUT, &reply, Fate::Next, [vip, client]);
}

/// Where the checksum depends on the length, each byte of that counts.
pub fn packets_of_any_length_are_whole(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    for length in [0, 1, 3, 239, 240, 255, 256, 1440, 3000] {
        let payload = vec![0xa5; length];
        let request = Frame { payload: payload.clone(), ..net.first(client, vip) };
        net.expect(IN, &request, Fate::Next, [client, pod]);
        let reply = Frame { payload, ..net.later(pod, client) };
        net.expect(OUT, &reply, Fate::Next, [vip, client]);
    }
}

/// A short packet is followed by bytes that no checksum covers.
pub fn padding_of_a_frame_is_not_part_of_the_packet(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect_padded(IN, &net.first(client, vip), [client, pod]);
    net.expect_padded(OUT, &net.later(pod, client), [vip, client]);
}
