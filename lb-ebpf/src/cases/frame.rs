//! Ethernet frames by their fields: written to bytes, and read back with every checksum checked.
//!
//! Its checksums are plain sums over whole packets, so that nothing incremental is trusted; that of
//! SCTP is taken bit by bit.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use lb_common::abi::L4Proto;

const ETHERNET: usize = 14;
const ICMP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Common header and the first chunk's (RFC 9260, 3).
const SCTP_HEADER: usize = 12 + 4;
const SCTP_CHECKSUM: Range<usize> = 8..12;

/// Why bytes are not a whole and correct frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// One TCP segment, UDP datagram, SCTP packet or ICMP error in a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Destination and source MAC address.
    pub macs: [[u8; 6]; 2],
    /// Where it comes from; the port is zero for ICMP.
    pub src: SocketAddr,
    /// Where it goes to; of the same family.
    pub dst: SocketAddr,
    /// Type of service or traffic class.
    pub class: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// What stands between the IP header and the payload.
    pub transport: Transport,
    /// What is carried; for ICMP the packet it quotes.
    pub payload: Vec<u8>,
}

/// A transport header without ports and checksum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// None: the payload is a packet of the frame's own family (RFC 2003, RFC 2473).
    Ip,
    /// A message of the frame's family.
    Icmp {
        /// Type and code.
        kind: [u8; 2],
        /// What stands behind the checksum: an MTU, or nothing.
        rest: [u8; 4],
    },
    /// A packet with one chunk, whose value is the payload.
    Sctp {
        /// Verification tag.
        tag: u32,
        /// Type of the chunk.
        chunk: u8,
    },
    /// The same with a checksum of zero: not summed yet.
    SctpWithoutChecksum {
        /// Verification tag.
        tag: u32,
        /// Type of the chunk.
        chunk: u8,
    },
    /// A segment without options.
    Tcp {
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Flags of byte 13.
        flags: u8,
    },
    /// A datagram.
    Udp,
    /// A datagram whose checksum is zero: none (RFC 768).
    UdpWithoutChecksum,
}

impl Transport {
    fn protocol(self, is_v4: bool) -> L4Proto {
        match self {
            Self::Icmp { .. } if is_v4 => L4Proto::ICMP,
            Self::Icmp { .. } => L4Proto::ICMPV6,
            Self::Ip => L4Proto(if is_v4 { 4 } else { 41 }),
            Self::Sctp { .. } | Self::SctpWithoutChecksum { .. } => L4Proto::SCTP,
            Self::Tcp { .. } => L4Proto::TCP,
            Self::Udp | Self::UdpWithoutChecksum => L4Proto::UDP,
        }
    }

    /// Where in its header an Internet checksum stands, if there is one.
    fn checksum_offset(self) -> Option<usize> {
        match self {
            Self::Icmp { .. } => Some(2),
            Self::Tcp { .. } => Some(16),
            Self::Udp => Some(6),
            Self::Ip
            | Self::Sctp { .. }
            | Self::SctpWithoutChecksum { .. }
            | Self::UdpWithoutChecksum => None,
        }
    }
}

