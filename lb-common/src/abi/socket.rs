//! What a socket remembers of the frontends that it talks to.

use super::{BePort, Ipv6, layout::abi};

/// Frontends that one socket can talk to at a time; musl's resolver asks three servers at once.
pub const SOCKET_PAIRS: usize = 4;

abi! {
    /// One frontend and the backend that stands for it. 44 bytes; IPv4 addresses are mapped.
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
    }
}

abi! {
    /// The value of the socket storage: the newest pairs. 180 bytes.
    pub struct SocketPeers {
        /// The pairs, in no order.
        pub pairs: [SocketPair; SOCKET_PAIRS],
        /// Index of the pair to overwrite next.
        pub next: u32,
    }
}
