//! The walk over all flows, on the kernel's tables: which entries it removes, and what it costs.

use std::{collections::BTreeMap, collections::BTreeSet, path::Path, time::Instant};

use aya::maps::{HashMap, Map, MapData};
use lb_agent::{
    dataplane::{Kernel, KernelOptions, StaleFinder, Tables as _, TcAttach, cleanup},
    model::Family,
};
use lb_common::{
    abi::{Abi as _, Address, BePort, CtAction, CtEntry, CtKey, Ipv4, Ipv6, L4Proto, Swept, maps},
    conntrack::{CtState, End, TcpFlags, ticks},
};
use lb_test::{NodeSpec, Topology, clock, require_topology};

use super::{options, steps};

/// A table of flows, by bytes of key and value.
pub(super) type Flows<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;

pub(super) fn open<const K: usize, const V: usize>(map: &Path) -> Flows<K, V> {
    HashMap::try_from(Map::LruHashMap(MapData::from_pin(map).unwrap())).unwrap()
}

pub(super) fn put<A: Address, const K: usize, const V: usize>(
    map: &mut Flows<K, V>,
    key: &CtKey<A>,
    entry: &CtEntry<A>,
) {
    let key: [u8; K] = key.as_bytes().try_into().unwrap();
    let value: [u8; V] = entry.as_bytes().try_into().unwrap();
    map.insert(key, value, 0).unwrap();
}

fn entries<A: Address, const K: usize, const V: usize>(
    map: &Flows<K, V>,
) -> impl Iterator<Item = (CtKey<A>, CtEntry<A>)> {
    map.iter().map(|entry| {
        let (key, value) = entry.unwrap();
        (CtKey::from_bytes(&key).unwrap(), CtEntry::from_bytes(&value).unwrap())
    })
}

/// Entries there were, stale ones and silent ones among them.
fn counts(swept: &Swept) -> (u64, u64, u64) {
    (swept.entries, swept.stale, swept.expired)
}

/// Runs on a node with programs, tables of 2^17 flows, and backend 5 in generation 3.
fn with_finder(run: impl FnOnce(&StaleFinder, &Path)) {
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let options = KernelOptions { conntrack_max: 131_072, ..options(node, TcAttach::Auto) };
    let mut kernel = node.enter(|| Kernel::start(&options).unwrap()).unwrap();
    kernel.tables().unwrap().perform(&steps()).unwrap();
    let finder = kernel.take_stale().unwrap().unwrap();
    run(&finder, &options.bpffs.join("maps"));
    node.enter(|| cleanup(&options.bpffs).unwrap()).unwrap();
}

/// Writes so many flows for each of some backends, by id and generation.
fn fill<A: Address, const K: usize, const V: usize>(
    map: &Path,
    count: u16,
    backends: &[(L4Proto, u32, u32)],
) -> Flows<K, V> {
    let mut map = open(map);
    let last_seen = clock::ticks();
    for ((protocol, backend, generation), number) in
        backends.iter().flat_map(|backend| (0..count).map(move |number| (*backend, number)))
    {
        let mut key = CtKey::<A> { protocol, ..CtKey::zeroed() };
        key.src_port = BePort::new(number);
        key.dst_port = BePort::new(u16::try_from(backend << 8 | generation).unwrap());
        let entry = CtEntry { backend, generation, last_seen, ..CtEntry::zeroed() };
        put(&mut map, &key, &entry);
    }
    map
}

/// What is left in a table, by protocol, backend id and generation.
fn left<A: Address, const K: usize, const V: usize>(map: &Flows<K, V>) -> BTreeSet<(u8, u32, u32)> {
    let found = entries::<A, K, V>(map);
    found.map(|(key, entry)| (key.protocol.0, entry.backend, entry.generation)).collect()
}

/// S11, S12: only datagrams, and only those of another use of an id or of none.
#[test]
fn s11_flows_of_a_full_table_are_forgotten_by_id_and_generation() {
    require_topology!();
    with_finder(|finder, pins| {
        let (udp, tcp) = (L4Proto::UDP, L4Proto::TCP);
        let backends = [(udp, 5, 3), (udp, 5, 2), (udp, 6, 1), (tcp, 6, 1)];
        let kept = BTreeSet::from([(udp.0, 5, 3), (tcp.0, 6, 1)]);
        let v4 = fill::<Ipv4, 16, 36>(&pins.join(maps::CONNTRACK_V4), 30_000, &backends);
        let v6 = fill::<Ipv6, 40, 60>(&pins.join(maps::CONNTRACK_V6), 30_000, &backends);
        for (entries, stale) in [(120_000, 60_000), (60_000, 0)] {
            for family in [Family::V4, Family::V6] {
                let begun = Instant::now();
                let swept = finder.sweep(family).unwrap();
                println!("{family:?}: {swept:?} in {:?}", begun.elapsed());
                assert_eq!(counts(&swept), (entries, stale, 0));
            }
        }
        assert_eq!((left::<Ipv4, 16, 36>(&v4), left::<Ipv6, 40, 60>(&v6)), (kept.clone(), kept));
    });
}

/// A flow by the state of its two entries and by the seconds that they were silent; and is it kept?
type Case = (L4Proto, [CtState; 2], [u32; 2], bool);

