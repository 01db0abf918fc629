//! What must become of packets, told once for every place that can judge it.
//!
//! ```text
//! case ─► Net (addresses, what is expected) ─► Bench ─┬─ fakes on the host (tests of this crate)
//!                                                     └─ programs in a kernel (lb-test)
//! ```
//!
//! A case is a function that sets up Services, passes frames by a hook, and compares all of what
//! comes out: verdict, bytes, counters. Each runs for IPv4 and IPv6, TCP, UDP and SCTP.
#![allow(clippy::missing_panics_doc, reason = "a case fails by panicking")]

pub mod affinity;
pub mod answers;
pub mod carried;
pub mod dsr;
pub mod extensions;
pub mod flows;
pub mod fragments;
pub mod frame;
pub mod icmp;
pub mod ipip;
pub mod malformed;
pub mod martians;
pub mod narrow;
mod net;
pub mod refusals;
pub mod snat;
pub mod sources;
pub mod untouched;
pub mod walks;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    abi::{BackendFlags, Counter, FrontendFlags, L4Proto},
    carrier,
};

pub use net::Net;

/// Calls a macro with `module::name,` of all cases, to make a test of each.
#[macro_export]
macro_rules! each_case {
    ($call:ident) => {
        $call! {
            affinity::s10_a_backend_that_left_the_list_gets_no_new_flow,
            affinity::s10_a_client_keeps_its_backend_and_another_has_its_own,
            affinity::s10_a_remote_backend_is_kept_too,
            affinity::s10_a_segment_of_no_connection_leaves_nothing,
            affinity::s10_affinity_is_switched_off_and_on,
            affinity::s10_all_addresses_of_a_service_port_share_the_choice,
            affinity::s10_nothing_is_remembered_of_a_refusal_or_a_drop,
            affinity::s10_the_list_is_the_one_that_the_client_chooses_from,
            answers::a_time_to_live_that_ends_here_is_told,
            answers::other_messages_are_left_alone,
            answers::pings_of_no_single_host_are_dropped,
            answers::pings_to_addresses_of_services_are_answered,
            carried::a_packet_from_its_own_destination_is_dropped,
            carried::errors_to_others_are_left_alone,
            carried::fragments_in_tunnels_of_others_are_left_alone,
            carried::s12_a_connection_outlives_a_new_owner_of_its_backend_s_id,
            extensions::chains_that_are_cut_off_are_counted,
            extensions::headers_before_the_ports_stay,
            extensions::other_chains_are_left_alone,
            extensions::without_endpoints_they_are_dropped,
            dsr::a_carried_packet_is_answered_from_its_service,
            dsr::a_carrier_is_believed_of_its_service_s_local_backends_alone,
            dsr::a_client_on_the_backend_s_own_node_is_answered,
            dsr::a_client_is_carried_to_a_remote_backend,
            dsr::a_connection_stays_where_it_was_carried_to,
            dsr::a_node_port_of_another_node_is_known_by_its_guard,
            dsr::clients_that_are_not_carried,
            dsr::congestion_that_a_carrier_met_is_told,
            dsr::other_datagrams_to_the_port_are_left_alone,
            dsr::errors_about_answers_go_to_who_answered,
            dsr::fragments_are_carried_and_unpacked,
            dsr::s9_a_carried_client_must_be_allowed,
            flows::a_closed_connection_lets_its_port_begin_another,
            flows::a_connection_does_not_begin_with_a_removed_backend,
            flows::a_connection_past_the_service_from_a_used_port_is_left_alone,
            flows::a_datagram_leaves_a_backend_that_no_longer_serves,
            flows::a_datagram_leaves_a_backend_whose_id_has_a_new_owner,
            flows::a_host_process_reaches_a_backend_and_gets_its_answer,
            flows::a_local_backend_sees_the_client_and_answers_as_its_service,
            flows::a_pod_reaches_a_remote_backend_without_snat,
            flows::a_connection_stays_with_a_removed_backend,
            flows::options_of_the_header_stay,
            flows::packets_of_any_length_are_whole,
            flows::padding_of_a_frame_is_not_part_of_the_packet,
            flows::sctp_without_a_checksum_stays_without,
            flows::s11_a_half_open_flow_leaves_a_backend_at_once,
            flows::udp_without_a_checksum_stays_without,
            fragments::a_first_fragment_too_short_for_flags_takes_its_rest_along,
            fragments::a_later_fragment_that_cannot_wait_is_dropped_and_counted,
            fragments::a_refused_packet_takes_its_rest_along,
            fragments::fragments_that_overtake_the_first_one_wait_for_it,
            fragments::packets_of_others_come_out_as_they_were,
            fragments::packets_of_others_pass_whole,
            fragments::packets_to_a_local_backend_and_back,
            fragments::packets_to_a_remote_backend_and_back,
            fragments::packets_of_a_host_process_and_back,
            fragments::sctp_in_fragments_is_dropped_and_counted,
            fragments::so_many_fragments_of_a_packet_wait,
            icmp::errors_about_a_first_fragment,
            icmp::errors_of_a_closed_connection_are_left_alone,
            icmp::errors_of_a_flow_to_a_local_backend,
            icmp::errors_of_a_flow_under_snat,
            icmp::errors_of_a_host_process_s_flow,
            icmp::errors_with_options,
            icmp::other_errors_are_left_alone,
            ipip::carriers_of_either_kind_are_taken,
            ipip::of_two_ports_at_an_address_the_lowest_id_is_meant,
            ipip::packets_of_others_are_left_as_they_are,
            malformed::nothing_but_ends_is_changed,
            martians::sources_of_this_node_do_not_come_by_a_wire,
            martians::sources_that_are_no_single_host_are_dropped,
            narrow::a_client_is_told_of_a_narrow_link_between_nodes,
            refusals::a_reset_is_not_answered,
            refusals::a_segment_of_no_connection_is_refused,
            refusals::nobody_is_refused_what_he_asked_many,
            refusals::nothing_is_remembered_of_a_refusal,
            refusals::without_endpoints_a_client_is_refused,
            refusals::without_endpoints_a_host_process_is_refused,
            refusals::without_local_endpoints_the_policy_s_clients_are_dropped,
            snat::a_half_closed_connection_keeps_its_replies,
            snat::a_pod_reaches_itself_through_its_service,
            snat::a_remote_backend_answers_through_this_node,
            snat::packets_to_a_remote_backend_are_whole,
            snat::ports_run_out_and_are_never_shared,
            snat::two_frontends_with_one_backend_keep_a_client_s_flows_apart,
            snat::two_frontends_with_one_backend_keep_a_process_s_flows_apart,
            sources::clients_of_local_sources_skip_the_external_policy,
            sources::masquerade_all_hides_every_client_but_the_node,
            sources::s9_a_flow_goes_on_when_its_source_is_allowed_no_longer,
            sources::s9_only_allowed_sources_are_let_in,
            untouched::a_frontend_for_the_host_is_no_matter_of_packets,
            untouched::a_slot_without_a_backend_is_counted,
            untouched::other_protocols,
            untouched::packets_of_no_service,
            untouched::redirects_that_quote_a_translated_flow_are_dropped,
            untouched::truncated_headers_are_counted,
            walks::a_late_answer_outlives_any_number_of_walks,
            walks::a_silent_flow_keeps_its_port_under_snat,
            walks::a_silent_flow_outlives_any_number_of_walks,
        }
    };
}

