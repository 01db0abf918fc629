//! Which devices lead to pods and which to the rest of the world: a pure function of netlink's
//! facts.
//!
//! | device | role |
//! |---|---|
//! | carries a default route; VXLAN and other tunnels with L2 | uplink |
//! | bridge with a port that is neither veth, netkit nor tap | uplink (a hardware NIC is bridged) |
//! | any other bridge | pods |
//! | veth-like port of a bridge | pods, even if the bridge is an uplink |
//! | hardware port of a bridge, member of a bond or team | skipped: packets pass the master |
//! | veth-like, with an address of its own that has neighbours (prefix shorter than /32, /128) | uplink |
//! | veth-like, with a host route to it, with a gateway address, or with its peer elsewhere | pods |
//! | anything else with a global address or a route | uplink |
//!
//! An address that several devices share, as CNIs give the pods' gateway to every host end, is
//! nobody's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::abi::DeviceRole;

use super::{DeviceFacts, IPVS_DEVICE, Layer, NodeNetwork, Primary, SkipReason, Usage, is_global};
use crate::config::DevicePattern;

/// The kind that stands for `lo`, which has none of its own.
pub(super) const LOOPBACK: &str = "loopback";

/// One link, as netlink lists it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LinkFacts {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Kind; empty for hardware, `loopback` for `lo`.
    pub kind: String,
    /// What its packets begin with.
    pub layer: Layer,
    /// Is it up?
    pub up: bool,
    /// Index of its master.
    pub master: Option<u32>,
    /// Index of the device that it sits on or is paired with, where that is in this namespace.
    pub lower: Option<u32>,
    /// Is its other end in another network namespace?
    pub peer_elsewhere: bool,
    /// Its link-layer address; zero where it has none.
    pub mac: [u8; 6],
    /// How long its packets may be, in bytes.
    pub mtu: u32,
}

/// One address, as netlink lists it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AddressFacts {
    /// Its device.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
}

/// How much a route reaches.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reach {
    /// Everything.
    Default,
    /// One address.
    Host,
    /// Some network.
    Network,
}

/// That a route of such a reach leads out of a device; link-local routes are left out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RouteFacts {
    /// The device.
    pub ifindex: u32,
    /// Its reach.
    pub reach: Reach,
}

/// Gives every device its role; `named` restricts the devices in use, unless it is empty.
pub fn classify(
    links: &[LinkFacts],
    addresses: &[AddressFacts],
    routes: &BTreeSet<RouteFacts>,
    named: &[DevicePattern],
) -> NodeNetwork {
    let view = View { links, addresses, routes };
    let devices: Vec<_> = links.iter().map(|link| view.device(link, named)).collect();
    let addresses = devices
        .iter()
        .filter(|device| device.name != IPVS_DEVICE)
        .flat_map(DeviceFacts::addresses)
        .collect();
    NodeNetwork { primary: view.primary(&devices), devices, addresses }
}

struct View<'a> {
    links: &'a [LinkFacts],
    addresses: &'a [AddressFacts],
    routes: &'a BTreeSet<RouteFacts>,
}

