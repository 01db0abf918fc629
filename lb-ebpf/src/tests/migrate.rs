//! `--migrate`: what began before us goes on by the stack, which still translates it.

use lb_common::abi::Counter;

use crate::{
    cases::{Device, Fate, Hook, Host, Kind, Net},
    fake::FakeBench,
};

const SYN_ACK: u8 = 0x12;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

/// Who asks, by which hook, and what becomes of a first packet.
fn askers(net: &Net<'_>) -> [(std::net::SocketAddr, Hook, Fate); 3] {
    let host = Hook::HostEgress(Device::Uplink);
    [
        (net.client(), Hook::Ingress(Device::Uplink), Fate::Next),
        (net.at(Host::PodB, 40000), Hook::Ingress(Device::PodB), Fate::Next),
        (net.at(Host::Node, 40000), host, Fate::Sent(Device::PodA)),
    ]
}

fn on_each_kind(mut test: impl FnMut(&mut FakeBench, Kind)) {
    for kind in Kind::ALL {
        let mut bench = FakeBench::new();
        bench.migrate();
        test(&mut bench, kind);
    }
}

#[test]
fn connections_that_began_before_us_are_left_to_the_stack() {
    on_each_kind(|bench, kind| {
        let mut net = Net::new(bench, kind);
        let (vip, id) = (net.vip(1), net.backend(Host::PodA));
        net.frontend(vip, &[id]);
        if !net.has_connections() {
            return;
        }
        for (asker, hook, _) in askers(&net) {
            for flags in [0x10, SYN_ACK, FIN_ACK, RST] {
                let frame = net.segment(asker, vip, flags).encode();
                net.expect_untouched(hook, &frame, &[Counter::Migrating]);
            }
        }
        // They outlive the last endpoint, too (S12).
        net.frontend(vip, &[]);
        let frame = net.later(net.client(), vip).encode();
        net.expect_untouched(Hook::Ingress(Device::Uplink), &frame, &[Counter::Migrating]);
    });
}

#[test]
fn s11_what_begins_while_migrating_is_ours_and_so_is_every_datagram() {
    on_each_kind(|bench, kind| {
        let mut net = Net::new(bench, kind);
        let (vip, id) = (net.vip(1), net.backend(Host::PodA));
        let pod = net.target(Host::PodA);
        net.frontend(vip, &[id]);
        for (asker, hook, fate) in askers(&net) {
            net.expect(hook, &net.first(asker, vip), fate, [asker, pod]);
            net.expect(hook, &net.later(asker, vip), fate, [asker, pod]);
        }
    });
}
