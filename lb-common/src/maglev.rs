//! Maglev lookup tables (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each backend has a permutation of the slots that follows from its address and port alone; they
//! take turns in filling the table. The result depends on the set of backends and on nothing
//! else: every node and every restart builds the same one.

use alloc::{vec, vec::Vec};
use core::net::SocketAddr;

/// Table sizes: the largest prime below each power of two.
const SIZES: [u32; 9] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521];
/// Slots that each backend should get at least.
const SLOTS_PER_BACKEND: usize = 25;

/// The number of slots for so many backends; zero for none.
///
/// More than 65,521 backends cannot all be reached: the largest table is what they get.
#[must_use]
pub fn length(backends: usize) -> u32 {
    if backends == 0 {
        return 0;
    }
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND);
    SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(65521)
}

/// Builds the table: for each slot the index of its backend in `backends`.
///
/// `backends` must be in ascending order without duplicates, so that the turns are the same
/// everywhere. Empty for no backends.
#[must_use]
pub fn table(backends: &[SocketAddr]) -> Vec<u32> {
    let length = length(backends.len());
    let mut table = vec![u32::MAX; length as usize];
    let mut walks: Vec<Walk> = backends.iter().map(|backend| Walk::new(backend, length)).collect();
    let mut free = length;
    while free > 0 {
        for (backend, walk) in (0..).zip(&mut walks).take(free as usize) {
            walk.take_slot(&mut table, backend);
            free -= 1;
        }
    }
    table
}

/// A backend's way through its permutation of the slots.
struct Walk {
    next: u32,
    skip: u32,
    length: u32,
}

impl Walk {
    fn new(backend: &SocketAddr, length: u32) -> Self {
        let hash = backend_hash(backend);
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a u32")]
        let remainder = |value: u64, modulus: u32| (value % u64::from(modulus)) as u32;
        Self {
            next: remainder(hash >> 32, length),
            skip: remainder(hash & 0xffff_ffff, length - 1) + 1,
            length,
        }
    }

    /// Fills the first free slot on the way. There must be one.
    fn take_slot(&mut self, table: &mut [u32], backend: u32) {
        loop {
            let slot = self.next as usize;
            self.next += self.skip;
            if self.next >= self.length {
                self.next -= self.length;
            }
            if let Some(free @ &mut u32::MAX) = table.get_mut(slot) {
                *free = backend;
                return;
            }
        }
    }
}

/// 64-bit FNV-1a over address and port, with the finaliser of SplitMix64 to spread it.
fn backend_hash(backend: &SocketAddr) -> u64 {
    let address: [u8; 16] = match backend.ip() {
        core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        core::net::IpAddr::V6(v6) => v6.octets(),
    };
    let port = backend.port().to_be_bytes();
    let fnv = address.iter().chain(&port).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ fnv >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    fn backends(count: u32) -> Vec<SocketAddr> {
        (0..count)
            .map(|n| SocketAddrV4::new(Ipv4Addr::from_bits(0x0af8_0100 + n), 80).into())
            .collect()
    }

    fn shares(table: &[u32], backends: usize) -> Vec<u32> {
        let mut shares = vec![0; backends];
        for &backend in table {
            shares[backend as usize] += 1;
        }
        shares
    }

    #[test]
    fn no_backend_has_no_table() {
        assert!(table(&[]).is_empty());
    }

    #[test]
    fn each_backend_gets_its_fair_share() {
        for count in [1, 2, 3, 10, 100, 1000, 5000] {
            let shares = shares(&table(&backends(count)), count as usize);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} backends: {least} to {most} slots");
        }
    }

    #[test]
    fn a_backend_that_leaves_moves_few_slots_of_the_others() {
        let all = backends(100);
        let without: Vec<SocketAddr> = all.iter().copied().filter(|b| *b != all[50]).collect();
        let (before, after) = (table(&all), table(&without));
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(old, new)| **old != 50 && all[**old as usize] != without[**new as usize])
            .count();
        // The paper's figure 12 stays below 2 % at this ratio of slots to backends; allow 5 %.
        assert!(moved * 20 < before.len(), "{moved} of {} slots moved", before.len());
    }

    #[test]
    fn the_table_never_changes_between_versions() {
        let table = table(&backends(3));
        assert_eq!(table.len(), 251);
        let digest = table.iter().fold(0_u32, |sum, slot| sum.wrapping_mul(31).wrapping_add(*slot));
        assert_eq!(digest, 3_833_734_304, "a new digest moves every established stateless flow");
    }
}
