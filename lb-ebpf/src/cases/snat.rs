//! Flows whose backend must answer to this node.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::abi::{Counter, L4Proto};

use super::{
    Device, Fate, Hook, Host, Net, SNAT_RANGE,
    frame::{Frame, Transport},
    net::{FIN_ACK, INIT, TAG},
};

const IN: Hook = Hook::Ingress(Device::Uplink);

/// A packet's source must be this node with a port of the range; returns it.
#[track_caller]
pub(super) fn source_of(net: &Net<'_>, frame: &Frame) -> SocketAddr {
    let (first, count) = SNAT_RANGE;
    let source = frame.src;
    assert_eq!(source.ip(), Host::Node.address(net.kind.is_v4));
    assert!((first..first + count).contains(&source.port()), "port of {source}");
    source
}

/// A flow from a client that comes in by one device to a backend behind another, and back.
#[track_caller]
pub(super) fn there_and_back(
    net: &mut Net<'_>,
    [client_at, backend_at]: [Device; 2],
    [client, vip, target]: [SocketAddr; 3],
) -> SocketAddr {
    let sent = Fate::Sent(backend_at);
    let request = net.first(client, vip);
    let became = net.pass(Hook::Ingress(client_at), &request, sent);
    let node = source_of(net, &became);
    assert_eq!(became, Frame { src: node, dst: target, ttl: request.ttl - 1, ..request });
    let reply = net.later(target, node);
    net.expect_hop(Hook::Ingress(backend_at), &reply, Fate::Sent(client_at), [vip, client]);
    let later = net.later(client, vip);
    net.expect_hop(Hook::Ingress(client_at), &later, sent, [node, target]);
    node
}

/// Else it would answer past this node, and the client would get a reply from a stranger.
pub fn a_remote_backend_answers_through_this_node(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let ends = [net.client(), net.vip(1), net.target(Host::Remote)];
    net.frontend(ends[1], &[id]);
    there_and_back(net, [Device::Uplink, Device::Uplink], ends);
}

/// Of any length, and with a checksum of zero, which says that there is none or that it is made later.
pub fn packets_to_a_remote_backend_are_whole(net: &mut Net<'_>) {
    let [client, vip, remote] = net.serve(Host::Remote);
    let usual = net.first(client, vip).transport;
    let unsummed = match net.kind.protocol {
        L4Proto::SCTP => Transport::SctpWithoutChecksum { tag: TAG, chunk: INIT },
        L4Proto::UDP if net.kind.is_v4 => Transport::UdpWithoutChecksum,
        _ => usual,
    };
    let sent = Fate::Sent(Device::Uplink);
    let lengths = [0, 1, 3, 255, 256, 1399].map(|length| (usual, length));
    for (transport, length) in lengths.into_iter().chain([(unsummed, 13)]) {
        let with = |frame: Frame| Frame { transport, payload: vec![0xa5; length], ..frame };
        let request = with(net.first(client, vip));
        let became = net.pass(IN, &request, sent);
        let node = source_of(net, &became);
        assert_eq!(became, Frame { src: node, dst: remote, ttl: request.ttl - 1, ..request });
        let reply = with(net.first(remote, node));
        net.expect_hop(IN, &reply, sent, [vip, client]);
    }
}

/// S15: else it would answer itself, directly.
pub fn a_pod_reaches_itself_through_its_service(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let ends = [net.at(Host::PodA, 40000), net.vip(1), net.target(Host::PodA)];
    net.frontend(ends[1], &[id]);
    there_and_back(net, [Device::PodA, Device::PodA], ends);
}

/// The backend could not tell them apart: the second one gets a port of the node's.
pub fn two_frontends_with_one_backend_keep_a_client_s_flows_apart(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, pod) = (net.client(), net.target(Host::PodA));
    let [one, two] = [1, 2].map(|number| net.vip(number));
    net.frontend(one, &[id]);
    net.frontend(two, &[id]);
    net.expect(IN, &net.first(client, one), Fate::Next, [client, pod]);
    there_and_back(net, [Device::Uplink, Device::PodA], [client, two, pod]);
    let out = Hook::Egress(Device::Uplink);
    net.expect(out, &net.later(pod, client), Fate::Next, [one, client]);
    net.expect(IN, &net.later(client, one), Fate::Next, [client, pod]);
}

/// A client may end its half of a connection and go on reading: its replies keep their way until
/// the backend has ended the other half.
pub fn a_half_closed_connection_keeps_its_replies(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let id = net.backend(Host::PodA);
    let (client, pod) = (net.client(), net.target(Host::PodA));
    let [one, two, three] = [1, 2, 3].map(|number| net.vip(number));
    for vip in [one, two, three] {
        net.frontend(vip, &[id]);
    }
    let out = Hook::Egress(Device::Uplink);
    net.expect(IN, &net.first(client, one), Fate::Next, [client, pod]);
    net.expect(IN, &net.segment(client, one, FIN_ACK), Fate::Next, [client, pod]);
    there_and_back(net, [Device::Uplink, Device::PodA], [client, two, pod]);
    net.expect(out, &net.later(pod, client), Fate::Next, [one, client]);
    net.expect(IN, &net.later(client, one), Fate::Next, [client, pod]);
    net.expect(out, &net.segment(pod, client, FIN_ACK), Fate::Next, [one, client]);
    net.expect(IN, &net.first(client, three), Fate::Next, [client, pod]);
    net.expect(out, &net.later(pod, client), Fate::Next, [three, client]);
}

/// The same for a process of the node: its own address stays, and the reply finds it.
pub fn two_frontends_with_one_backend_keep_a_process_s_flows_apart(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (process, pod) = (net.at(Host::Node, 40000), net.target(Host::PodA));
    let [one, two] = [1, 2].map(|number| net.vip(number));
    net.frontend(one, &[id]);
    net.frontend(two, &[id]);
    let (hook, sent) = (Hook::HostEgress(Device::Uplink), Fate::Sent(Device::PodA));
    net.expect(hook, &net.first(process, one), sent, [process, pod]);
    let request = net.first(process, two);
    let became = net.pass(hook, &request, sent);
    let node = source_of(net, &became);
    assert_eq!(became, Frame { src: node, dst: pod, ..request });
    for (to, vip) in [(process, one), (node, two)] {
        net.expect_delivery(Device::PodA, &net.later(pod, to), [vip, process]);
        net.expect(hook, &net.later(process, vip), sent, [to, pod]);
    }
}

/// A flow without a port is dropped and counted, and takes none from another flow.
pub fn ports_run_out_and_are_never_shared(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (vip, remote) = (net.vip(1), net.target(Host::Remote));
    net.frontend(vip, &[id]);
    let sent = Fate::Sent(Device::Uplink);
    let mut flows = Vec::new();
    let mut ports = BTreeSet::new();
    let mut refused = 0;
    for port in 40000..40000 + 2 * SNAT_RANGE.1 {
        let client = net.at(Host::Client, port);
        match net.try_pass(IN, &net.first(client, vip), sent) {
            Ok(became) => {
                let node = source_of(net, &became);
                assert!(ports.insert(node.port()), "{node} serves two flows");
                flows.push((client, node));
            }
            Err(counter) => {
                assert_eq!(counter, Counter::SnatPortsExhausted);
                refused += 1;
            }
        }
    }
    assert!(refused >= SNAT_RANGE.1 && flows.len() > 32, "{refused} refused");
    for (client, node) in flows {
        net.expect_hop(IN, &net.later(client, vip), sent, [node, remote]);
        net.expect_hop(IN, &net.later(remote, node), sent, [vip, client]);
    }
}
