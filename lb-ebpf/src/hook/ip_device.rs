//! Devices whose packets begin with the IP header (tun, WireGuard, IPIP).
//!
//! A packet that may be ours gets an Ethernet header, and then goes the way of all others. At ingress the kernel
//! finds the IP header behind it, and redirects take it off where the next device has none. At egress the
//! device would send it: a packet that goes on is sent by the same device once more, which takes it off.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_skb_change_head},
    programs::TcContext,
};
use lb_common::{
    abi::{Address, BePort, CtKey, Ipv4, Ipv6, L4Proto},
    carrier::within,
};
use lb_ebpf::{
    packet::{Bytes as _, ETHERNET_HEADER, ETHERTYPE_OFFSET, Packet as _},
    parse::ANY_FRAGMENT,
};

use super::{skb::Skb, tc};
use crate::{
    globals::{CARRIER_PORT, MARK},
    maps::cache,
};

/// Headers that are read before there is another one: IPv4 with all options, ports.
const HEADERS: u32 = 60 + 4;
/// The hook that a packet is at: carriers are taken where they come in.
const INCOMING: u32 = 0;
const LEAVING: u32 = 1;

/// The program at ingress.
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    if skb.is_marked() || lb_ip_header(skb.as_ptr(), INCOMING) == 0 {
        return tc::NEXT;
    }
    tc::ingress(skb.context())
}

/// The program at egress.
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    if skb.is_marked() {
        skb.set_mark(0);
        return tc::NEXT;
    }
    if lb_ip_header(skb.as_ptr(), LEAVING) == 0 {
        return tc::NEXT;
    }
    match tc::egress(skb.context()) {
        tc::NEXT => {
            skb.set_mark(MARK.load());
            // SAFETY: a helper that takes numbers.
            unsafe { bpf_redirect(skb.device(), 0) as i32 }
        }
        verdict => verdict,
    }
}

/// Does [`add_header`] in a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_ip_header(ctx: *mut __sk_buff, hook: u32) -> i32 {
    i32::from(add_header(&mut Skb::new(TcContext::new(ctx)), hook))
}

/// Adds an Ethernet header, without addresses, to a packet that may be ours; false if it has none.
#[inline(always)]
fn add_header(skb: &mut Skb, hook: u32) -> bool {
    skb.pull(HEADERS);
    let ethertype = skb.protocol();
    let may_be_ours = match ethertype {
        Ipv4::ETHERTYPE => may_be_ours_v4(skb, hook),
        Ipv6::ETHERTYPE => may_be_ours_v6(skb, hook),
        _ => None,
    };
    // SAFETY: the context is valid for as long as the program runs.
    may_be_ours == Some(true)
        && unsafe { bpf_skb_change_head(skb.as_ptr(), ETHERNET_HEADER as u32, 0) } == 0
        && skb.write(ETHERTYPE_OFFSET, &ethertype.to_be()).is_ok()
}

#[inline(always)]
fn may_be_ours_v4(skb: &Skb, hook: u32) -> Option<bool> {
    let l4 = usize::from(skb.read::<u8>(0)? & 0x0f) * 4;
    let fragment = u16::from_be(skb.read(6)?);
    let protocol = L4Proto(skb.read(9)?);
    if fragment & ANY_FRAGMENT != 0 {
        return Some(true);
    }
    match protocol {
        // The code with the type: the verifier does not follow the check of a single byte.
        L4Proto::ICMP => {
            skb.read::<[u8; 2]>(l4).map(|[kind, _]| matches!(kind, 3 | 5 | 8 | 11 | 12))
        }
        _ if protocol.0 == within::<Ipv4>() => Some(hook == INCOMING),
        _ => is_of_an_end::<Ipv4>(skb, protocol, l4),
    }
}

#[inline(always)]
fn may_be_ours_v6(skb: &Skb, hook: u32) -> Option<bool> {
    let protocol = L4Proto(skb.read(6)?);
    match protocol.0 {
        // Headers in between (RFC 7045, 4): what follows them is read later.
        0 | 43 | 44 | 51 | 60 => Some(true),
        _ if protocol.0 == within::<Ipv6>() => Some(hook == INCOMING),
        _ if protocol == L4Proto::ICMPV6 => {
            skb.read::<u8>(Ipv6::HEADER).map(|kind| matches!(kind, 1..=4 | 128 | 137))
        }
        _ => is_of_an_end::<Ipv6>(skb, protocol, Ipv6::HEADER),
    }
}

/// Is it for what may be a frontend, from what may be a backend, or perhaps a carrier?
#[inline(always)]
fn is_of_an_end<A: Address>(skb: &Skb, protocol: L4Proto, l4: usize) -> Option<bool> {
    if !matches!(protocol, L4Proto::TCP | L4Proto::UDP | L4Proto::SCTP) {
        return Some(false);
    }
    let [src, dst] = skb.read::<[A; 2]>(A::SOURCE_OFFSET)?;
    let [src_port, dst_port] = skb.read::<[BePort; 2]>(l4)?;
    if protocol == L4Proto::UDP && u32::from(dst_port.get()) == CARRIER_PORT.load() {
        return Some(true);
    }
    let flow = CtKey { src, dst, src_port, dst_port, protocol, pad: [0; 3] };
    let control = cache::control()?;
    Some(cache::may_be_to_frontend(control, &flow) || cache::may_be_from_backend(control, &flow))
}
