//! The kernel programs: entry points, and nothing that decides.
//!
//! | program | hook |
//! |---|---|
//! | `lb_xdp` | XDP of a device |
//! | `lb_tc_ingress`, `lb_tc_egress` | tcx or clsact of a device |
//! | `lb_ip_ingress`, `lb_ip_egress` | the same, where packets have no Ethernet header |
//! | `lb_bind4` … `lb_sendmsg6` | cgroup |
//! | `lb_stale_sockets`, `lb_sweep_v4`, `lb_sweep_v6`, `lb_half_open_v4`, `lb_half_open_v6` | iterators that the agent reads |
#![no_std]
#![no_main]
#![allow(missing_docs, unreachable_pub, reason = "the macros make entry points of their own")]

mod globals;
mod hook;
mod maps;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use hook::{
    bind, ip_device,
    sock_addr::{self, Call},
    stale::{self, SocketVisit},
    sweep::{self, FlowVisit},
    tc, xdp as fast,
};
use lb_common::abi::{Ipv4, Ipv6};

/// Frames that a device receives, before the stack.
#[xdp(frags)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    fast::receive(ctx)
}

/// Packets that come in by a device.
#[classifier]
pub fn lb_tc_ingress(ctx: TcContext) -> i32 {
    tc::ingress(ctx)
}

/// Packets that leave by a device.
#[classifier]
pub fn lb_tc_egress(ctx: TcContext) -> i32 {
    tc::egress(ctx)
}

/// Packets that come in by a device without Ethernet headers.
#[classifier]
pub fn lb_ip_ingress(ctx: TcContext) -> i32 {
    ip_device::ingress(ctx)
}

/// Packets that leave by a device without Ethernet headers.
#[classifier]
pub fn lb_ip_egress(ctx: TcContext) -> i32 {
    ip_device::egress(ctx)
}

/// `bind` of an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub fn lb_bind4(ctx: SockAddrContext) -> i32 {
    bind::bind::<Ipv4>(&ctx)
}

/// `bind` of an IPv6 socket.
#[cgroup_sock_addr(bind6)]
pub fn lb_bind6(ctx: SockAddrContext) -> i32 {
    bind::bind::<Ipv6>(&ctx)
}

/// `connect` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn lb_connect4(ctx: SockAddrContext) -> i32 {
    sock_addr::translate::<Ipv4>(&ctx, Call::Connect)
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(ctx: SockAddrContext) -> i32 {
    sock_addr::translate::<Ipv6>(&ctx, Call::Connect)
}

/// `sendto` and `sendmsg` with an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::translate::<Ipv4>(&ctx, Call::Send)
}

/// `sendto` and `sendmsg` with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::translate::<Ipv6>(&ctx, Call::Send)
}

/// `recvfrom` and `recvmsg` of an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn lb_recvmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::reveal::<Ipv4>(&ctx)
}

/// `recvfrom` and `recvmsg` of an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn lb_recvmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::reveal::<Ipv6>(&ctx)
}

/// `getpeername` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn lb_getpeername4(ctx: SockAddrContext) -> i32 {
    sock_addr::reveal::<Ipv4>(&ctx)
}

/// `getpeername` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn lb_getpeername6(ctx: SockAddrContext) -> i32 {
    sock_addr::reveal::<Ipv6>(&ctx)
}

/// Tells of each socket that is connected to a backend that no longer serves.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn lb_stale_sockets(visit: &SocketVisit) -> i32 {
    stale::socket(visit)
}

/// Removes what is to be forgotten of the flows of IPv4.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn lb_sweep_v4(visit: &FlowVisit<Ipv4>) -> i32 {
    sweep::flow(visit)
}

/// Removes what is to be forgotten of the flows of IPv6.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn lb_sweep_v6(visit: &FlowVisit<Ipv6>) -> i32 {
    sweep::flow(visit)
}

/// Marks the places of the flows of IPv4 that are not proven.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn lb_half_open_v4(visit: &FlowVisit<Ipv4>) -> i32 {
    sweep::half_open(visit)
}

/// Marks the places of the flows of IPv6 that are not proven.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn lb_half_open_v6(visit: &FlowVisit<Ipv6>) -> i32 {
    sweep::half_open(visit)
}

/// Some helpers ask for a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
