//! ICMP and ICMPv6 errors that quote a packet of a translated flow.
//!
//! An error goes the way of an answer to the packet that it quotes. So it is looked up as that
//! answer, at the hook where the answer is translated, and made an error about the packet as its
//! receiver sent it. The transport checksum within the quote stays: nobody checks it, and the quote
//! may end before it.
//!
//! Redirects are not for others to follow: a pod on a bridge whose request was translated at its
//! port, and whose backend is on the same bridge, is told by the node to send to the backend
//! directly. The pod knows nothing of the backend: what it would learn is wrong.

use lb_common::{
    abi::{Address, BePort, CachedFlow, Counter, CtAction, CtEntry, CtKey, Ipv4, Ipv6, L4Proto},
    checksum::Difference,
    conntrack::{CtState, is_expired, silence},
};

use super::{Direction, Origin, PathResult, Verdict, act::delivery, carrier};
use crate::{
    packet::{Bytes, Packet},
    parse::{FRAGMENT_OFFSET, Header, L3, MORE_FRAGMENTS},
    rewrite,
    tables::{CtRef, Tables},
};

const CHECKSUM: usize = 2;
/// Bytes of an ICMP header, before what an error quotes.
pub(super) const HEADER: usize = 8;
/// Destination unreachable (which "fragmentation needed" is one of), time exceeded, parameter
/// problem (RFC 792).
const IPV4_ERRORS: [u8; 3] = [3, 11, 12];
const IPV4_REDIRECT: u8 = 5;
/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443, 2.1).
const IPV6_ERRORS: [u8; 4] = [1, 2, 3, 4];
const IPV6_REDIRECT: u8 = 137;
/// ICMPv6 header, target and destination (RFC 4861, 4.5).
const IPV6_REDIRECT_LENGTH: usize = 40;
/// RFC 8200, 4.5.
const IPV6_FRAGMENT: L4Proto = L4Proto(44);
const IPV6_FRAGMENT_HEADER: usize = 8;
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;
const TARGET_LINK_LAYER_OPTION: [u8; 2] = [2, 1];
const OPTION_HEADER: usize = 8;

/// A family's ICMP.
pub trait Icmp: Header {
    /// Type of an echo request.
    const ECHO_REQUEST: u8;
    /// Type of its reply.
    const ECHO_REPLY: u8;
    /// Type and code of an error about a time to live that ended on the way.
    const TIME_EXCEEDED: [u8; 2];
    /// Type and code of an error about a packet that does not fit a link.
    const TOO_BIG: [u8; 2];

    /// Offset of the ICMP header; `None` if the packet has none.
    fn header(packet: &impl Bytes) -> Option<usize>;
    /// Does nothing of a packet with an ICMP header follow in fragments?
    fn is_whole(packet: &impl Bytes) -> bool;
    /// Offset of the IP header that an error or a redirect quotes; `None` if it is neither.
    fn quote(packet: &impl Bytes, icmp: usize) -> Option<usize>;
    /// Protocol of a quoted packet and offset of its ports; `None` if it has none.
    fn quoted(packet: &impl Bytes, quote: usize) -> Option<(L4Proto, usize)>;
    /// Is an ICMP type that of a redirect?
    fn is_redirect(kind: u8) -> bool;
}

/// RFC 792.
impl Icmp for Ipv4 {
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const TIME_EXCEEDED: [u8; 2] = [11, 0];
    const TOO_BIG: [u8; 2] = [3, 4];

    #[inline(always)]
    fn header(packet: &impl Bytes) -> Option<usize> {
        let (protocol, icmp) = Self::quoted(packet, L3)?;
        (protocol == L4Proto::ICMP).then_some(icmp)
    }

    #[inline(always)]
    fn is_whole(packet: &impl Bytes) -> bool {
        packet.read::<u16>(L3 + 6).is_some_and(|field| u16::from_be(field) & MORE_FRAGMENTS == 0)
    }

    #[inline(always)]
    fn quote(packet: &impl Bytes, icmp: usize) -> Option<usize> {
        let kind = kind(packet, icmp)?;
        (IPV4_ERRORS.contains(&kind) || Self::is_redirect(kind)).then_some(icmp + HEADER)
    }

