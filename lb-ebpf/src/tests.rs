//! Runs every case on fakes, and what only fakes can show: chance, time, and any bytes at all.

mod floods;
mod fragments;
mod half_open;
mod migrate;
mod presence;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::{
    abi::{BackendFlags, Counter, L4Proto},
    conntrack::Timeouts,
    limit,
};
use proptest::prelude::*;

use crate::{
    cases::{
        self, Bench, Device, Fate, Hook, Host, Kind, Net, SNAT_RANGE,
        frame::{Frame, Transport},
    },
    fake::FakeBench,
};

macro_rules! on_fakes {
    ($($module:ident::$name:ident,)+) => {
        $(#[test]
        fn $name() {
            run(cases::$module::$name);
        })+
    };
}
crate::each_case!(on_fakes);

fn run(case: fn(&mut Net<'_>)) {
    cases::run(case, &mut FakeBench::new());
}

/// Not the frontend's address, or the client would be the Service itself; one that can be on a wire.
fn is_client(frame: &Frame, vip: SocketAddr) -> bool {
    let ip = frame.src.ip();
    let is_nobody = match ip {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unspecified(),
    };
    ip != vip.ip() && !is_nobody && !ip.is_loopback() && !ip.is_multicast()
}

fn kinds() -> impl Strategy<Value = Kind> {
    proptest::sample::select(&Kind::ALL[..])
}

/// A client's address of a family, made from 16 bytes.
fn address(kind: Kind, bits: u128) -> IpAddr {
    let low = u32::try_from(bits & 0xffff_ffff).expect("32 bits");
    if kind.is_v4 { Ipv4Addr::from_bits(low).into() } else { Ipv6Addr::from_bits(bits).into() }
}

proptest! {
    #[test]
    fn forward_and_reply_give_any_client_its_own_flow_back(
        kind in kinds(), bits: u128, port: u16, is_remote: bool, payload: Vec<u8>, ttl in 2..=255_u8,
    ) {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let host = if is_remote { Host::Remote } else { Host::PodA };
        let (vip, id) = (net.vip(1), net.backend(host));
        net.frontend(vip, &[id]);
        let client = SocketAddr::new(address(kind, bits), port);
        let request = Frame { payload: payload.clone(), ttl, ..net.first(client, vip) };
        prop_assume!(is_client(&request, vip));
        let (input, output, fate) = if is_remote {
            let uplink = Hook::Ingress(Device::Uplink);
            (uplink, uplink, Fate::Sent(Device::Uplink))
        } else {
            (Hook::Ingress(Device::Uplink), Hook::Egress(Device::Uplink), Fate::Next)
        };
        let became = net.pass(input, &request, fate);
        let ttl = ttl - u8::from(is_remote);
        prop_assert_eq!(became.dst, net.target(host));
        prop_assert_eq!(&became, &Frame { src: became.src, dst: became.dst, ttl, ..request });
        let reply = Frame { payload, ..net.later(became.dst, became.src) };
        let (answered, returned) = (reply.ttl - u8::from(is_remote), net.pass(output, &reply, fate));
        prop_assert_eq!(returned, Frame { src: vip, dst: client, ttl: answered, ..reply });
    }

    #[test]
    fn bytes_of_any_kind_are_left_alone(
        kind in kinds(), mut bytes in proptest::collection::vec(any::<u8>(), 0..128), is_ip: bool,
    ) {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let id = net.backend(Host::PodA);
        net.frontend(net.vip(1), &[id]);
        if is_ip && bytes.len() > 14 {
            bytes[12..14].copy_from_slice(if kind.is_v4 { &[0x08, 0] } else { &[0x86, 0xdd] });
        }
        for hook in [Hook::Ingress(Device::Uplink), Hook::HostEgress(Device::Uplink)] {
            let outcome = bench.judge(hook, &bytes, Fate::Next);
            prop_assert_eq!(outcome.fate, Fate::Next);
            prop_assert_eq!(&outcome.bytes, &bytes);
        }
    }

    #[test]
    fn a_damaged_packet_for_a_service_harms_nothing(
        kind in kinds(), places in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        length: proptest::sample::Index, is_served: bool,
    ) {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let (vip, id) = (net.vip(1), net.backend(Host::Remote));
        net.frontend(vip, if is_served { std::slice::from_ref(&id) } else { &[] });
        let mut bytes = net.first(net.client(), vip).encode();
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(length.index(bytes.len()) + 1);
        let outcome = bench.judge(Hook::Ingress(Device::Uplink), &bytes, Fate::Next);
        if outcome.fate == Fate::Next {
            prop_assert_eq!(outcome.bytes, bytes);
        }
    }
}

/// An ICMP error of a type in the range that has errors, with any bytes for a quote.
fn error(net: &Net<'_>, kind: [u8; 2], quote: Vec<u8>) -> Frame {
    let ends = net.later(net.at(Host::Client, 0), SocketAddr::new(net.vip(1).ip(), 0));
    let rest = [0, 0, 5, 0];
    Frame { transport: Transport::Icmp { kind, rest }, payload: quote, ..ends }
}

proptest! {
    #[test]
    fn an_error_about_no_flow_is_left_alone(
        // An echo request is answered.
        kind in kinds(), icmp in (0..14_u8).prop_filter("no echo request", |icmp| *icmp != 8), code: u8, mut quote in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let [client, vip, _] = net.serve(Host::PodA);
        let hook = Hook::Ingress(Device::Uplink);
        net.expect(hook, &net.first(client, vip), Fate::Next, [client, net.target(Host::PodA)]);
        if let Some(first) = quote.first_mut() {
            *first = if kind.is_v4 { 0x45 } else { 0x60 };
        }
        let bytes = error(&net, [icmp, code], quote).encode();
        for hook in [hook, Hook::Egress(Device::Uplink), Hook::HostEgress(Device::Uplink)] {
            let outcome = bench.judge(hook, &bytes, Fate::Next);
            prop_assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Next, &[][..]));
            prop_assert_eq!(&outcome.bytes, &bytes);
        }
    }

    #[test]
    fn a_damaged_error_about_a_flow_keeps_its_length_and_all_that_is_not_an_end(
        kind in kinds(), places in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        length: proptest::sample::Index,
    ) {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let [client, vip, _] = net.serve(Host::PodA);
        let hook = Hook::Ingress(Device::Uplink);
        net.expect(hook, &net.first(client, vip), Fate::Next, [client, net.target(Host::PodA)]);
        let quote = net.later(vip, client).encode()[14..].to_vec();
        let mut bytes = error(&net, if kind.is_v4 { [3, 4] } else { [2, 0] }, quote).encode();
        for (place, byte) in places {
            let place = 14 + place.index(bytes.len() - 14);
            bytes[place] = byte;
        }
        bytes.truncate(length.index(bytes.len()) + 1);
        let outcome = bench.judge(hook, &bytes, Fate::Next);
        prop_assert_eq!(outcome.bytes.len(), bytes.len());
        // Two checksums, four addresses' words and two ports, of IPv4; IPv6 has fewer checksums.
        let changed = outcome.bytes.iter().zip(&bytes).filter(|(new, old)| new != old).count();
        prop_assert!(changed <= 4 * 16 + 10, "{} bytes", changed);
    }
}

