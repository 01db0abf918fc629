//! Turns a packet into its own refusal: a TCP reset, or an ICMP port unreachable.

use lb_common::{
    abi::{Address, Counter, CtKey, Ipv4, L4Proto},
    checksum::{Difference, fold},
    conntrack::TcpFlags,
};

use super::{
    answer::{Answers, is_for_one},
    icmp::HEADER as ICMP_HEADER,
};
use crate::{
    packet::{L4Checksum, Packet},
    parse::{Headers, L3},
    rewrite::{self, TCP_CHECKSUM, UDP_CHECKSUM},
};

const TCP_HEADER: usize = 20;
const IPV4_QUOTE: usize = 20 + QUOTED_PAYLOAD;
const IPV6_QUOTE: usize = 40 + QUOTED_PAYLOAD;
/// What an ICMP error must quote beyond the IP header (RFC 792).
const QUOTED_PAYLOAD: usize = 8;
/// What it quotes of an INIT beyond that: checksum, chunk header, tag (RFC 9260, 3.3.2).
const TAG_QUOTE: usize = 12;
const TTL: u8 = 64;
const RST: u8 = 0x04;
const RST_ACK: u8 = 0x14;

/// Makes `packet` the refusal of itself, addressed back to its sender; there are so many errors of ICMP at a
/// time (RFC 4443, 2.4).
///
/// # Errors
///
/// [`Counter::NoEndpoint`] if it must not be answered; [`Counter::RewriteFailed`] if the kernel
/// refuses.
#[inline(always)]
pub fn refuse<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Answers<A>,
) -> Result<(), Counter> {
    // An IP header with options does not fit the fixed quote.
    if headers.flags.resets() || headers.l4() != L3 + A::HEADER || !is_for_one(packet) {
        return Err(Counter::NoEndpoint);
    }
    if headers.flow.protocol == L4Proto::TCP {
        reset(packet, headers)
    } else if !tables.may_answer() {
        Err(Counter::NoEndpoint)
    } else if A::HEADER == Ipv4::HEADER {
        unreachable::<A, { IPV4_QUOTE / 4 }>(packet, headers, (L4Proto::ICMP, [3, 3]))
    } else {
        unreachable::<A, { IPV6_QUOTE / 4 }>(packet, headers, (L4Proto::ICMPV6, [1, 4]))
    }
}

/// RFC 9293, 3.10.7.1: how a closed port answers a segment.
#[inline(always)]
fn reset<A: Address>(packet: &mut impl Packet, headers: &Headers<A>) -> Result<(), Counter> {
    let flow = headers.flow.reversed();
    let (numbers, flags) = reset_numbers(packet, headers)?;
    begin::<A>(packet, &flow, L4Proto::TCP, TCP_HEADER)?;
    let l4 = L3 + A::HEADER;
    let ports = [flow.src_port, flow.dst_port];
    let offset_and_flags = u16::from_be_bytes([5 << 4, flags]).to_be();
    packet.write(l4, &ports)?;
    packet.write(l4 + 4, &numbers)?;
    // Window, checksum and urgent pointer are zero.
    packet.write(l4 + 12, &[offset_and_flags, 0, 0, 0])?;
    let rest = u32::from(flow.src_port.0)
        + u32::from(flow.dst_port.0)
        + words(&numbers)
        + u32::from(offset_and_flags);
    // A device that is to sum the packet up will do so with the answer: the checksum of zero is mended as
    // any other.
    packet.repair_l4_checksum(L4Checksum {
        offset: l4 + TCP_CHECKSUM,
        protocol: L4Proto::TCP,
        addresses: Difference::new(0, pseudo_header(&flow, L4Proto::TCP, TCP_HEADER)),
        ports: Difference::new(0, rest),
    })
}