    #[inline(always)]
    fn quoted(packet: &impl Bytes, quote: usize) -> Option<(L4Proto, usize)> {
        let [first, _] = packet.read::<[u8; 2]>(quote)?;
        let length = usize::from(first & 0x0f) * 4;
        let fragment = packet.read::<u16>(quote + 6)?;
        let is_first = u16::from_be(fragment) & FRAGMENT_OFFSET == 0;
        let protocol = packet.read(quote + 9).map(L4Proto)?;
        (is_first && length >= Self::HEADER).then_some((protocol, quote + length))
    }

    #[inline(always)]
    fn is_redirect(kind: u8) -> bool {
        kind == IPV4_REDIRECT
    }
}

/// RFC 4443.
impl Icmp for Ipv6 {
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const TIME_EXCEEDED: [u8; 2] = [3, 0];
    const TOO_BIG: [u8; 2] = [2, 0];

    #[inline(always)]
    fn header(packet: &impl Bytes) -> Option<usize> {
        let protocol = packet.read(L3 + 6).map(L4Proto)?;
        (protocol == L4Proto::ICMPV6).then_some(L3 + Self::HEADER)
    }

    #[inline(always)]
    fn is_whole(_: &impl Bytes) -> bool {
        // A fragment has a header of its own before that.
        true
    }

    #[inline(always)]
    fn quote(packet: &impl Bytes, icmp: usize) -> Option<usize> {
        let kind = kind(packet, icmp)?;
        if IPV6_ERRORS.contains(&kind) {
            return Some(icmp + HEADER);
        }
        if !Self::is_redirect(kind) {
            return None;
        }
        let options = icmp + IPV6_REDIRECT_LENGTH;
        let has_link_layer = packet.read::<[u8; 2]>(options)? == TARGET_LINK_LAYER_OPTION;
        Some(options + if has_link_layer { 2 * OPTION_HEADER } else { OPTION_HEADER })
    }

    #[inline(always)]
    fn quoted(packet: &impl Bytes, quote: usize) -> Option<(L4Proto, usize)> {
        let protocol = packet.read(quote + 6).map(L4Proto)?;
        let next = quote + Self::HEADER;
        if protocol != IPV6_FRAGMENT {
            return Some((protocol, next));
        }
        let [protocol, _, high, low] = packet.read::<[u8; 4]>(next)?;
        let is_first = u16::from_be_bytes([high, low]) & IPV6_FRAGMENT_OFFSET == 0;
        is_first.then_some((L4Proto(protocol), next + IPV6_FRAGMENT_HEADER))
    }

    #[inline(always)]
    fn is_redirect(kind: u8) -> bool {
        kind == IPV6_REDIRECT
    }
}

/// The type of an ICMP message.
///
/// Read with the code behind it: the verifier does not see that one byte at an offset that it does
/// not know is within the packet.
#[inline(always)]
fn kind(packet: &impl Bytes, icmp: usize) -> Option<u8> {
    packet.read::<[u8; 2]>(icmp).map(|[kind, _]| kind)
}

/// What an error quotes, and where.
pub(super) struct Quote<A> {
    /// Offset of the ICMP header.
    icmp: usize,
    /// Offset of the quoted IP header.
    l3: usize,
    /// Offset of the quoted ports.
    l4: usize,
    /// The flow of the answers to the quoted packet: the way that the error goes.
    pub(super) answers: CtKey<A>,
}

impl<A: Icmp> Quote<A> {
    #[inline(always)]
    pub(super) fn read(packet: &impl Bytes) -> Option<Self> {
        let icmp = A::header(packet)?;
        let l3 = A::quote(packet, icmp)?;
        let (protocol, l4) = A::quoted(packet, l3)?;
        let [dst, src] = packet.read::<[A; 2]>(l3 + A::SOURCE_OFFSET)?;
        let [dst_port, src_port] = packet.read::<[BePort; 2]>(l4)?;
        let answers = CtKey { src, dst, src_port, dst_port, protocol, pad: [0; 3] };
        Some(Self { icmp, l3, l4, answers })
    }
}

/// Translates an error about a packet of a translated flow, drops a redirect about one, and leaves
/// all other packets alone. An error about a packet that was answered by another node is carried there, as
/// `decision` then says.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn icmp<A: Icmp>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> PathResult {
    match judge(packet, tables, (origin, decision)) {
        // Nothing of what is carried here may go on as it is.
        Ok(Verdict::Pass) if origin == Origin::Carried => Err(Counter::CarrierRefused),
        verdict => verdict,
    }
}

