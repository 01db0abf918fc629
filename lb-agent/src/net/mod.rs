//! What netlink tells of this node: devices with their roles, and addresses.
//!
//! [`classify`] decides and is pure; [`follow`] lists and keeps listening. Not for: attaching
//! programs, or changing anything of the network.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::abi::{Device, DeviceFlags, DeviceRole};

mod bound;
mod classify;
mod dump;
mod follow;
mod generic;
mod hops;
mod local;
mod nodeport;
pub mod sockets;

pub use bound::bound_ports;
pub use classify::{AddressFacts, LinkFacts, Reach, RouteFacts, classify};
pub use follow::{DeviceSettings, Following, follow, picture};
pub use generic::{XdpFeatures, strips_vlan_tags, xdp_features};
pub use hops::{HopWatch, watch_hops};
pub use local::name_pods;
pub use nodeport::nodeports;

/// The device on which kube-proxy's IPVS mode leaves every ClusterIP.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// The device on which `NodeLocal DNSCache` holds the ClusterIP of the cluster's DNS.
pub const DNS_CACHE_DEVICE: &str = "nodelocaldns";

/// One picture of the node's network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeNetwork {
    /// All devices, in order of their indices.
    pub devices: Vec<DeviceFacts>,
    /// Addresses of all devices but [`IPVS_DEVICE`]: a ClusterIP among them is served by somebody
    /// else on this node (S22).
    pub addresses: BTreeSet<IpAddr>,
    /// The node's first address of each family, towards other nodes.
    pub primary: Primary,
}

impl NodeNetwork {
    /// Devices that could carry Services if this program knew how.
    pub fn unsupported(&self) -> impl Iterator<Item = &DeviceFacts> {
        self.devices.iter().filter(|device| device.usage == Usage::Skip(SkipReason::OtherLayer))
    }
}

/// The node's own address of each family, where it has one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Primary {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Primary {
    /// Those that there are.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }
}

/// One device, and what it is good for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceFacts {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Kind as `ip -d link` shows it; empty for hardware.
    pub kind: String,
    /// Attach to it, or why not.
    pub usage: Usage,
    /// What its packets begin with.
    pub layer: Layer,
    /// Its link-layer address; zero where it has none.
    pub mac: [u8; 6],
    /// How long its packets may be, in bytes.
    pub mtu: u32,
    /// Is it up?
    pub up: bool,
    /// IPv4 addresses, in the kernel's order.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses, in the kernel's order.
    pub v6: Vec<Ipv6Addr>,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Do VLAN devices sit on it?
    pub carries_vlans: bool,
}

impl DeviceFacts {
    /// Its role, where programs are to be attached.
    pub fn role(&self) -> Option<DeviceRole> {
        match self.usage {
            Usage::Attach(role) => Some(role),
            Usage::Skip(_) => None,
        }
    }

    /// The entry of the device table: its own first global addresses, else the node's.
    pub fn entry(&self, primary: Primary) -> Option<Device> {
        let role = self.role()?;
        let own_v4 = self.v4.iter().copied().find(|&address| is_global(address.into()));
        let own_v6 = self.v6.iter().copied().find(|&address| is_global(address.into()));
        let source_v4 = own_v4.or(primary.v4).unwrap_or(Ipv4Addr::UNSPECIFIED).into();
        let source_v6 = own_v6.or(primary.v6).unwrap_or(Ipv6Addr::UNSPECIFIED).into();
        let flags = match self.layer {
            Layer::Ip => DeviceFlags::BEGINS_WITH_IP,
            Layer::Ethernet | Layer::Other => DeviceFlags::NONE,
        };
        Some(Device { source_v4, source_v6, role, mac: self.mac, flags, pad: 0 })
    }

    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().copied().map(IpAddr::from);
        v4.chain(self.v6.iter().copied().map(IpAddr::from))
    }
}

/// What the packets of a device begin with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Layer {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// The IP header, as with tun, `WireGuard` and IPIP.
    Ip,
    /// Another header.
    Other,
}

/// What is done with a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// Programs are attached.
    Attach(DeviceRole),
    /// It is left alone.
    Skip(SkipReason),
}

impl Usage {
    /// The role in a word, `none` without one.
    pub fn role_name(self) -> &'static str {
        match self {
            Self::Attach(DeviceRole::UPLINK) => "uplink",
            Self::Attach(_) => "pods",
            Self::Skip(_) => "none",
        }
    }
}

/// Why a device is left alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SkipReason {
    /// A member of a bond or team, or the hardware port of an uplink bridge: packets pass its
    /// master.
    Member,
    /// The packets that reach it go nowhere: dummy and intermediate devices.
    Dummy,
    /// Neither an address nor a route leads to it.
    Idle,
    /// The loopback device.
    Loopback,
    /// Its packets begin with another header than Ethernet's or IP's, as on `InfiniBand`: not supported.
    OtherLayer,
    /// Other devices were named.
    NotNamed,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dummy => "leads nowhere",
            Self::Idle => "has no address and no route",
            Self::Loopback => "is the loopback device",
            Self::Member => "is served by its master",
            Self::OtherLayer => "is neither of Ethernet nor of IP, which is not supported",
            Self::NotNamed => "is not named by --device",
        })
    }
}

/// Can other nodes or clients outside reach this address: neither loopback nor link-local?
pub(crate) fn is_global(address: IpAddr) -> bool {
    crate::model::is_routable(address)
}
