//! What a packet makes of the state of its flow; how long a silent flow is kept.

use crate::abi::L4Proto;

/// State of a flow, as far as it is tracked: bits, so that two entries of one flow are one by "or".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CtState(pub u8);

/// An end of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum End {
    /// The one that was chosen.
    Backend = 0,
    /// The one that asked.
    Client = 1,
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
    /// The client's first packet has been seen.
    pub const NEW: Self = Self(0);
    /// The client has gone on after its first packet.
    pub const ESTABLISHED: Self = Self(1);
    /// The backend has answered.
    pub const ANSWERED: Self = Self(8);
    /// Kept apart: nobody has gone on with the flow since its first answer.
    pub const HALF_OPEN: Self = Self(16);
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

    /// The same where the backend is never seen: what the client has ended is over, once it is silent.
    #[inline(always)]
    #[must_use]
    pub const fn of_client_alone(self) -> Self {
        Self(self.0 | (self.0 & Self::CLIENT_ENDED) << 1)
    }

    /// Is the flow kept apart?
    #[inline(always)]
    #[must_use]
    pub const fn is_half_open(self) -> bool {
        self.has(Self::HALF_OPEN)
    }

    /// Does a packet with these flags from the client prove that both ends are there? One that goes
    /// on after an answer does: whoever sends from an address that is not his own sees no answers. A
    /// reset is none: it answers every stray segment.
    #[inline(always)]
    #[must_use]
    pub const fn is_proven_by(self, flags: TcpFlags) -> bool {
        self.has(Self::ANSWERED) && !self.is_closed() && flags.is_plain()
    }

    /// Is a flow that is kept apart too old for another attempt to be one to begin it? No walk comes by
    /// there to forget it.
    #[inline(always)]
    #[must_use]
    pub const fn is_outdated(self, silent: u32) -> bool {
        self.is_half_open() && silent > TCP_OPENING
    }

    /// The same, kept with the flows that are proven.
    #[inline(always)]
    #[must_use]
    pub const fn proven(self) -> Self {
        Self(self.0 & !Self::HALF_OPEN.0)
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
    pub fn next(self, flags: TcpFlags, from: End) -> Self {
        // By arithmetic, as for `of_chunk`.
        let bit = |flag: u8| flags.0 / flag & 1;
        let is_client = from as u8;
        let ends = bit(TcpFlags::FIN) * Self::BACKEND_ENDED >> is_client;
        let ended = ends | bit(TcpFlags::RST) * Self::BOTH_ENDED;
        let opens = bit(TcpFlags::SYN) & !bit(TcpFlags::ACK);
        let goes_on = is_client & !opens;
        let seen = goes_on * Self::ESTABLISHED.0 | (1 - is_client) * Self::ANSWERED.0;
        Self(self.0 | ended | seen)
    }

    /// Does the state tell all that `other` does?
    #[inline(always)]
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Units of `last_seen` in a second, nearly: one is 2^30 ns.
pub const TICK_SHIFT: u32 = 30;

/// So many seconds in ticks, rounded up.
#[must_use]
pub const fn ticks(seconds: u32) -> u32 {
    let ticks = (seconds as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
    #[allow(clippy::cast_possible_truncation, reason = "a tick is longer than a second")]
    let ticks = ticks as u32;
    ticks
}

/// A connection whose first packet was not answered.
const TCP_OPENING: u32 = ticks(120);
/// A connection that was answered, and whose client has not gone on.
const TCP_HALF_OPEN: u32 = ticks(60);
/// A connection whose client goes on, and whose backend was never seen.
const TCP_UNANSWERED: u32 = ticks(300);
/// A connection that both ends have ended, or one by a reset.
const TCP_CLOSED: u32 = ticks(120);

/// How long silent flows are kept, in ticks: what can be set.
///
/// All figures are those of netfilter's conntrack, which kube-proxy relies on; two are kube-proxy's.
/// Associations of SCTP are kept as connections of TCP are: kube-proxy has no settings for them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// Connections that both ends have gone on with.
    pub tcp_established: u32,
    /// Connections that one end has ended.
    pub tcp_close_wait: u32,
    /// Datagrams without an answer, or without a second one.
    pub udp: u32,
    /// Datagrams both ways: for as long a flow keeps its backend.
    pub udp_stream: u32,
}

impl Timeouts {
    /// kube-proxy's for TCP, those of its hosts for datagrams.
    pub const DEFAULT: Self = Self {
        tcp_established: ticks(24 * 3600),
        tcp_close_wait: ticks(3600),
        udp: ticks(30),
        udp_stream: ticks(120),
    };

    /// Has a flow in this state been silent for too long to be remembered?
    #[inline(always)]
    #[must_use]
    pub const fn is_over(&self, protocol: L4Proto, state: CtState, silent: u32) -> bool {
        silent > self.of(protocol, state)
    }

    #[inline(always)]
    const fn of(&self, protocol: L4Proto, state: CtState) -> u32 {
        let (goes_on, answered) = (state.has(CtState::ESTABLISHED), state.has(CtState::ANSWERED));
        if !protocol.has_connections() {
            return if goes_on && answered { self.udp_stream } else { self.udp };
        }
        if state.is_closed() {
            return TCP_CLOSED;
        }
        if state.is_closing() {
            return self.tcp_close_wait;
        }
        match (goes_on, answered) {
            (true, true) => self.tcp_established,
            (true, false) => TCP_UNANSWERED,
            (false, true) => TCP_HALF_OPEN,
            (false, false) => TCP_OPENING,
        }
    }
}

/// Ticks since a flow was last seen; none if another CPU has just seen it.
#[inline(always)]
#[must_use]
pub const fn silence(last_seen: u32, now: u32) -> u32 {
    let ticks = now.wrapping_sub(last_seen);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

/// Has a flow been silent for too long to keep its backend, which UDP flows do for `udp_stream`
/// ticks?
///
/// Flows of TCP and SCTP never are here: a packet says itself whether it opens a connection.
#[inline(always)]
#[must_use]
pub const fn is_expired(protocol: L4Proto, silent: u32, udp_stream: u32) -> bool {
    protocol.0 == L4Proto::UDP.0 && silent > udp_stream
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
        let (new, answered) = (CtState::NEW, CtState::ANSWERED);
        assert_eq!(new.next(SYN, End::Client), new);
        assert_eq!(new.next(SYN_ACK, End::Backend), answered);
        assert_eq!(new.next(ACK, End::Client), CtState::ESTABLISHED);
        let established = answered.next(ACK, End::Client);
        assert_eq!(established, CtState::ESTABLISHED.with(answered));
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

    /// Seconds that a flow is kept after these packets.
    fn kept(protocol: L4Proto, packets: &[(TcpFlags, End)]) -> u32 {
        let next = |state: CtState, (flags, from): &(TcpFlags, End)| state.next(*flags, *from);
        let state = packets.iter().fold(CtState::NEW, next);
        let over = |ticks: &u32| Timeouts::DEFAULT.is_over(protocol, state, *ticks);
        let kept = (0..=ticks(1 << 20)).find(over).unwrap() - 1;
        let seconds = (u64::from(kept) << TICK_SHIFT) / 1_000_000_000;
        u32::try_from(seconds).unwrap()
    }

    #[test]
    fn s16_a_flow_is_kept_by_its_state_for_as_long_as_netfilter_keeps_it() {
        use End::{Backend, Client};
        let open = [(SYN, Client), (SYN_ACK, Backend), (ACK, Client)];
        let then = |more: &[(TcpFlags, End)]| kept(L4Proto::TCP, &[&open[..], more].concat());
        assert_eq!(kept(L4Proto::TCP, &open[..1]), 120, "SYN_SENT");
        assert_eq!(kept(L4Proto::TCP, &open[..2]), 60, "SYN_RECV");
        assert_eq!(then(&[]), 86_400, "ESTABLISHED");
        assert_eq!(kept(L4Proto::TCP, &open[2..]), 300, "picked up, UNACKNOWLEDGED");
        assert_eq!(then(&[(FIN, Backend)]), 3600, "CLOSE_WAIT");
        assert_eq!(then(&[(FIN, Client), (ACK, Backend)]), 3600, "CLOSE_WAIT");
        assert_eq!(then(&[(FIN, Client), (FIN, Backend)]), 120, "TIME_WAIT");
        assert_eq!(then(&[(RST, Client)]), 120);
        let datagram = TcpFlags::default();
        let udp = |ends: &[End]| {
            let packets: Vec<_> = ends.iter().map(|end| (datagram, *end)).collect();
            kept(L4Proto::UDP, &packets)
        };
        assert_eq!(udp(&[]), 30);
        assert_eq!(udp(&[Client, Client]), 30, "nobody answers");
        assert_eq!(udp(&[Backend]), 30, "a question and its answer");
        assert_eq!(udp(&[Backend, Client]), 120);
    }

    #[test]
    fn s16_an_association_is_kept_as_long_as_a_connection() {
        use End::{Backend, Client};
        let [init, init_ack, cookie, shutdown, shutdown_ack] =
            [1, 2, 10, 7, 8].map(TcpFlags::of_chunk);
        let all = [
            (init, Client),
            (init_ack, Backend),
            (cookie, Client),
            (shutdown, Backend),
            (shutdown_ack, Client),
        ];
        let kept = [1, 2, 3, 4, 5].map(|count| kept(L4Proto::SCTP, &all[..count]));
        assert_eq!(kept, [120, 60, 86_400, 3600, 120]);
    }

    #[test]
    fn seconds_are_ticks_rounded_up() {
        assert_eq!((ticks(0), ticks(1), ticks(120), ticks(86_400)), (0, 1, 112, 80_467));
    }

    #[test]
    fn silence_is_counted_over_the_end_of_the_numbers() {
        assert_eq!(silence(100, 100), 0);
        assert_eq!(silence(u32::MAX, 5), 6);
        assert_eq!(silence(101, 100), 0, "seen by another CPU meanwhile");
    }

    #[test]
    fn only_silent_datagram_flows_lose_their_backend() {
        assert!(!is_expired(L4Proto::UDP, 112, 112));
        assert!(is_expired(L4Proto::UDP, 113, 112));
        assert!(!is_expired(L4Proto::TCP, u32::MAX, 112));
        assert!(!is_expired(L4Proto::SCTP, u32::MAX, 112));
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
}
