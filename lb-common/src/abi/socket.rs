//! What a socket remembers of the frontends that it talks to.

use super::{BePort, Ipv6, L4Proto, layout::abi};

/// Frontends that one socket can talk to at a time; musl's resolver asks three servers at once.
pub const SOCKET_PAIRS: usize = 4;

abi! {
    /// One frontend and the backend that stands for it. 48 bytes; IPv4 addresses are mapped.
    pub struct SocketPair {
        /// Address that the program named.
        pub frontend: Ipv6,
        /// Address that the kernel uses.
        pub backend: Ipv6,
        /// Port that the program named; zero in an unused pair.
        pub frontend_port: BePort,
        /// Port that the kernel uses.
        pub backend_port: BePort,
        /// Backend id.
        pub backend_id: u32,
        /// Generation of the backend id.
        pub generation: u32,
        /// Protocol of the socket.
        pub protocol: L4Proto,
        /// Not zero in the pair that the socket is connected to; at most one is.
        pub connected: u8,
        /// Zero.
        pub pad: u16,
    }
}

abi! {
    /// The value of the socket storage: the newest pairs. 196 bytes.
    pub struct SocketPeers {
        /// The pairs, in no order.
        pub pairs: [SocketPair; SOCKET_PAIRS],
        /// Index of the pair to overwrite next.
        pub next: u32,
    }
}

abi! {
    /// A socket that is connected to a backend that no longer serves, as `lb_stale_sockets` tells
    /// of it. 40 bytes; IPv4 addresses are mapped.
    pub struct StaleSocket {
        /// Cookie of the socket.
        pub cookie: u64,
        /// Address that it is connected to.
        pub backend: Ipv6,
        /// Backend id.
        pub backend_id: u32,
        /// Generation of the backend id.
        pub generation: u32,
        /// Port that it is connected to.
        pub backend_port: BePort,
        /// Protocol of the socket.
        pub protocol: L4Proto,
        /// Zero.
        pub pad: [u8; 5],
    }
}