/// An address family and a protocol: each case runs for all six.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kind {
    /// IPv4 instead of IPv6.
    pub is_v4: bool,
    /// TCP, UDP or SCTP.
    pub protocol: L4Proto,
}

impl Kind {
    /// All six.
    pub const ALL: [Self; 6] = [
        Self { is_v4: true, protocol: L4Proto::SCTP },
        Self { is_v4: true, protocol: L4Proto::TCP },
        Self { is_v4: true, protocol: L4Proto::UDP },
        Self { is_v4: false, protocol: L4Proto::SCTP },
        Self { is_v4: false, protocol: L4Proto::TCP },
        Self { is_v4: false, protocol: L4Proto::UDP },
    ];
}

/// Runs a case for all kinds on one bench; its failure is preceded by the kind that failed.
pub fn run(case: fn(&mut Net<'_>), bench: &mut dyn Bench) {
    for kind in Kind::ALL {
        eprintln!("{kind:?}");
        case(&mut Net::new(bench, kind));
    }
}

/// A node's addresses and those around it, the same on every bench.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host {
    /// Outside the cluster, behind the uplink.
    Client,
    /// The node that judges.
    Node,
    /// A pod of this node.
    PodA,
    /// Another one.
    PodB,
    /// A pod of another node, behind the uplink.
    Remote,
}

