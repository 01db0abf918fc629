//! The kernel's routing table, as programs may ask it.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh},
};
use lb_common::abi::{Ipv4, Ipv6};
use lb_ebpf::tables::{Neighbour, Route};

use crate::maps;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A family's routing table.
pub trait Routing: Sized {
    /// A question for the way from `src` to `dst`.
    fn question(src: Self, dst: Self) -> Option<&'static mut bpf_fib_lookup>;
    /// The next hop of an answer whose link-layer address is known.
    fn next_hop(answer: &bpf_fib_lookup) -> Neighbour<Self>;
    /// Sends the packet to a neighbour; returns the program's verdict.
    fn redirect(route: &Route<Self>) -> i32;
}

impl Routing for Ipv4 {
    #[inline(always)]
    fn question(src: Self, dst: Self) -> Option<&'static mut bpf_fib_lookup> {
        let question = question(AF_INET)?;
        question.__bindgen_anon_3.ipv4_src = src.0;
        question.__bindgen_anon_4.ipv4_dst = dst.0;
        Some(question)
    }

    #[inline(always)]
    fn next_hop(answer: &bpf_fib_lookup) -> Neighbour<Self> {
        if answer.family != AF_INET {
            return Neighbour::Other;
        }
        // SAFETY: the kernel has written the next hop of this family.
        Neighbour::Same(Self(unsafe { answer.__bindgen_anon_4.ipv4_dst }))
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
    fn question(src: Self, dst: Self) -> Option<&'static mut bpf_fib_lookup> {
        let question = question(AF_INET6)?;
        question.__bindgen_anon_3.ipv6_src = src.0;
        question.__bindgen_anon_4.ipv6_dst = dst.0;
        Some(question)
    }

    #[inline(always)]
    fn next_hop(answer: &bpf_fib_lookup) -> Neighbour<Self> {
        // SAFETY: an IPv6 route has an IPv6 next hop.
        Neighbour::Same(Self(unsafe { answer.__bindgen_anon_4.ipv6_dst }))
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
fn question(family: u8) -> Option<&'static mut bpf_fib_lookup> {
    let question = &mut maps::route_query()?.0;
    // SAFETY: every field is an integer.
    *question = unsafe { core::mem::zeroed() };
    question.family = family;
    Some(question)
}

/// What the routing table says.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Found {
    /// The next hop and its link-layer address.
    Neighbour,
    /// The device alone: the next hop has not answered yet.
    Device,
    /// No way, or one that the packet is too long for.
    Nothing,
}

/// Asks for the way of a packet that is at `device`; the answer takes the question's place.
#[inline(always)]
pub(super) fn ask(ctx: &impl EbpfContext, question: &mut bpf_fib_lookup, device: u32) -> Found {
    question.ifindex = device;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context is valid, and the size is that of the question.
    let answer = unsafe { fib_lookup(ctx.as_ptr(), question, size, 0) };
    if answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        Found::Neighbour
    } else if answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        Found::Device
    } else {
        Found::Nothing
    }
}

#[inline(always)]
fn redirect(device: u32, neighbour: Option<&mut bpf_redir_neigh>) -> i32 {
    let size = size_of::<bpf_redir_neigh>() as i32;
    let (neighbour, size) =
        neighbour.map_or((core::ptr::null_mut(), 0), |n| (core::ptr::from_mut(n), size));
    // SAFETY: either no parameters, or a pointer to as many bytes as the size says.
    unsafe { bpf_redirect_neigh(device, neighbour, size, 0) as i32 }
}
