//! What a packet makes of the state of its flow; how long a silent flow is kept.

use crate::abi::L4Proto;

/// State of a flow, as far as it is tracked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum CtState {
    /// Datagrams, or a TCP connection whose first packet has been seen.
    New = 0,
    /// A TCP connection with packets after the first.
    Established = 1,
    /// A TCP connection that one end has ended: a SYN begins another one.
    Closing = 2,
}

/// TCP flags as they stand in byte 13 of the header (RFC 9293, 3.1).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const ACK: u8 = 0x10;
    const FIN: u8 = 0x01;
    const RST: u8 = 0x04;
    const SYN: u8 = 0x02;

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
    /// The state with this number; an unknown one is [`CtState::Closing`], the safest.
    #[inline(always)]
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::New,
            1 => Self::Established,
            _ => Self::Closing,
        }
    }

    /// The state after a packet with these flags.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, flags: TcpFlags) -> Self {
        if flags.closes() || matches!(self, Self::Closing) {
            Self::Closing
        } else if flags.opens() {
            self
        } else {
            Self::Established
        }
    }
}

/// Units of `last_seen` in a second, nearly: one is 2^30 ns.
pub const TICK_SHIFT: u32 = 30;
/// How long a silent UDP flow keeps its backend, in ticks: kube-proxy's hosts use 120 s.
pub const UDP_TIMEOUT: u32 = 112;

/// Has a flow been silent for too long to keep its backend?
///
/// TCP flows never are here: a packet says itself whether it opens a connection.
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
        assert_eq!(CtState::New.next(SYN), CtState::New);
        assert_eq!(CtState::New.next(SYN_ACK), CtState::Established);
        assert_eq!(CtState::New.next(ACK), CtState::Established);
        assert_eq!(CtState::Established.next(SYN), CtState::Established);
        assert_eq!(CtState::Established.next(FIN), CtState::Closing);
        assert_eq!(CtState::Established.next(RST), CtState::Closing);
        assert_eq!(CtState::Closing.next(ACK), CtState::Closing);
    }

    #[test]
    fn only_silent_datagram_flows_expire() {
        assert!(!is_expired(L4Proto::UDP, 100, 100 + UDP_TIMEOUT));
        assert!(is_expired(L4Proto::UDP, 100, 101 + UDP_TIMEOUT));
        assert!(!is_expired(L4Proto::UDP, u32::MAX, 5));
        assert!(!is_expired(L4Proto::TCP, 0, u32::MAX));
    }
}
