//! Sources that a packet on a wire cannot have: nobody is made to answer them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::abi::{Counter, FrontendFlags};

use super::{Device, Fate, Hook, Host, Net, net::ACK};

const UPLINK: Hook = Hook::Ingress(Device::Uplink);
const FROM_POD: Hook = Hook::Ingress(Device::PodB);
const PORT: u16 = 80;

/// Many, nobody, and whoever is asked by himself.
fn no_single_hosts(is_v4: bool) -> Vec<IpAddr> {
    if is_v4 {
        let all = [[224, 0, 0, 1], [239, 255, 255, 250], [255; 4], [0; 4], [0, 0, 0, 7]];
        let all = all.into_iter().chain([[127, 0, 0, 1]]);
        all.map(|address| Ipv4Addr::from(address).into()).collect()
    } else {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let all = [all_nodes, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST];
        all.map(IpAddr::from).to_vec()
    }
}

/// Frontends with a backend here, one on another node, the same by direct server return, and none.
fn frontends(net: &mut Net<'_>) -> [SocketAddr; 4] {
    let (local, remote) = (net.backend(Host::PodA), net.backend(Host::Remote));
    let vips = [1, 2, 3, 4].map(|number| net.vip(number));
    let carried = FrontendFlags::DSR;
    net.frontend(vips[0], &[local]);
    net.frontend(vips[1], &[remote]);
    net.frontend_with(vips[2], carried, [&[remote], &[remote]]);
    net.frontend(vips[3], &[]);
    vips
}

/// Neither answered nor sent on, whatever the frontend would do with others.
pub fn sources_that_are_no_single_host_are_dropped(net: &mut Net<'_>) {
    let vips = frontends(net);
    for vip in vips {
        for source in no_single_hosts(net.kind.is_v4).into_iter().chain([vip.ip()]) {
            let src = SocketAddr::new(source, PORT);
            for hook in [UPLINK, FROM_POD] {
                net.expect_drop(hook, &net.first(src, vip), Counter::Martian);
                net.expect_drop(hook, &net.segment(src, vip, ACK), Counter::Martian);
            }
        }
    }
    // Reserved, and in use.
    if net.kind.is_v4 {
        let src = SocketAddr::from(([240, 0, 0, 1], PORT));
        net.expect(UPLINK, &net.first(src, vips[0]), Fate::Next, [src, net.target(Host::PodA)]);
    }
}

/// The stack, which knows all addresses of the node, judges what goes on to it.
pub fn sources_of_this_node_do_not_come_by_a_wire(net: &mut Net<'_>) {
    let [local, rest @ ..] = frontends(net);
    let own = net.at(Host::Node, PORT);
    for vip in rest {
        net.expect_drop(UPLINK, &net.first(own, vip), Counter::Martian);
        net.expect_drop(UPLINK, &net.segment(own, vip, ACK), Counter::Martian);
    }
    net.expect(UPLINK, &net.first(own, local), Fate::Next, [own, net.target(Host::PodA)]);
}
