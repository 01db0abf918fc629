//! Backends of this node by their addresses: what a carrier may name.

use super::{Address, BePort, layout::abi};

abi! {
    /// A backend on this node, as another node names it: of those of a Service port at one address the
    /// lowest id has no port here. 12 bytes for IPv4, 24 for IPv6.
    #[derive(Hash)]
    pub struct Target<A> {
        /// Address of the backend.
        pub address: A,
        /// Port of the backend, or zero.
        pub port: BePort,
        /// Zero.
        pub pad: u16,
        /// The Service port it belongs to.
        pub service: u32,
    }
}

impl<A: Address> Target<A> {
    /// A key with its padding zeroed.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: A, port: BePort, service: u32) -> Self {
        Self { address, port, pad: 0, service }
    }
}
