//! What a socket remembers: the backends that it was given, in its storage.

use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Address, Backend, BePort, Frontend, SOCKET_PAIRS, SocketPair, SocketPeers};

use super::sock_addr::protocol;
use crate::maps::{Maps, SOCKETS};

/// The backend that a UDP socket has for a frontend, while it serves there: the address may have
/// gone to another Service.
#[inline(always)]
pub(super) fn remembered<A: Address + Maps>(
    ctx: &SockAddrContext,
    frontend: &Frontend,
    (address, port): (A, BePort),
) -> Option<SocketPair> {
    let address = address.to_mapped();
    let is_it = |pair: &SocketPair| pair.frontend == address && pair.frontend_port == port;
    let pair = find(peers(ctx)?, is_it)?;
    let backend = A::backend(pair.backend_id)?;
    let is_ours = backend.service == frontend.service;
    (is_ours && backend.serves(pair.generation)).then_some(pair)
}

/// Writes a pair over the one for the same frontend, else over the oldest.
#[inline(always)]
pub(super) fn remember<A: Address>(
    ctx: &SockAddrContext,
    (address, frontend_port): (A, BePort),
    (backend_id, backend): (u32, &Backend<A>),
) -> SocketPair {
    let pair = SocketPair {
        frontend: address.to_mapped(),
        backend: backend.address.to_mapped(),
        frontend_port,
        backend_port: backend.port,
        backend_id,
        generation: backend.generation,
        protocol: protocol(ctx),
        connected: 0,
        pad: 0,
    };
    // SAFETY: the context's socket is valid for as long as the program runs.
    let peers = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() };
    let Some(peers) = peers else {
        return pair;
    };
    for old in &mut peers.pairs {
        if old.frontend == pair.frontend && old.frontend_port == frontend_port {
            *old = pair;
            return pair;
        }
    }
    if let Some(oldest) = peers.pairs.get_mut(peers.next as usize % SOCKET_PAIRS) {
        *oldest = pair;
    }
    peers.next = peers.next.wrapping_add(1);
    pair
}

/// Marks the pair for the same frontend as the one that the socket is connected to; no other is.
#[inline(always)]
pub(super) fn set_connected(ctx: &SockAddrContext, pair: &SocketPair) {
    // SAFETY: the context's socket is valid for as long as the program runs.
    let Some(peers) = (unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() }) else { return };
    for known in &mut peers.pairs {
        let is_it = known.frontend == pair.frontend && known.frontend_port == pair.frontend_port;
        known.connected = u8::from(is_it);
    }
}

/// What the socket of the context remembers, if anything.
#[inline(always)]
pub(super) fn peers(ctx: &SockAddrContext) -> Option<&SocketPeers> {
    // SAFETY: the context's socket is valid for as long as the program runs.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }
}

/// The pair in use that is meant.
#[inline(always)]
pub(super) fn find(peers: &SocketPeers, is_it: impl Fn(&SocketPair) -> bool) -> Option<SocketPair> {
    peers.pairs.iter().find(|pair| pair.frontend_port != BePort(0) && is_it(pair)).copied()
}
