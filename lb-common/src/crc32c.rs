//! The checksum of SCTP (RFC 9260, appendix A), mended where a packet gets other ports.
//!
//! A CRC is linear: what a change of bits does to it does not depend on the other bits. The ports
//! are the first four bytes, so their change, seen as a polynomial, counts `x^n` times modulo the
//! CRC's polynomial, where `n` is the length of the packet in bits. No other byte is read.
//!
//! Polynomials have their highest power in the lowest bit, as the CRC has them.

/// What `x^32` is congruent to (RFC 9260, appendix A: 0x1edc6f41), mirrored.
const POLYNOMIAL: u64 = 0x82f6_3b78;
const ONE: u64 = 1 << 31;

/// `x^(8n)` for a length of `n` bytes.
static SHORT: [u32; 256] = powers(8);
/// `x^(8n)` for a length of `256n` bytes.
static LONG: [u32; 256] = powers(8 * 256);

/// What a change of the first four bytes of a packet of `length` bytes does to its checksum.
///
/// Both changes are differences by "exclusive or" of words as they lie in memory.
#[inline(always)]
#[must_use]
pub fn change(first_word: u32, length: u16) -> u32 {
    let [short, long] = length.to_le_bytes();
    let mut change = product(u64::from(u32::from_le(first_word)), power(&SHORT, short));
    if long != 0 {
        change = product(change, power(&LONG, long));
    }
    low(change).to_le()
}

#[inline(always)]
fn power(powers: &[u32; 256], index: u8) -> u64 {
    powers.get(usize::from(index)).copied().unwrap_or_default().into()
}

#[allow(clippy::cast_possible_truncation, reason = "polynomials have 32 bits")]
#[inline(always)]
const fn low(polynomial: u64) -> u32 {
    polynomial as u32
}

/// The powers 0 to 255 of `x^exponent`.
const fn powers(exponent: u32) -> [u32; 256] {
    let mut base = ONE;
    let mut bit = 0;
    while bit < exponent {
        base = times_x(base);
        bit += 1;
    }
    let mut powers = [0; 256];
    let (mut power, mut index) = (ONE, 0);
    while index < powers.len() {
        #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            powers[index] = low(power);
        }
        power = product(power, base);
        index += 1;
    }
    powers
}

/// The product modulo the polynomial, without a branch on a bit.
///
/// In words of 64 bits and four steps at a time: the verifier walks through all of them, and so
/// they are fewer instructions.
#[inline(always)]
const fn product(a: u64, b: u64) -> u64 {
    let (mut product, mut bits) = (0, 0);
    while bits < 32 {
        let next = a >> bits;
        product =
            step(step(step(step(product, b, next), b, next >> 1), b, next >> 2), b, next >> 3);
        bits += 4;
    }
    product
}

/// Horner's rule: `a` times x, and `b` where the next bit asks for it.
#[inline(always)]
const fn step(a: u64, b: u64, bit: u64) -> u64 {
    times_x(a) ^ (b & (bit & 1).wrapping_neg())
}

#[inline(always)]
const fn times_x(a: u64) -> u64 {
    (a >> 1) ^ (POLYNOMIAL & (a & 1).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The checksum of whole packets, bit by bit.
    fn full(bytes: &[u8]) -> u32 {
        let step = |crc: u32, byte: &u8| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 }
            })
        };
        !bytes.iter().fold(u32::MAX, step)
    }

    fn word(bytes: &[u8]) -> u32 {
        u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))
    }

    /// Gives a packet a new first word and compares its mended CRC with a full one.
    fn is_mended(packet: &mut [u8], ports: u32) -> bool {
        let (old, before) = (word(packet), full(packet).to_le());
        packet[..4].copy_from_slice(&ports.to_ne_bytes());
        let length = u16::try_from(packet.len()).expect("an IP packet");
        before ^ change(old ^ ports, length) == full(packet).to_le()
    }

    #[test]
    fn the_check_value_holds() {
        // That of the catalogue of parametrised CRC algorithms: of "123456789".
        assert_eq!(full(b"123456789"), 0xe306_9283);
        assert!(is_mended(&mut b"123456789".to_owned(), word(b"abcd")));
    }

    #[test]
    fn every_length_is_mended() {
        let mut seed = 1_u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed ^ seed >> 16
        };
        for length in (12..=1500).chain([9000, 65_495, 65_515, 65_535]) {
            let mut packet: Vec<u8> = (0..length).map(|_| next().to_ne_bytes()[0]).collect();
            assert!(is_mended(&mut packet, next()), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_packet_is_mended(
            mut packet in proptest::collection::vec(any::<u8>(), 12..9000), ports: u32,
        ) {
            prop_assert!(is_mended(&mut packet, ports));
        }
    }

    #[test]
    fn the_same_ports_change_nothing() {
        assert_eq!(change(0, 1500), 0);
    }
}
