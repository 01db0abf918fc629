//! What a packet makes of the state of its flow; how long a silent flow is kept.

use crate::abi::L4Proto;

/// State of a flow, as far as it is tracked: bits, so that two entries of one flow are one by "or".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CtState(pub u8);

/// An end of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The one that was chosen.
    Backend,
    /// The one that asked.
    Client,
}

/// TCP flags as they stand in byte 13 of the header (RFC 9293, 3.1), or what says the same in SCTP.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const ACK: u8 = 0x10;
    const FIN: u8 = 0x01;
    const RST: u8 = 0x04;
    const SYN: u8 = 0x02;

    /// What the type of an SCTP packet's first chunk tells, in TCP's words (RFC 9260, 3.2).
    ///
    /// INIT, INIT ACK and SHUTDOWN COMPLETE are always alone in their packets, and ABORT and the
    /// other two of a shutdown first in nearly all of theirs.
    ///
    /// By arithmetic: the verifier would follow each flag that it knew on a path of its own.
    #[inline(always)]
    #[must_use]
    pub const fn of_chunk(chunk: u8) -> Self {
        /// FIN, SYN and RST stand where they do in the flags; the fourth bit is ACK.
        const NIBBLES: u64 = 0x8488_8889_9488_8a28;
        let is_low = ((chunk & 0xf0) as u64).wrapping_sub(1) >> 63;
        let nibble = NIBBLES >> ((chunk & 15) * 4) & 15;
        let known = nibble & 7 | (nibble & 8) << 1;
        let mask = is_low.wrapping_neg();
        #[allow(clippy::cast_possible_truncation, reason = "flags of one byte")]
        let flags = (known & mask | Self::ACK as u64 & !mask) as u8;
        Self(flags)
    }

    /// The first packet of a connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// The answer to the first packet of a connection: SYN with ACK.
    #[inline(always)]
    #[must_use]
    pub const fn answers_opening(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }

    /// One end ends the connection.
    #[inline(always)]
    #[must_use]
    pub const fn closes(self) -> bool {
        self.0 & (Self::FIN | Self::RST) != 0
    }

    /// Nothing must be answered to it (RFC 9293, 3.10.7.1).
    #[inline(always)]
    #[must_use]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// It neither begins nor ends anything: a segment, chunk or datagram in the middle.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.0 & (Self::FIN | Self::SYN | Self::RST) == 0
    }

    /// It acknowledges something.
    #[inline(always)]
    #[must_use]
    pub const fn acknowledges(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// It counts as one octet of the sequence: SYN or FIN.
    #[inline(always)]
    #[must_use]
    pub const fn sequence_length(self) -> u32 {
        (self.0 & Self::SYN != 0) as u32 + (self.0 & Self::FIN != 0) as u32
    }
}

impl CtState {
    /// Datagrams, or a connection whose first packet has been seen.
    pub const NEW: Self = Self(0);
    /// A connection with packets after the first.
    pub const ESTABLISHED: Self = Self(1);
    const CLIENT_ENDED: u8 = 2;
    const BACKEND_ENDED: u8 = 4;
    const BOTH_ENDED: u8 = Self::CLIENT_ENDED | Self::BACKEND_ENDED;

    /// Has an end ended the connection? A SYN then begins another one.
    #[inline(always)]
    #[must_use]
    pub const fn is_closing(self) -> bool {
        self.0 & Self::BOTH_ENDED != 0
    }

    /// Have both ends ended the connection? Until then one of them may go on sending.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        self.0 & Self::BOTH_ENDED == Self::BOTH_ENDED
    }

    /// What both states tell.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The state after a packet with these flags from one of the ends.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, flags: TcpFlags, from: End) -> Self {
        let ended = match from {
            _ if flags.resets() => Self::BOTH_ENDED,
            _ if !flags.closes() => 0,
            End::Backend => Self::BACKEND_ENDED,
            End::Client => Self::CLIENT_ENDED,
        };
        let established = if flags.opens() { 0 } else { Self::ESTABLISHED.0 };
        Self(self.0 | ended | established)
    }
}