impl Frame {
    /// Writes it, with its checksums.
    pub fn encode(&self) -> Vec<u8> {
        let mut l4 = self.transport_header();
        l4.extend(&self.payload);
        if matches!(self.transport, Transport::Sctp { .. }) {
            let crc = crc32c(&l4).to_le_bytes();
            l4[SCTP_CHECKSUM].copy_from_slice(&crc);
        }
        if let Some(offset) = self.transport.checksum_offset() {
            let mut sum = checksum(&[&self.pseudo_header(l4.len()), &l4]);
            if sum == 0 && self.transport == Transport::Udp {
                sum = 0xffff;
            }
            l4[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut bytes = self.macs.concat();
        bytes.extend(self.ip_header(l4.len()));
        bytes.extend(l4);
        bytes
    }

    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// If it is of no kind known here, of a wrong length, or if a checksum is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (ethernet, packet) = split(bytes, ETHERNET)?;
        let macs = [array(ethernet, 0)?, array(ethernet, 6)?];
        let mut frame = match array(ethernet, 12)? {
            [0x08, 0x00] => decode_v4(packet)?,
            [0x86, 0xdd] => decode_v6(packet)?,
            other => return malformed(format!("EtherType {other:02x?}")),
        };
        frame.macs = macs;
        Ok(frame)
    }

    /// Type of service or traffic class of a frame as bytes.
    pub fn class_of(bytes: &[u8]) -> u8 {
        let [first, second] = [bytes[ETHERNET], bytes[ETHERNET + 1]];
        if first >> 4 == 4 { second } else { first << 4 | second >> 4 }
    }

    /// Length of the IP header, in bytes.
    pub fn ip_header_length(&self) -> usize {
        if self.src.is_ipv4() { 20 + self.options.len() } else { 40 }
    }

    fn transport_header(&self) -> Vec<u8> {
        let ports = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        match self.transport {
            Transport::Ip => Vec::new(),
            Transport::Icmp { kind, rest } => [kind.to_vec(), vec![0, 0], rest.to_vec()].concat(),
            Transport::Sctp { tag, chunk } | Transport::SctpWithoutChecksum { tag, chunk } => {
                let chunk = [vec![chunk, 0], be(4 + self.payload.len()).to_vec()].concat();
                [ports, tag.to_be_bytes().to_vec(), vec![0; 4], chunk].concat()
            }
            Transport::Tcp { sequence, acknowledgement, flags } => {
                let numbers = [sequence.to_be_bytes(), acknowledgement.to_be_bytes()].concat();
                // A refusal has a window of zero, and the other segments need none.
                [ports, numbers, vec![5 << 4, flags, 0, 0, 0, 0, 0, 0]].concat()
            }
            Transport::Udp | Transport::UdpWithoutChecksum => {
                [ports, be(UDP_HEADER + self.payload.len()).to_vec(), vec![0, 0]].concat()
            }
        }
    }

    fn ip_header(&self, l4_length: usize) -> Vec<u8> {
        let protocol = self.transport.protocol(self.src.is_ipv4()).0;
        let ends = [octets(self.src), octets(self.dst)].concat();
        if !self.src.is_ipv4() {
            let [first, second] = [0x60 | self.class >> 4, self.class << 4];
            let start = vec![0x86, 0xdd, first, second, 0, 0];
            return [start, be(l4_length).to_vec(), vec![protocol, self.ttl], ends].concat();
        }
        let length = self.ip_header_length();
        let first = 0x40 | u8::try_from(length / 4).unwrap_or_default();
        let total = be(length + l4_length);
        let start = [first, self.class, total[0], total[1], 0, 0, 0, 0, self.ttl, protocol, 0, 0];
        let mut header = [start.to_vec(), ends, self.options.clone()].concat();
        let sum = checksum(&[&header]).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        [vec![0x08, 0x00], header].concat()
    }

    /// What the checksum covers besides the transport header and its payload; nothing for ICMP.
    fn pseudo_header(&self, l4_length: usize) -> Vec<u8> {
        let protocol = self.transport.protocol(self.src.is_ipv4());
        if protocol == L4Proto::ICMP {
            return Vec::new();
        }
        let ends = [octets(self.src), octets(self.dst)].concat();
        [ends, be(l4_length).to_vec(), vec![0, protocol.0]].concat()
    }
}

/// A packet as fragments with at most `size` bytes behind the IP header and, for IPv6, the fragment
/// header (RFC 791, 3.2; RFC 8200, 4.5).
pub fn fragments(frame: &Frame, id: u16, size: usize) -> Vec<Vec<u8>> {
    let (bytes, size) = (frame.encode(), size / 8 * 8);
    let (header, l4) = bytes.split_at(ETHERNET + frame.ip_header_length());
    let pieces: Vec<_> = l4.chunks(size).collect();
    let piece = |(index, piece): (usize, &&[u8])| {
        let (offset, has_more) = (index * size / 8, index + 1 < pieces.len());
        let mut header = header.to_vec();
        if frame.src.is_ipv4() {
            let flags = if has_more { 0x2000 } else { 0 };
            let length = be(header.len() - ETHERNET + piece.len());
            header[16..18].copy_from_slice(&length);
            header[18..20].copy_from_slice(&id.to_be_bytes());
            header[20..22].copy_from_slice(&be(flags | offset));
            header[24..26].fill(0);
            let sum = checksum(&[&header[ETHERNET..]]).to_be_bytes();
            header[24..26].copy_from_slice(&sum);
        } else {
            let protocol = std::mem::replace(&mut header[20], 44);
            header[18..20].copy_from_slice(&be(8 + piece.len()));
            header.extend([protocol, 0]);
            header.extend(be(offset << 3 | usize::from(has_more)));
            header.extend(u32::from(id).to_be_bytes());
        }
        [header, piece.to_vec()].concat()
    };
    pieces.iter().enumerate().map(piece).collect()
}

fn decode_v4(packet: &[u8]) -> Result<Frame, Malformed> {
    let [first, class] = array(packet, 0)?;
    if first >> 4 != 4 || first & 0xf < 5 {
        return malformed(format!("first byte {first:#04x} of an IPv4 header"));
    }
    let (header, l4) = split(packet, usize::from(first & 0xf) * 4)?;
    if array(packet, 2)? != be(packet.len()) {
        return malformed(format!("total length in {header:02x?} of {} bytes", packet.len()));
    }
    if checksum(&[header]) != 0 {
        return malformed(format!("checksum of IPv4 header {header:02x?}"));
    }
    let ends = [array::<4>(header, 12)?.into(), array::<4>(header, 16)?.into()];
    let [ttl, protocol] = array(header, 8)?;
    let frame = decode_transport(l4, ends, (ttl, L4Proto(protocol), &header[20..]))?;
    Ok(Frame { class, ..frame })
}

fn decode_v6(packet: &[u8]) -> Result<Frame, Malformed> {
    let (header, l4) = split(packet, 40)?;
    if header[0] >> 4 != 6 || array(header, 4)? != be(l4.len()) {
        return malformed(format!("IPv6 header {header:02x?} before {} bytes", l4.len()));
    }
    let ends = [array::<16>(header, 8)?.into(), array::<16>(header, 24)?.into()];
    let frame = decode_transport(l4, ends, (header[7], L4Proto(header[6]), &[]))?;
    Ok(Frame { class: header[0] << 4 | header[1] >> 4, ..frame })
}

fn decode_transport(
    l4: &[u8],
    ends: [IpAddr; 2],
    (ttl, protocol, options): (u8, L4Proto, &[u8]),
) -> Result<Frame, Malformed> {
    let (transport, length) = match protocol {
        L4Proto::SCTP => (decode_sctp(l4)?, SCTP_HEADER),
        L4Proto::TCP => (decode_tcp(l4)?, TCP_HEADER),
        L4Proto::UDP if array(l4, 6)? == [0, 0] => (Transport::UdpWithoutChecksum, UDP_HEADER),
        L4Proto::UDP => (Transport::Udp, UDP_HEADER),
        L4Proto::ICMP | L4Proto::ICMPV6 => {
            (Transport::Icmp { kind: array(l4, 0)?, rest: array(l4, 4)? }, ICMP_HEADER)
        }
        L4Proto(4 | 41) => (Transport::Ip, 0),
        other => return malformed(format!("protocol {other:?}")),
    };
    if protocol == L4Proto::UDP && array(l4, 4)? != be(l4.len()) {
        return malformed(format!("length in UDP header {l4:02x?}"));
    }
    let ports = match transport {
        Transport::Icmp { .. } | Transport::Ip => [0, 0],
        _ => [u16::from_be_bytes(array(l4, 0)?), u16::from_be_bytes(array(l4, 2)?)],
    };
    let frame = Frame {
        macs: [[0; 6]; 2],
        src: SocketAddr::new(ends[0], ports[0]),
        dst: SocketAddr::new(ends[1], ports[1]),
        class: 0,
        ttl,
        options: options.to_vec(),
        transport,
        payload: split(l4, length)?.1.to_vec(),
    };
    let sum = checksum(&[&frame.pseudo_header(l4.len()), l4]);
    if sum != 0 && transport.checksum_offset().is_some() {
        return malformed(format!("checksum, off by {sum:#06x}, of {frame:?}"));
    }
    Ok(frame)
}

fn decode_sctp(l4: &[u8]) -> Result<Transport, Malformed> {
    let tag = u32::from_be_bytes(array(l4, 4)?);
    let [chunk] = array(l4, 12)?;
    let crc: [u8; 4] = array(l4, SCTP_CHECKSUM.start)?;
    if crc == [0; 4] {
        return Ok(Transport::SctpWithoutChecksum { tag, chunk });
    }
    let mut whole = l4.to_vec();
    whole[SCTP_CHECKSUM].fill(0);
    if crc != crc32c(&whole).to_le_bytes() {
        return malformed(format!("checksum {crc:02x?} of SCTP packet {l4:02x?}"));
    }
    Ok(Transport::Sctp { tag, chunk })
}

fn decode_tcp(l4: &[u8]) -> Result<Transport, Malformed> {
    let sequence = u32::from_be_bytes(array(l4, 4)?);
    let acknowledgement = u32::from_be_bytes(array(l4, 8)?);
    let [offset, flags] = array(l4, 12)?;
    if offset != 5 << 4 {
        return malformed(format!("data offset {offset:#04x}"));
    }
    Ok(Transport::Tcp { sequence, acknowledgement, flags })
}

/// The Internet checksum (RFC 1071) over parts, each but the last of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    let sum: u64 = words.map(word).sum();
    // 2^16 is 1 modulo 2^16 - 1; a sum of all ones is kept apart from zero.
    let folded = if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 };
    !u16::try_from(folded).unwrap_or_default()
}

