//! What stands between an IPv6 header and the transport header (RFC 8200, 4): a walk over few and
//! short headers, for the rare packet that has any.

use crate::{
    packet::{Bytes, ETHERNET_HEADER},
    parse::NoFlow,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const IPV6_HEADER: usize = 40;
/// Headers that are looked through: as many as RFC 8200, 4.1 has before the transport header.
const HEADERS: usize = 4;
/// Where the transport header must begin at the latest.
const FARTHEST: usize = 190;
/// So many bytes hold all headers of a packet whose transport header begins there.
const LONGEST: u32 = 256;
/// The offset in fragments of eight bytes (RFC 8200, 4.5).
const FRAGMENT_OFFSET: u16 = 0xfff8;
const MORE_FRAGMENTS: u16 = 1;

/// What a walk found. A struct of numbers, since an answer with alternatives leaves registers unset.
#[derive(Clone, Copy)]
pub(crate) struct Chain {
    /// Number of the transport protocol.
    pub(crate) protocol: u8,
    /// Offset of the transport header.
    pub(crate) l4: usize,
    /// Offset of the identification; zero in a whole packet.
    pub(crate) id: usize,
    /// Does the packet lack its begin, transport header included?
    pub(crate) is_later: bool,
}

impl Chain {
    /// The chain of a packet without extension headers.
    #[inline(always)]
    pub(crate) const fn none(protocol: u8) -> Self {
        Self { protocol, l4: ETHERNET_HEADER + IPV6_HEADER, id: 0, is_later: false }
    }

    /// Does an extension header follow?
    #[inline(always)]
    pub(crate) const fn goes_on(&self) -> bool {
        matches!(self.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) && !self.is_later
    }

    /// Follows the headers to the transport header, or to where the packet's first fragment would
    /// have gone on.
    ///
    /// # Errors
    ///
    /// If one is cut off, leads the packet on to another node, or is beyond what is looked through.
    #[inline(always)]
    pub(crate) fn walk(&mut self, packet: &mut impl Bytes) -> Result<(), NoFlow> {
        packet.pull(LONGEST);
        for _ in 0..HEADERS {
            if !self.goes_on() {
                break;
            }
            self.step(packet)?;
        }
        if self.goes_on() { Err(NoFlow::Other) } else { Ok(()) }
    }

    #[inline(always)]
    fn step(&mut self, packet: &impl Bytes) -> Result<(), NoFlow> {
        let start = packet.read::<[u8; 4]>(self.l4).ok_or(NoFlow::Truncated)?;
        let [next, length, ..] = start;
        if self.protocol == FRAGMENT {
            let [.., high, low] = start;
            let field = u16::from_be_bytes([high, low]);
            self.is_later = field & FRAGMENT_OFFSET != 0;
            if self.is_later || field & MORE_FRAGMENTS != 0 {
                self.id = self.l4 + 4;
            }
            self.l4 += 8;
        } else {
            // Segments left: the destination is not the last one.
            if self.protocol == ROUTING && start[3] != 0 {
                return Err(NoFlow::Other);
            }
            self.l4 += 8 + usize::from(length) * 8;
        }
        self.protocol = next;
        if self.l4 > FARTHEST { Err(NoFlow::Other) } else { Ok(()) }
    }
}
