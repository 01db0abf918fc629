//! Sockets: the destination of `connect` and `sendmsg` becomes a backend, and the source of
//! `recvmsg` and `getpeername` the frontend again.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use lb_common::{
    abi::{
        Abi, Address, AffinityKey, Backend, BePort, Frontend, FrontendFlags, FrontendKey, Ipv4,
        Ipv6, L4Proto, SocketPair,
    },
    flow,
};
use lb_ebpf::affinity;

use super::peers::{find, peers, remember, remembered, set_connected};
use crate::{
    globals::{HOST_NETNS, SET_RETVAL, SOCKET_HOST_ONLY},
    maps::{self, BpfBackends, Maps},
};

pub(super) const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// A destination or source as a socket hook shows it.
pub trait SocketAddress: Address {
    /// The address in the context.
    fn read(ctx: &SockAddrContext) -> Self;
    /// Replaces the address in the context by one that came from the same hook.
    fn write(ctx: &SockAddrContext, address: Ipv6);
    /// What the address leads to; an IPv4-mapped one is an IPv4 address.
    fn resolve(self, ctx: &SockAddrContext, port: BePort) -> Answer;
}

impl SocketAddress for Ipv4 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> Self {
        // SAFETY: the context is valid for as long as the program runs.
        Self(unsafe { addr_of_mut!((*ctx.sock_addr).user_ip4).read_volatile() })
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, address: Ipv6) {
        let Ipv6([_, _, _, v4]) = address;
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(v4) }
    }

    #[inline(always)]
    fn resolve(self, ctx: &SockAddrContext, port: BePort) -> Answer {
        choose(ctx, self, port)
    }
}

impl SocketAddress for Ipv6 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> Self {
        let mut address = [0; 4];
        for (index, word) in address.iter_mut().enumerate() {
            // SAFETY: the context is valid for as long as the program runs, and the field has as
            // many words.
            *word = unsafe { addr_of_mut!((*ctx.sock_addr).user_ip6[index]).read_volatile() };
        }
        Self(address)
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, address: Ipv6) {
        for (index, word) in address.0.iter().enumerate() {
            // SAFETY: as for `read`.
            unsafe { addr_of_mut!((*ctx.sock_addr).user_ip6[index]).write_volatile(*word) };
        }
    }

    #[inline(always)]
    fn resolve(self, ctx: &SockAddrContext, port: BePort) -> Answer {
        match self.mapped() {
            Some(v4) => choose(ctx, v4, port),
            None => choose(ctx, self, port),
        }
    }
}

/// The system call that a destination was given to.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Call {
    /// `connect`.
    Connect,
    /// `sendto` or `sendmsg` with an address.
    Send,
}

/// What an address leads to.
pub enum Answer {
    /// A backend of a Service.
    Backend(SocketPair),
    /// Not for us: no Service's address, or one that the packet path must judge.
    Pass,
    /// A Service without a usable backend.
    Refuse,
}

/// Translates the destination of `connect` and `sendmsg`.
#[inline(always)]
pub fn translate<A: SocketAddress>(ctx: &SockAddrContext, call: Call) -> i32 {
    if SOCKET_HOST_ONLY.load() != 0 && !is_host(ctx) {
        return ALLOW;
    }
    match A::read(ctx).resolve(ctx, port(ctx)) {
        Answer::Backend(pair) => {
            if call == Call::Connect {
                set_connected(ctx, &pair);
            }
            A::write(ctx, pair.backend);
            set_port(ctx, pair.backend_port);
            ALLOW
        }
        Answer::Pass => {
            if call == Call::Connect && protocol(ctx) == L4Proto::UDP {
                set_connected(ctx, &SocketPair::zeroed());
            }
            ALLOW
        }
        Answer::Refuse => refuse(ECONNREFUSED),
    }
}

/// Ends the system call with an error, `EPERM` where the kernel has no way to say another.
#[inline(always)]
pub(super) fn refuse(errno: i32) -> i32 {
    if SET_RETVAL.load() != 0 {
        // SAFETY: a helper that takes a number.
        unsafe { bpf_set_retval(-errno) };
    }
    REFUSE
}

/// Gives `recvmsg` and `getpeername` the frontend that the socket talks to.
#[inline(always)]
pub fn reveal<A: SocketAddress>(ctx: &SockAddrContext) -> i32 {
    let (address, port) = (A::read(ctx).to_mapped(), port(ctx));
    let is_it = |pair: &SocketPair| pair.backend == address && pair.backend_port == port;
    if let Some(pair) = peers(ctx).and_then(|peers| find(peers, is_it)) {
        A::write(ctx, pair.frontend);
        set_port(ctx, pair.frontend_port);
    }
    ALLOW
}

