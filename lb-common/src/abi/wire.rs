//! Headers as they stand in most packets: nothing between IP header and transport header.

use super::{BePort, Ipv4, Ipv6, layout::abi};

abi! {
    /// An IPv4 header without options, and the ports behind it (RFC 791, 3.1). 24 bytes.
    pub struct PlainIpv4 {
        /// Version, and length in words of 32 bits.
        pub version_and_length: u8,
        /// Type of service.
        pub class: u8,
        /// Length of the packet, in network order.
        pub length: u16,
        /// What fragments of one packet have in common.
        pub identification: u16,
        /// Flags and offset, in network order.
        pub fragment: u16,
        /// Time to live.
        pub ttl: u8,
        /// Number of the protocol.
        pub protocol: u8,
        /// Of the header.
        pub checksum: u16,
        /// Source address.
        pub src: Ipv4,
        /// Destination address.
        pub dst: Ipv4,
        /// Source port and destination port.
        pub ports: [BePort; 2],
    }
}

abi! {
    /// An IPv6 header, and the ports behind it (RFC 8200, 3). 44 bytes.
    pub struct PlainIpv6 {
        /// Version, traffic class and flow label.
        pub version_class_label: u32,
        /// Length of what follows the header, in network order.
        pub length: u16,
        /// Number of the protocol.
        pub protocol: u8,
        /// Hop limit.
        pub ttl: u8,
        /// Source address.
        pub src: Ipv6,
        /// Destination address.
        pub dst: Ipv6,
        /// Source port and destination port.
        pub ports: [BePort; 2],
    }
}
