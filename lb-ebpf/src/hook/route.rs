//! The kernel's routing table, as a TC program may ask it.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::abi::{Ipv4, Ipv6};
use lb_ebpf::tables::{Neighbour, Route};

use crate::maps;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A family's routing table.
pub trait Routing: Sized {
    /// Where a packet from `src` to `dst` goes.
    fn route(ctx: &TcContext, src: Self, dst: Self) -> Option<Route<Self>>;
    /// Sends the packet to a neighbour; returns the program's verdict.
    fn redirect(route: &Route<Self>) -> i32;
}

impl Routing for Ipv4 {
    #[inline(always)]
    fn route(ctx: &TcContext, src: Self, dst: Self) -> Option<Route<Self>> {
        let params = params(ctx, AF_INET)?;
        params.__bindgen_anon_3.ipv4_src = src.0;
        params.__bindgen_anon_4.ipv4_dst = dst.0;
        let (device, is_known) = lookup(ctx, params)?;
        let neighbour = if is_known && params.family == AF_INET {
            // SAFETY: the kernel has written the next hop of this family.
            Neighbour::Same(Self(unsafe { params.__bindgen_anon_4.ipv4_dst }))
        } else {
            Neighbour::Other
        };
        Some(Route { device, neighbour })
    }

    #[inline(always)]
    fn redirect(route: &Route<Self>) -> i32 {
        let Neighbour::Same(Self(address)) = route.neighbour else {
            return redirect(route.device, None);
        };
        // SAFETY: every field is an integer.
        let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
        neighbour.nh_family = u32::from(AF_INET);
        neighbour.__bindgen_anon_1.ipv4_nh = address;
        redirect(route.device, Some(&mut neighbour))
    }
}

impl Routing for Ipv6 {
    #[inline(always)]
    fn route(ctx: &TcContext, src: Self, dst: Self) -> Option<Route<Self>> {
        let params = params(ctx, AF_INET6)?;
        params.__bindgen_anon_3.ipv6_src = src.0;
        params.__bindgen_anon_4.ipv6_dst = dst.0;
        let (device, is_known) = lookup(ctx, params)?;
        let neighbour = if is_known {
            // SAFETY: an IPv6 route has an IPv6 next hop.
            Neighbour::Same(Self(unsafe { params.__bindgen_anon_4.ipv6_dst }))
        } else {
            Neighbour::Other
        };
        Some(Route { device, neighbour })
    }

    #[inline(always)]
    fn redirect(route: &Route<Self>) -> i32 {
        let Neighbour::Same(Self(address)) = route.neighbour else {
            return redirect(route.device, None);
        };
        // SAFETY: every field is an integer.
        let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
        neighbour.nh_family = u32::from(AF_INET6);
        neighbour.__bindgen_anon_1.ipv6_nh = address;
        redirect(route.device, Some(&mut neighbour))
    }
}

#[inline(always)]
fn params(ctx: &TcContext, family: u8) -> Option<&'static mut bpf_fib_lookup> {
    let query = maps::route_query()?;
    query.narrow_mtu = 0;
    let params = &mut query.query;
    // SAFETY: every field is an integer.
    *params = unsafe { core::mem::zeroed() };
    params.family = family;
    // SAFETY: the context is valid for as long as the program runs.
    params.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    Some(params)
}

/// Interface index of the next hop, and whether its neighbour's link-layer address is known.
///
/// Where it is not, the kernel must find the route again: a packet of a host process carries the
/// route to the Service's address, and one that waits for a neighbour is sent to that route's.
#[inline(always)]
fn lookup(ctx: &TcContext, params: &mut bpf_fib_lookup) -> Option<(u32, bool)> {
    // SAFETY: the context is valid, and the size is that of the parameters.
    let answer = unsafe { fib_lookup(ctx.as_ptr(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
    if answer == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: the kernel has written the MTU.
        let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
        maps::route_query()?.narrow_mtu = mtu;
        return None;
    }
    let is_known = answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS);
    let is_found = is_known || answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
    is_found.then_some((params.ifindex, is_known))
}

#[inline(always)]
fn redirect(device: u32, neighbour: Option<&mut bpf_redir_neigh>) -> i32 {
    let size = size_of::<bpf_redir_neigh>() as i32;
    let (neighbour, size) =
        neighbour.map_or((core::ptr::null_mut(), 0), |n| (core::ptr::from_mut(n), size));
    // SAFETY: either no parameters, or a pointer to as many bytes as the size says.
    unsafe { bpf_redirect_neigh(device, neighbour, size, 0) as i32 }
}
