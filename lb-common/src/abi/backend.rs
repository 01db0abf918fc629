//! One endpoint that a frontend may choose.

use super::{
    Address, BePort,
    layout::{abi, flags},
};

abi! {
    /// An endpoint of one Service port. 16 bytes for IPv4, 28 for IPv6.
    ///
    /// Owned by the agent. A live entry changes only in `flags`, by one aligned store; a new
    /// owner of the same id gets another `generation`, so flows of the old one notice.
    pub struct Backend<A> {
        /// Address of the endpoint.
        pub address: A,
        /// Port of the endpoint.
        pub port: BePort,
        /// See [`BackendFlags`].
        pub flags: BackendFlags,
        /// Which use of this id it is; it stays when the entry is cleared.
        pub generation: u32,
        /// The Service port it belongs to; zero in an entry that is not live.
        pub service: u32,
    }
}

impl<A: Address> Backend<A> {
    /// Is the entry in use?
    #[inline(always)]
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.service != 0
    }
}

flags! {
    /// Bits of a [`Backend`].
    pub struct BackendFlags
}

impl BackendFlags {
    /// It runs on this node.
    pub const LOCAL: Self = Self(1);
    /// It still serves: datagrams of known flows may go on to it (S11).
    pub const SERVING: Self = Self(2);
    /// A client of the Cluster list may be given it by affinity: set while that list holds it, and
    /// where the Service asks for affinity alone (S10).
    pub const AFFINE_CLUSTER: Self = Self(4);
    /// The same for the Local list.
    pub const AFFINE_LOCAL: Self = Self(8);
}
