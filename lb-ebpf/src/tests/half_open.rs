//! Flows that are kept apart because nobody has proven them yet: what proves one, what ends one, and
//! what other flows may take from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{
    abi::{BackendFlags, Counter, L4Proto},
    conntrack::ticks,
};
use proptest::prelude::*;

use crate::{
    cases::{Device, Fate, Hook, Host, Kind, Net, frame::Frame},
    fake::FakeBench,
};

pub(super) const INTO: Hook = Hook::Ingress(Device::Uplink);
pub(super) const BACK: Hook = Hook::Egress(Device::Uplink);
pub(super) const SENT: Fate = Fate::Sent(Device::Uplink);
const SYN: u8 = 0x02;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
pub(super) const RST: u8 = 0x14;
/// Ticks after which a port can be taken from a flow that nobody goes on with.
const GIVEN_UP: u32 = 4;

/// Runs with a Service in front of one backend, of each kind for which `is_meant` says so.
pub(super) fn with_service(
    host: Host,
    is_meant: impl Fn(Kind) -> bool,
    mut test: impl FnMut(&mut FakeBench, Kind),
) {
    for kind in Kind::ALL.into_iter().filter(|kind| is_meant(*kind)) {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let id = net.backend(host);
        net.frontend(net.vip(1), &[id]);
        test(&mut bench, kind);
        assert_eq!(bench.remembered_twice(), 0, "{kind:?}");
    }
}

pub(super) fn any(_: Kind) -> bool {
    true
}

fn has_connections(kind: Kind) -> bool {
    kind.protocol.has_connections()
}

/// Passes the client's packets with these flags to pod A, and pod A's answers back.
fn exchange(bench: &mut FakeBench, kind: Kind, packets: &[(Hook, u8)]) {
    let mut net = Net::new(bench, kind);
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    for (hook, flags) in packets {
        let (frame, ends) = match *hook {
            INTO => (net.segment(client, vip, *flags), [client, pod]),
            _ => (net.segment(pod, client, *flags), [vip, client]),
        };
        net.expect(*hook, &frame, Fate::Next, ends);
    }
}

#[test]
fn datagrams_that_nobody_answers_stay_apart() {
    with_service(
        Host::PodA,
        |kind| kind.protocol == L4Proto::UDP,
        |bench, kind| {
            for _ in 0..5 {
                exchange(bench, kind, &[(INTO, ACK), (INTO, ACK)]);
                bench.pass_time(20);
            }
            assert_eq!((bench.remembered(), bench.proven()), (2, 0), "{kind:?}");
            // The one entry's loss is mended there, too.
            let client = Net::new(bench, kind).client();
            bench.evict_from(client);
            exchange(bench, kind, &[(BACK, ACK), (INTO, ACK)]);
            assert_eq!((bench.remembered(), bench.proven()), (2, 2), "{kind:?}: answered");
        },
    );
}

/// Whoever sends segments from addresses that are made up gets a reset for each, and sends the next.
#[test]
fn a_segment_that_is_answered_by_a_reset_proves_nothing() {
    with_service(Host::PodA, has_connections, |bench, kind| {
        exchange(bench, kind, &[(INTO, ACK), (BACK, RST), (INTO, ACK), (BACK, RST), (INTO, ACK)]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 0), "{kind:?}");
    });
}

#[test]
fn an_attempt_that_is_reset_lets_its_port_begin_another() {
    with_service(Host::PodA, has_connections, |bench, kind| {
        for end in [[(INTO, SYN), (BACK, RST)], [(INTO, SYN), (INTO, RST)]] {
            exchange(bench, kind, &end);
            assert_eq!(bench.proven(), 0, "{kind:?}");
            let mut net = Net::new(bench, kind);
            let (client, vip, id) = (net.client(), net.vip(1), net.backend(Host::PodB));
            net.frontend(vip, &[id]);
            let other = net.target(Host::PodB);
            net.expect(INTO, &net.first(client, vip), Fate::Next, [client, other]);
            // For the next round: the same port, which only a reset lets begin anew.
            net.expect(INTO, &net.segment(client, vip, RST), Fate::Next, [client, other]);
            let id = net.backend(Host::PodA);
            net.frontend(vip, &[id]);
        }
    });
}

/// The end of a connection that was picked up in the middle.
#[test]
fn an_ended_connection_begins_another_from_its_port() {
    with_service(Host::PodA, has_connections, |bench, kind| {
        exchange(bench, kind, &[(INTO, FIN_ACK), (BACK, FIN_ACK), (INTO, FIN_ACK)]);
        assert_eq!(bench.proven(), 0, "{kind:?}");
        exchange(bench, kind, &[(INTO, SYN), (BACK, SYN_ACK), (INTO, ACK)]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 2), "{kind:?}");
    });
}

