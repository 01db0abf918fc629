//! Which sources a Service lets in, and which count as pods of this node.

use super::{Address, layout::abi};

/// In place of a Service port: sources that are clients on this node, whatever device their packets
/// come in by.
pub const LOCAL_SOURCES: u32 = 0;

abi! {
    /// Who asks whom. 8 bytes for IPv4, 20 for IPv6.
    pub struct Source<A> {
        /// The Service port that is asked, or [`LOCAL_SOURCES`].
        pub service: u32,
        /// Who asks.
        pub address: A,
    }
}

abi! {
    /// A range of sources of one Service port. 12 bytes for IPv4, 24 for IPv6.
    pub struct SourceRange<A> {
        /// How many of the first bits of `first` count: those of the Service port, and a prefix of
        /// the address.
        pub bits: u32,
        /// The first of them.
        pub first: Source<A>,
    }
}

impl<A: Address> SourceRange<A> {
    /// Bits of the Service port, which always count.
    const SERVICE_BITS: u32 = u32::BITS;

    /// The range of a prefix of `length` bits.
    #[must_use]
    pub const fn new(service: u32, address: A, length: u8) -> Self {
        Self { bits: Self::SERVICE_BITS + length as u32, first: Source { service, address } }
    }

    /// Length of its prefix in bits; `None` if it is no range of one Service port.
    #[must_use]
    pub fn length(&self) -> Option<u8> {
        u8::try_from(self.bits.checked_sub(Self::SERVICE_BITS)?).ok()
    }
}