impl Host {
    /// Its address.
    pub const fn address(self, is_v4: bool) -> IpAddr {
        let (v4, [second, third, last]) = match self {
            Self::Client => (Ipv4Addr::new(172, 21, 0, 2), [0x21, 0, 2]),
            Self::Node => (Ipv4Addr::new(172, 20, 0, 11), [0x20, 0, 0x11]),
            Self::PodA => (Ipv4Addr::new(10, 248, 1, 21), [0x248, 1, 0x21]),
            Self::PodB => (Ipv4Addr::new(10, 248, 1, 22), [0x248, 1, 0x22]),
            Self::Remote => (Ipv4Addr::new(10, 248, 2, 50), [0x248, 2, 0x50]),
        };
        if is_v4 {
            IpAddr::V4(v4)
        } else {
            IpAddr::V6(Ipv6Addr::new(0xfd00, second, third, 0, 0, 0, 0, last))
        }
    }
}

/// A device of the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Device {
    /// To pod A.
    PodA,
    /// To pod B.
    PodB,
    /// To everything else.
    Uplink,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PodA, Self::PodB, Self::Uplink];
}

/// Link-layer address of every device of the node.
pub const DEVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// It leaves by a device, having come in by another.
    Egress(Device),
    /// A process of the node sends it, and it leaves by a device.
    HostEgress(Device),
    /// It comes in by a device.
    Ingress(Device),
}

/// What the node does with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is gone.
    Dropped,
    /// It goes on to the stack, or out.
    Next,
    /// It is sent by a device, or delivered as if it had come by it.
    Sent(Device),
}

/// All of what comes of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// What is done with it.
    pub fate: Fate,
    /// What it has become.
    pub bytes: Vec<u8>,
    /// The counters that moved, by one.
    pub counted: Vec<Counter>,
}

/// One backend.
#[derive(Clone, Copy, Debug)]
pub struct BackendSpec {
    /// Address and port.
    pub address: SocketAddr,
    /// Local, serving.
    pub flags: BackendFlags,
    /// Which use of its id it is; zero clears it.
    pub generation: u32,
}

/// One frontend and the backends that it chooses from.
#[derive(Clone, Copy, Debug)]
pub struct FrontendSpec<'a> {
    /// Address and port.
    pub address: SocketAddr,
    /// TCP, UDP or SCTP.
    pub protocol: L4Proto,
    /// What it says to those whom it has no backend for, and whom it is for.
    pub flags: FrontendFlags,
    /// Affinity timeout in seconds; zero without affinity.
    pub affinity_timeout: u32,
    /// Ids for clients on this node, at most 16.
    pub internal: &'a [u32],
    /// Ids for clients from outside, at most 16.
    pub external: &'a [u32],
}

/// The Service port of all frontends and backends.
pub const SERVICE: u32 = 7;

/// A range of sources: an address, and how many of its first bits count.
pub type Prefix = (IpAddr, u8);

/// First port and number of ports of the SNAT range on every bench.
pub const SNAT_RANGE: (u16, u16) = (61000, 64);

/// A node that judges packets: the paths over fakes, or the programs in a kernel.
pub trait Bench {
    /// Writes a backend of the family of its address.
    fn put_backend(&mut self, id: u32, backend: &BackendSpec);

    /// Writes a frontend.
    fn put_frontend(&mut self, frontend: &FrontendSpec<'_>);

    /// Makes these the sources of a Service port, and no others.
    fn set_sources(&mut self, service: u32, prefixes: &[Prefix]);

    /// What this node carries packets in.
    fn carrier_kind(&self) -> carrier::Kind;

    /// Walks over all flows so many times, as the agent does; each time, a walk before is not finished.
    fn walk(&mut self, times: u32);

    /// Judges one packet. A bench that does not see the device of [`Fate::Sent`] takes
    /// `expected`'s.
    fn judge(&mut self, hook: Hook, bytes: &[u8], expected: Fate) -> Outcome;
}