#[test]
fn a_silent_datagram_flow_chooses_again_and_a_connection_does_not() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
        let (client, vip) = (net.client(), net.vip(1));
        let (pod_a, pod_b) = (net.target(Host::PodA), net.target(Host::PodB));
        net.frontend(vip, &[a]);
        let hook = Hook::Ingress(Device::Uplink);
        net.expect(hook, &net.first(client, vip), Fate::Next, [client, pod_a]);
        net.frontend(vip, &[b]);
        bench.pass_time(Timeouts::DEFAULT.udp_stream + 1);
        let mut net = Net::new(&mut bench, kind);
        let expected = if net.has_connections() { pod_a } else { pod_b };
        net.expect(hook, &net.later(client, vip), Fate::Next, [client, expected]);
    }
}

#[test]
fn a_flow_that_only_asks_keeps_its_port() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let [client, vip, _] = net.serve(Host::Remote);
        let (hook, sent) = (Hook::Ingress(Device::Uplink), Fate::Sent(Device::Uplink));
        let node = net.pass(hook, &net.first(client, vip), sent).src;
        for _ in 0..3 {
            bench.pass_time(Timeouts::DEFAULT.udp_stream - 1);
            let mut net = Net::new(&mut bench, kind);
            let became = net.pass(hook, &net.later(client, vip), sent);
            assert_eq!(became.src, node);
        }
        let mut net = Net::new(&mut bench, kind);
        for port in 1024..1024 + 2 * SNAT_RANGE.1 {
            let other = net.at(Host::Client, port);
            if let Ok(became) = net.try_pass(hook, &net.first(other, vip), sent) {
                assert_ne!(became.src, node, "{kind:?}: two flows share a port");
            }
        }
    }
}