/// Sequence and acknowledgement (in network order) and the flags of the reset.
#[inline(always)]
fn reset_numbers<A: Address>(
    packet: &impl Packet,
    headers: &Headers<A>,
) -> Result<([u32; 2], u8), Counter> {
    let l4 = headers.l4();
    let [sequence, acknowledgement] =
        packet.read::<[u32; 2]>(l4 + 4).ok_or(Counter::RewriteFailed)?;
    if headers.flags.acknowledges() {
        return Ok(([acknowledgement, 0], RST));
    }
    let data_offset = packet.read::<u8>(l4 + 12).ok_or(Counter::RewriteFailed)?;
    let length = u32::from(rewrite::l4_length(packet, headers)?);
    let payload = length.wrapping_sub(u32::from(data_offset >> 4) * 4);
    let next = u32::from_be(sequence)
        .wrapping_add(payload)
        .wrapping_add(TcpFlags::sequence_length(headers.flags));
    Ok(([0, next.to_be()], RST_ACK))
}

/// Destination unreachable, port unreachable (RFC 792; RFC 4443, 3.1), with a quote of `N` words, or
/// more of an INIT.
#[inline(always)]
fn unreachable<A: Address, const N: usize>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    (protocol, type_and_code): (L4Proto, [u8; 2]),
) -> Result<(), Counter> {
    let (mut length, mut sum) = (ICMP_HEADER + N * 4, 0);
    if headers.flow.protocol == L4Proto::SCTP && headers.flags.opens() {
        sum = quote_tag::<A>(packet, length)?;
        length += TAG_QUOTE;
    }
    let asked = headers.flow.protocol;
    let message = Message { protocol, type_and_code, rest: 0, length, sum, asked };
    error::<A, N>(packet, &headers.flow.reversed(), &message)
}

/// What an error says, and of how much.
struct Message {
    protocol: L4Proto,
    type_and_code: [u8; 2],
    /// What stands before the quote, in host order.
    rest: u32,
    /// Length with the quote, in bytes.
    length: usize,
    /// The sum over what is quoted already.
    sum: u32,
    /// Protocol of what is quoted.
    asked: L4Proto,
}

/// Makes the packet an error that quotes `N` words of it, addressed as `flow` is.
#[inline(always)]
fn error<A: Address, const N: usize>(
    packet: &mut impl Packet,
    flow: &CtKey<A>,
    message: &Message,
) -> Result<(), Counter> {
    let quote = packet.read::<[u32; N]>(L3).ok_or(Counter::RewriteFailed)?;
    begin::<A>(packet, flow, message.protocol, message.length)?;
    let l4 = L3 + A::HEADER;
    let (first, rest) = (u16::from_be_bytes(message.type_and_code).to_be(), message.rest.to_be());
    packet.write(l4, &[first, 0])?;
    packet.write(l4 + 4, &rest)?;
    packet.write(l4 + ICMP_HEADER, &quote)?;
    let sum = message.sum + u32::from(first) + words(&[rest]) + words(&quote);
    if message.protocol != L4Proto::ICMPV6 {
        return packet.write(l4 + 2, &!fold(sum));
    }
    let pseudo = pseudo_header(flow, message.protocol, message.length);
    packet.write(l4 + 2, &!fold(sum + pseudo))?;
    let is_free = message.asked == L4Proto::UDP && message.rest == 0;
    if is_free { outlast(packet, l4 + UDP_CHECKSUM, pseudo) } else { Ok(()) }
}

/// Keeps a message whole where a device is to sum up the datagram that it was made from: it will do so with the
/// message, and write the sum at the same place, where nothing stands that anybody reads. It is zero if what it
/// finds there is the sum of the pseudo-header, which ICMPv6 has as UDP does, and ICMP does not.
#[inline(always)]
fn outlast(packet: &mut impl Packet, offset: usize, pseudo: u32) -> Result<(), Counter> {
    packet.repair_l4_checksum(L4Checksum {
        offset,
        protocol: L4Proto::ICMPV6,
        addresses: Difference::new(0, pseudo),
        // Taken back where there is no such device.
        ports: Difference::new(pseudo, 0),
    })
}

