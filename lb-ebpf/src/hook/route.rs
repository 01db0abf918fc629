//! The kernel's routing table, as programs may ask it.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
        bpf_redir_neigh,
    },
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::abi::{Address, Ipv4, Ipv6, NextHop};
use lb_ebpf::{
    packet::{Bytes as _, ETHERNET_HEADER},
    path::Direction,
};

use super::{skb::Skb, tables::Context};
use crate::maps::{self, RouteQuery};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// What follows the version in an IPv6 header: traffic class and flow label.
const FLOW_INFO: u32 = 0x0fff_ffff;
/// Where an IPv6 header says what follows it.
const NEXT_HEADER: usize = 6;
/// Asks for the route's MTU; no packet is that short.
const ASK_MTU: u16 = 1;

/// A family's questions to the routing table, and its answers.
pub trait Routing: Sized {
    /// Number of the address family.
    const FAMILY: u8;
    /// Writes source and destination of a question.
    fn ask(query: &mut bpf_fib_lookup, src: Self, dst: Self);
    /// Reads the next hop of an answer of this family.
    fn answer(query: &bpf_fib_lookup, neighbour: &mut bpf_redir_neigh);
    /// The device behind which the kernel looks for the neighbour itself, where the answer was `device`.
    fn device_of_kernel(skb: &Skb, device: u32) -> u32;
}

impl Routing for Ipv4 {
    const FAMILY: u8 = AF_INET;

    #[inline(always)]
    fn ask(query: &mut bpf_fib_lookup, src: Self, dst: Self) {
        query.__bindgen_anon_3.ipv4_src = src.0;
        query.__bindgen_anon_4.ipv4_dst = dst.0;
    }

    #[inline(always)]
    fn answer(query: &bpf_fib_lookup, neighbour: &mut bpf_redir_neigh) {
        // SAFETY: the kernel has written a next hop of this family.
        neighbour.__bindgen_anon_1.ipv4_nh = unsafe { query.__bindgen_anon_4.ipv4_dst };
    }

    #[inline(always)]
    fn device_of_kernel(_: &Skb, device: u32) -> u32 {
        device
    }
}

impl Routing for Ipv6 {
    const FAMILY: u8 = AF_INET6;

    #[inline(always)]
    fn ask(query: &mut bpf_fib_lookup, src: Self, dst: Self) {
        query.__bindgen_anon_3.ipv6_src = src.0;
        query.__bindgen_anon_4.ipv6_dst = dst.0;
    }

    #[inline(always)]
    fn answer(query: &bpf_fib_lookup, neighbour: &mut bpf_redir_neigh) {
        // SAFETY: the kernel has written a next hop of this family.
        neighbour.__bindgen_anon_1.ipv6_nh = unsafe { query.__bindgen_anon_4.ipv6_dst };
    }

    #[inline(always)]
    fn device_of_kernel(skb: &Skb, device: u32) -> u32 {
        match lb_tc_device6(skb.as_ptr()) {
            0 => device,
            chosen => chosen,
        }
    }
}

/// Where a packet from `src` to `dst` goes; the answer is kept for [`redirect`].
///
/// Where the neighbour's link-layer address is not known, the hop is without addresses and takes
/// packets of any length: the kernel finds the address.
#[inline(always)]
pub fn route<A: Routing>(ctx: &impl Context, src: A, dst: A) -> Option<NextHop> {
    let RouteQuery { lookup, is_known } = maps::route_query()?;
    begin(lookup, ctx, [src, dst]);
    let answer = ask(lookup, ctx);
    if answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        *is_known = 0;
        return Some(NextHop { mtu: u16::MAX, ..NextHop::of(lookup.ifindex) });
    }
    if answer != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return None;
    }
    *is_known = 1;
    // SAFETY: the kernel has written the MTU here.
    let mtu = unsafe { lookup.__bindgen_anon_1.mtu_result };
    let flags = maps::device::flags(lookup.ifindex);
    let macs = words(lookup.dmac, lookup.smac);
    Some(NextHop { mtu, macs, flags, ..NextHop::of(lookup.ifindex) })
}

/// Sends the packet where the last answer said; returns the program's verdict.
///
/// By way of the kernel's neighbours, which learns by that that this one is in use, or is to be found. The next
/// hop is named: asked once more, the kernel may choose another one of the route, behind another
/// device. Only at egress an unknown one is not: a packet of a host process carries the route to the Service's
/// address, and one that waits for a neighbour is sent to that route's. Nor is a router of the other
/// family (RFC 5549).
#[inline(always)]
pub fn redirect<A: Routing>(skb: &Skb, direction: Direction) -> Option<i32> {
    let RouteQuery { lookup, is_known } = maps::route_query()?;
    let mut device = lookup.ifindex;
    let is_named = *is_known != 0 || direction == Direction::Ingress;
    if !is_named || lookup.family != A::FAMILY {
        device = A::device_of_kernel(skb, device);
        // SAFETY: no parameters.
        return Some(unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32 });
    }
    // SAFETY: every field is an integer.
    let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    neighbour.nh_family = u32::from(A::FAMILY);
    A::answer(lookup, &mut neighbour);
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: a pointer to as many bytes as the size says.
    Some(unsafe { bpf_redirect_neigh(device, &mut neighbour, size, 0) as i32 })
}

/// The device of the next hop that the kernel chooses for a packet as it stands: by its flow label and next
/// header, too, and whatever device it is told (RFC 6438). Zero if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_tc_device6(ctx: *mut __sk_buff) -> u32 {
    device6(&Skb::new(TcContext::new(ctx))).unwrap_or_default()
}

#[inline(always)]
fn device6(skb: &Skb) -> Option<u32> {
    let RouteQuery { lookup, .. } = maps::route_query()?;
    let ctx = skb.context();
    begin(lookup, &ctx, skb.read::<[Ipv6; 2]>(ETHERNET_HEADER + Ipv6::SOURCE_OFFSET)?);
    lookup.l4_protocol = skb.read(ETHERNET_HEADER + NEXT_HEADER)?;
    lookup.__bindgen_anon_2.flowinfo = skb.read::<u32>(ETHERNET_HEADER)? & FLOW_INFO.to_be();
    let answer = ask(lookup, &ctx);
    let found = [BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_NO_NEIGH].map(i64::from);
    found.contains(&answer).then_some(lookup.ifindex)
}

/// Makes a question of where a packet goes.
#[inline(always)]
fn begin<A: Routing>(lookup: &mut bpf_fib_lookup, ctx: &impl Context, [src, dst]: [A; 2]) {
    // SAFETY: every field is an integer.
    *lookup = unsafe { core::mem::zeroed() };
    lookup.family = A::FAMILY;
    lookup.__bindgen_anon_1.tot_len = ASK_MTU;
    lookup.ifindex = ctx.device();
    A::ask(lookup, src, dst);
}

/// Asks it.
#[inline(always)]
fn ask(lookup: &mut bpf_fib_lookup, ctx: &impl Context) -> i64 {
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context is valid, and the size is that of the parameters.
    unsafe { fib_lookup(ctx.as_ptr(), lookup, size, 0) }
}

/// Two link-layer addresses by words, as they stand in memory one after the other.
#[inline(always)]
fn words([a, b, c, d, e, f]: [u8; 6], [g, h, i, j, k, l]: [u8; 6]) -> [u32; 3] {
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}
