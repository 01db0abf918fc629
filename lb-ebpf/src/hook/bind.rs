//! NodePorts against `bind`: a process of the host that asks for the port of one hears that the
//! port is in use, although nothing listens on it (S8).
//!
//! Each NodePort has an entry at the unspecified address of its families, which is all that is
//! looked up: the address that the process asks for plays no part. Not for: sockets of pods.

use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Address, BePort, FrontendKey, Ipv4, Ipv6};

use super::sock_addr::{ALLOW, SocketAddress, is_host, port, protocol, refuse};
use crate::maps::Maps;

const EADDRINUSE: i32 = 98;

/// An address that a socket may be bound to.
pub trait BindAddress: SocketAddress {
    /// Would a socket bound to it take a NodePort's packets?
    fn takes_node_port(self, ctx: &SockAddrContext, port: BePort) -> bool;
}

impl BindAddress for Ipv4 {
    #[inline(always)]
    fn takes_node_port(self, ctx: &SockAddrContext, port: BePort) -> bool {
        is_node_port(ctx, Self(0), port)
    }
}

impl BindAddress for Ipv6 {
    /// The unspecified address stands for both families, since no program sees whether the socket
    /// is for IPv6 alone.
    #[inline(always)]
    fn takes_node_port(self, ctx: &SockAddrContext, port: BePort) -> bool {
        let any = Self([0; 4]);
        let is_mapped = self.mapped().is_some();
        (!is_mapped && is_node_port(ctx, any, port))
            || ((is_mapped || self == any) && is_node_port(ctx, Ipv4(0), port))
    }
}

/// Refuses `bind` for NodePorts.
#[inline(always)]
pub fn bind<A: BindAddress>(ctx: &SockAddrContext) -> i32 {
    let port = port(ctx);
    // Port zero asks for any: the kernel takes none that is reserved.
    if port == BePort(0) || !is_host(ctx) || !A::read(ctx).takes_node_port(ctx, port) {
        return ALLOW;
    }
    refuse(EADDRINUSE)
}

#[inline(always)]
fn is_node_port<A: Address + Maps>(ctx: &SockAddrContext, any: A, port: BePort) -> bool {
    A::frontend(&FrontendKey::new(any, port, protocol(ctx))).is_some()
}
