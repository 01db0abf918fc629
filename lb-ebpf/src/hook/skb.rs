//! A socket buffer of TC as a [`Packet`].

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0,
        BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
    },
    helpers::{
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_ecn_set_ce, bpf_skb_store_bytes,
        bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use lb_common::{
    abi::{Abi, Address, Counter, Ipv4, L4Proto},
    carrier::{Kind, WORDS},
    checksum::Difference,
};
use lb_ebpf::{
    packet::{Bytes, ETHERNET_HEADER, L4Checksum, Packet, UDP_HEADER},
    path::Origin,
};

use super::tables::Context;
use crate::globals::MARK;

/// Room between Ethernet and IP header: `BPF_ADJ_ROOM_MAC` of `include/uapi/linux/bpf.h`.
const BPF_ADJ_ROOM_MAC: u32 = 1;
/// What RFC 768 writes in place of a checksum of zero, which means none.
pub(super) const UDP_ZERO: u16 = 0xffff;
/// Bits of a VLAN tag that name the VLAN.
const VLAN: u32 = 0xfff;

/// A socket buffer.
pub(super) struct Skb(TcContext);

impl Skb {
    #[inline(always)]
    pub(super) const fn new(ctx: TcContext) -> Self {
        Self(ctx)
    }

    /// The same context once more, for what else asks the kernel about the packet.
    #[inline(always)]
    pub(super) fn context(&self) -> TcContext {
        TcContext::new(self.0.skb.skb)
    }

    /// The context as the kernel handed it over.
    #[inline(always)]
    pub(super) const fn as_ptr(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }

    /// Interface index of the device that it comes in by or leaves by.
    #[inline(always)]
    pub(super) fn device(&self) -> u32 {
        self.0.device()
    }

    /// Bytes from its Ethernet header on.
    #[inline(always)]
    pub(super) fn length(&self) -> u32 {
        self.0.len()
    }

    /// The EtherType, which the kernel keeps where there is no header to read it from; in host order.
    #[inline(always)]
    pub(super) fn protocol(&self) -> u16 {
        // SAFETY: the context is valid for as long as the program runs.
        u16::from_be(unsafe { (*self.0.skb.skb).protocol } as u16)
    }

    /// Has this node translated the packet before?
    ///
    /// `tc_index` survives the way through a bridge, and nothing else uses it at these hooks.
    #[inline(always)]
    pub(super) fn is_marked(&self) -> bool {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.0.skb.skb).tc_index == MARK.load() }
    }

    /// Notes that this node has translated the packet; zero takes the note back.
    #[inline(always)]
    pub(super) fn set_mark(&mut self, mark: u32) {
        // SAFETY: the context is valid for as long as the program runs, and this field writable.
        unsafe { (*self.0.skb.skb).tc_index = mark }
    }

    /// Does it have the tag of a VLAN, or of a priority?
    #[inline(always)]
    pub(super) fn has_tag(&self) -> bool {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }

    /// Does it still belong to a VLAN, coming in?
    ///
    /// The kernel has taken the outermost tag out of the bytes before a packet comes here, and the device
    /// of the VLAN takes it from the packet. A tag of VLAN zero tells of a priority alone (IEEE 802.1Q,
    /// 9.6): it is removed.
    #[inline(always)]
    pub(super) fn is_tagged(&mut self) -> bool {
        if !self.has_tag() {
            return false;
        }
        // SAFETY: the context is valid for as long as the program runs.
        let is_removed = unsafe {
            let tag = (*self.0.skb.skb).vlan_tci;
            tag & VLAN == 0 && bpf_skb_vlan_pop(self.0.skb.skb) == 0
        };
        // Another tag may have been behind it.
        !is_removed || self.has_tag()
    }

    /// Where a packet at egress comes from: a device, or a socket of this node.
    #[inline(always)]
    pub(super) fn origin(&self) -> Origin {
        // SAFETY: the context is valid for as long as the program runs.
        match unsafe { (*self.0.skb.skb).ingress_ifindex } {
            0 => Origin::Host,
            _ => Origin::Forwarded,
        }
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.0.data() + offset;
        (start + size_of::<T>() <= self.0.data_end()).then_some(start as *mut T)
    }

    #[inline(always)]
    fn store(&mut self, offset: usize, bytes: &[u8], flags: u32) -> Result<(), Counter> {
        // SAFETY: the context is valid, and the length is that of the bytes.
        let answer = unsafe {
            bpf_skb_store_bytes(
                self.0.as_ptr().cast(),
                offset as u32,
                bytes.as_ptr().cast(),
                bytes.len() as u32,
                u64::from(flags),
            )
        };
        if answer == 0 { Ok(()) } else { Err(Counter::RewriteFailed) }
    }

    /// Makes so many bytes of room behind the Ethernet header, or takes so many from there.
    #[inline(always)]
    fn adjust_room(&mut self, bytes: i32, flags: u64) -> Result<(), Counter> {
        // SAFETY: the context is valid for as long as the program runs.
        let answer = unsafe { bpf_skb_adjust_room(self.0.skb.skb, bytes, BPF_ADJ_ROOM_MAC, flags) };
        if answer == 0 { Ok(()) } else { Err(Counter::RewriteFailed) }
    }

    /// Length of each datagram that the packet is cut into later, in bytes from its IP header on.
    #[inline(always)]
    fn datagram_length<A: Address>(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.0.skb.skb).gso_size + (UDP_HEADER + A::HEADER) as u32 }
    }

    #[inline(always)]
    fn change_l4(&self, offset: usize, change: Difference, flags: u32) -> Result<(), Counter> {
        self.0
            .l4_csum_replace(offset, 0, u64::from(change.get()), u64::from(flags))
            .map_err(|_| Counter::RewriteFailed)
    }
}

