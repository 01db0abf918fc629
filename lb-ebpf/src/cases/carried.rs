//! What comes in carriers, or looks as if it had to do with them, and no honest node sends.

use std::net::SocketAddr;

use lb_common::abi::{BackendFlags, Counter, FrontendFlags, L4Proto};

use super::{
    Device, Fate, Hook, Host, Net,
    dsr::{by_ipip, carried, expect_carried, expect_unpacked, too_long},
    frame::{Frame, fragments},
};

const IN: Hook = Hook::Ingress(Device::Uplink);

/// A Service by direct server return with one backend; its VIP.
fn serve(net: &mut Net<'_>, host: Host) -> SocketAddr {
    let (id, vip) = (net.backend(host), net.vip(1));
    net.frontend_with(vip, FrontendFlags::DSR, [&[id], &[id]]);
    vip
}

/// The backend would answer the Service, and this node send that on.
pub fn a_packet_from_its_own_destination_is_dropped(net: &mut Net<'_>) {
    let vip = serve(net, Host::PodA);
    let pod = net.target(Host::PodA);
    for src in [vip, SocketAddr::new(vip.ip(), 40000)] {
        let packet = carried(net, &net.first(src, vip), pod);
        net.expect_drop(IN, &packet, Counter::Martian);
    }
}

/// What an id means today says nothing of a connection that began when it meant another backend.
pub fn s12_a_connection_outlives_a_new_owner_of_its_backend_s_id(net: &mut Net<'_>) {
    if !net.has_connections() {
        return;
    }
    let vip = serve(net, Host::PodA);
    let (client, pod) = (net.client(), net.target(Host::PodA));
    expect_unpacked(net, &net.first(client, vip), pod);
    net.expect(Hook::Egress(Device::Uplink), &net.later(pod, client), Fate::Next, [vip, client]);
    expect_unpacked(net, &net.later(client, vip), pod);
    net.backend_with(Host::PodA, BackendFlags::NONE, 0);
    expect_unpacked(net, &net.later(client, vip), pod);
    let elsewhere = net.target(Host::Remote);
    net.new_owner(Host::PodA, elsewhere);
    expect_unpacked(net, &net.later(client, vip), pod);
}

/// A tunnel to this node itself is none of ours, whatever came past it.
pub fn fragments_in_tunnels_of_others_are_left_alone(net: &mut Net<'_>) {
    if net.kind.protocol == L4Proto::SCTP {
        return;
    }
    let (client, node) = (net.client(), net.at(Host::Node, 9));
    let packet = Frame { payload: vec![7; 2000], ..net.later(client, node) };
    let pieces = fragments(&packet, 31, 800);
    net.expect_untouched(IN, &pieces[0], &[]);
    let tunnel = by_ipip(net, &pieces[1], [net.at(Host::Remote, 0), node]);
    net.expect_untouched(IN, &tunnel.encode(), &[]);
}

/// An error goes to whom it is addressed, whatever it quotes.
pub fn errors_to_others_are_left_alone(net: &mut Net<'_>) {
    let vip = serve(net, Host::Remote);
    let client = net.client();
    expect_carried(net, &net.first(client, vip));
    let error = too_long(net, &net.later(vip, client));
    let other = Frame { dst: net.at(Host::PodA, 0), ..error };
    net.expect_untouched(IN, &other.encode(), &[]);
}