#[inline(always)]
fn judge<A: Icmp>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> PathResult {
    let Some(quote) = Quote::<A>::read(packet) else { return Ok(Verdict::Pass) };
    let Some(entry) = tables.conntrack(&quote.answers) else { return Ok(Verdict::Pass) };
    let action = entry.action();
    let is_here = action.is_at_egress() == (origin.direction() == Direction::Egress);
    if kind(packet, quote.icmp).is_some_and(A::is_redirect) {
        let is_ours = action == CtAction::REPLY && is_here;
        return if is_ours { Err(Counter::IcmpRedirect) } else { Ok(Verdict::Pass) };
    }
    if !is_here || is_over(tables, &quote.answers, entry) {
        return Ok(Verdict::Pass);
    }
    if !action.carries() {
        return translate(packet, tables, &quote, entry);
    }
    let dst = packet.read::<A>(L3 + A::SOURCE_OFFSET + size_of::<A>());
    if origin == Origin::Carried || dst != Some(quote.answers.dst) {
        return Ok(Verdict::Pass);
    }
    let ends = entry.get().peer(quote.answers.protocol).reversed();
    carrier::follow(tables, (&ends, quote.answers.src), decision)
}

/// Is a flow over? Then its client may have begun another one to the same backend, past this node's
/// frontends, that the error is about.
#[inline(always)]
fn is_over<A: Address>(tables: &impl Tables<A>, flow: &CtKey<A>, entry: CtRef<A>) -> bool {
    let entry = entry.get();
    CtState(entry.state).is_closed()
        || is_expired(flow.protocol, silence(entry.last_seen, tables.now()), tables.udp_timeout())
}

/// Translates an error and sends it on as an answer of its flow would be.
///
/// A router stays the source of its error, but under SNAT: what this node sends in place of the
/// stack carries an address of the flow, as the network may refuse any other.
#[inline(always)]
fn translate<A: Icmp>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    quote: &Quote<A>,
    entry: CtRef<A>,
) -> PathResult {
    let entry = entry.get();
    let ttl = packet.read(L3 + A::TTL_OFFSET).ok_or(Counter::RewriteFailed)?;
    let ends = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET);
    let Some([src, dst]) = ends.filter(|[_, dst]| *dst == quote.answers.dst) else {
        return Ok(Verdict::Pass);
    };
    let is_snat = matches!(entry.action, CtAction::FORWARD_SNAT | CtAction::REPLY_SNAT);
    let is_from_end = src == quote.answers.src;
    let new_src = if is_snat || is_from_end { entry.src } else { src };
    let is_routed = entry.action.redirects();
    if is_routed {
        // The way of the flow: by who asks.
        let asker = if entry.action.is_forward() { quote.answers.src } else { new_src };
        tables.route(asker, entry.dst).ok_or(Counter::NoRoute)?;
    }
    if is_snat {
        rewrite::decrement_ttl::<A>(packet, L3, ttl)?;
    }
    let outer = rewrite::readdress(packet, [src, dst], [new_src, entry.dst])?;
    rewrite_quote(packet, quote, &entry, outer)?;
    Ok(match entry.action {
        _ if is_routed => Verdict::Route,
        // A router's comes in by the way to the router, as reverse path filtering has it.
        CtAction::REPLY_TO_HOST if is_from_end => delivery(tables, entry.device),
        _ => Verdict::Continue,
    })
}

/// Makes the quoted packet the one that the error's receiver sent; `outer` is what became of the
/// error's own addresses.
#[inline(always)]
fn rewrite_quote<A: Icmp>(
    packet: &mut impl Packet,
    quote: &Quote<A>,
    entry: &CtEntry<A>,
    outer: Difference,
) -> Result<(), Counter> {
    let old = &quote.answers;
    let addresses = rewrite::addresses([old.src, old.dst], [entry.src, entry.dst]);
    let ports = rewrite::ports([old.src_port, old.dst_port], [entry.src_port, entry.dst_port]);
    packet.write(quote.l3 + A::SOURCE_OFFSET, &[entry.dst, entry.src])?;
    packet.write(quote.l4, &[entry.dst_port, entry.src_port])?;
    let change = if A::HEADER == Ipv4::HEADER {
        // The quoted header's checksum takes back what its addresses change.
        rewrite::change_checksum(packet, quote.l3 + rewrite::IPV4_CHECKSUM, addresses)?;
        ports
    } else {
        addresses.and(ports).and(outer)
    };
    rewrite::change_checksum(packet, quote.icmp + CHECKSUM, change)
}
