//! The numbers that can be handed out, in the order in which a Service tries them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::model::Family;

/// Addresses at the start of a range that are left to manifests that name them (the API server
/// does so too, and cluster DNS lies there).
const NAMED_BAND: u128 = 256;

/// Where cluster IPs and node ports come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ranges {
    /// IPv4 cluster IPs.
    pub v4: Ipv4Net,
    /// IPv6 cluster IPs.
    pub v6: Ipv6Net,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Ranges {
    fn default() -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0);
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12),
            v6: Ipv6Net::new_assert(v6, 108),
            node_ports: 30_000..=32_767,
        }
    }
}

impl Ranges {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(&v4),
            IpAddr::V6(v6) => self.v6.contains(&v6),
        }
    }

    /// Every address of the range that may be handed out, the one that `seed` points at first.
    pub(super) fn addresses(&self, family: Family, seed: &str) -> Box<dyn Iterator<Item = IpAddr>> {
        match family {
            Family::V4 => {
                let base = u32::from(self.v4.network());
                let count = 1_u128 << (32 - self.v4.prefix_len());
                Box::new(offsets(count, seed).map(move |offset| {
                    let offset = u32::try_from(offset).expect("invariant: below 2^32");
                    IpAddr::V4(Ipv4Addr::from(base + offset))
                }))
            }
            Family::V6 => {
                let base = u128::from(self.v6.network());
                let count = 1_u128 << (128 - self.v6.prefix_len()).min(64);
                Box::new(offsets(count, seed).map(move |o| IpAddr::V6(Ipv6Addr::from(base + o))))
            }
        }
    }

    /// Every node port, the one that `seed` points at first.
    pub(super) fn numbers(&self, seed: &str) -> impl Iterator<Item = u16> + use<> {
        let (low, high) = (*self.node_ports.start(), *self.node_ports.end());
        let count = u64::from(high.saturating_sub(low)) + 1;
        let start = hash(seed) % count;
        (0..count).map(move |step| {
            let offset = u16::try_from((start + step) % count).expect("invariant: below 2^16");
            low + offset
        })
    }
}

/// Offsets from the upper band, then those of the band that manifests name; neither the first
/// nor the last address of the range.
fn offsets(count: u128, seed: &str) -> impl Iterator<Item = u128> + use<> {
    let end = count.saturating_sub(1);
    let band = NAMED_BAND.min(count / 16).max(1);
    let upper = end.saturating_sub(band);
    let start = if upper == 0 { 0 } else { u128::from(hash(seed)) % upper };
    let above = (0..upper).map(move |step| band + (start + step) % upper);
    above.chain(1..band.min(end))
}

/// FNV-1a: the same on every machine and in every version.
fn hash(text: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, fold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_but_first_and_last_is_offered_once() {
        let ranges = Ranges { v4: "10.0.0.0/24".parse().unwrap(), ..Ranges::default() };
        let mut offered: Vec<_> = ranges.addresses(Family::V4, "a/b").collect();
        offered.sort_unstable();
        let all: Vec<_> = (1..255).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(offered, all);
    }

    #[test]
    fn every_node_port_is_offered_once() {
        let mut offered: Vec<_> = Ranges::default().numbers("a/b/TCP/80").collect();
        offered.sort_unstable();
        assert_eq!(offered, (30_000..=32_767).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_offer_leaves_the_named_band_alone() {
        for seed in 0..1000 {
            let first = Ranges::default().addresses(Family::V4, &format!("ns/{seed}")).next();
            assert!(first.unwrap() >= IpAddr::from([10, 96, 1, 0]));
        }
    }

    #[test]
    fn a_tiny_range_does_not_overflow() {
        for prefix in 29..=32 {
            let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), prefix);
            let ranges = Ranges { v4, ..Ranges::default() };
            assert!(ranges.addresses(Family::V4, "a/b").count() <= 6);
        }
    }
}
