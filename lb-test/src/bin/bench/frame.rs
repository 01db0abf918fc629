//! Frames of TCP and UDP as bytes, of one length, so that each is restored in the same time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::checksum::fold;

/// Length of every frame, in bytes.
pub(crate) const LENGTH: usize = 96;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// What a frame carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Payload {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// A datagram.
    Udp,
}

/// The first packet of a connection.
pub(crate) const SYN: Payload = Payload::Tcp(0x02);
/// The answer to it.
pub(crate) const SYN_ACK: Payload = Payload::Tcp(0x12);
/// A later packet.
pub(crate) const ACK: Payload = Payload::Tcp(0x10);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Flow {
    /// Source.
    pub(crate) src: (IpAddr, u16),
    /// Destination, of the same family.
    pub(crate) dst: (IpAddr, u16),
}

impl Flow {
    /// The same flow as the other end sends it.
    pub(crate) fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// The flow of a frame.
    pub(crate) fn of(frame: &[u8; LENGTH]) -> Self {
        let is_v4 = frame[12..14] == [0x08, 0x00];
        let address = |at: usize| -> IpAddr {
            if is_v4 {
                Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four bytes")).into()
            } else {
                Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("16 bytes")).into()
            }
        };
        let (src, dst, l4) = if is_v4 { (26, 30, 34) } else { (22, 38, 54) };
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        Self { src: (address(src), port(l4)), dst: (address(dst), port(l4 + 2)) }
    }

    /// A frame of this flow with whole checksums.
    pub(crate) fn frame(self, payload: Payload) -> [u8; LENGTH] {
        let protocol = if payload == Payload::Udp { UDP } else { TCP };
        let mut frame = [0; LENGTH];
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        let l4 = match (self.src.0, self.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => write_v4(&mut frame, protocol, [src, dst]),
            (IpAddr::V6(src), IpAddr::V6(dst)) => write_v6(&mut frame, protocol, [src, dst]),
            _ => unreachable!("both ends are of one family"),
        };
        frame[l4..l4 + 2].copy_from_slice(&self.src.1.to_be_bytes());
        frame[l4 + 2..l4 + 4].copy_from_slice(&self.dst.1.to_be_bytes());
        match payload {
            Payload::Tcp(flags) => {
                frame[l4 + 12..l4 + 16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
            }
            Payload::Udp => frame[l4 + 4..l4 + 6].copy_from_slice(&length(l4).to_be_bytes()),
        }
        let checksum = l4_checksum(&frame);
        let at = l4 + if protocol == UDP { 6 } else { 16 };
        frame[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
        frame
    }
}

fn write_v4(frame: &mut [u8; LENGTH], protocol: u8, [src, dst]: [Ipv4Addr; 2]) -> usize {
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let [high, low] = length(ETHERNET).to_be_bytes();
    frame[14..24].copy_from_slice(&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol]);
    frame[26..30].copy_from_slice(&src.octets());
    frame[30..34].copy_from_slice(&dst.octets());
    let checksum = !fold(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&checksum.to_ne_bytes());
    34
}

fn write_v6(frame: &mut [u8; LENGTH], protocol: u8, [src, dst]: [Ipv6Addr; 2]) -> usize {
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    let [high, low] = length(ETHERNET + 40).to_be_bytes();
    frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, high, low, protocol, 64]);
    frame[22..38].copy_from_slice(&src.octets());
    frame[38..54].copy_from_slice(&dst.octets());
    54
}

/// Bytes from a place to the end of the frame.
fn length(from: usize) -> u16 {
    u16::try_from(LENGTH - from).expect("a frame is shorter")
}

/// What is missing in the TCP or UDP checksum of a frame: zero where it is right.
fn l4_checksum(frame: &[u8; LENGTH]) -> u16 {
    let (addresses, l4, protocol) =
        if frame[12] == 0x08 { (26, 34, frame[23]) } else { (22, 54, frame[20]) };
    let pseudo = u32::from(u16::from(protocol).to_be()) + u32::from(length(l4).to_be());
    !fold(sum(&frame[addresses..]) + pseudo)
}

/// Sums 16-bit words in memory order.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]]))).sum()
}

/// Are the checksums of a frame right?
pub(crate) fn is_sound(frame: &[u8; LENGTH]) -> bool {
    let is_v4 = frame[12] == 0x08;
    l4_checksum(frame) == 0 && (!is_v4 || fold(sum(&frame[14..34])) == 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(src: &str, dst: &str) -> Flow {
        Flow { src: (src.parse().unwrap(), 40000), dst: (dst.parse().unwrap(), 80) }
    }

    #[test]
    fn a_frame_is_sound_and_tells_its_flow() {
        for flow in [flow("172.21.0.2", "10.96.0.1"), flow("fd00:21::2", "fd00:96::1")] {
            for payload in [SYN, Payload::Udp] {
                let mut frame = flow.frame(payload);
                assert!(is_sound(&frame), "{flow:?}");
                assert_eq!(Flow::of(&frame), flow);
                frame[LENGTH - 1] ^= 1;
                assert!(!is_sound(&frame), "{flow:?}");
            }
        }
    }
}
