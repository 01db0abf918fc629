//! Rule S10: a client stays with its backend, as long as that is in the list that it chooses from.

use lb_common::abi::{BackendFlags, Counter, FrontendFlags};

use super::{Device, Fate, Hook, Host, Net, frame::Frame, net::FIN_ACK};

const IN: Hook = Hook::Ingress(Device::Uplink);
const SENT: Fate = Fate::Sent(Device::Uplink);
/// Seconds: longer than any bench runs.
const TIMEOUT: u32 = 3600;
const SERVING: BackendFlags = BackendFlags::SERVING;
const AFFINE: BackendFlags = SERVING.with(BackendFlags::AFFINE_CLUSTER);

/// Writes a backend with a generation of the kind's own: what an earlier kind left behind on the
/// bench is of another.
fn backend(net: &mut Net<'_>, host: Host, flags: BackendFlags) -> u32 {
    let generation = 2 + u32::from(net.kind.is_v4) + 2 * u32::from(net.kind.protocol.0);
    net.backend_with(host, flags, generation)
}

/// Writes a frontend with affinity that gives everybody one backend.
fn lead(net: &mut Net<'_>, number: u8, id: u32) {
    net.affinity_timeout = TIMEOUT;
    net.frontend(net.vip(number), &[id]);
}

/// Begins a flow from a port of a host outside, and expects it to reach the backend on `host`.
#[track_caller]
fn begin(net: &mut Net<'_>, (from, port): (Host, u16), number: u8, host: Host) {
    let (src, vip, dst) = (net.at(from, port), net.vip(number), net.target(host));
    net.expect(IN, &net.first(src, vip), Fate::Next, [src, dst]);
}

/// Whatever the client's port, and whichever backend its flows' hashes would choose.
pub fn s10_a_client_keeps_its_backend_and_another_has_its_own(net: &mut Net<'_>) {
    let (a, b) = (backend(net, Host::PodA, AFFINE), backend(net, Host::PodB, AFFINE));
    lead(net, 1, a);
    begin(net, (Host::Client, 1000), 1, Host::PodA);
    lead(net, 1, b);
    for port in 1001..1010 {
        begin(net, (Host::Client, port), 1, Host::PodA);
    }
    begin(net, (Host::Remote, 1000), 1, Host::PodB);
    // A pod and a process of the node are clients, too.
    let (pod, node, vip) = (net.at(Host::PodA, 1000), net.at(Host::Node, 1000), net.vip(1));
    let (from_pod, from_node) = (Hook::Ingress(Device::PodA), Hook::HostEgress(Device::Uplink));
    let pod_b = net.target(Host::PodB);
    net.expect(from_pod, &net.first(pod, vip), Fate::Next, [pod, pod_b]);
    net.expect(from_node, &net.first(node, vip), Fate::Sent(Device::PodB), [node, pod_b]);
    lead(net, 1, a);
    let (pod, node) = (net.at(Host::PodA, 1001), net.at(Host::Node, 1001));
    net.expect(from_pod, &net.first(pod, vip), Fate::Next, [pod, pod_b]);
    net.expect(from_node, &net.first(node, vip), Fate::Sent(Device::PodB), [node, pod_b]);
}

/// A NodePort and a cluster IP are one to the client.
pub fn s10_all_addresses_of_a_service_port_share_the_choice(net: &mut Net<'_>) {
    let (a, b) = (backend(net, Host::PodA, AFFINE), backend(net, Host::PodB, AFFINE));
    lead(net, 1, a);
    lead(net, 2, b);
    begin(net, (Host::Client, 1000), 1, Host::PodA);
    begin(net, (Host::Client, 1001), 2, Host::PodA);
}

/// One that is terminating serves the flows that it has, and gets no others.
pub fn s10_a_backend_that_left_the_list_gets_no_new_flow(net: &mut Net<'_>) {
    let (a, b) = (backend(net, Host::PodA, AFFINE), backend(net, Host::PodB, AFFINE));
    let (client, vip, pod_a) = (net.at(Host::Client, 1000), net.vip(1), net.target(Host::PodA));
    lead(net, 1, a);
    begin(net, (Host::Client, 1000), 1, Host::PodA);
    lead(net, 1, b);
    backend(net, Host::PodA, SERVING);
    begin(net, (Host::Client, 1001), 1, Host::PodB);
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod_a]);
    // It is back, and the client has another one.
    backend(net, Host::PodA, AFFINE);
    lead(net, 1, a);
    begin(net, (Host::Client, 1002), 1, Host::PodB);
    // Its id has another owner: that one was never chosen.
    net.backend_with(Host::PodB, AFFINE, 100);
    begin(net, (Host::Client, 1003), 1, Host::PodA);
}

