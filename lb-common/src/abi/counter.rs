//! What the programs count, by name.

/// Is the packet gone, refused, passed on as it was, or served?
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CounterKind {
    /// Answered in place of what is behind the address.
    Answer,
    /// Dropped without an answer.
    Drop,
    /// Passed on untouched, though it may have been meant for a Service.
    Pass,
    /// Refused with an answer.
    Reject,
    /// Translated as any other, at once or soon.
    Serve,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $kind:ident $name:literal,)+) => {
        /// Index into `COUNTERS`, a per-CPU array of packets (`u64`).
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All of them, in order of their indices.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What became of the packet.
            #[must_use]
            pub const fn kind(self) -> CounterKind {
                match self { $(Self::$variant => CounterKind::$kind,)+ }
            }

            /// The reason, in snake case, as metrics and commands show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The reason in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

counters! {
    /// A ping to an address that Services have.
    Ping = Answer "ping",
    /// A carrier was marked as one that met congestion, around a packet whose ends know no such mark: to them, a
    /// packet that is lost says so (RFC 6040, section 4.2).
    CarrierCongested = Drop "carrier_congested",
    /// A packet that another node carried here is for no Service that its backend on this node is of.
    CarrierRefused = Drop "carrier_refused",
    /// A slot named a backend that is not there.
    DanglingSlot = Drop "dangling_slot",
    /// A later fragment for a Service came before the first one, which alone holds the ports, and could not wait
    /// for it.
    FragmentOutOfOrder = Drop "fragment_out_of_order",
    /// An ICMP redirect of the node quoted a translated flow.
    IcmpRedirect = Drop "icmp_redirect",
    /// The first packet of a flow, from an address that is no single host's, from its own destination, or from
    /// this node's own address though it came by a wire.
    Martian = Drop "martian",
    /// The traffic policy is Local and this node has no usable endpoint (S5).
    NoLocalEndpoint = Drop "no_local_endpoint",
    /// No route leads to the backend or back to the client.
    NoRoute = Drop "no_route",
    /// The device towards the backend has no address that could be the source.
    NoSourceAddress = Drop "no_source_address",
    /// A ping to such an address from no single host, from this node's own address, or one too many.
    PingUnanswered = Drop "ping_unanswered",
    /// The kernel did not let the packet be rewritten.
    RewriteFailed = Drop "rewrite_failed",
    /// An SCTP packet in fragments: its checksum needs the length of all of them.
    SctpFragment = Drop "sctp_fragment",
    /// No port of the SNAT range was free towards the backend.
    SnatPortsExhausted = Drop "snat_ports_exhausted",
    /// The Service's `loadBalancerSourceRanges` do not name the client (S9).
    SourceNotAllowed = Drop "source_not_allowed",
    /// The backend of a connection was removed, and `--reset-tcp-on-removal` is set.
    BackendRemoved = Reject "backend_removed",
    /// A Service has no usable endpoint anywhere (S5).
    NoEndpoint = Reject "no_endpoint",
    /// A packet does not fit the device towards its backend or back to its client.
    PacketTooBig = Reject "packet_too_big",
    /// The time to live ended where this node forwards in place of the stack.
    TtlExpired = Reject "ttl_expired",
    /// A packet of a connection that began before this agent, left to the stack by `--migrate`.
    Migrating = Pass "migrating",
    /// Headers that end before the ports.
    Truncated = Pass "truncated",
    /// A later fragment came before the first one, which alone holds the ports, and waits for it.
    FragmentHeld = Serve "fragment_held",
    /// A fragment that waited goes on behind its first one.
    FragmentReleased = Serve "fragment_released",
    /// The first packet of a flow, one of so many at a time that it is not remembered until it is proven.
    NotRemembered = Serve "not_remembered",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_places_in_the_list() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
