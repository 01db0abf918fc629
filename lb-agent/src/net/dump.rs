//! Lists links, addresses and routes by netlink, and keeps what matters of them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use futures::{StreamExt, TryStream, TryStreamExt, future};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use super::{AddressFacts, Layer, LinkFacts, Reach, RouteFacts, classify::LOOPBACK};

/// Number of the routing table of the node's own addresses.
const LOCAL_TABLE: u32 = 255;

/// Everything that [`classify`](super::classify) reads.
pub(super) struct Dump {
    pub(super) links: Vec<LinkFacts>,
    pub(super) addresses: Vec<AddressFacts>,
    pub(super) routes: BTreeSet<RouteFacts>,
}

/// Lists everything once.
pub(super) async fn dump(handle: &Handle) -> Result<Dump, rtnetlink::Error> {
    let mut links: Vec<_> = handle.link().get().execute().map_ok(link_facts).try_collect().await?;
    links.sort_by_key(|link| link.ifindex);
    let addresses = handle
        .address()
        .get()
        .execute()
        .try_filter_map(|message| future::ok(address_facts(&message)));
    let addresses = addresses.try_collect().await?;
    let mut routes = BTreeSet::new();
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for family in [v4, v6] {
        collect_routes(handle.route().get(family).execute(), &mut routes).await?;
    }
    Ok(Dump { links, addresses, routes })
}

async fn collect_routes<E>(
    messages: impl TryStream<Ok = RouteMessage, Error = E>,
    routes: &mut BTreeSet<RouteFacts>,
) -> Result<(), E> {
    let mut messages = std::pin::pin!(messages.into_stream());
    while let Some(message) = messages.next().await {
        routes.extend(route_facts(&message?));
    }
    Ok(())
}

fn link_facts(message: LinkMessage) -> LinkFacts {
    let header = message.header;
    let mut facts = LinkFacts {
        ifindex: header.index,
        layer: layer(header.link_layer_type),
        up: header.flags.contains(LinkFlags::Up),
        ..LinkFacts::default()
    };
    if header.flags.contains(LinkFlags::Loopback) {
        LOOPBACK.clone_into(&mut facts.kind);
    }
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => facts.name = name,
            LinkAttribute::Controller(master) => facts.master = Some(master),
            LinkAttribute::Address(bytes) => facts.mac = bytes.try_into().unwrap_or_default(),
            LinkAttribute::Mtu(bytes) => facts.mtu = bytes,
            LinkAttribute::Link(lower) => facts.lower = Some(lower),
            LinkAttribute::LinkNetNsId(_) => facts.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                facts.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    facts
}

/// What packets of a device of this type begin with, as the kernel tells redirects
/// (`dev_is_mac_header_xmit` of `include/linux/if_arp.h`).
fn layer(link: LinkLayerType) -> Layer {
    match link {
        LinkLayerType::Ether | LinkLayerType::Loopback => Layer::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Ppp
        | LinkLayerType::Rawip
        | LinkLayerType::Sit
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6 => Layer::Ip,
        _ => Layer::Other,
    }
}

/// None for an address that can't be used (yet): duplicate address detection decides.
fn address_facts(message: &AddressMessage) -> Option<AddressFacts> {
    let mut unusable = message
        .header
        .flags
        .intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed);
    // The local end, where it is told apart from the peer's.
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => local = Some(*own),
            AddressAttribute::Address(prefix) => address = Some(*prefix),
            AddressAttribute::Flags(flags) => {
                unusable |= flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
            }
            _ => {}
        }
    }
    let (ifindex, prefix) = (message.header.index, message.header.prefix_len);
    let address = local.or(address)?;
    (!unusable).then_some(AddressFacts { ifindex, address, prefix })
}

/// The devices that a route leads to; none for routes of the node itself and link-local ones.
pub(super) fn route_facts(message: &RouteMessage) -> Vec<RouteFacts> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let (mut destination, mut devices) = (None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            RouteAttribute::Oif(device) => devices.push(*device),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    if header.kind != RouteType::Unicast || table == LOCAL_TABLE {
        return Vec::new();
    }
    let Some(reach) = reach(destination, header.destination_prefix_length) else {
        return Vec::new();
    };
    devices.into_iter().map(|ifindex| RouteFacts { ifindex, reach }).collect()
}

fn reach(destination: Option<IpAddr>, prefix: u8) -> Option<Reach> {
    match (destination, prefix) {
        (_, 0) => Some(Reach::Default),
        (Some(IpAddr::V4(address)), _) if address.is_link_local() => None,
        (Some(IpAddr::V6(address)), _) if address.is_unicast_link_local() => None,
        (Some(IpAddr::V6(address)), _) if address.is_multicast() => None,
        (Some(IpAddr::V4(_)), 32) | (Some(IpAddr::V6(_)), 128) => Some(Reach::Host),
        _ => Some(Reach::Network),
    }
}