/// The CRC of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), shift))
}

fn octets(end: SocketAddr) -> Vec<u8> {
    match end.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn be(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Malformed> {
    let found = bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().map_or_else(|| malformed(format!("{} bytes", bytes.len())), Ok)
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Malformed> {
    let parts = bytes.split_at_checked(at);
    parts.map_or_else(|| malformed(format!("{} bytes instead of {at}", bytes.len())), Ok)
}

fn malformed<T>(reason: String) -> Result<T, Malformed> {
    Err(Malformed(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_its_bytes_and_a_wrong_bit_does_not() {
        let transports = [
            Transport::Icmp { kind: [3, 3], rest: [0, 0, 5, 0] },
            Transport::Sctp { tag: 5, chunk: 1 },
            Transport::Tcp { sequence: 7, acknowledgement: 9, flags: 0x12 },
            Transport::Udp,
        ];
        let ends = [("10.0.0.1:4000", "10.0.0.2:53"), ("[fd00::1]:4000", "[fd00::2]:53")];
        for (transport, (src, dst)) in transports.iter().flat_map(|t| ends.map(|ends| (t, ends))) {
            let mut frame = Frame {
                macs: [[2; 6], [4; 6]],
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                class: 0x2e,
                ttl: 64,
                options: Vec::new(),
                transport: *transport,
                payload: b"odd".to_vec(),
            };
            if matches!(transport, Transport::Icmp { .. }) {
                (frame.src, frame.dst) = (with_port_zero(frame.src), with_port_zero(frame.dst));
            }
            let mut bytes = frame.encode();
            assert_eq!(Frame::decode(&bytes), Ok(frame));
            *bytes.last_mut().unwrap() ^= 1;
            assert!(Frame::decode(&bytes).unwrap_err().0.contains("checksum"));
        }
    }

    fn with_port_zero(end: SocketAddr) -> SocketAddr {
        SocketAddr::new(end.ip(), 0)
    }

    #[test]
    fn the_checksum_of_sctp_is_a_crc32c() {
        // RFC 3720, B.4: 32 bytes of zeros, and 32 of ones.
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // Section 3: the sum of these words is ddf2.
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&words]), !0xddf2);
    }
}