#[test]
fn ports_are_of_the_range_however_small_it_is() {
    for (kind, count) in
        Kind::ALL.into_iter().flat_map(|kind| [1, 2, 60, 61, 62].map(|n| (kind, n)))
    {
        let mut bench = FakeBench::new();
        let range = u16::MAX - count + 1..=u16::MAX;
        bench.set_snat_range((*range.start(), count));
        let mut net = Net::new(&mut bench, kind);
        let (vip, id) = (net.vip(1), net.backend(Host::Remote));
        net.frontend(vip, &[id]);
        let (hook, sent) = (Hook::Ingress(Device::Uplink), Fate::Sent(Device::Uplink));
        let mut ports = BTreeSet::new();
        for port in 1024..1024 + 4 * count {
            let client = net.at(Host::Client, port);
            let became = net.try_pass(hook, &net.first(client, vip), sent);
            ports.extend(became.map(|frame| frame.src.port()));
        }
        assert!(ports.iter().all(|port| range.contains(port)), "{kind:?}: {ports:?} of {range:?}");
        assert!(ports.len() * 2 > usize::from(count), "{kind:?}: {ports:?} of {range:?}");
    }
}

/// A full table throws out one entry of a flow; the other one, in use, puts it back.
#[test]
fn an_entry_that_is_thrown_out_is_written_again_by_the_other_direction() {
    for (kind, host) in
        Kind::ALL.into_iter().flat_map(|kind| [Host::PodA, Host::Remote].map(|host| (kind, host)))
    {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let (client, vip, id) = (net.client(), net.vip(1), net.backend(host));
        let (other, backend) = (net.backend(Host::PodB), net.target(host));
        net.frontend(vip, &[id]);
        let hook = Hook::Ingress(Device::Uplink);
        let (fate, out) = match host {
            Host::Remote => (Fate::Sent(Device::Uplink), hook),
            _ => (Fate::Next, Hook::Egress(Device::Uplink)),
        };
        let source = net.pass(hook, &net.first(client, vip), fate).src;
        // Only an entry tells of the backend from here on.
        net.frontend(vip, &[other]);
        bench.evict_from(backend);
        bench.pass_time(1);
        let mut net = Net::new(&mut bench, kind);
        assert_eq!(net.pass(hook, &net.later(client, vip), fate).src, source);
        assert_eq!(net.pass(out, &net.later(backend, source), fate).src, vip);
        bench.evict_from(client);
        bench.pass_time(1);
        let mut net = Net::new(&mut bench, kind);
        assert_eq!(net.pass(out, &net.later(backend, source), fate).src, vip);
        let became = net.pass(hook, &net.later(client, vip), fate);
        assert_eq!((became.src, became.dst), (source, backend), "{kind:?}");
    }
}

