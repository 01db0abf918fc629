//! Hashes of flows: the same on every node and in every version.

use crate::abi::{Address, CtKey};

/// Hash of a flow as the client sends it; every bit depends on every bit of the flow.
///
/// The same on every node, so that any node picks the same backend.
#[inline(always)]
#[must_use]
pub fn hash<A: Address>(flow: &CtKey<A>) -> u32 {
    let ports = u32::from(flow.src_port.0) << 16 | u32::from(flow.dst_port.0);
    mix(mix(mix(u32::from(flow.protocol.0), flow.src.fold()), flow.dst.fold()), ports)
}

/// Hash of a socket and the frontend it talks to.
#[inline(always)]
#[must_use]
pub fn socket_hash(cookie: u64, service: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
    mix(mix(cookie as u32, (cookie >> 32) as u32), service)
}

/// Slot for a hash: `hash / 2^32` of the way through the table. No division, no panic.
#[inline(always)]
#[must_use]
pub fn slot(hash: u32, length: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "the product's high half is below length")]
    let slot = ((u64::from(hash) * u64::from(length)) >> 32) as u32;
    slot
}

/// The port that SNAT tries first for a flow, of so many: an offset in their range.
///
/// By the low half of the hash: the high half has chosen the backend, so that a backend's flows all have
/// nearly the same few of them.
#[inline(always)]
#[must_use]
pub fn port_offset(hash: u32, ports: u32) -> u32 {
    slot(hash.rotate_left(16), ports)
}

/// Mixes one word into a hash: the 32-bit finaliser of Murmur3, whose constants it uses.
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let mut h = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64) ^ word;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::abi::{BePort, Ipv4, L4Proto};

    fn flow(src_port: u16) -> CtKey<Ipv4> {
        CtKey {
            src: Ipv4Addr::new(172, 21, 0, 2).into(),
            dst: Ipv4Addr::new(10, 96, 100, 100).into(),
            src_port: BePort::new(src_port),
            dst_port: BePort::new(80),
            protocol: L4Proto::TCP,
            pad: [0; 3],
        }
    }

    #[test]
    fn flows_of_one_backend_spread_over_the_ports_of_snat() {
        const SLOTS: u32 = 16_381;
        let (mut flows, mut first) = (0, std::collections::BTreeSet::new());
        for port in 0..u16::MAX {
            let hash = hash(&flow(port));
            // One of 200 backends has every 200th slot.
            if slot(hash, SLOTS) % 200 == 7 {
                flows += 1;
                first.insert(port_offset(hash, 4536));
            }
        }
        assert!(flows > 200 && first.len() > flows * 9 / 10, "{} of {flows}", first.len());
    }

    #[test]
    fn ports_in_a_row_spread_over_the_slots() {
        const LENGTH: u32 = 251;
        let mut hits = [0_u32; LENGTH as usize];
        for port in 1024..=u16::MAX {
            hits[slot(hash(&flow(port)), LENGTH) as usize] += 1;
        }
        let expected = (65536 - 1024) / LENGTH;
        assert!(hits.iter().all(|&n| n > expected / 2 && n < expected * 2), "{hits:?}");
    }

    #[test]
    fn the_hash_never_changes() {
        // Another value would move every flow to another backend on an upgrade.
        assert_eq!(hash(&flow(40000)), 874_509_861);
    }

    #[test]
    fn a_slot_is_always_below_the_length() {
        for length in [1, 251, 65521] {
            assert_eq!(slot(0, length), 0);
            assert_eq!(slot(u32::MAX, length), length - 1);
        }
    }
}