/// Units of `last_seen` in a second, nearly: one is 2^30 ns.
pub const TICK_SHIFT: u32 = 30;
/// How long a silent UDP flow keeps its backend, in ticks: kube-proxy's hosts use 120 s.
pub const UDP_TIMEOUT: u32 = 112;

/// Has a flow been silent for too long to keep its backend?
///
/// Flows of TCP and SCTP never are here: a packet says itself whether it opens a connection.
#[inline(always)]
#[must_use]
pub const fn is_expired(protocol: L4Proto, last_seen: u32, now: u32) -> bool {
    protocol.0 == L4Proto::UDP.0 && now.wrapping_sub(last_seen) > UDP_TIMEOUT
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags(0x02);
    const SYN_ACK: TcpFlags = TcpFlags(0x12);
    const ACK: TcpFlags = TcpFlags(0x10);
    const FIN: TcpFlags = TcpFlags(0x11);
    const RST: TcpFlags = TcpFlags(0x04);

    #[test]
    fn a_connection_opens_lives_and_closes() {
        let (new, established) = (CtState::NEW, CtState::ESTABLISHED);
        assert_eq!(new.next(SYN, End::Client), new);
        assert_eq!(new.next(SYN_ACK, End::Backend), established);
        assert_eq!(new.next(ACK, End::Client), established);
        assert_eq!(established.next(SYN, End::Client), established);
        assert!(!established.is_closing());
        for (first, second) in [(End::Client, End::Backend), (End::Backend, End::Client)] {
            let half = established.next(FIN, first);
            assert!(half.is_closing() && !half.is_closed());
            assert_eq!(half.next(FIN, first), half, "sent again");
            assert_eq!(half.next(ACK, second), half);
            assert!(half.next(FIN, second).is_closed());
            assert!(half.with(established.next(FIN, second)).is_closed());
            assert!(established.next(RST, first).is_closed());
        }
    }

    #[test]
    fn chunks_open_and_end_an_association_as_segments_do_a_connection() {
        let [init, init_ack, abort] = [1, 2, 6].map(TcpFlags::of_chunk);
        assert!(init.opens() && !init.closes());
        assert!(init_ack.answers_opening() && !init_ack.closes());
        assert!(abort.resets());
        let [shutdown, shutdown_ack, complete] = [7, 8, 14].map(TcpFlags::of_chunk);
        let half = CtState::ESTABLISHED.next(shutdown, End::Client);
        assert!(half.is_closing() && !half.is_closed());
        assert!(half.next(shutdown_ack, End::Backend).is_closed());
        assert!(half.next(complete, End::Client).is_closed() && complete.resets());
        // DATA, SACK, HEARTBEAT and its ACK, ERROR, COOKIE ECHO and ACK, ECNE, CWR, FORWARD TSN.
        for chunk in [0, 3, 4, 5, 9, 10, 11, 12, 13, 15, 16, 63, 192, 193, 255] {
            let flags = TcpFlags::of_chunk(chunk);
            assert!(!flags.opens() && !flags.answers_opening() && !flags.closes(), "{chunk}");
            assert_eq!(CtState::NEW.next(flags, End::Client), CtState::ESTABLISHED, "{chunk}");
        }
    }

    #[test]
    fn only_silent_datagram_flows_expire() {
        assert!(!is_expired(L4Proto::UDP, 100, 100 + UDP_TIMEOUT));
        assert!(is_expired(L4Proto::UDP, 100, 101 + UDP_TIMEOUT));
        assert!(!is_expired(L4Proto::UDP, u32::MAX, 5));
        assert!(!is_expired(L4Proto::TCP, 0, u32::MAX));
        assert!(!is_expired(L4Proto::SCTP, 0, u32::MAX));
    }
}
