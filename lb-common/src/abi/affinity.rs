//! Which backend a client was given, for session affinity (S10).

use super::{Address, layout::abi};

abi! {
    /// A client of a Service port, by whichever of its addresses it asks. 24 bytes.
    #[derive(Hash)]
    pub struct AffinityKey {
        /// Its address, IPv4 addresses mapped, or the cookie of its network namespace.
        pub client: [u32; 4],
        /// The Service port.
        pub service: u32,
        /// What `client` holds.
        pub kind: ClientKind,
    }
}

impl AffinityKey {
    /// A client that packets come from.
    #[inline(always)]
    #[must_use]
    pub fn of_address(service: u32, address: &impl Address) -> Self {
        Self { client: address.to_mapped().0, service, kind: ClientKind::ADDRESS }
    }

    /// A client whose sockets are in the network namespace with this cookie.
    #[inline(always)]
    #[must_use]
    pub const fn of_netns(service: u32, cookie: u64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
        let client = [cookie as u32, (cookie >> 32) as u32, 0, 0];
        Self { client, service, kind: ClientKind::NETNS }
    }
}

/// What stands for a client: the address of a socket is not known yet when it chooses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(transparent)]
pub struct ClientKind(pub u32);

// SAFETY: transparent over an integer.
unsafe impl super::Abi for ClientKind {}

impl ClientKind {
    /// An address: the packet path.
    pub const ADDRESS: Self = Self(1);
    /// A network namespace: the socket path.
    pub const NETNS: Self = Self(2);
}

abi! {
    /// The backend that a client was given last. 16 bytes.
    ///
    /// Owned by the programs, and counts only while the backend is one of its generation that the
    /// frontend's list holds.
    pub struct Affinity {
        /// Backend id.
        pub backend: u32,
        /// Generation of the backend id.
        pub generation: u32,
        /// When the client's last connection began, in ns of `CLOCK_MONOTONIC`.
        pub last_used: u64,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv4Addr};

    use super::*;
    use crate::abi::{Ipv4, Ipv6};

    #[test]
    fn clients_and_services_are_kept_apart() {
        let v4 = |last| Ipv4::from(Ipv4Addr::new(10, 0, 0, last));
        let keys = [
            AffinityKey::of_address(1, &v4(1)),
            AffinityKey::of_address(1, &v4(2)),
            AffinityKey::of_address(2, &v4(1)),
            AffinityKey::of_netns(1, 1),
            AffinityKey::of_netns(1, 1 << 32),
            AffinityKey::of_netns(2, 1),
            // An address whose bits are a cookie's.
            AffinityKey::of_address(1, &Ipv6([1, 0, 0, 0])),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    }
}
