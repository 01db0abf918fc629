//! One address, port and protocol that a Service answers on.

use super::{
    Address, BePort, L4Proto,
    layout::{abi, flags},
};

abi! {
    /// Where a client sends to. 8 bytes for IPv4, 20 for IPv6.
    #[derive(Hash, Ord, PartialOrd)]
    pub struct FrontendKey<A> {
        /// Destination address.
        pub address: A,
        /// Destination port.
        pub port: BePort,
        /// Protocol.
        pub protocol: L4Proto,
        /// Zero.
        pub pad: u8,
    }
}

impl<A: Address> FrontendKey<A> {
    /// A key with its padding zeroed.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: A, port: BePort, protocol: L4Proto) -> Self {
        Self { address, port, protocol, pad: 0 }
    }

    /// The key of an address that answers to pings: there while it has any other frontend.
    #[inline(always)]
    #[must_use]
    pub const fn ping(address: A) -> Self {
        Self::new(address, BePort::new(0), A::ICMP)
    }
}

abi! {
    /// A Maglev table within `SLOTS`. 8 bytes.
    pub struct Region {
        /// Number of the first chunk: `array * CHUNKS_PER_ARRAY + element`.
        pub first_chunk: u32,
        /// Slots, a prime; zero if there is no usable backend.
        pub length: u32,
    }
}

impl Region {
    /// The region of a list without backends.
    pub const EMPTY: Self = Self { first_chunk: 0, length: 0 };
}

abi! {
    /// What a frontend leads to. 28 bytes.
    ///
    /// Owned by the agent; replaced whole, so a reader sees the old one or the new one.
    pub struct Frontend {
        /// The Service port it belongs to.
        pub service: u32,
        /// See [`FrontendFlags`].
        pub flags: FrontendFlags,
        /// What kind of address it is.
        pub kind: FrontendKind,
        /// Affinity timeout in seconds; zero without affinity.
        pub affinity_timeout: u32,
        /// For clients on this node: its pods and the node itself.
        pub internal: Region,
        /// For clients that come from outside this node.
        pub external: Region,
    }
}

flags! {
    /// Bits of a [`Frontend`].
    pub struct FrontendFlags
}

impl FrontendFlags {
    /// Without a usable backend, clients on this node are dropped instead of refused (S5).
    pub const DROP_INTERNAL: Self = Self(1);
    /// Without a usable backend, clients from outside are dropped instead of refused (S5).
    pub const DROP_EXTERNAL: Self = Self(2);
    /// Only sockets in the agent's own network namespace may use it (a loopback NodePort).
    pub const HOST_ONLY: Self = Self(4);
    /// Clients on this node choose from the Local list.
    pub const INTERNAL_LOCAL: Self = Self(8);
    /// Clients from outside choose from the Local list.
    pub const EXTERNAL_LOCAL: Self = Self(16);
    /// Only sources in `SOURCE_RANGES` of its Service port may ask (S9).
    pub const CHECK_SOURCE: Self = Self(32);
    /// Backends see this node in place of every client (`--masquerade-all`).
    pub const MASQUERADE: Self = Self(64);
    /// Clients from outside whose source is one of [`LOCAL_SOURCES`](super::LOCAL_SOURCES) count as
    /// clients on this node (S6).
    pub const LOCAL_BY_SOURCE: Self = Self(128);
    /// Clients from outside are carried to a backend on another node, which answers them directly (DSR).
    pub const DSR: Self = Self(512);
    /// Nobody is answered here: the entry only keeps processes of the host from binding the port.
    pub const BIND_ONLY: Self = Self(256);
}

/// What kind of address a [`Frontend`] has, for people to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct FrontendKind(pub u16);

// SAFETY: transparent over an integer.
unsafe impl super::Abi for FrontendKind {}

impl FrontendKind {
    /// `spec.clusterIPs`.
    pub const CLUSTER_IP: Self = Self(1);
    /// `spec.externalIPs`.
    pub const EXTERNAL_IP: Self = Self(2);
    /// `status.loadBalancer.ingress`.
    pub const LOAD_BALANCER: Self = Self(3);
    /// An address of the node with `spec.ports[].nodePort`.
    pub const NODE_PORT: Self = Self(4);
}