impl View<'_> {
    fn device(&self, link: &LinkFacts, named: &[DevicePattern]) -> DeviceFacts {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for facts in self.addresses_of(link) {
            match facts.address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        DeviceFacts {
            ifindex: link.ifindex,
            name: link.name.clone(),
            kind: link.kind.clone(),
            usage: named_usage(link, self.usage(link), named),
            layer: link.layer,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            v4,
            v6,
            master: link.master,
            carries_vlans: self.carries_vlans(link),
        }
    }

    fn carries_vlans(&self, link: &LinkFacts) -> bool {
        let is_on = |vlan: &LinkFacts| !vlan.peer_elsewhere && vlan.lower == Some(link.ifindex);
        self.links.iter().any(|other| other.kind == "vlan" && is_on(other))
    }

    fn usage(&self, link: &LinkFacts) -> Usage {
        if link.kind == LOOPBACK {
            return Usage::Skip(SkipReason::Loopback);
        }
        if matches!(&*link.kind, "dummy" | "ifb" | "nlmon" | "vcan" | "vrf") {
            return Usage::Skip(SkipReason::Dummy);
        }
        if link.layer == Layer::Other {
            return Usage::Skip(SkipReason::OtherLayer);
        }
        self.usage_by_master(link).unwrap_or_else(|| self.usage_alone(link))
    }

    /// The usage that follows from what the device belongs to, if anything does.
    fn usage_by_master(&self, link: &LinkFacts) -> Option<Usage> {
        let master = self.links.iter().find(|other| Some(other.ifindex) == link.master)?;
        match &*master.kind {
            "bridge" if is_veth_like(link) => Some(Usage::Attach(DeviceRole::PODS)),
            "bond" | "bridge" | "team" => Some(Usage::Skip(SkipReason::Member)),
            _ => None,
        }
    }

    fn usage_alone(&self, link: &LinkFacts) -> Usage {
        if self.has_route(link, Reach::Default) || is_tunnel(link) {
            return Usage::Attach(DeviceRole::UPLINK);
        }
        if link.kind == "bridge" {
            return Usage::Attach(self.bridge_role(link));
        }
        if is_veth_like(link) {
            return self.veth_usage(link);
        }
        let has_address = self.addresses_of(link).any(|facts| is_global(facts.address));
        let has_route = self.routes.iter().any(|route| route.ifindex == link.ifindex);
        if has_address || has_route {
            return Usage::Attach(DeviceRole::UPLINK);
        }
        Usage::Skip(SkipReason::Idle)
    }

    fn bridge_role(&self, bridge: &LinkFacts) -> DeviceRole {
        let mut ports = self.links.iter().filter(|port| port.master == Some(bridge.ifindex));
        let has_hardware = ports.any(|port| !is_veth_like(port));
        if has_hardware { DeviceRole::UPLINK } else { DeviceRole::PODS }
    }

    fn veth_usage(&self, link: &LinkFacts) -> Usage {
        if self.addresses_of(link).any(|facts| self.has_neighbours(facts)) {
            return Usage::Attach(DeviceRole::UPLINK);
        }
        let has_gateway_address = self.addresses_of(link).any(|facts| is_global(facts.address));
        if has_gateway_address || self.has_route(link, Reach::Host) || link.peer_elsewhere {
            return Usage::Attach(DeviceRole::PODS);
        }
        Usage::Skip(SkipReason::Idle)
    }

    /// Is it an address of this device alone, in a network with others?
    fn has_neighbours(&self, facts: &AddressFacts) -> bool {
        let whole = if facts.address.is_ipv4() { 32 } else { 128 };
        let is_shared = self
            .addresses
            .iter()
            .any(|other| other.address == facts.address && other.ifindex != facts.ifindex);
        is_global(facts.address) && facts.prefix < whole && !is_shared
    }

    fn has_route(&self, link: &LinkFacts, reach: Reach) -> bool {
        self.routes.contains(&RouteFacts { ifindex: link.ifindex, reach })
    }

    fn addresses_of(&self, link: &LinkFacts) -> impl Iterator<Item = &AddressFacts> {
        let ifindex = link.ifindex;
        self.addresses.iter().filter(move |facts| facts.ifindex == ifindex)
    }

    /// The first global address of each family: of devices with a default route, else of uplinks,
    /// else of any device but those that lead nowhere.
    fn primary(&self, devices: &[DeviceFacts]) -> Primary {
        let rank = |device: &DeviceFacts| {
            let default = RouteFacts { ifindex: device.ifindex, reach: Reach::Default };
            match device.usage {
                _ if self.routes.contains(&default) => Some(0),
                Usage::Attach(DeviceRole::UPLINK) => Some(1),
                Usage::Skip(SkipReason::Dummy) => None,
                _ => Some(2),
            }
        };
        let mut ranked = BTreeMap::new();
        for device in devices {
            if let Some(rank) = rank(device) {
                ranked.entry(rank).or_insert_with(Vec::new).push(device);
            }
        }
        let ordered: Vec<_> = ranked.into_values().flatten().collect();
        let mut v4 = ordered.iter().flat_map(|device| &device.v4).copied();
        let mut v6 = ordered.iter().flat_map(|device| &device.v6).copied();
        Primary {
            v4: v4.find(|&address| is_global(address.into())),
            v6: v6.find(|&address| is_global(address.into())),
        }
    }
}

fn named_usage(link: &LinkFacts, found: Usage, named: &[DevicePattern]) -> Usage {
    match found {
        Usage::Skip(SkipReason::Loopback | SkipReason::OtherLayer) => found,
        _ if named.is_empty() => found,
        _ if !named.iter().any(|pattern| pattern.matches(&link.name)) => {
            Usage::Skip(SkipReason::NotNamed)
        }
        Usage::Skip(_) => Usage::Attach(DeviceRole::UPLINK),
        Usage::Attach(_) => found,
    }
}

/// A device whose other end is usually a pod: veth, netkit, and the tap of a virtual machine.
fn is_veth_like(link: &LinkFacts) -> bool {
    matches!(&*link.kind, "netkit" | "tun" | "veth") && link.layer == Layer::Ethernet
}

fn is_tunnel(link: &LinkFacts) -> bool {
    matches!(&*link.kind, "geneve" | "gretap" | "ip6gretap" | "vxlan")
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