/// The older connection's proven entries must not hide those of the next one.
#[test]
fn a_port_whose_proven_connection_has_ended_begins_one_that_is_proven_anew() {
    with_service(Host::PodA, has_connections, |bench, kind| {
        let open = [(INTO, SYN), (BACK, SYN_ACK), (INTO, ACK)];
        for end in [&[(INTO, FIN_ACK)][..], &[(BACK, FIN_ACK)], &[(BACK, RST)], &[(INTO, RST)]] {
            exchange(bench, kind, &open);
            assert_eq!((bench.remembered(), bench.proven()), (2, 2), "{kind:?} {end:?}");
            exchange(bench, kind, end);
            exchange(bench, kind, &open[..1]);
            assert_eq!((bench.remembered(), bench.proven()), (2, 0), "{kind:?} {end:?}");
            exchange(bench, kind, &[(BACK, RST)]);
        }
    });
}

/// An attempt of long ago says nothing of what comes from its port today.
#[test]
fn an_old_attempt_neither_keeps_its_backend_nor_hides_a_connection_past_the_service() {
    with_service(Host::PodA, has_connections, |bench, kind| {
        exchange(bench, kind, &[(INTO, SYN)]);
        bench.pass_time(ticks(120));
        exchange(bench, kind, &[(INTO, SYN)]);
        bench.pass_time(ticks(120) + 1);
        let mut net = Net::new(bench, kind);
        let [client, vip, _] = net.serve(Host::PodB);
        let direct = net.segment(net.target(Host::PodA), client, SYN_ACK).encode();
        net.expect_untouched(BACK, &direct, &[]);
        let other = net.target(Host::PodB);
        net.expect(INTO, &net.first(client, vip), Fate::Next, [client, other]);
    });
}

/// S11, S12: what is not proven follows its backend as what is.
#[test]
fn s12_an_attempt_leaves_a_removed_backend_and_what_goes_on_stays() {
    with_service(Host::PodA, any, |bench, kind| {
        exchange(bench, kind, &[(INTO, SYN), (BACK, SYN_ACK)]);
        let mut net = Net::new(bench, kind);
        let (client, vip) = (net.client(), net.vip(1));
        let b = net.backend(Host::PodB);
        net.frontend(vip, &[b]);
        net.backend_with(Host::PodA, BackendFlags::NONE, 0);
        let (pod_a, pod_b) = (net.target(Host::PodA), net.target(Host::PodB));
        let stays = if net.has_connections() { pod_a } else { pod_b };
        net.expect(INTO, &net.later(client, vip), Fate::Next, [client, stays]);
        let other = net.at(Host::Client, 40001);
        net.expect(INTO, &net.first(other, vip), Fate::Next, [other, pod_b]);
    });
}

#[test]
fn s12_an_attempt_that_is_sent_again_leaves_a_removed_backend() {
    with_service(Host::PodA, any, |bench, kind| {
        exchange(bench, kind, &[(INTO, SYN)]);
        let mut net = Net::new(bench, kind);
        let (client, vip, b) = (net.client(), net.vip(1), net.backend(Host::PodB));
        net.frontend(vip, &[b]);
        net.backend_with(Host::PodA, BackendFlags::NONE, 0);
        let other = net.target(Host::PodB);
        net.expect(INTO, &net.first(client, vip), Fate::Next, [client, other]);
        net.expect(BACK, &net.segment(other, client, SYN_ACK), Fate::Next, [vip, client]);
    });
}

/// `cleanup --drain`: nothing begins, and what is about to be proven goes on.
#[test]
fn without_frontends_what_was_answered_is_still_proven() {
    with_service(Host::PodA, has_connections, |bench, kind| {
        exchange(bench, kind, &[(INTO, SYN), (BACK, SYN_ACK)]);
        bench.take_frontends();
        exchange(bench, kind, &[(INTO, ACK), (BACK, ACK)]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 2), "{kind:?}");
        let mut net = Net::new(bench, kind);
        let other = net.first(net.at(Host::Client, 40001), net.vip(1)).encode();
        net.expect_untouched(INTO, &other, &[]);
    });
}

/// Begins flows from so many ports; those that got a port of the node's, by their own.
fn begin(bench: &mut FakeBench, kind: Kind, ports: std::ops::Range<u16>) -> BTreeMap<u16, u16> {
    let mut net = Net::new(bench, kind);
    let vip = net.vip(1);
    let began = ports.filter_map(|port| {
        let first = net.first(net.at(Host::Client, port), vip);
        let became = net.try_pass(INTO, &first, SENT);
        assert!(matches!(became, Ok(_) | Err(Counter::SnatPortsExhausted)), "{became:?}");
        Some((port, became.ok()?.src.port()))
    });
    began.collect()
}

/// Has the remote backend answer each of these flows, and the client go on with it if `goes_on`.
fn answer(bench: &mut FakeBench, kind: Kind, flows: &BTreeMap<u16, u16>, goes_on: bool) {
    let mut net = Net::new(bench, kind);
    let (vip, remote) = (net.vip(1), net.target(Host::Remote));
    for (port, taken) in flows {
        let (client, node) = (net.at(Host::Client, *port), net.at(Host::Node, *taken));
        net.expect_hop(INTO, &net.segment(remote, node, SYN_ACK), SENT, [vip, client]);
        if goes_on {
            net.expect_hop(INTO, &net.later(client, vip), SENT, [node, remote]);
        }
    }
}

