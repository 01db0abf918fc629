//! Internet checksum arithmetic (RFC 1071, RFC 1624), independent of byte order.
//!
//! Words are taken as they lie in memory: the ones' complement sum is the same in either order,
//! as long as the result is stored as it comes.

/// A sum of 16-bit words that has not been folded yet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Difference(u32);

impl Difference {
    /// No change.
    pub const NONE: Self = Self(0);
    /// A time to live that is one less, in the word that it begins.
    pub const HOP: Self = Self::new(u16::from_ne_bytes([1, 0]) as u32, 0);

    /// What replacing words that add up to `old` by words that add up to `new` changes.
    ///
    /// Both must be sums of at most eight 16-bit words.
    #[inline(always)]
    #[must_use]
    pub const fn new(old: u32, new: u32) -> Self {
        Self(fold32(!fold(old) as u32 + fold(new) as u32))
    }

    /// A change by its 16-bit sum.
    #[inline(always)]
    #[must_use]
    pub const fn of(folded: u16) -> Self {
        Self(folded as u32)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(fold32(self.0 + other.0))
    }

    /// Does it leave every checksum as it is?
    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        // Ones' complement has two zeros.
        self.0 == 0 || self.0 == 0xffff
    }

    /// The change as a 32-bit sum, for `bpf_l4_csum_replace` with a size of zero.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The checksum after the change: RFC 1624, equation 3.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(!checksum as u32 + self.0)
    }
}

/// Folds a sum of at most 65,536 words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = fold32(sum);
    #[allow(clippy::cast_possible_truncation, reason = "folded twice, the high half is zero")]
    let folded = fold32(sum) as u16;
    folded
}

#[inline(always)]
const fn fold32(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

/// Sums `bytes` as 16-bit words in memory order; an odd last byte is padded with zero.
///
/// For at most 65,536 bytes.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u32::from(u16::from_ne_bytes([*byte, 0])));
    words.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum::<u32>() + last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(bytes: &[u8]) -> u16 {
        !fold(sum(bytes))
    }

    proptest! {
        #[test]
        fn incremental_equals_full(
            mut packet in proptest::collection::vec(any::<u8>(), 40..1500),
            address: [u8; 4], port: [u8; 2],
        ) {
            // A checksum of zero bytes only is the one case RFC 1624 tells apart from its twin.
            packet[39] |= 1;
            let before = full(&packet);
            let changed = Difference::new(sum(&packet[16..20]), sum(&address))
                .and(Difference::new(sum(&packet[22..24]), sum(&port)));
            packet[16..20].copy_from_slice(&address);
            packet[22..24].copy_from_slice(&port);
            prop_assert_eq!(changed.apply(before), full(&packet));
        }
    }

    #[test]
    fn the_example_of_rfc_1624_holds() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000.
        assert_eq!(Difference::new(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }
}