/// Finds the frontend and a backend for it, and remembers the pair in the socket.
#[inline(always)]
fn choose<A: Address + Maps>(ctx: &SockAddrContext, address: A, port: BePort) -> Answer {
    let protocol = protocol(ctx);
    let Some(frontend) = A::frontend(&FrontendKey::new(address, port, protocol)) else {
        return Answer::Pass;
    };
    if frontend.flags.has(FrontendFlags::BIND_ONLY) {
        return Answer::Pass;
    }
    if frontend.flags.has(FrontendFlags::HOST_ONLY) && !is_host(ctx) {
        return Answer::Pass;
    }
    if is_for_packets(ctx, frontend.flags) {
        return Answer::Pass;
    }
    if protocol == L4Proto::UDP
        && let Some(pair) = remembered(ctx, &frontend, (address, port))
    {
        return Answer::Backend(pair);
    }
    if frontend.internal.length == 0 {
        // A drop has to be silent, and counted: that is for the packet path.
        let drop = frontend.flags.has(FrontendFlags::DROP_INTERNAL);
        return if drop { Answer::Pass } else { Answer::Refuse };
    }
    match pick::<A>(ctx, &frontend, protocol) {
        Some((id, backend)) => Answer::Backend(remember(ctx, (address, port), (id, &backend))),
        None => Answer::Pass,
    }
}

/// The backend that the socket's network namespace was given before, where the Service asks for
/// that (S10), else any.
#[inline(always)]
fn pick<A: Address + Maps>(
    ctx: &SockAddrContext,
    frontend: &Frontend,
    protocol: L4Proto,
) -> Option<(u32, Backend<A>)> {
    if frontend.affinity_timeout == 0 {
        return pick_slot(ctx, frontend, protocol);
    }
    let backends = BpfBackends::<A>::new();
    let client = AffinityKey::of_netns(frontend.service, netns(ctx));
    let list = affinity::list(frontend, FrontendFlags::INTERNAL_LOCAL);
    let (id, backend) = match affinity::recall(&backends, frontend, &client, list) {
        Some(choice) => choice,
        None => pick_slot(ctx, frontend, protocol)?,
    };
    affinity::remember(&backends, &client, (id, backend.generation));
    Some((id, backend))
}

/// Does the answer depend on what only packets show, or can only they be given it? Who asks is not
/// known yet (S9), and a pod's packets have to come back to this node (`--masquerade-all`).
#[inline(always)]
fn is_for_packets(ctx: &SockAddrContext, flags: FrontendFlags) -> bool {
    flags.has(FrontendFlags::CHECK_SOURCE) || flags.has(FrontendFlags::MASQUERADE) && !is_host(ctx)
}

/// TCP takes any slot: the source port that the packet path would hash is not known yet. UDP takes
/// one that follows from the socket, so that a stream of datagrams stays together.
#[inline(always)]
fn pick_slot<A: Maps>(
    ctx: &SockAddrContext,
    frontend: &Frontend,
    protocol: L4Proto,
) -> Option<(u32, Backend<A>)> {
    let hash = if protocol == L4Proto::TCP {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    } else {
        // SAFETY: the context is valid for as long as the program runs.
        flow::socket_hash(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }, frontend.service)
    };
    let region = frontend.internal;
    let id = maps::slot(region, flow::slot(hash, region.length))?;
    A::backend(id).map(|backend| (id, backend))
}

/// Is the socket in the agent's own network namespace?
#[inline(always)]
pub(super) fn is_host(ctx: &SockAddrContext) -> bool {
    netns(ctx) == HOST_NETNS.load()
}

/// Cookie of the socket's network namespace.
#[inline(always)]
fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
pub(super) fn protocol(ctx: &SockAddrContext) -> L4Proto {
    // SAFETY: the context is valid for as long as the program runs.
    L4Proto(unsafe { addr_of_mut!((*ctx.sock_addr).protocol).read_volatile() } as u8)
}

#[inline(always)]
pub(super) fn port(ctx: &SockAddrContext) -> BePort {
    // SAFETY: the context is valid for as long as the program runs; the port is in its low half.
    BePort(unsafe { addr_of_mut!((*ctx.sock_addr).user_port).read_volatile() } as u16)
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: BePort) {
    let sock_addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { addr_of_mut!((*sock_addr).user_port).write_volatile(u32::from(port.0)) }
}