/// Makes `packet` an error of ICMP about itself, addressed as `ends` are, with a type and code and
/// what stands before the quote.
///
/// # Errors
///
/// [`Counter::RewriteFailed`] if the kernel refuses, or the IP header does not fit the fixed quote.
#[inline(always)]
pub fn tell<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    ends: &CtKey<A>,
    (protocol, type_and_code, rest): (L4Proto, [u8; 2], u32),
) -> Result<(), Counter> {
    if headers.l4() != L3 + A::HEADER {
        return Err(Counter::RewriteFailed);
    }
    let quote = A::HEADER + QUOTED_PAYLOAD;
    let length = ICMP_HEADER + quote;
    let asked = headers.flow.protocol;
    let message = Message { protocol, type_and_code, rest, length, sum: 0, asked };
    if A::HEADER == Ipv4::HEADER {
        error::<A, { IPV4_QUOTE / 4 }>(packet, ends, &message)
    } else {
        error::<A, { IPV6_QUOTE / 4 }>(packet, ends, &message)
    }
}

/// Copies what an INIT holds behind the usual quote, up to the tag that it offers: its sender knows
/// it by that alone (RFC 9260, 10). Comes before the quote, which is written over it.
#[inline(always)]
fn quote_tag<A: Address>(packet: &mut impl Packet, l4_length: usize) -> Result<u32, Counter> {
    packet.resize(L3 + A::HEADER + l4_length + TAG_QUOTE)?;
    let from = L3 + A::HEADER + QUOTED_PAYLOAD;
    let quote = packet.read::<[u32; TAG_QUOTE / 4]>(from).ok_or(Counter::RewriteFailed)?;
    packet.write(L3 + A::HEADER + l4_length, &quote)?;
    Ok(words(&quote))
}

/// Makes room for an answer, turns the Ethernet header round and writes the IP header.
#[inline(always)]
fn begin<A: Address>(
    packet: &mut impl Packet,
    flow: &CtKey<A>,
    protocol: L4Proto,
    l4_length: usize,
) -> Result<(), Counter> {
    packet.resize(L3 + A::HEADER + l4_length)?;
    let [dst, src] = packet.read::<[[u16; 3]; 2]>(0).ok_or(Counter::RewriteFailed)?;
    packet.write(0, &[src, dst])?;
    packet.write(L3 + A::SOURCE_OFFSET, &[flow.src, flow.dst])?;
    if A::HEADER != Ipv4::HEADER {
        packet.write(L3, &[0x60_u8, 0, 0, 0])?;
        packet.write(L3 + 4, &be(l4_length))?;
        return packet.write(L3 + 6, &[protocol.0, TTL]);
    }
    let first = [0x4500_u16.to_be(), be(l4_length + A::HEADER), 0, 0];
    let ttl_and_protocol = u16::from_be_bytes([TTL, protocol.0]).to_be();
    let sum = u32::from(first[0])
        + u32::from(first[1])
        + u32::from(ttl_and_protocol)
        + flow.src.sum()
        + flow.dst.sum();
    packet.write(L3, &first)?;
    packet.write(L3 + 8, &[ttl_and_protocol, !fold(sum)])
}

/// The sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
#[inline(always)]
fn pseudo_header<A: Address>(flow: &CtKey<A>, protocol: L4Proto, l4_length: usize) -> u32 {
    let protocol = u32::from(u16::from(protocol.0).to_be());
    flow.src.sum() + flow.dst.sum() + u32::from(be(l4_length)) + protocol
}

/// The sum over the 16-bit words of some 32-bit words.
#[inline(always)]
fn words(words: &[u32]) -> u32 {
    words.iter().map(|word| (word & 0xffff) + (word >> 16)).sum()
}

/// A length in network order.
#[inline(always)]
fn be(length: usize) -> u16 {
    #[allow(clippy::cast_possible_truncation, reason = "an answer is short")]
    (length as u16).to_be()
}