/// With policy Local, a backend of the Cluster list is none.
pub fn s10_the_list_is_the_one_that_the_client_chooses_from(net: &mut Net<'_>) {
    let local = SERVING.with(BackendFlags::AFFINE_LOCAL);
    let (a, b) = (backend(net, Host::PodA, AFFINE), backend(net, Host::PodB, local));
    lead(net, 1, a);
    begin(net, (Host::Client, 1000), 1, Host::PodA);
    net.frontend_with(net.vip(2), FrontendFlags::EXTERNAL_LOCAL, [&[a], &[b]]);
    begin(net, (Host::Client, 1001), 2, Host::PodB);
    begin(net, (Host::Client, 1002), 2, Host::PodB);
    // And the other way: clients on this node.
    let (pod, hook) = (net.at(Host::PodB, 1000), Hook::Ingress(Device::PodB));
    let (pod_a, vips) = (net.target(Host::PodA), [net.vip(1), net.vip(2), net.vip(3)]);
    net.expect(hook, &net.first(pod, vips[1]), Fate::Next, [pod, pod_a]);
    net.frontend_with(vips[2], FrontendFlags::INTERNAL_LOCAL, [&[b], &[a]]);
    let became = net.pass(hook, &net.first(pod, vips[2]), Fate::Sent(Device::PodB));
    assert_eq!(became.dst, net.target(Host::PodB), "by SNAT: it reaches itself");
}

/// A client whose packet was refused, or dropped after the choice, has no backend yet.
pub fn s10_nothing_is_remembered_of_a_refusal_or_a_drop(net: &mut Net<'_>) {
    let (b, remote) = (backend(net, Host::PodB, AFFINE), backend(net, Host::Remote, AFFINE));
    let (client, vip) = (net.at(Host::Client, 1000), net.vip(1));
    net.affinity_timeout = TIMEOUT;
    net.frontend(vip, &[]);
    net.expect_refusal(IN, &net.first(client, vip));
    lead(net, 1, remote);
    let dying = Frame { ttl: 1, ..net.first(client, vip) };
    net.expect_answer(IN, &dying, Counter::TtlExpired);
    lead(net, 1, b);
    begin(net, (Host::Client, 1001), 1, Host::PodB);
}

/// A segment of a connection that this node has forgotten begins none: it goes where the client's
/// connections go, and renews nothing.
pub fn s10_a_segment_of_no_connection_leaves_nothing(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let (a, b) = (backend(net, Host::PodA, AFFINE), backend(net, Host::PodB, AFFINE));
    let (vip, old, new) = (net.vip(1), net.at(Host::Client, 1000), net.at(Host::Client, 1002));
    let (pod_a, pod_b) = (net.target(Host::PodA), net.target(Host::PodB));
    lead(net, 1, a);
    net.expect(IN, &net.later(old, vip), Fate::Next, [old, pod_a]);
    lead(net, 1, b);
    begin(net, (Host::Client, 1001), 1, Host::PodB);
    lead(net, 1, a);
    net.expect(IN, &net.later(new, vip), Fate::Next, [new, pod_b]);
}

/// Where the Service no longer asks for it, nothing is looked up; asked for again, what is
/// remembered counts until its timeout.
pub fn s10_affinity_is_switched_off_and_on(net: &mut Net<'_>) {
    let (a, b) = (backend(net, Host::PodA, AFFINE), backend(net, Host::PodB, AFFINE));
    lead(net, 1, a);
    begin(net, (Host::Client, 1000), 1, Host::PodA);
    net.affinity_timeout = 0;
    net.frontend(net.vip(1), &[b]);
    begin(net, (Host::Client, 1001), 1, Host::PodB);
    lead(net, 1, b);
    begin(net, (Host::Client, 1002), 1, Host::PodA);
}

/// A backend on another node, reached by SNAT, and its answers.
pub fn s10_a_remote_backend_is_kept_too(net: &mut Net<'_>) {
    let (b, remote) = (backend(net, Host::PodB, AFFINE), backend(net, Host::Remote, AFFINE));
    let (vip, target) = (net.vip(1), net.target(Host::Remote));
    for (port, id) in [(1000, remote), (1001, b)] {
        lead(net, 1, id);
        let client = net.at(Host::Client, port);
        let became = net.pass(IN, &net.first(client, vip), SENT);
        assert_eq!(became.dst, target);
        net.expect_hop(IN, &net.later(target, became.src), SENT, [vip, client]);
        if net.has_connections() {
            net.pass(IN, &net.segment(client, vip, FIN_ACK), SENT);
        }
    }
}
