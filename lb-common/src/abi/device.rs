//! What the packet path knows of a network device.

use super::{Ipv4, Ipv6, layout::abi};

abi! {
    /// A device that our programs are attached to. 32 bytes.
    pub struct Device {
        /// Source address for packets that leave by it under SNAT; zero if it has none.
        pub source_v4: Ipv4,
        /// The same for IPv6.
        pub source_v6: Ipv6,
        /// Where it leads.
        pub role: DeviceRole,
        /// Its own link-layer address; zero where it has none.
        pub mac: [u8; 6],
        /// What programs may do with it.
        pub flags: DeviceFlags,
        /// Zero.
        pub pad: u8,
    }
}

/// What programs may do with a device.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(transparent)]
pub struct DeviceFlags(pub u8);

// SAFETY: transparent over an integer.
unsafe impl super::Abi for DeviceFlags {}

impl DeviceFlags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// It sends frames that are redirected to it, whatever device they came in by.
    pub const TAKES_FRAMES: Self = Self(1);
    /// It sends back, without a redirect, frames that came in by it.
    pub const RETURNS_FRAMES: Self = Self(2);
    /// Its packets begin with the IP header: it has programs of its own.
    pub const BEGINS_WITH_IP: Self = Self(4);

    /// Are all of these set?
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These as well.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// Where a device leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct DeviceRole(pub u32);

// SAFETY: transparent over an integer.
unsafe impl super::Abi for DeviceRole {}

impl DeviceRole {
    /// To pods of this node: its clients are internal.
    pub const PODS: Self = Self(1);
    /// To other nodes and the rest of the world: its clients are external.
    pub const UPLINK: Self = Self(2);
}
