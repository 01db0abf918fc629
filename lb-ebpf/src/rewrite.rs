//! Gives a packet new ends, with incremental checksums (RFC 1624; for SCTP see [`crc32c`]).

use lb_common::{
    abi::{Address, BePort, CachedFlow, Counter, L4Proto},
    checksum::Difference,
};

use crate::{
    packet::{L4Checksum, Packet},
    parse::{Headers, L3},
};

/// Offset of the checksum in an IPv4 header.
pub const IPV4_CHECKSUM: usize = 10;
const IPV4_HEADER: usize = 20;
/// Offsets of checksums in headers of TCP and UDP.
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;
/// RFC 9260, 3.1.
const SCTP_CHECKSUM: usize = 8;

/// Makes `packet` one of the flow that `decision` says, and takes from its time to live what that costs;
/// the protocol stays.
///
/// # Errors
///
/// [`Counter::TtlExpired`] if nothing would be left of it, [`Counter::RewriteFailed`] if the kernel
/// refuses.
#[inline(always)]
pub fn rewrite<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    decision: &CachedFlow<A>,
) -> Result<(), Counter> {
    let protocol = headers.flow.protocol;
    let costs_hop = decision.action.costs_hop();
    if costs_hop && headers.ttl <= 1 {
        return Err(Counter::TtlExpired);
    }
    if protocol == L4Proto::SCTP {
        mend_crc(packet, headers, decision)?;
    }
    let [addresses, ports] = decision.changes.map(Difference::of);
    packet.write::<[BePort; 2]>(headers.l4(), &[decision.src_port, decision.dst_port])?;
    let ttl = headers.ttl.wrapping_sub(costs_hop.into());
    if A::HEADER == IPV4_HEADER {
        let hop = if costs_hop { Difference::HOP } else { Difference::NONE };
        rewrite_ipv4(packet, (ttl, protocol), decision, addresses.and(hop))?;
    } else {
        if costs_hop {
            packet.write(L3 + A::TTL_OFFSET, &ttl)?;
        }
        packet.write_addresses(L3 + A::SOURCE_OFFSET, [decision.src, decision.dst])?;
    }
    if protocol == L4Proto::SCTP {
        return Ok(());
    }
    let checksum = if protocol == L4Proto::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    let offset = headers.l4() + checksum;
    packet.repair_l4_checksum(L4Checksum { offset, protocol, addresses, ports })
}

/// Writes an IPv4 header from its time to live on: all at once, since each write is checked against the
/// packet's end.
#[inline(always)]
fn rewrite_ipv4<A: Address>(
    packet: &mut impl Packet,
    (ttl, protocol): (u8, L4Proto),
    decision: &CachedFlow<A>,
    change: Difference,
) -> Result<(), Counter> {
    let checksum = packet.read(L3 + IPV4_CHECKSUM).ok_or(Counter::RewriteFailed)?;
    let [high, low] = change.apply(checksum).to_ne_bytes();
    let first = u32::from_ne_bytes([ttl, protocol.0, high, low]);
    let [ends, ..] = A::pair(&decision.src, &decision.dst);
    #[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let (src, dst) = (ends as u32, (ends >> 32) as u32);
    packet.write(L3 + A::TTL_OFFSET, &[first, src, dst])
}

/// Gives a later fragment the ends of its packet: the checksum over them is in the first one.
///
/// # Errors
///
/// [`Counter::RewriteFailed`] if the kernel refuses.
#[inline(always)]
pub fn rewrite_rest<A: Address>(
    packet: &mut impl Packet,
    old: [A; 2],
    new: [A; 2],
) -> Result<(), Counter> {
    if A::HEADER == IPV4_HEADER {
        change_checksum(packet, L3 + IPV4_CHECKSUM, addresses(old, new))?;
    }
    packet.write_addresses(L3 + A::SOURCE_OFFSET, new)
}

