//! Flows as the packet path remembers them: two entries each, one for each direction.

use super::{Address, BePort, L4Proto, layout::abi};
use crate::conntrack::End;

abi! {
    /// A flow as it stands on the wire where it is looked up. 16 bytes for IPv4, 40 for IPv6.
    pub struct CtKey<A> {
        /// Source address.
        pub src: A,
        /// Destination address.
        pub dst: A,
        /// Source port.
        pub src_port: BePort,
        /// Destination port.
        pub dst_port: BePort,
        /// Protocol.
        pub protocol: L4Proto,
        /// Zero.
        pub pad: [u8; 3],
    }
}

impl<A: Address> CtKey<A> {
    /// The same flow as the other end sends it.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..*self
        }
    }
}

abi! {
    /// What becomes of a packet of a known flow. 36 bytes for IPv4, 60 for IPv6: with the kernel's
    /// header and the key, two cache lines for IPv4.
    ///
    /// Owned by the packet path; the agent only reads and deletes.
    pub struct CtEntry<A> {
        /// Source address to write.
        pub src: A,
        /// Destination address to write.
        pub dst: A,
        /// Source port to write.
        pub src_port: BePort,
        /// Destination port to write.
        pub dst_port: BePort,
        /// What to do, and where.
        pub action: CtAction,
        /// State of the flow: see [`CtState`](crate::conntrack::CtState).
        pub state: u8,
        /// Zero.
        pub pad: u16,
        /// Service port of the flow.
        pub service: u32,
        /// Backend id of the flow.
        pub backend: u32,
        /// Generation of the backend id.
        pub generation: u32,
        /// When its last packet was seen, in units of 2^30 ns of `CLOCK_MONOTONIC`.
        pub last_seen: u32,
        /// Interface index for [`CtAction::REPLY_TO_HOST`], else zero.
        pub device: u32,
    }
}

impl<A: Address> CtEntry<A> {
    /// The key of the entry for the other direction: the packet that this entry makes, reversed.
    #[inline(always)]
    #[must_use]
    pub fn peer(&self, protocol: L4Proto) -> CtKey<A> {
        CtKey {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol,
            pad: [0; 3],
        }
    }
}

abi! {
    /// What a walk over all entries of one family has found.
    pub struct Swept {
        /// Entries there were, those among them that are gone by now; of flows that are not proven, those
        /// that were seen of late.
        pub entries: u64,
        /// Entries removed because their backend no longer serves.
        pub stale: u64,
        /// Entries removed because they were silent for too long.
        pub expired: u64,
        /// When it began, in units of 2^30 ns of `CLOCK_MONOTONIC`.
        pub begun: u64,
    }
}

/// What to do with a packet of a known flow, and at which hook.
///
/// Made of bits: a program that has to tell one of several by its number pays for each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct CtAction(pub u8);

// SAFETY: transparent over an integer.
unsafe impl super::Abi for CtAction {}

impl CtAction {
    const CARRIES: u8 = 32;
    const COSTS_HOP: u8 = 16;
    const EGRESS: u8 = 4;
    const IS_FORWARD: u8 = 2;
    const REDIRECTS: u8 = 8;
    const TO_HOST: u8 = 64;
    /// Tells an action from none.
    const TRANSLATES: u8 = 1;

    /// Leave the packet alone: it belongs to no Service. Never in conntrack.
    pub const NONE: Self = Self(0);
    /// Ingress, client to backend: write the backend's address and go on to the stack.
    pub const FORWARD: Self = Self(Self::TRANSLATES | Self::IS_FORWARD);
    /// Egress, host to backend: write the backend's address and redirect to its device.
    pub const FORWARD_FROM_HOST: Self = Self(Self::FORWARD.0 | Self::EGRESS | Self::REDIRECTS);
    /// Ingress, client to backend: write both ends and redirect.
    pub const FORWARD_SNAT: Self = Self(Self::FORWARD.0 | Self::REDIRECTS | Self::COSTS_HOP);
    /// Ingress, client to backend: carry the packet, as it is, from the one end to the other. There is
    /// no entry for replies: they take another way.
    pub const FORWARD_DSR: Self = Self(Self::FORWARD_SNAT.0 | Self::CARRIES);
    /// Egress, backend to client: write the frontend's address and go on.
    pub const REPLY: Self = Self(Self::TRANSLATES | Self::EGRESS);
    /// Ingress, backend to node: write both ends and redirect to the client.
    pub const REPLY_SNAT: Self = Self(Self::TRANSLATES | Self::REDIRECTS | Self::COSTS_HOP);
    /// Ingress, backend to host: write the frontend's address, deliver by `device`.
    pub const REPLY_TO_HOST: Self = Self(Self::TRANSLATES | Self::TO_HOST);

    /// Is it for packets of the client?
    #[inline(always)]
    #[must_use]
    pub const fn is_forward(self) -> bool {
        self.0 & Self::IS_FORWARD != 0
    }

    /// Is it for packets that leave by a device?
    #[inline(always)]
    #[must_use]
    pub const fn is_at_egress(self) -> bool {
        self.0 & Self::EGRESS != 0
    }

    /// Does this node send its packets on in place of the stack?
    #[inline(always)]
    #[must_use]
    pub const fn redirects(self) -> bool {
        self.0 & Self::REDIRECTS != 0
    }

    /// Does that cost the packet a hop?
    #[inline(always)]
    #[must_use]
    pub const fn costs_hop(self) -> bool {
        self.0 & Self::COSTS_HOP != 0
    }

    /// Is the packet carried, as it is?
    #[inline(always)]
    #[must_use]
    pub const fn carries(self) -> bool {
        self.0 & Self::CARRIES != 0
    }

    /// The end of a flow whose packets it is for.
    #[inline(always)]
    #[must_use]
    pub const fn end(self) -> End {
        if self.is_forward() { End::Client } else { End::Backend }
    }

    /// The action of the flow's other entry, if there is one.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::FORWARD => Self::REPLY,
            Self::FORWARD_FROM_HOST => Self::REPLY_TO_HOST,
            Self::FORWARD_SNAT => Self::REPLY_SNAT,
            Self::REPLY => Self::FORWARD,
            Self::REPLY_SNAT => Self::FORWARD_SNAT,
            Self::REPLY_TO_HOST => Self::FORWARD_FROM_HOST,
            _ => Self::NONE,
        }
    }
}
