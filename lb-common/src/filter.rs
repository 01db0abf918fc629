//! The filter: two bits tell that a packet belongs to no Service.
//!
//! One bit for each frontend, one for each backend, at a place that follows from address, port and
//! protocol. A packet whose destination and source both have none can't be for a Service or from
//! one. Bits are shared: a set one says no more than "perhaps".

use crate::abi::{Address, BePort, L4Proto};

/// Bits of one filter.
pub const BITS: u32 = 1 << 21;
/// One filter.
pub type Words = [u64; WORDS];
/// Words of one filter.
pub const WORDS: usize = BITS as usize / 64;
const SHIFT: u32 = 64 - 21;

const FRONTEND: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9];
const BACKEND: [u64; 3] = [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53, 0x85eb_ca77_c2b2_ae63];

/// The bit of a frontend.
#[inline(always)]
#[must_use]
pub fn frontend<A: Address>(address: &A, port: BePort, protocol: L4Proto) -> u32 {
    bit(address, port, protocol, FRONTEND)
}

/// The bit of a backend.
#[inline(always)]
#[must_use]
pub fn backend<A: Address>(address: &A, port: BePort, protocol: L4Proto) -> u32 {
    bit(address, port, protocol, BACKEND)
}

#[inline(always)]
fn bit<A: Address>(address: &A, port: BePort, protocol: L4Proto, factors: [u64; 3]) -> u32 {
    let [high, low, last] = factors;
    let [first, second, ..] = A::pair(address, address);
    let rest = u64::from(port.0) | u64::from(protocol.0) << 16;
    let sum = if A::PAIR_WORDS == 1 {
        // All of it fits one word.
        (first << 24 ^ rest).wrapping_mul(high)
    } else {
        let address = first.wrapping_mul(high).wrapping_add(second.wrapping_mul(low));
        address.wrapping_add(rest.wrapping_mul(last))
    };
    #[allow(clippy::cast_possible_truncation, reason = "21 bits are left")]
    let bit = (sum >> SHIFT) as u32;
    bit
}

/// The word of a bit within its filter, and the bit within its word.
#[inline(always)]
#[must_use]
pub const fn place(bit: u32) -> (usize, u64) {
    ((bit >> 6) as usize & (WORDS - 1), 1 << (bit & 63))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::abi::{Ipv4, Ipv6};

    /// Ends of pods in a row, by port.
    fn ends(port: u16, hosts: u32) -> impl Iterator<Item = u32> {
        (0..hosts).flat_map(move |host| {
            let v4 = Ipv4((0x0af8_0000 + host).to_be());
            let v6 = Ipv6([0x00fd, 0x4802, 0, host.to_be()]);
            let port = BePort::new(port);
            [backend(&v4, port, L4Proto::TCP), backend(&v6, port, L4Proto::TCP)]
        })
    }

    #[test]
    fn other_ports_of_backends_have_other_bits() {
        let set: BTreeSet<u32> = ends(8080, 50_000).collect();
        assert!(set.iter().all(|bit| *bit < BITS));
        let probes = (32_768..61_000).step_by(997).flat_map(|port| ends(port, 5_000));
        let (mut hits, mut all) = (0_u32, 0_u32);
        for bit in probes {
            all += 1;
            hits += u32::from(set.contains(&bit));
        }
        // 100,000 of two million bits are set: one in twenty is chance.
        assert!(hits < all / 15, "{hits} of {all}");
    }

    #[test]
    fn a_place_is_within_the_filter() {
        assert_eq!(place(0), (0, 1));
        assert_eq!(place(BITS - 1), (WORDS - 1, 1 << 63));
    }
}
