//! Iterator: which sockets lead to a backend that no longer serves, or no longer serves at the
//! address that was asked for.
//!
//! The kernel calls a program for each element of a map; what the program writes, the agent reads.
//! The kernel compares, so that the agent reads nothing where nothing is stale.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::seq_file,
    helpers::{bpf_get_socket_cookie, bpf_seq_write},
};
use lb_common::abi::{Abi, Address, FrontendKey, L4Proto, SocketPair, SocketPeers, StaleSocket};

use crate::{globals::RESET_TCP, maps::Maps};

/// Go on with the next element.
pub(super) const NEXT: i32 = 0;

/// `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
pub struct Meta {
    seq: *mut seq_file,
    session: u64,
    /// Number of elements visited before.
    pub(super) number: u64,
}

/// `struct bpf_iter__bpf_sk_storage_map`: one socket with what it remembers.
#[repr(C)]
pub struct SocketVisit {
    meta: *const Meta,
    map: *const c_void,
    socket: *mut c_void,
    peers: *const SocketPeers,
}

/// Writes a [`StaleSocket`] where a socket is connected to a backend that no longer serves.
#[inline(always)]
pub fn socket(visit: &SocketVisit) -> i32 {
    // SAFETY: the kernel gives a valid pointer, or none after the last element.
    let Some(peers) = (unsafe { visit.peers.as_ref() }) else { return NEXT };
    if visit.socket.is_null() {
        return NEXT;
    }
    // One after the other: the verifier takes no variable offset here.
    let [a, b, c, d] = &peers.pairs;
    for_pair(visit, a);
    for_pair(visit, b);
    for_pair(visit, c);
    for_pair(visit, d);
    NEXT
}

#[inline(always)]
fn for_pair(visit: &SocketVisit, pair: &SocketPair) {
    let is_judged =
        pair.protocol == L4Proto::UDP || pair.protocol == L4Proto::TCP && RESET_TCP.load() != 0;
    if pair.connected == 0 || !is_judged {
        return;
    }
    let serves = match pair.frontend.mapped() {
        Some(address) => pair_serves(pair, address),
        None => pair_serves(pair, pair.frontend),
    };
    if !serves {
        let stale = StaleSocket {
            // SAFETY: the kernel gives a valid socket, and it was seen not to be null.
            cookie: unsafe { bpf_get_socket_cookie(visit.socket) },
            backend: pair.backend,
            backend_id: pair.backend_id,
            generation: pair.generation,
            backend_port: pair.backend_port,
            protocol: pair.protocol,
            pad: [0; 5],
        };
        write(visit.meta, &stale);
    }
}

/// Connections stay where they are when an address goes to another Service (S12).
#[inline(always)]
fn pair_serves<A: Address + Maps>(pair: &SocketPair, address: A) -> bool {
    let id = (pair.backend_id, pair.generation);
    if pair.protocol == L4Proto::TCP {
        return A::backend(id.0).is_some_and(|backend| backend.serves(id.1));
    }
    serves(id, &FrontendKey::new(address, pair.frontend_port, pair.protocol))
}

/// Does the backend serve, and for the Service that has the address?
///
/// An address that nobody has keeps what it led to, as with kube-proxy.
#[inline(always)]
pub(super) fn serves<A: Address + Maps>(
    (id, generation): (u32, u32),
    address: &FrontendKey<A>,
) -> bool {
    let Some(backend) = A::backend(id).filter(|backend| backend.serves(generation)) else {
        return false;
    };
    A::frontend(address).is_none_or(|frontend| frontend.service == backend.service)
}

/// Writes a value for the agent to read; the kernel comes back with the element if it had no room.
#[inline(always)]
pub(super) fn write<T: Abi>(meta: *const Meta, value: &T) {
    // SAFETY: the kernel gives a valid description of the iteration; the value is as long as said.
    unsafe {
        bpf_seq_write((*meta).seq, core::ptr::from_ref(value).cast(), size_of::<T>() as u32);
    }
}
