//! A frame of XDP as a [`Packet`]: read and written in place, its checksums kept by our own sums.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use lb_common::{
    abi::{Abi, Address, Counter, DeviceFlags, Ipv4, Ipv6, L4Proto},
    carrier::{Kind, WORDS},
};
use lb_ebpf::{
    packet::{Bytes, ETHERNET_HEADER, ETHERTYPE_OFFSET, L4Checksum, Packet},
    parse::{Headers, L3},
};

use super::{skb::UDP_ZERO, tables::Context};

/// A frame, as far as it lies in one piece.
pub(super) struct Frame(XdpContext);

impl Frame {
    #[inline(always)]
    pub(super) const fn new(ctx: XdpContext) -> Self {
        Self(ctx)
    }

    /// The context as the kernel handed it over.
    #[inline(always)]
    pub(super) const fn as_ptr(&self) -> *mut xdp_md {
        self.0.ctx
    }

    /// The same context once more, for what else asks the kernel about the frame.
    #[inline(always)]
    pub(super) const fn context(&self) -> XdpContext {
        XdpContext::new(self.0.ctx)
    }

    /// Does all of the packet lie in one piece, with all that may be written of its headers? The
    /// rest of one that does not is in further buffers, or missing.
    #[inline(always)]
    pub(super) fn is_whole<A: Address>(&self, headers: &Headers<A>) -> bool {
        let needed = match headers.flow.protocol {
            L4Proto::TCP => 20,
            L4Proto::UDP => 8,
            _ => 16,
        };
        let length = self.0.data_end() - self.0.data();
        let Some(l3_length) = l3_length::<A>(&self.0) else { return false };
        L3 + usize::from(l3_length) <= length && headers.l4() + needed <= length
    }

    /// Writes so many words behind the Ethernet header.
    #[inline(always)]
    fn write_first<const COUNT: usize>(&mut self, words: &[u32; WORDS]) -> Result<(), Counter> {
        let words = words.first_chunk::<COUNT>().ok_or(Counter::RewriteFailed)?;
        let place = at::<[u32; COUNT]>(&self.0, L3).ok_or(Counter::RewriteFailed)?;
        // SAFETY: as for `read`.
        unsafe { *place = *words };
        Ok(())
    }
}

/// Length of the IP packet, in bytes, as its header says.
#[inline(always)]
fn l3_length<A: Address>(ctx: &XdpContext) -> Option<u16> {
    let (offset, header) = if A::HEADER == Ipv4::HEADER { (2, 0) } else { (4, A::HEADER as u16) };
    let length = at::<u16>(ctx, L3 + offset)?;
    // SAFETY: `at` has checked the bounds.
    u16::from_be(unsafe { *length }).checked_add(header)
}

#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

impl Context for XdpContext {
    // TC looks at all that is passed on.
    const IS_AHEAD: bool = true;

    #[inline(always)]
    fn device(&self) -> u32 {
        let ctx: *mut xdp_md = self.ctx;
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*ctx).ingress_ifindex }
    }
}

/// How a frame gets to a device.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Crossing {
    /// By a redirect.
    Redirect,
    /// It came in by this device, and goes back.
    Return,
}

/// How a frame gets from where the program runs to a device that has these flags; `None` if it can't.
#[inline(always)]
pub(super) fn crossing_to(
    ctx: &XdpContext,
    (device, flags): (u32, DeviceFlags),
) -> Option<Crossing> {
    if device == ctx.device() && flags.has(DeviceFlags::RETURNS_FRAMES) {
        return Some(Crossing::Return);
    }
    flags.has(DeviceFlags::TAKES_FRAMES).then_some(Crossing::Redirect)
}

impl Bytes for Frame {
    #[inline(always)]
    fn read<T: Abi>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds, and every bit pattern is a value; BPF's own loads
        // need no alignment on the machines that we support.
        at::<T>(&self.0, offset).map(|place| unsafe { *place })
    }

    /// Nothing: what is not there in one piece is TC's.
    #[inline(always)]
    fn pull(&mut self, _: u32) {}
}

impl Packet for Frame {
    #[inline(always)]
    fn write<T: Abi>(&mut self, offset: usize, value: &T) -> Result<(), Counter> {
        let place = at::<T>(&self.0, offset).ok_or(Counter::RewriteFailed)?;
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
        self.write(offset, &source_and_destination)
    }

    #[inline(always)]
    fn crc_change(first_word: u32, length: u16) -> u32 {
        super::lb_crc_change(first_word, length.into())
    }

    #[inline(always)]
    fn repair_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), Counter> {
        let old = self.read::<u16>(checksum.offset).ok_or(Counter::RewriteFailed)?;
        let is_udp = checksum.protocol == L4Proto::UDP;
        if is_udp && old == 0 {
            return Ok(());
        }
        let new = checksum.addresses.and(checksum.ports).apply(old);
        let new = if is_udp && new == 0 { UDP_ZERO } else { new };
        self.write(checksum.offset, &new)
    }

    #[inline(always)]
    fn fits(&self, mtu: u16) -> bool {
        self.0.data_end() - self.0.data() <= usize::from(mtu) + ETHERNET_HEADER
    }

    #[inline(always)]
    fn put_before<A: Address>(
        &mut self,
        headers: &[u32; WORDS],
        kind: Kind,
        _mtu: u16,
    ) -> Result<(), Counter> {
        // SAFETY: the context is valid for as long as the program runs.
        if unsafe { bpf_xdp_adjust_head(self.0.ctx, -(kind.overhead::<A>() as i32)) } != 0 {
            return Err(Counter::RewriteFailed);
        }
        self.write(ETHERTYPE_OFFSET, &A::ETHERTYPE.to_be())?;
        match (A::HEADER, kind) {
            (Ipv4::HEADER, Kind::Gue) => {
                self.write_first::<{ Kind::Gue.overhead::<Ipv4>() / 4 }>(headers)
            }
            (Ipv4::HEADER, Kind::Ipip) => {
                self.write_first::<{ Kind::Ipip.overhead::<Ipv4>() / 4 }>(headers)
            }
            (_, Kind::Gue) => self.write_first::<{ Kind::Gue.overhead::<Ipv6>() / 4 }>(headers),
            (_, Kind::Ipip) => self.write_first::<{ Kind::Ipip.overhead::<Ipv6>() / 4 }>(headers),
        }
    }

    /// Never: what was carried here goes on to the stack, and is TC's.
    #[inline(always)]
    fn remove_before(&mut self, _: usize) -> Result<(), Counter> {
        Err(Counter::RewriteFailed)
    }

    #[inline(always)]
    fn mark_congested(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn resize(&mut self, length: usize) -> Result<(), Counter> {
        let change = length as i32 - (self.0.data_end() - self.0.data()) as i32;
        // SAFETY: the context is valid for as long as the program runs.
        match unsafe { bpf_xdp_adjust_tail(self.0.ctx, change) } {
            0 => Ok(()),
            _ => Err(Counter::RewriteFailed),
        }
    }
}
