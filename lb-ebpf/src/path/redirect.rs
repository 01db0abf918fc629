//! ICMP redirects of the node that quote a translated flow.
//!
//! A pod on a bridge whose request was translated at its port, and whose backend is on the same
//! bridge, is told by the node to send to the backend directly. The pod knows nothing of the
//! backend: what it would learn is wrong.

use lb_common::abi::{Address, BePort, Counter, CtAction, CtKey, Ipv4, Ipv6, L4Proto};

use crate::{
    packet::Packet,
    parse::{Header, L3},
    tables::Tables,
};

const IPV4_REDIRECT: u8 = 5;
const IPV6_REDIRECT: u8 = 137;
/// ICMPv6 header, target and destination (RFC 4861, 4.5).
const IPV6_REDIRECT_LENGTH: usize = 40;
const TARGET_LINK_LAYER_OPTION: [u8; 2] = [2, 1];
const OPTION_HEADER: usize = 8;

/// A family's redirect, and the packet that it quotes.
pub trait Redirect: Header {
    /// Where the quoted IP header begins; `None` if the packet is no redirect.
    fn quote(packet: &impl Packet) -> Option<usize>;
    /// Protocol of the quoted packet; `None` if its header has options.
    fn quoted_protocol(packet: &impl Packet, quote: usize) -> Option<L4Proto>;
}

impl Redirect for Ipv4 {
    #[inline(always)]
    fn quote(packet: &impl Packet) -> Option<usize> {
        let is_plain = packet.read::<u8>(L3)? == 0x45;
        let is_icmp = packet.read::<u8>(L3 + 9)? == L4Proto::ICMP.0;
        let icmp = L3 + Self::HEADER;
        let is_redirect = is_plain && is_icmp && packet.read::<u8>(icmp)? == IPV4_REDIRECT;
        is_redirect.then_some(icmp + 8)
    }

    #[inline(always)]
    fn quoted_protocol(packet: &impl Packet, quote: usize) -> Option<L4Proto> {
        let is_plain = packet.read::<u8>(quote)? == 0x45;
        packet.read(quote + 9).filter(|_| is_plain).map(L4Proto)
    }
}

impl Redirect for Ipv6 {
    #[inline(always)]
    fn quote(packet: &impl Packet) -> Option<usize> {
        let is_icmp = packet.read::<u8>(L3 + 6)? == L4Proto::ICMPV6.0;
        let icmp = L3 + Self::HEADER;
        if !is_icmp || packet.read::<u8>(icmp)? != IPV6_REDIRECT {
            return None;
        }
        let options = icmp + IPV6_REDIRECT_LENGTH;
        let has_link_layer = packet.read::<[u8; 2]>(options)? == TARGET_LINK_LAYER_OPTION;
        Some(options + if has_link_layer { 2 * OPTION_HEADER } else { OPTION_HEADER })
    }

    #[inline(always)]
    fn quoted_protocol(packet: &impl Packet, quote: usize) -> Option<L4Proto> {
        packet.read(quote + 6).map(L4Proto)
    }
}

/// Lets a packet that is not one of a flow leave, unless it is such a redirect.
///
/// # Errors
///
/// [`Counter::IcmpRedirect`] for a redirect that quotes a flow which this node translates.
#[inline(always)]
pub fn leave<A: Redirect>(packet: &impl Packet, tables: &impl Tables<A>) -> Result<(), Counter> {
    let entry = reply_flow::<A>(packet).and_then(|flow| tables.conntrack(&flow));
    match entry {
        Some(entry) if entry.get().action == CtAction::REPLY => Err(Counter::IcmpRedirect),
        _ => Ok(()),
    }
}

/// The flow that answers the quoted packet.
#[inline(always)]
fn reply_flow<A: Redirect>(packet: &impl Packet) -> Option<CtKey<A>> {
    let quote = A::quote(packet)?;
    let protocol = A::quoted_protocol(packet, quote)?;
    let [src, dst] = packet.read::<[A; 2]>(quote + A::SOURCE_OFFSET)?;
    let [src_port, dst_port] = packet.read::<[BePort; 2]>(quote + A::HEADER)?;
    Some(CtKey { src, dst, src_port, dst_port, protocol, pad: [0; 3] }.reversed())
}
