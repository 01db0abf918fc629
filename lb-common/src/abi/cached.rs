//! What the packet path does with the packets of a flow, in a form that it can do at once.

use super::{Address, BePort, CtAction, CtKey, DeviceFlags, layout::abi};
use crate::checksum::{Difference, fold};

/// The bytes of a word that belong to the address that begins in the word before.
const SECOND_HALF: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);

abi! {
    /// A device, and whom to send to by it. 20 bytes.
    pub struct NextHop {
        /// Interface index.
        pub device: u32,
        /// Link-layer addresses as they stand in a frame: the next node's, then the device's own;
        /// zero if the next node's is not known.
        pub macs: [u32; 3],
        /// Most bytes of a packet, from its IP header on.
        pub mtu: u16,
        /// What the XDP program may do with the device; nothing if the next node is not known.
        pub flags: DeviceFlags,
        /// Zero.
        pub pad: u8,
    }
}

impl NextHop {
    /// A device alone.
    #[inline(always)]
    #[must_use]
    pub const fn of(device: u32) -> Self {
        Self { device, mtu: 0, macs: [0; 3], flags: DeviceFlags::NONE, pad: 0 }
    }

    /// Are the link-layer addresses known?
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.macs[0] | self.macs[1] & SECOND_HALF != 0
    }
}

abi! {
    /// What becomes of the packets of a flow. 64 bytes for IPv4, one cache line; 112 for IPv6.
    ///
    /// Owned by the packet path. Two CPUs may write one element at the same time, so it is copied
    /// first and believed only if `check` fits what was copied.
    pub struct CachedFlow<A> {
        /// The flow as it stands on the wire.
        pub flow: CtKey<A>,
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
        /// Zero.
        pub pad: [u8; 3],
        /// What that changes in a checksum over the addresses, and in one over the ports: 16-bit ones'
        /// complement sums, as they lie in memory (RFC 1624).
        pub changes: [u16; 2],
        /// Where its packets are sent, or the device that they are delivered by; zero for the stack's
        /// choice.
        pub hop: NextHop,
        /// See [`cache`](crate::cache).
        pub check: u64,
    }
}

/// What a hint tells of its backend, in place of a next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hinted {
    /// Service port of the flow.
    pub service: u32,
    /// Backend id of the flow.
    pub backend: u32,
    /// Generation of the backend id.
    pub generation: u32,
    /// Has the backend answered?
    pub is_answered: bool,
}

impl From<Hinted> for NextHop {
    #[inline(always)]
    fn from(hinted: Hinted) -> Self {
        let macs = [hinted.service, hinted.generation, 0];
        Self { mtu: hinted.is_answered.into(), macs, ..Self::of(hinted.backend) }
    }
}

impl From<NextHop> for Hinted {
    #[inline(always)]
    fn from(hop: NextHop) -> Self {
        let [service, generation, _] = hop.macs;
        Self { service, backend: hop.device, generation, is_answered: hop.mtu != 0 }
    }
}

impl<A: Address> CachedFlow<A> {
    /// Words of 64 bits, the last of which is `check`.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();

    /// The flow that its packets become part of.
    #[inline(always)]
    #[must_use]
    pub fn becomes(&self) -> CtKey<A> {
        CtKey {
            src: self.src,
            dst: self.dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            ..self.flow
        }
    }

    /// Notes what becomes of the packets of `flow`.
    #[inline(always)]
    pub fn set(&mut self, flow: &CtKey<A>, ends: &CtKey<A>, action: CtAction) {
        self.flow = *flow;
        self.src = ends.src;
        self.dst = ends.dst;
        self.src_port = ends.src_port;
        self.dst_port = ends.dst_port;
        self.action = action;
        self.pad = [0; 3];
        let addresses =
            Difference::new(flow.src.sum() + flow.dst.sum(), ends.src.sum() + ends.dst.sum());
        let sum = |flow: &CtKey<A>| u32::from(flow.src_port.0) + u32::from(flow.dst_port.0);
        let ports = Difference::new(sum(flow), sum(ends));
        self.changes = [addresses, ports].map(|change| fold(change.get()));
    }

    /// One of its words.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, number: usize) -> u64 {
        let number = if number < Self::WORDS { number } else { 0 };
        // SAFETY: the type has no padding, is aligned for words and has so many of them.
        unsafe { core::ptr::from_ref(self).cast::<u64>().add(number).read() }
    }
}
