//! What begins and is not proven.

use lb_common::abi::L4Proto;

use crate::{
    cases::{Device, Fate, Hook, Host, Kind, Net},
    fake::FakeBench,
};

/// More first packets than are remembered: all are answered all the same, by what the cache hints.
#[test]
fn in_a_flood_connections_begin_and_are_remembered_once_both_ends_are_there() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        bench.remember_none();
        let mut net = Net::new(&mut bench, kind);
        let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
        let id = net.backend(Host::PodA);
        net.frontend(vip, &[id]);
        let (hook, back) = (Hook::Ingress(Device::Uplink), Hook::Egress(Device::Uplink));
        net.expect(hook, &net.first(client, vip), Fate::Next, [client, pod]);
        net.expect(hook, &net.first(client, vip), Fate::Next, [client, pod]);
        assert_eq!((bench.remembered(), bench.unremembered()), (0, 2), "{kind:?}");
        let mut net = Net::new(&mut bench, kind);
        net.expect_untouched(Hook::Ingress(Device::PodA), &net.later(pod, client).encode(), &[]);
        net.expect(back, &net.segment(pod, client, 0x12), Fate::Next, [vip, client]);
        assert_eq!(bench.remembered(), 0, "{kind:?}: an answer proves nothing");
        let mut net = Net::new(&mut bench, kind);
        net.expect(hook, &net.later(client, vip), Fate::Next, [client, pod]);
        assert_eq!(bench.remembered(), 2, "{kind:?}");
        let mut net = Net::new(&mut bench, kind);
        // And stays, though clients are given another backend now.
        let other = net.backend(Host::PodB);
        net.frontend(vip, &[other]);
        net.expect(hook, &net.later(client, vip), Fate::Next, [client, pod]);
        net.expect(back, &net.later(pod, client), Fate::Next, [vip, client]);
    }
}

/// A reset, as an answer to a packet of no connection, proves nothing; and a segment whose connection is
/// forgotten finds its backend all the same, and is remembered when that goes on with it.
#[test]
fn in_a_flood_a_segment_of_no_connection_is_remembered_only_if_its_backend_goes_on() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.protocol == L4Proto::TCP) {
        for (answer, remembered) in [(0x14, 0), (0x10, 2)] {
            let mut bench = FakeBench::new();
            bench.remember_none();
            let mut net = Net::new(&mut bench, kind);
            let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
            let id = net.backend(Host::PodA);
            net.frontend(vip, &[id]);
            let (hook, back) = (Hook::Ingress(Device::Uplink), Hook::Egress(Device::Uplink));
            net.expect(hook, &net.later(client, vip), Fate::Next, [client, pod]);
            net.expect(back, &net.segment(pod, client, answer), Fate::Next, [vip, client]);
            net.expect(hook, &net.later(client, vip), Fate::Next, [client, pod]);
            assert_eq!(bench.remembered(), remembered, "{kind:?} {answer:#x}");
        }
    }
}

/// Its port is state, so one entry holds it; the other follows when the flow is proven.
#[test]
fn in_a_flood_snat_keeps_its_port() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        bench.remember_none();
        let mut net = Net::new(&mut bench, kind);
        let (client, vip, remote) = (net.client(), net.vip(1), net.target(Host::Remote));
        let id = net.backend(Host::Remote);
        net.frontend(vip, &[id]);
        let (hook, fate) = (Hook::Ingress(Device::Uplink), Fate::Sent(Device::Uplink));
        let became = net.pass(hook, &net.first(client, vip), fate);
        assert_eq!(bench.remembered(), 1, "{kind:?}");
        let mut net = Net::new(&mut bench, kind);
        let again = net.pass(hook, &net.first(client, vip), fate);
        net.expect_hop(hook, &net.segment(remote, became.src, 0x12), fate, [vip, client]);
        let later = net.pass(hook, &net.later(client, vip), fate);
        assert_eq!((again.src, later.src), (became.src, became.src), "{kind:?}");
        assert_eq!(bench.remembered(), 2, "{kind:?}");
    }
}

/// What begins is kept apart, and what is proven is not.
#[test]
fn a_flow_is_kept_apart_until_its_client_goes_on_after_an_answer() {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
        let id = net.backend(Host::PodA);
        net.frontend(vip, &[id]);
        let (hook, back) = (Hook::Ingress(Device::Uplink), Hook::Egress(Device::Uplink));
        net.expect(hook, &net.first(client, vip), Fate::Next, [client, pod]);
        net.expect(hook, &net.later(client, vip), Fate::Next, [client, pod]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 0), "{kind:?}");
        let mut net = Net::new(&mut bench, kind);
        net.expect(back, &net.segment(pod, client, 0x12), Fate::Next, [vip, client]);
        assert_eq!(bench.proven(), 0, "{kind:?}");
        let mut net = Net::new(&mut bench, kind);
        net.expect(hook, &net.later(client, vip), Fate::Next, [client, pod]);
        assert_eq!((bench.remembered(), bench.proven()), (2, 2), "{kind:?}");
    }
}