/// The same for a process of the node, whose replies are delivered by the device they are sent by.
#[test]
fn a_process_keeps_its_replies_when_their_entry_is_thrown_out() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let (process, vip, id) = (net.at(Host::Node, 40000), net.vip(1), net.backend(Host::PodA));
        let pod = net.target(Host::PodA);
        net.frontend(vip, &[id]);
        let (hook, sent) = (Hook::HostEgress(Device::Uplink), Fate::Sent(Device::PodA));
        net.expect(hook, &net.first(process, vip), sent, [process, pod]);
        bench.evict_from(pod);
        bench.pass_time(1);
        let mut net = Net::new(&mut bench, kind);
        net.expect(hook, &net.later(process, vip), sent, [process, pod]);
        net.expect_delivery(Device::PodA, &net.later(pod, process), [vip, process]);
    }
}

/// `--reset-tcp-on-removal`.
#[test]
fn s12_a_connection_to_a_removed_backend_is_reset_on_demand() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.protocol == L4Proto::TCP) {
        let mut bench = FakeBench::new();
        bench.reset_removed();
        let mut net = Net::new(&mut bench, kind);
        let (a, b) = (net.backend(Host::PodA), net.backend(Host::PodB));
        let (client, process, vip) = (net.client(), net.at(Host::Node, 40000), net.vip(1));
        let pod = net.target(Host::PodA);
        let (into, host) = (Hook::Ingress(Device::Uplink), Hook::HostEgress(Device::Uplink));
        net.frontend(vip, &[a]);
        net.expect(into, &net.first(client, vip), Fate::Next, [client, pod]);
        net.expect(host, &net.first(process, vip), Fate::Sent(Device::PodA), [process, pod]);
        net.expect(into, &net.later(client, vip), Fate::Next, [client, pod]);
        net.frontend(vip, &[b]);
        net.backend_with(Host::PodA, BackendFlags::NONE, 0);
        for (hook, asker) in [(into, client), (host, process)] {
            let request = Net::new(&mut bench, kind).later(asker, vip).encode();
            let outcome = bench.judge(hook, &request, Fate::Sent(Device::Uplink));
            assert_eq!(outcome.counted, [Counter::BackendRemoved]);
            let answer = Frame::decode(&outcome.bytes).expect("a frame");
            assert_eq!((answer.src, answer.dst), (vip, asker));
            assert!(matches!(answer.transport, Transport::Tcp { flags: RST, .. }), "{answer:?}");
        }
        // A client's own reset goes on to the pod.
        let mut net = Net::new(&mut bench, kind);
        net.expect(into, &net.segment(client, vip, RST), Fate::Next, [client, pod]);
    }
}

const RST: u8 = 0x04;

/// Seconds: what upstream's tests of the timeout ask for.
const AFFINITY_TIMEOUT: u32 = 10;
const AFFINITY_TIMEOUT_NS: u64 = 10_000_000_000;

/// Begins a flow from `port` and tells whether it reached the backend on pod A, which only a client
/// that had it before is given.
fn keeps_pod_a(bench: &mut FakeBench, kind: Kind, port: u16) -> bool {
    let mut net = Net::new(bench, kind);
    let (client, vip) = (net.at(Host::Client, port), net.vip(1));
    let became = net.pass(Hook::Ingress(Device::Uplink), &net.first(client, vip), Fate::Next);
    became.dst == net.target(Host::PodA)
}

/// A Service that gave the client pod A, and gives everybody else pod B.
fn with_affinity(kind: Kind) -> FakeBench {
    let mut bench = FakeBench::new();
    let mut net = Net::new(&mut bench, kind);
    let flags = BackendFlags::SERVING.with(BackendFlags::AFFINE_CLUSTER);
    let [a, b] = [Host::PodA, Host::PodB].map(|host| net.backend_with(host, flags, 1));
    net.affinity_timeout = AFFINITY_TIMEOUT;
    net.frontend(net.vip(1), &[a]);
    let (client, vip, pod_a) = (net.at(Host::Client, 1), net.vip(1), net.target(Host::PodA));
    net.expect(Hook::Ingress(Device::Uplink), &net.first(client, vip), Fate::Next, [client, pod_a]);
    net.frontend(net.vip(1), &[b]);
    bench
}