fn cases() -> Vec<Case> {
    let (sctp, tcp, udp) = (L4Proto::SCTP, L4Proto::TCP, L4Proto::UDP);
    let (new, asks, answers) = (CtState::NEW, CtState::ESTABLISHED, CtState::ANSWERED);
    let both = asks.with(answers);
    let half = both.next(TcpFlags(0x11), End::Client);
    let closed = half.next(TcpFlags(0x11), End::Backend);
    vec![
        (tcp, [new; 2], [110; 2], true),
        (tcp, [new; 2], [130; 2], false),
        (tcp, [new, answers], [130; 2], false),
        (tcp, [both; 2], [86_000; 2], true),
        (tcp, [both; 2], [86_500; 2], false),
        (tcp, [both; 2], [100_000, 1], true),
        (tcp, [both; 2], [1, 100_000], true),
        // The answer came at once, and the other entry was not told.
        (tcp, [asks, answers], [3_000; 2], true),
        (tcp, [half; 2], [3_500; 2], true),
        (tcp, [half; 2], [3_700; 2], false),
        (tcp, [closed; 2], [110; 2], true),
        (tcp, [closed; 2], [130; 2], false),
        (sctp, [both; 2], [86_000; 2], true),
        (sctp, [closed; 2], [130; 2], false),
        (udp, [new; 2], [20; 2], true),
        (udp, [new; 2], [40; 2], false),
        (udp, [asks, answers], [110; 2], true),
        (udp, [both; 2], [130; 2], false),
        (udp, [both; 2], [130, 1], true),
    ]
}

/// Writes both entries of each flow; the number of a flow is its client's port.
fn write<A: Address, const K: usize, const V: usize>(map: &Path) -> Flows<K, V> {
    let mut map = open(map);
    let now = clock::ticks();
    for (number, (protocol, states, silent, _)) in (1..).zip(cases()) {
        let port = BePort::new(number);
        let (frontend, backend) = (BePort::new(80), BePort::new(8080));
        let key = CtKey { protocol, src_port: port, dst_port: frontend, ..CtKey::zeroed() };
        let entry = CtEntry { backend: 5, generation: 3, ..CtEntry::<A>::zeroed() };
        let seen = |index: usize| (states[index].0, now.wrapping_sub(ticks(silent[index])));
        let (state, last_seen) = seen(0);
        let forward = CtEntry { src_port: port, dst_port: backend, state, last_seen, ..entry };
        let (state, last_seen) = seen(1);
        let reply = CtEntry { src_port: frontend, dst_port: port, state, last_seen, ..entry };
        put(&mut map, &key, &forward);
        put(&mut map, &forward.peer(protocol), &reply);
    }
    map
}

/// Removes what is over, twice; then again where one entry of each flow is gone.
fn expire<A: Address, const K: usize, const V: usize>(
    finder: &StaleFinder,
    family: Family,
    map: &Path,
) {
    let mut map = write::<A, K, V>(map);
    let cases = cases();
    let kept = cases.iter().filter(|(.., kept)| *kept).count() as u64;
    let all = cases.len() as u64;
    let swept = finder.sweep(family).unwrap();
    assert_eq!(counts(&swept), (2 * all, 0, 2 * (all - kept)));
    let mut left = BTreeMap::<_, u32>::new();
    for (key, _) in entries::<A, K, V>(&map) {
        *left.entry(key.src_port.get().min(key.dst_port.get())).or_default() += 1;
    }
    for (number, (.., kept)) in (1..).zip(&cases) {
        assert_eq!(
            left.get(&number).copied().unwrap_or_default(),
            2 * u32::from(*kept),
            "{number}"
        );
    }
    assert_eq!(finder.sweep(family).unwrap().expired, 0);
    // The other entry is thrown out, or has become that of another flow: its silence alone counts.
    let forward =
        CtEntry { last_seen: clock::ticks().wrapping_sub(ticks(130)), ..CtEntry::<A>::zeroed() };
    let key = CtKey { protocol: L4Proto::TCP, src_port: BePort::new(7), ..CtKey::zeroed() };
    let of_another = CtEntry { src_port: BePort::new(1), last_seen: clock::ticks(), ..forward };
    put(&mut map, &key, &forward);
    put(&mut map, &forward.peer(L4Proto::TCP), &of_another);
    assert_eq!(finder.sweep(family).unwrap().expired, 1);
}

/// Of a connection that is carried nobody here sees the backend's end.
fn expire_carried<A: Address, const K: usize, const V: usize>(
    finder: &StaleFinder,
    family: Family,
    map: &Path,
) {
    let mut map = open::<K, V>(map);
    let open = CtState::ESTABLISHED.with(CtState::ANSWERED);
    let ended = open.next(TcpFlags(0x11), End::Client);
    let cases = [(open, 3_700, 0), (ended, 110, 0), (ended, 130, 1)];
    for (number, (CtState(state), silent, expired)) in (1000..).zip(cases) {
        let key =
            CtKey { protocol: L4Proto::TCP, src_port: BePort::new(number), ..CtKey::zeroed() };
        let last_seen = clock::ticks().wrapping_sub(ticks(silent));
        let action = CtAction::FORWARD_DSR;
        let entry = CtEntry { action, state, last_seen, ..CtEntry::<A>::zeroed() };
        put(&mut map, &key, &entry);
        assert_eq!(finder.sweep(family).unwrap().expired, expired, "{number}");
    }
}

#[test]
fn carried_connections_go_once_their_client_has_ended_them() {
    require_topology!();
    with_finder(|finder, pins| {
        expire_carried::<Ipv4, 16, 36>(finder, Family::V4, &pins.join(maps::CONNTRACK_V4));
        expire_carried::<Ipv6, 40, 60>(finder, Family::V6, &pins.join(maps::CONNTRACK_V6));
    });
}

#[test]
fn s16_silent_flows_go_with_both_entries_and_all_others_stay() {
    require_topology!();
    with_finder(|finder, pins| {
        expire::<Ipv4, 16, 36>(finder, Family::V4, &pins.join(maps::CONNTRACK_V4));
        expire::<Ipv6, 40, 60>(finder, Family::V6, &pins.join(maps::CONNTRACK_V6));
        assert_eq!(finder.added(Family::V4).unwrap(), -17, "counted where it is removed");
    });
}
