//! Packets in fragments: what became of the first one, which alone holds the ports.

use super::{Address, L4Proto, layout::abi};

abi! {
    /// The fragments of one packet, as they stand on the wire where they are looked up. 16 bytes for
    /// IPv4, 40 for IPv6.
    #[derive(Hash)]
    pub struct FragmentKey<A> {
        /// Source address.
        pub src: A,
        /// Destination address.
        pub dst: A,
        /// Identification, in network order; of IPv4 in the first two bytes.
        pub id: u32,
        /// Protocol.
        pub protocol: L4Proto,
        /// Zero at ingress, one at egress: a forwarded packet passes both, and is judged by one.
        pub hook: u8,
        /// Zero.
        pub pad: [u8; 2],
    }
}

abi! {
    /// What becomes of the rest of a packet. 20 bytes for IPv4, 44 for IPv6.
    ///
    /// Owned by the packet path.
    pub struct Fragment<A> {
        /// Source address to write.
        pub src: A,
        /// Destination address to write.
        pub dst: A,
        /// What to do.
        pub action: FragmentAction,
        /// Interface index for [`FragmentAction::DELIVER`]; the backend's port and 16 bits of the flow's
        /// hash for [`FragmentAction::CARRY`]; 1 for a client's with [`FragmentAction::REDIRECT`]; else zero.
        pub detail: u32,
        /// When the first fragment was seen, in units of 2^30 ns of `CLOCK_MONOTONIC`.
        pub seen: u32,
    }
}

impl<A: Address> Fragment<A> {
    /// How long the rest may come after the first, in units of 2^30 ns: some 30 seconds, as long as
    /// Linux keeps fragments itself.
    pub const LIFETIME: u32 = 28;

    /// May a fragment that comes `now` still belong to the same packet?
    #[inline(always)]
    #[must_use]
    pub const fn is_fresh(&self, now: u32) -> bool {
        now.wrapping_sub(self.seen) <= Self::LIFETIME
    }
}

/// What became of the first fragment of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct FragmentAction(pub u32);

// SAFETY: transparent over an integer.
unsafe impl super::Abi for FragmentAction {}

impl FragmentAction {
    /// Carried, as it is, from the one end to the other.
    pub const CARRY: Self = Self(1);
    /// Translated, or its port alone, and passed on.
    pub const CONTINUE: Self = Self(2);
    /// Translated and delivered by a device.
    pub const DELIVER: Self = Self(3);
    /// Dropped or refused, and counted: the rest is of no use.
    pub const DROP: Self = Self(4);
    /// Left alone.
    pub const PASS: Self = Self(5);
    /// Translated and sent by a route: a client's by that of the client.
    pub const REDIRECT: Self = Self(6);
}