#[test]
fn s10_affinity_ends_with_its_timeout_to_the_nanosecond() {
    for kind in Kind::ALL {
        let mut bench = with_affinity(kind);
        bench.pass_nanoseconds(AFFINITY_TIMEOUT_NS - 1);
        assert!(keeps_pod_a(&mut bench, kind, 2), "{kind:?}");
        bench.pass_nanoseconds(AFFINITY_TIMEOUT_NS);
        assert!(!keeps_pod_a(&mut bench, kind, 3), "{kind:?}");
        bench.pass_nanoseconds(AFFINITY_TIMEOUT_NS - 1);
        assert!(!keeps_pod_a(&mut bench, kind, 4), "{kind:?}: it has pod B by then");
    }
}

#[test]
fn s10_affinity_is_renewed_by_connections_that_begin_and_not_by_packets_of_one() {
    for kind in Kind::ALL {
        let mut bench = with_affinity(kind);
        for port in 2..5 {
            bench.pass_nanoseconds(AFFINITY_TIMEOUT_NS * 3 / 4);
            assert!(keeps_pod_a(&mut bench, kind, port), "{kind:?}: renewed by each");
        }
        for _ in 0..2 {
            bench.pass_nanoseconds(AFFINITY_TIMEOUT_NS / 2);
            let mut net = Net::new(&mut bench, kind);
            let (client, vip) = (net.at(Host::Client, 4), net.vip(1));
            let to_a = [client, net.target(Host::PodA)];
            net.expect(Hook::Ingress(Device::Uplink), &net.later(client, vip), Fate::Next, to_a);
        }
        assert!(!keeps_pod_a(&mut bench, kind, 5), "{kind:?}: renewed by packets");
    }
}

#[test]
fn so_many_pings_are_answered_at_a_time_and_no_more() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let [client, vip, _] = net.serve(Host::PodA);
        let transport =
            Transport::Icmp { kind: [if kind.is_v4 { 8 } else { 128 }, 0], rest: [0; 4] };
        let ends = [client, vip].map(|end| SocketAddr::new(end.ip(), 0));
        let bytes = Frame { transport, ..net.first(ends[0], ends[1]) }.encode();
        for expected in [limit::BURST, 10] {
            let mut ask = || bench.judge(Hook::Ingress(Device::Uplink), &bytes, Fate::Next).counted;
            let answered = (0..1000).take_while(|_| ask() == [Counter::Ping]).count();
            assert_eq!(answered as u64, expected);
            assert_eq!(ask(), [Counter::PingUnanswered]);
            bench.pass_nanoseconds(1_000_000_000 / limit::PER_SECOND * 10);
        }
    }
}

/// RFC 4443, 2.4: a node is of no use to one who floods others. A reset is no error, and as many as a stack sends.
#[test]
fn so_many_errors_refuse_at_a_time_and_no_more() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let (client, vip) = (net.client(), net.vip(1));
        net.frontend(vip, &[]);
        let bytes = net.first(client, vip).encode();
        let mut ask = || bench.judge(Hook::Ingress(Device::Uplink), &bytes, Fate::Next);
        let refused = (0..1000).take_while(|_| ask().fate != Fate::Dropped).count() as u64;
        let is_limited = kind.protocol != L4Proto::TCP;
        assert_eq!(refused, if is_limited { limit::BURST } else { 1000 });
        assert_eq!(ask().counted, [Counter::NoEndpoint]);
    }
}

#[test]
fn what_does_not_fit_a_carrier_is_told() {
    run(cases::dsr::what_does_not_fit_a_carrier_is_told);
    run_by_ipip(cases::dsr::what_does_not_fit_a_carrier_is_told);
}

#[test]
fn each_case_of_direct_server_return_by_ipip() {
    cases::dsr::ALL.into_iter().for_each(run_by_ipip);
}

fn run_by_ipip(case: fn(&mut Net<'_>)) {
    let mut bench = FakeBench::new();
    bench.carry_by_ipip();
    cases::run(case, &mut bench);
}