impl Context for TcContext {
    const IS_AHEAD: bool = false;

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.skb.skb).ifindex }
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn read<T: Abi>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds, and every bit pattern is a value. The pointer may
        // be unaligned, which BPF's own loads allow on the machines that we support; reading byte
        // by byte would cost several instructions a field.
        self.at::<T>(offset).map(|place| unsafe { *place })
    }

    /// Where a driver left them in parts of its own.
    #[inline(always)]
    fn pull(&mut self, headers: u32) {
        let linear = self.0.data_end() - self.0.data();
        let wanted = headers.min(self.0.len());
        if linear < wanted as usize {
            // What cannot be pulled is found truncated.
            let _ = self.0.pull_data(wanted);
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn write<T: Abi>(&mut self, offset: usize, value: &T) -> Result<(), Counter> {
        let place = self.at::<T>(offset).ok_or(Counter::RewriteFailed)?;
        // SAFETY: as for `read`.
        unsafe { *place = *value };
        Ok(())
    }

    #[inline(always)]
    fn write_addresses<A: Address>(
        &mut self,
        offset: usize,
        source_and_destination: [A; 2],
    ) -> Result<(), Counter> {
        // IPv4 has a header checksum that takes the change back out of what the device summed.
        if A::HEADER == Ipv4::HEADER {
            return self.write(offset, &source_and_destination);
        }
        self.store(offset, source_and_destination.as_bytes(), BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn crc_change(first_word: u32, length: u16) -> u32 {
        super::lb_crc_change(first_word, length.into())
    }

    #[inline(always)]
    fn repair_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), Counter> {
        let L4Checksum { offset, protocol, addresses, ports } = checksum;
        let is_udp = protocol == L4Proto::UDP;
        let udp = if is_udp { BPF_F_MARK_MANGLED_0 } else { 0 };
        let old = self.read::<u16>(offset).ok_or(Counter::RewriteFailed)?;
        self.change_l4(offset, addresses, udp | BPF_F_PSEUDO_HDR)?;
        if ports.is_none() {
            return Ok(());
        }
        // The kernel takes a change from a whole checksum, but adds it to one that a device is to complete,
        // which ports have no part in. Nothing else tells them apart, and asking it costs as much as all
        // else that is done here.
        let now = self.read::<u16>(offset).ok_or(Counter::RewriteFailed)?;
        if addresses.is_none() || now != addresses.apply(old) {
            return self.change_l4(offset, ports, udp);
        }
        let new = ports.apply(now);
        self.write(offset, &if is_udp && new == 0 { UDP_ZERO } else { new })
    }

    #[inline(always)]
    fn fits(&self, mtu: u16) -> bool {
        // SAFETY: the context is valid for as long as the program runs.
        let is_cut_later = unsafe { (*self.0.skb.skb).gso_size } != 0;
        is_cut_later || self.0.len() <= u32::from(mtu) + ETHERNET_HEADER as u32
    }

    #[inline(always)]
    fn put_before<A: Address>(
        &mut self,
        headers: &[u32; WORDS],
        kind: Kind,
        mtu: u16,
    ) -> Result<(), Counter> {
        let outer = if A::HEADER == Ipv4::HEADER {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        };
        let udp = if kind == Kind::Gue { BPF_F_ADJ_ROOM_ENCAP_L4_UDP } else { 0 };
        let length = kind.overhead::<A>();
        let flags = u64::from(outer | udp);
        if self.adjust_room(length as i32, flags).is_err() {
            // Datagrams that are cut later cannot be cut into others.
            if self.datagram_length::<A>() > u32::from(mtu) {
                return Err(Counter::PacketTooBig);
            }
            self.adjust_room(length as i32, flags | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
        }
        let bytes = headers.as_bytes().get(..length).ok_or(Counter::RewriteFailed)?;
        self.store(ETHERNET_HEADER, bytes, BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn remove_before(&mut self, length: usize) -> Result<(), Counter> {
        // TCP is cut as it was before: longer pieces may not fit where it goes.
        self.adjust_room(-(length as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))
    }

    #[inline(always)]
    fn mark_congested(&mut self) -> bool {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { bpf_skb_ecn_set_ce(self.0.skb.skb) == 1 }
    }

    #[inline(always)]
    fn resize(&mut self, length: usize) -> Result<(), Counter> {
        // SAFETY: the context is valid for as long as the program runs.
        match unsafe { bpf_skb_change_tail(self.0.skb.skb, length as u32, 0) } {
            0 => Ok(()),
            _ => Err(Counter::RewriteFailed),
        }
    }
}