/// Writes the addresses of an IP header alone, and returns what that changes in a checksum over
/// them.
///
/// What the device summed stays right if a checksum within the packet takes the change back.
///
/// # Errors
///
/// [`Counter::RewriteFailed`] beyond the end.
#[inline(always)]
pub fn readdress<A: Address>(
    packet: &mut impl Packet,
    old: [A; 2],
    new: [A; 2],
) -> Result<Difference, Counter> {
    let change = addresses(old, new);
    packet.write(L3 + A::SOURCE_OFFSET, &new)?;
    if A::HEADER == IPV4_HEADER {
        change_checksum(packet, L3 + IPV4_CHECKSUM, change)?;
    }
    Ok(change)
}

/// What other addresses change in a checksum over them.
#[inline(always)]
pub fn addresses<A: Address>([old_src, old_dst]: [A; 2], [src, dst]: [A; 2]) -> Difference {
    Difference::new(old_src.sum() + old_dst.sum(), src.sum() + dst.sum())
}

/// What other ports change in a checksum over them.
#[inline(always)]
pub fn ports(old: [BePort; 2], new: [BePort; 2]) -> Difference {
    let sum = |[a, b]: [BePort; 2]| u32::from(a.0) + u32::from(b.0);
    Difference::new(sum(old), sum(new))
}

/// Takes one from the time to live `ttl` of an IP header at `offset`, as a router does.
///
/// # Errors
///
/// [`Counter::TtlExpired`] if nothing would be left.
#[inline(always)]
pub fn decrement_ttl<A: Address>(
    packet: &mut impl Packet,
    offset: usize,
    ttl: u8,
) -> Result<(), Counter> {
    if ttl <= 1 {
        return Err(Counter::TtlExpired);
    }
    packet.write(offset + A::TTL_OFFSET, &(ttl - 1))?;
    if A::HEADER != IPV4_HEADER {
        return Ok(());
    }
    change_checksum(packet, offset + IPV4_CHECKSUM, Difference::HOP)
}

/// Length of the transport header and all that it carries, in bytes. From the IP header: a frame
/// may be padded.
#[inline(always)]
pub(crate) fn l4_length<A: Address>(
    packet: &impl Packet,
    headers: &Headers<A>,
) -> Result<u16, Counter> {
    let (offset, begin) =
        if A::HEADER == IPV4_HEADER { (L3 + 2, L3) } else { (L3 + 4, L3 + A::HEADER) };
    let length = packet.read::<u16>(offset).ok_or(Counter::RewriteFailed)?;
    #[allow(clippy::cast_possible_truncation, reason = "headers are short")]
    let header = headers.l4().wrapping_sub(begin) as u16;
    Ok(u16::from_be(length).wrapping_sub(header))
}

/// Mends the checksum of SCTP, which covers the packet from its ports on, and no addresses.
///
/// One of zero stays: the packet was made on this machine, and is summed where it leaves it.
#[inline(always)]
fn mend_crc<A: Address, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    decision: &CachedFlow<A>,
) -> Result<(), Counter> {
    let offset = headers.l4() + SCTP_CHECKSUM;
    let checksum = packet.read::<u32>(offset).ok_or(Counter::RewriteFailed)?;
    let CachedFlow { src_port, dst_port, .. } = *decision;
    let change =
        port_word([headers.flow.src_port, headers.flow.dst_port]) ^ port_word([src_port, dst_port]);
    if checksum == 0 || change == 0 {
        return Ok(());
    }
    if headers.has_rest() {
        return Err(Counter::SctpFragment);
    }
    let length = l4_length(packet, headers)?;
    packet.write(offset, &(checksum ^ P::crc_change(change, length)))
}

/// Both ports, as they lie in memory.
#[inline(always)]
fn port_word([src, dst]: [BePort; 2]) -> u32 {
    (u32::from(src.get()) << 16 | u32::from(dst.get())).to_be()
}

/// Repairs a checksum at `offset`.
///
/// # Errors
///
/// [`Counter::RewriteFailed`] beyond the end.
#[inline(always)]
pub fn change_checksum(
    packet: &mut impl Packet,
    offset: usize,
    change: Difference,
) -> Result<(), Counter> {
    let checksum = packet.read(offset).ok_or(Counter::RewriteFailed)?;
    packet.write(offset, &change.apply(checksum))
}
