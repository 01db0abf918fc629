//! Marks of flows: what no walk finds is looked up no more, and what is used needs no walk.

use lb_common::presence::AGES;

use super::half_open::{ACK, BACK, INTO, SYN_ACK, any, with_service};
use crate::{
    cases::{Fate, Host, Kind, Net},
    fake::FakeBench,
};

/// Opens a flow, and gives clients another backend from there on.
fn open(net: &mut Net<'_>) {
    let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
    net.expect(INTO, &net.first(client, vip), Fate::Next, [client, pod]);
    net.expect(BACK, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
    net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
    let other = net.backend(Host::PodB);
    net.frontend(vip, &[other]);
}

#[test]
fn a_flow_that_walks_pass_by_is_known_for_as_many_as_are_allowed_for() {
    for (walks, host) in [(AGES, Host::PodA), (AGES + 1, Host::PodB)] {
        for kind in Kind::ALL {
            let mut bench = FakeBench::new();
            let mut net = Net::new(&mut bench, kind);
            net.serve(Host::PodA);
            open(&mut net);
            bench.walk_past(walks);
            let mut net = Net::new(&mut bench, kind);
            let (client, vip, target) = (net.client(), net.vip(1), net.target(host));
            net.expect(INTO, &net.later(client, vip), Fate::Next, [client, target]);
        }
    }
}

#[test]
fn a_flow_that_is_used_in_either_direction_needs_no_walk() {
    with_service(Host::PodA, any, |bench, kind| {
        open(&mut Net::new(bench, kind));
        for _ in 0..3 * AGES {
            bench.walk_past(AGES);
            bench.pass_time(1);
            let mut net = Net::new(bench, kind);
            let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
            net.expect(BACK, &net.segment(pod, client, ACK), Fate::Next, [vip, client]);
        }
        let mut net = Net::new(bench, kind);
        let (client, vip, pod) = (net.client(), net.vip(1), net.target(Host::PodA));
        net.expect(INTO, &net.later(client, vip), Fate::Next, [client, pod]);
    });
}