/// A flood takes the ports of those flows alone that nobody has gone on with, and gives them back.
#[test]
fn ports_that_a_flood_took_are_free_again_and_no_others() {
    with_service(Host::Remote, any, |bench, kind| {
        bench.set_snat_range((60000, 64));
        bench.remember_none();
        let proven = begin(bench, kind, 1000..1016);
        answer(bench, kind, &proven, true);
        let answered = begin(bench, kind, 2000..2030);
        answer(bench, kind, &answered, false);
        let all: BTreeSet<_> = begin(bench, kind, 3000..4000).into_values().collect();
        let kept = |flows: &BTreeMap<u16, u16>| flows.values().all(|port| !all.contains(port));
        assert!(kept(&proven) && kept(&answered), "{kind:?}");
        assert_eq!(all.len() + proven.len() + answered.len(), 64, "{kind:?}: all are taken");
        assert_eq!(begin(bench, kind, 4000..4100).len(), 0, "{kind:?}");
        bench.pass_time(GIVEN_UP);
        let all: BTreeSet<_> = begin(bench, kind, 5000..9000).into_values().collect();
        // A datagram and its answer are a whole flow.
        let held = if kind.protocol == L4Proto::UDP { 16 + answered.len() } else { 16 };
        assert_eq!(all.len() + held, 64, "{kind:?}");
        assert!(proven.values().all(|port| !all.contains(port)), "{kind:?}");
        answer(bench, kind, &proven, true);
    });
}

/// One thing that happens: who sends what, or time passes.
#[derive(Clone, Debug)]
enum Event {
    Client { port: u16, service: u8, flags: u8 },
    Backend { flow: prop::sample::Index, flags: u8 },
    Time(u32),
    Remember(u32),
}

fn flags() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![SYN, SYN, SYN_ACK, ACK, ACK, ACK, FIN_ACK, RST])
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (40000..40004_u16, 1..3_u8, flags())
            .prop_map(|(port, service, flags)| Event::Client { port, service, flags }),
        4 => (any_index(), flags()).prop_map(|(flow, flags)| Event::Backend { flow, flags }),
        1 => prop::sample::select(vec![1, 4, 130]).prop_map(Event::Time),
        1 => (0..4_u32).prop_map(Event::Remember),
    ]
}

fn any_index() -> impl Strategy<Value = prop::sample::Index> {
    proptest::arbitrary::any::<prop::sample::Index>()
}

proptest! {
    /// Whatever happens, no flow is in both tables, and no answer reaches another than whom the
    /// backend was last sent a packet of; where hints alone tell of flows, of one client's from one
    /// port through two Services the last one.
    #[test]
    fn no_flow_is_remembered_twice_and_no_answer_goes_astray(
        kind in prop::sample::select(&Kind::ALL[..]),
        host in prop::sample::select(vec![Host::PodA, Host::Remote]),
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut bench = FakeBench::new();
        bench.set_snat_range((60000, 3));
        let mut net = Net::new(&mut bench, kind);
        let id = net.backend(host);
        for service in [1, 2] {
            net.frontend(net.vip(service), &[id]);
        }
        let mut sent: Vec<(SocketAddr, [SocketAddr; 2])> = Vec::new();
        let mut is_hinting = false;
        for event in events {
            let mut net = Net::new(&mut bench, kind);
            match event {
                Event::Client { port, service, flags } => {
                    let ends = [net.at(Host::Client, port), net.vip(service)];
                    let frame = net.segment(ends[0], ends[1], flags);
                    let Some((source, _)) = translated(&mut net, INTO, &frame) else { continue };
                    sent.retain(|(old, _)| *old != source);
                    sent.push((source, ends));
                }
                Event::Backend { flow, flags } => {
                    let Some((source, [client, vip])) = sent.get(flow.index(sent.len().max(1)))
                    else { continue };
                    let hook = if host == Host::Remote { INTO } else { BACK };
                    let frame = net.segment(net.target(host), *source, flags);
                    if let Some(ends) = translated(&mut net, hook, &frame) {
                        prop_assert_eq!(ends.1, *client);
                        prop_assert!(ends.0 == *vip || is_hinting, "{} {}", ends.0, vip);
                    }
                }
                Event::Time(ticks) => bench.pass_time(ticks),
                Event::Remember(count) => {
                    bench.remember_at_most(count);
                    is_hinting |= host == Host::PodA;
                }
            }
            prop_assert_eq!(bench.remembered_twice(), 0);
        }
    }
}

/// The ends of what became of a frame, if it became anything else.
fn translated(net: &mut Net<'_>, hook: Hook, frame: &Frame) -> Option<(SocketAddr, SocketAddr)> {
    let outcome = net.judge(hook, &frame.encode(), Fate::Next);
    let became = Frame::decode(&outcome.bytes).expect("a frame");
    let is_other = (became.src, became.dst) != (frame.src, frame.dst);
    (is_other && outcome.counted.is_empty()).then_some((became.src, became.dst))
}
