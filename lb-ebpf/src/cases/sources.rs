//! Rules that look at who asks: source ranges (S9), and who counts as local (S6).

use lb_common::abi::{Counter, FrontendFlags, LOCAL_SOURCES};

use super::{Device, Fate, Hook, Host, Net, SERVICE, snat::there_and_back};

const FROM_OUTSIDE: Hook = Hook::Ingress(Device::Uplink);
const FROM_POD: Hook = Hook::Ingress(Device::PodA);
const FROM_HOST: Hook = Hook::HostEgress(Device::Uplink);

/// Clients outside, pods and the node itself alike: as kube-proxy does.
pub fn s9_only_allowed_sources_are_let_in(net: &mut Net<'_>) {
    let id = net.backend(Host::PodB);
    let (vip, target, whole) = (net.vip(1), net.target(Host::PodB), net.whole());
    net.frontend_with(vip, FrontendFlags::CHECK_SOURCE, [&[id], &[id]]);
    let clients = [
        (FROM_OUTSIDE, net.client(), Fate::Next),
        (FROM_POD, net.at(Host::PodA, 40000), Fate::Next),
        (FROM_HOST, net.at(Host::Node, 40000), Fate::Sent(Device::PodB)),
    ];
    // No range, another Service's, and those that clients count to who are not there.
    net.sources(SERVICE, &[]);
    net.sources(SERVICE + 1, &[(Host::Client, 0)]);
    net.sources(LOCAL_SOURCES, &[(Host::Client, 0)]);
    for (hook, client, _) in clients {
        net.expect_drop(hook, &net.first(client, vip), Counter::SourceNotAllowed);
    }
    net.sources(SERVICE, &[(Host::Client, whole), (Host::PodA, whole)]);
    for (hook, host) in [(FROM_OUTSIDE, Host::Remote), (FROM_POD, Host::PodB)] {
        let neighbour = net.at(host, 40000);
        net.expect_drop(hook, &net.first(neighbour, vip), Counter::SourceNotAllowed);
    }
    net.expect_drop(FROM_HOST, &net.first(clients[2].1, vip), Counter::SourceNotAllowed);
    net.sources(SERVICE, &[(Host::Client, whole), (Host::PodB, whole - 8), (Host::Node, whole)]);
    // From the ports that were dropped before: nothing is remembered of that.
    for (hook, client, fate) in clients {
        net.expect(hook, &net.first(client, vip), fate, [client, target]);
    }
    let other = net.at(Host::Remote, 40000);
    net.expect_drop(FROM_OUTSIDE, &net.first(other, vip), Counter::SourceNotAllowed);
    net.sources(SERVICE, &[(Host::PodA, 0)]);
    net.expect(FROM_OUTSIDE, &net.first(other, vip), Fate::Next, [other, target]);
    forget_sources(net);
}

/// Only new connections are checked.
pub fn s9_a_flow_goes_on_when_its_source_is_allowed_no_longer(net: &mut Net<'_>) {
    let id = net.backend(Host::PodA);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.frontend_with(vip, FrontendFlags::CHECK_SOURCE, [&[id], &[id]]);
    net.sources(SERVICE, &[(Host::Client, net.whole())]);
    net.expect(FROM_OUTSIDE, &net.first(client, vip), Fate::Next, [client, pod]);
    net.sources(SERVICE, &[]);
    net.expect(FROM_OUTSIDE, &net.later(client, vip), Fate::Next, [client, pod]);
    let back = Hook::Egress(Device::Uplink);
    net.expect(back, &net.later(pod, client), Fate::Next, [vip, client]);
    let another = net.at(Host::Client, 40001);
    net.expect_drop(FROM_OUTSIDE, &net.first(another, vip), Counter::SourceNotAllowed);
    forget_sources(net);
}

/// S6.3 by address (`--cluster-cidr`): policy Local, no endpoint here, one on another node.
pub fn clients_of_local_sources_skip_the_external_policy(net: &mut Net<'_>) {
    let id = net.backend(Host::Remote);
    let (vip, target) = (net.vip(1), net.target(Host::Remote));
    let flags = FrontendFlags::DROP_EXTERNAL.with(FrontendFlags::LOCAL_BY_SOURCE);
    net.frontend_with(vip, flags, [&[id], &[]]);
    // The Service's own ranges are another matter.
    net.sources(SERVICE, &[(Host::Remote, 0)]);
    net.sources(LOCAL_SOURCES, &[(Host::Client, net.whole() - 8)]);
    let (far, stranger) = (net.client(), net.at(Host::Remote, 40000));
    net.expect_drop(FROM_OUTSIDE, &net.first(stranger, vip), Counter::NoLocalEndpoint);
    // Its reply has to come back here, or it would be a stranger's.
    there_and_back(net, [Device::Uplink, Device::Uplink], [far, vip, target]);
    let near = net.at(Host::PodA, 40000);
    net.expect(FROM_POD, &net.first(near, vip), Fate::Next, [near, target]);
    // Without the flag nobody asks where the client is from.
    let other = net.vip(2);
    net.frontend_with(other, FrontendFlags::DROP_EXTERNAL, [&[id], &[]]);
    net.expect_drop(FROM_OUTSIDE, &net.first(far, other), Counter::NoLocalEndpoint);
    forget_sources(net);
}

/// The node is who backends see already where a process of it asks.
pub fn masquerade_all_hides_every_client_but_the_node(net: &mut Net<'_>) {
    let id = net.backend(Host::PodB);
    let (vip, target) = (net.vip(1), net.target(Host::PodB));
    net.frontend_with(vip, FrontendFlags::MASQUERADE, [&[id], &[id]]);
    let (client, pod) = (net.client(), net.at(Host::PodA, 40000));
    there_and_back(net, [Device::Uplink, Device::PodB], [client, vip, target]);
    there_and_back(net, [Device::PodA, Device::PodB], [pod, vip, target]);
    let (node, sent) = (net.at(Host::Node, 40000), Fate::Sent(Device::PodB));
    net.expect(FROM_HOST, &net.first(node, vip), sent, [node, target]);
    let (far, remote) = (net.backend(Host::Remote), net.target(Host::Remote));
    net.frontend_with(net.vip(2), FrontendFlags::MASQUERADE, [&[far], &[far]]);
    there_and_back(net, [Device::PodA, Device::Uplink], [pod, net.vip(2), remote]);
}

/// A bench judges other cases after this one.
fn forget_sources(net: &mut Net<'_>) {
    for service in [LOCAL_SOURCES, SERVICE, SERVICE + 1] {
        net.sources(service, &[]);
    }
}
