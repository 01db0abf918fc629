//! What only time, other CPUs and the way in again show of packets in fragments.

use lb_common::abi::{Counter, L4Proto};

use crate::{
    cases::{
        Bench as _, Device, Fate, Hook, Kind, Net,
        frame::{Frame, fragments},
    },
    fake::{FakeBench, Meanwhile},
};

const UPLINK: Hook = Hook::Ingress(Device::Uplink);

/// A packet to a Service as four fragments.
fn on_each_kind(mut test: impl FnMut(&mut FakeBench, &[Vec<u8>])) {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.protocol != L4Proto::SCTP) {
        eprintln!("{kind:?}");
        let mut bench = FakeBench::new();
        let mut net = Net::new(&mut bench, kind);
        let [client, vip, _] = net.serve(crate::cases::Host::PodA);
        let payload = (0..2000).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
        let large = Frame { payload, ..net.later(client, vip) };
        test(&mut bench, &fragments(&large, 1, 600));
    }
}

#[track_caller]
fn counted(bench: &mut FakeBench, piece: &[u8]) -> Vec<Counter> {
    bench.judge(UPLINK, piece, Fate::Next).counted
}

/// Identifications come round again: an old entry tells nothing of a new packet.
#[test]
fn what_became_of_a_first_fragment_is_forgotten_in_time() {
    on_each_kind(|bench, pieces| {
        assert_eq!(counted(bench, &pieces[0]), []);
        bench.pass_time(28);
        assert_eq!(counted(bench, &pieces[1]), []);
        bench.pass_time(1);
        assert_eq!(counted(bench, &pieces[1]), [Counter::FragmentHeld]);
    });
}

/// Also those that wait, sooner: they would spoil the next packet.
#[test]
fn fragments_wait_for_a_second_or_two() {
    on_each_kind(|bench, pieces| {
        assert_eq!(counted(bench, &pieces[1]), [Counter::FragmentHeld]);
        bench.pass_time(1);
        assert_eq!(counted(bench, &pieces[2]), [Counter::FragmentHeld]);
        bench.pass_time(1);
        assert_eq!(counted(bench, &pieces[0]), [Counter::FragmentReleased]);
        assert_eq!(bench.sent_in(), [&pieces[0], &pieces[2]].map(Vec::clone));
        assert_eq!(bench.waiting(), 0);
        // Its slot is free for another.
        bench.pass_time(29);
        assert_eq!(counted(bench, &pieces[1]), [Counter::FragmentHeld]);
        bench.pass_time(2);
        assert_eq!(counted(bench, &pieces[1]), [Counter::FragmentHeld]);
        assert_eq!(bench.waiting(), 1);
    });
}

/// As they came, the first one ahead of all; and that one does not go round for ever.
#[test]
fn what_waited_is_sent_in_again_behind_the_first_one() {
    on_each_kind(|bench, pieces| {
        for piece in [3, 1, 2] {
            assert_eq!(counted(bench, &pieces[piece]), [Counter::FragmentHeld]);
        }
        assert_eq!(counted(bench, &pieces[0]), [Counter::FragmentReleased; 3]);
        let sent = bench.sent_in();
        assert_eq!(sent, [0, 3, 1, 2].map(|piece: usize| pieces[piece].clone()));
        for piece in sent {
            assert_eq!(bench.judge(UPLINK, &piece, Fate::Next).fate, Fate::Next);
        }
        assert_eq!((bench.sent_in().len(), bench.waiting()), (0, 0));
    });
}

/// A first fragment that another CPU handles at the same moment has noted itself and seen nobody wait: then
/// whoever began to wait sees the note.
#[test]
fn no_fragment_waits_for_one_that_has_gone_by() {
    on_each_kind(|bench, pieces| {
        bench.meanwhile(Meanwhile::Noted);
        let outcome = bench.judge(UPLINK, &pieces[1], Fate::Next);
        assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Next, &[][..]));
        assert_eq!(bench.waiting(), 0);
    });
    // Or the other has seen it: it is sent in there, and nowhere else.
    on_each_kind(|bench, pieces| {
        bench.meanwhile(Meanwhile::Woken);
        let outcome = bench.judge(UPLINK, &pieces[1], Fate::Next);
        assert_eq!(
            (outcome.fate, &outcome.counted[..]),
            (Fate::Dropped, &[Counter::FragmentHeld][..])
        );
        assert_eq!(bench.waiting(), 0);
    });
}
