//! What begins and is not proven.

use lb_common::abi::L4Proto;

use super::half_open::{ACK, BACK, INTO, RST, SENT, SYN_ACK, any, with_service};
use crate::cases::{Device, Fate, Hook, Host, Net};

/// More first packets than are remembered: all are answered all the same, by what the cache hints.
#[test]
fn in_a_flood_connections_begin_and_are_remembered_once_both_ends_are_there() {
    with_service(Host::PodA, any, |bench, kind| {
        bench.remember_none();
        let mut net = Net::new(bench, kind);
        let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
        net.expect(INTO, &net.first(client, vip), Fate::Next, [client, pod]);
        net.expect(INTO, &net.first(client, vip), Fate::Next, [client, pod]);
        assert_eq!((bench.remembered(), bench.unremembered()), (0, 2), "{kind:?}");
        let mut net = Net::new(bench, kind);
        net.expect_untouched(Hook::Ingress(Device::PodA), &net.later(pod, client).encode(), &[]);
        net.expect(BACK, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
        assert_eq!(bench.remembered(), 0, "{kind:?}: an answer proves nothing");
        let mut net = Net::new(bench, kind);
        net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
        assert_eq!(bench.remembered(), 2, "{kind:?}");
        let mut net = Net::new(bench, kind);
        // And stays, though clients are given another backend now.
        let other = net.backend(Host::PodB);
        net.frontend(vip, &[other]);
        net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
        net.expect(BACK, &net.later(pod, client), Fate::Next, [vip, client]);
    });
}

/// A reset, as an answer to a packet of no connection, proves nothing; and a segment whose connection is
/// forgotten finds its backend all the same, and is remembered when that goes on with it.
#[test]
fn in_a_flood_a_segment_of_no_connection_is_remembered_only_if_its_backend_goes_on() {
    for (answer, remembered) in [(RST, 0), (ACK, 2)] {
        with_service(
            Host::PodA,
            |kind| kind.protocol == L4Proto::TCP,
            |bench, kind| {
                bench.remember_none();
                let mut net = Net::new(bench, kind);
                let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
                net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
                net.expect(BACK, &net.segment(pod, client, answer), Fate::Next, [vip, client]);
                net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
                assert_eq!(bench.remembered(), remembered, "{kind:?} {answer:#x}");
            },
        );
    }
}

/// Its port is state, so one entry holds it; the other follows when the flow is proven.
#[test]
fn in_a_flood_snat_keeps_its_port() {
    with_service(Host::Remote, any, |bench, kind| {
        bench.remember_none();
        let mut net = Net::new(bench, kind);
        let (client, vip, remote) = (net.client(), net.vip(1), net.target(Host::Remote));
        let became = net.pass(INTO, &net.first(client, vip), SENT);
        assert_eq!(bench.remembered(), 1, "{kind:?}");
        let mut net = Net::new(bench, kind);
        let again = net.pass(INTO, &net.first(client, vip), SENT);
        net.expect_hop(INTO, &net.segment(remote, became.src, SYN_ACK), SENT, [vip, client]);
        let later = net.pass(INTO, &net.later(client, vip), SENT);
        assert_eq!((again.src, later.src), (became.src, became.src), "{kind:?}");
        assert_eq!(bench.remembered(), 2, "{kind:?}");
    });
}

/// What begins is kept apart, and what is proven is not.
#[test]
fn a_flow_is_kept_apart_until_its_client_goes_on_after_an_answer() {
    with_service(Host::PodA, any, |bench, kind| {
        let mut net = Net::new(bench, kind);
        let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
        net.expect(INTO, &net.first(client, vip), Fate::Next, [client, pod]);
        net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 0), "{kind:?}");
        let mut net = Net::new(bench, kind);
        net.expect(BACK, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
        assert_eq!(bench.proven(), 0, "{kind:?}");
        let mut net = Net::new(bench, kind);
        net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 2), "{kind:?}");
    });
}
