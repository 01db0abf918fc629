//! Flows that no packet comes by for long: walks see to it that they are not taken for new ones.

use lb_common::presence::AGES;

use super::{Device, Fate, Hook, Host, Net, net::SYN_ACK};

const IN: Hook = Hook::Ingress(Device::Uplink);
const OUT: Hook = Hook::Egress(Device::Uplink);
const SENT: Fate = Fate::Sent(Device::Uplink);
/// More than a mark outlives.
const WALKS: u32 = AGES + 2;

/// Those that are proven, though clients are given another backend by now.
pub fn a_silent_flow_outlives_any_number_of_walks(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.expect(OUT, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
    let other = net.backend(Host::PodB);
    net.frontend(vip, &[other]);
    net.walk(WALKS);
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
    net.walk(WALKS);
    net.expect(OUT, &net.later(pod, client), Fate::Next, [vip, client]);
}

/// Those that are not: the answer comes late.
pub fn a_late_answer_outlives_any_number_of_walks(net: &mut Net<'_>) {
    let [client, vip, pod] = net.serve(Host::PodA);
    net.expect(IN, &net.first(client, vip), Fate::Next, [client, pod]);
    net.walk(WALKS);
    net.expect(OUT, &net.segment(pod, client, SYN_ACK), Fate::Next, [vip, client]);
    net.walk(WALKS);
    net.expect(IN, &net.later(client, vip), Fate::Next, [client, pod]);
}

/// A port that SNAT uses is state as well.
pub fn a_silent_flow_keeps_its_port_under_snat(net: &mut Net<'_>) {
    let [client, vip, remote] = net.serve(Host::Remote);
    let became = net.pass(IN, &net.first(client, vip), SENT);
    net.walk(WALKS);
    let answer = net.segment(remote, became.src, SYN_ACK);
    let back = net.pass(IN, &answer, SENT);
    assert_eq!([back.src, back.dst], [vip, client]);
    net.pass(IN, &net.later(client, vip), SENT);
    net.walk(WALKS);
    let later = net.pass(IN, &net.later(client, vip), SENT);
    assert_eq!([later.src, later.dst], [became.src, remote]);
}
