//! Every case of a packet and its fate, judged by the programs in this machine's kernel.

use std::net::SocketAddr;

use lb_common::{
    abi::{Counter, L4Proto},
    carrier,
};
use lb_ebpf::cases::{self, Device, Fate, Hook, Host, Kind, Net, frame::Frame};
use lb_test::prog::{KernelBench, shared::with_bench};
use lb_test::{PATIENT, eventually, require_topology};

macro_rules! in_a_kernel {
    ($($module:ident::$name:ident,)+) => {
        $(#[test]
        fn $name() {
            require_topology!();
            run(cases::$module::$name);
        })+
    };
}
lb_ebpf::each_case!(in_a_kernel);

/// By TC alone, and with XDP ahead of it.
fn run(case: fn(&mut Net<'_>)) {
    on_a_bench(|bench| {
        cases::run(case, bench);
        eprintln!("with XDP");
        bench.clear().unwrap_or_else(|error| panic!("{error:#}"));
        put_xdp_ahead(bench);
        cases::run(case, bench);
    });
}

#[test]
fn each_case_of_direct_server_return_by_ipip() {
    require_topology!();
    let bench = KernelBench::start_with(carrier::Kind::Ipip);
    let mut bench = bench.unwrap_or_else(|error| panic!("{error:#}"));
    let run = |bench: &mut KernelBench| {
        for case in cases::dsr::ALL {
            cases::run(case, bench);
            bench.clear().unwrap_or_else(|error| panic!("{error:#}"));
        }
    };
    run(&mut bench);
    eprintln!("with XDP");
    put_xdp_ahead(&mut bench);
    run(&mut bench);
    assert!(bench.finished_by_xdp() >= 7 * 6);
}

fn on_a_bench(work: impl FnOnce(&mut KernelBench)) {
    with_bench(work).unwrap_or_else(|error| panic!("{error:#}"));
}

fn put_xdp_ahead(bench: &mut KernelBench) {
    bench.put_xdp_ahead().unwrap_or_else(|error| panic!("{error:#}"));
}

/// A packet that is longer than the way's MTU is for TC, which tells its sender.
#[test]
fn xdp_sends_nothing_that_does_not_fit() {
    require_topology!();
    let case = |net: &mut Net<'_>| {
        let id = net.backend(Host::Remote);
        let (client, vip) = (net.client(), net.vip(1));
        net.frontend(vip, &[id]);
        let frame = Frame { payload: vec![0; 1500], ..net.first(client, vip) };
        let _ = net.expect_answer(Hook::Ingress(Device::Uplink), &frame, Counter::PacketTooBig);
    };
    on_a_bench(|bench| {
        put_xdp_ahead(bench);
        cases::run(case, bench);
    });
}

/// Else the cases would prove nothing of it.
#[test]
fn xdp_finishes_what_it_can() {
    require_topology!();
    on_a_bench(finishes_what_it_can);
}

fn finishes_what_it_can(bench: &mut KernelBench) {
    put_xdp_ahead(bench);
    let mut finished = |case: fn(&mut Net<'_>)| {
        let before = bench.finished_by_xdp();
        cases::run(case, bench);
        bench.clear().unwrap_or_else(|error| panic!("{error:#}"));
        bench.finished_by_xdp() - before
    };
    // Request, reply and second request of each kind.
    assert_eq!(finished(cases::snat::a_remote_backend_answers_through_this_node), 3 * 6);
    assert_eq!(finished(cases::dsr::a_client_is_carried_to_a_remote_backend), 7 * 6);
    assert!(finished(cases::refusals::without_endpoints_a_client_is_refused) >= 6);
    assert!(finished(cases::sources::s9_only_allowed_sources_are_let_in) >= 6);
    assert_eq!(
        finished(cases::flows::a_local_backend_sees_the_client_and_answers_as_its_service),
        0
    );
}

/// Packets of a known flow ask no table of flows, until their tick ends.
#[test]
fn known_flows_to_the_port_of_carriers_are_cached_like_others() {
    require_topology!();
    on_a_bench(known_flows_are_cached);
}

fn known_flows_are_cached(bench: &mut KernelBench) {
    const IN: Hook = Hook::Ingress(Device::Uplink);
    let kinds = Kind::ALL.into_iter().filter(|kind| kind.protocol == L4Proto::UDP);
    for (kind, port) in kinds.flat_map(|kind| [(kind, 80), (kind, carrier::PORT)]) {
        let mut net = Net::new(bench, kind);
        let id = net.backend(Host::PodA);
        let (client, pod) = (net.client(), net.target(Host::PodA));
        let vip = SocketAddr::new(net.vip(1).ip(), port);
        net.frontend(vip, &[id]);
        eventually(PATIENT, "packets without an entry", || {
            let mut net = Net::new(bench, kind);
            net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
            let answer = net.later(pod, client);
            net.expect(Hook::Egress(Device::Uplink), &answer, Fate::Next, [vip, client]);
            net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
            bench.forget_flows()?;
            let mut net = Net::new(bench, kind);
            net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
            let made = bench.forget_flows()?;
            anyhow::ensure!(made == 0, "{kind:?}, port {port}: {made} entries were made");
            Ok(())
        });
    }
}
