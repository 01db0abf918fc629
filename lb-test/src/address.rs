//! The address plan of every topology: which network, node, pod and client has which addresses.
//!
//! Each place has an IPv4 address and an IPv6 twin that reads the same: 10.248.1.21 and
//! `fd00:248:1::21`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The fabric router's address on the nodes' network.
pub const FABRIC: DualStack = DualStack {
    v4: Ipv4Addr::new(172, 20, 0, 1),
    v6: Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1),
};

/// The fabric router's address on the clients' network.
pub const OUTSIDE: DualStack = DualStack {
    v4: Ipv4Addr::new(172, 21, 0, 1),
    v6: Ipv6Addr::new(0xfd00, 0x21, 0, 0, 0, 0, 0, 1),
};

/// An IP family, for tests that run once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order tests report them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The address by which a host reaches itself.
    #[must_use]
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The address that means "any" in this family.
    #[must_use]
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// An IPv4 address and its IPv6 twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl DualStack {
    /// The address of node `number` (from 1) on the fabric: .11, .12 and so on.
    #[must_use]
    pub fn of_node(number: u8) -> Self {
        let host = 10 + number;
        Self {
            v4: Ipv4Addr::new(172, 20, 0, host),
            v6: Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, reads_like(host)),
        }
    }

    /// The address of client `number` (from 1) outside: .2, .3 and so on.
    #[must_use]
    pub fn of_client(number: u8) -> Self {
        let host = 1 + number;
        Self {
            v4: Ipv4Addr::new(172, 21, 0, host),
            v6: Ipv6Addr::new(0xfd00, 0x21, 0, 0, 0, 0, 0, reads_like(host)),
        }
    }

    /// The address `host` within the pod network of node `number`.
    #[must_use]
    pub fn of_pod(number: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 248, number, host),
            v6: Ipv6Addr::new(0xfd00, 0x248, reads_like(number), 0, 0, 0, 0, reads_like(host)),
        }
    }

    /// The address of one family.
    #[must_use]
    pub fn family(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The address of one family with a port, for sockets and URLs.
    #[must_use]
    pub fn socket(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.family(family), port)
    }
}

/// The IPv4 and IPv6 prefixes of the pods of node `number`, as `ip route` takes them.
#[must_use]
pub fn pod_networks(number: u8) -> [String; 2] {
    let network = DualStack::of_pod(number, 0);
    [format!("{}/24", network.v4), format!("{}/64", network.v6)]
}

/// The group of an IPv6 address whose hexadecimal digits are the decimal digits of `number`.
fn reads_like(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_twins_read_like_their_ipv4_addresses() {
        let pod = DualStack::of_pod(1, 21);
        assert_eq!(pod.v4.to_string(), "10.248.1.21");
        assert_eq!(pod.v6.to_string(), "fd00:248:1::21");
        assert_eq!(DualStack::of_node(1).v6.to_string(), "fd00:20::11");
        assert_eq!(DualStack::of_pod(2, 250).v6.to_string(), "fd00:248:2::250");
        assert_eq!(pod_networks(12), ["10.248.12.0/24", "fd00:248:12::/64"]);
    }
}
