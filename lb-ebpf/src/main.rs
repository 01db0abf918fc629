//! The kernel programs: entry points, and nothing that decides.
//!
//! | program | hook |
//! |---|---|
//! | `lb_tc_ingress`, `lb_tc_egress` | tcx or clsact of a device |
//! | `lb_bind4` … `lb_sendmsg6` | cgroup |
#![no_std]
#![no_main]
#![allow(missing_docs, unreachable_pub, reason = "the macros make entry points of their own")]

mod globals;
mod hook;
mod maps;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use hook::{bind, sock_addr, tc};
use lb_common::abi::{Ipv4, Ipv6};

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
    sock_addr::connect::<Ipv4>(&ctx)
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(ctx: SockAddrContext) -> i32 {
    sock_addr::connect::<Ipv6>(&ctx)
}

/// `sendto` and `sendmsg` with an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::connect::<Ipv4>(&ctx)
}

/// `sendto` and `sendmsg` with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::connect::<Ipv6>(&ctx)
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

/// Some helpers ask for a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
