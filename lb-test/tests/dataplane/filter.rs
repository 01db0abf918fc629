//! The filter, made anew on the kernel's tables: which bits stay, and which go.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;

use lb_agent::dataplane::{BackendId, FrontendAddress, Kernel, StaleFinder, Step, Tables as _};
use lb_agent::dataplane::{TcAttach, cleanup};
use lb_agent::model::{Family, Protocol};
use lb_common::abi::{
    Abi as _, Address, BePort, Control, CtAction, CtEntry, CtKey, Ipv4, Ipv6, L4Proto, maps,
};
use lb_common::filter;
use lb_test::{NodeSpec, Topology, clock, require_topology};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::sweep::{open, put};
use super::{options, steps};

/// Frontend and backend of a family, as `steps` has them.
struct Ends<A> {
    family: Family,
    frontend: (A, &'static str),
    backend: A,
}

/// What the filter that counts says of a family's frontend and backend.
fn bits<A: Address>(pins: &Path, ends: &Ends<A>) -> (bool, bool) {
    let control = control(pins);
    let counts = usize::from(u32::from_ne_bytes(control[4..8].try_into().unwrap()) & 1 == 1);
    let filters = std::mem::offset_of!(Control, filters);
    let has = |bit| {
        let (word, bit) = filter::place(bit);
        let at = filters + (counts * filter::WORDS + word) * 8;
        u64::from_ne_bytes(control[at..at + 8].try_into().unwrap()) & bit != 0
    };
    let frontend = filter::frontend(&ends.frontend.0, BePort::new(80), L4Proto::TCP);
    (has(frontend), has(filter::backend(&ends.backend, BePort::new(8080), L4Proto::TCP)))
}

/// The bytes of the one element of `CONTROL`, half a megabyte.
fn control(pins: &Path) -> Vec<u8> {
    with_control(pins, |bytes| bytes.to_vec())
}

fn with_control<T>(pins: &Path, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let map = aya::maps::MapData::from_pin(pins.join(maps::CONTROL)).unwrap();
    let length = NonZeroUsize::new(size_of::<Control>()).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping of as many bytes, used while it is there.
    unsafe {
        let place = mmap(None, length, protection, MapFlags::MAP_SHARED, map.fd(), 0).unwrap();
        let made = work(std::slice::from_raw_parts_mut(place.as_ptr().cast::<u8>(), length.get()));
        munmap(place, length.get()).unwrap();
        made
    }
}

/// Makes the filter anew as the agent does.
fn make(finder: &StaleFinder) {
    finder.begin_filter().unwrap();
    for family in [Family::V4, Family::V6, Family::V4, Family::V6] {
        finder.sweep(family).unwrap();
    }
    finder.end_filter();
}

fn remove<A>(kernel: &Kernel, ends: &Ends<A>) {
    let address: SocketAddr = ends.frontend.1.parse().unwrap();
    let (ip, port) = (address.ip(), address.port());
    let frontend = FrontendAddress { ip, port, protocol: Protocol::Tcp };
    let backend = BackendId { family: ends.family, index: 5 };
    let steps = [Step::RemoveFrontend(frontend), Step::Settle, Step::RemoveBackend(backend)];
    kernel.tables().unwrap().perform(&steps).unwrap();
}

/// A Service's bits stay while it is there, then while one entry of a connection lives, and then go.
fn story<A: Address, const K: usize, const V: usize>(
    (kernel, finder): (&Kernel, &StaleFinder),
    pins: &Path,
    (ends, conntrack): (&Ends<A>, &str),
    action: CtAction,
) {
    kernel.tables().unwrap().perform(&steps()).unwrap();
    make(finder);
    assert_eq!(bits(pins, ends), (true, true), "the Service is there");
    let (frontend, backend) = (BePort::new(80), BePort::new(8080));
    let flow = CtKey { protocol: L4Proto::TCP, ..CtKey::<A>::zeroed() };
    let entry = CtEntry { action, last_seen: clock::ticks(), ..CtEntry::zeroed() };
    let (flow, entry) = if action.is_forward() {
        (
            CtKey { dst: ends.frontend.0, dst_port: frontend, ..flow },
            CtEntry { dst: ends.backend, dst_port: backend, ..entry },
        )
    } else {
        (
            CtKey { src: ends.backend, src_port: backend, ..flow },
            CtEntry { src: ends.frontend.0, src_port: frontend, ..entry },
        )
    };
    let mut flows = open::<K, V>(&pins.join(conntrack));
    put(&mut flows, &flow, &entry);
    remove(kernel, ends);
    for _ in 0..3 {
        assert!(finder.is_filter_due(), "a bit is left that may be of no use");
        make(finder);
        assert_eq!(bits(pins, ends), (true, true), "a connection lives");
    }
    flows.remove(&flow.as_bytes().try_into().unwrap()).unwrap();
    make(finder);
    assert_eq!(bits(pins, ends), (false, false), "nothing needs them");
    make(finder);
    assert!(!finder.is_filter_due(), "another one would be the same");
}

#[test]
fn bits_of_a_removed_service_go_when_its_connections_have_ended() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let options = options(node, TcAttach::Auto);
    let mut kernel = node.enter(|| Kernel::start(&options).unwrap()).unwrap();
    let finder = kernel.take_stale().unwrap().unwrap();
    let pins = &options.bpffs.join("maps");
    let (v4, v6) = ends();
    for action in [CtAction::FORWARD, CtAction::REPLY] {
        story::<_, 16, 36>((&kernel, &finder), pins, (&v4, maps::CONNTRACK_V4), action);
        story::<_, 40, 60>((&kernel, &finder), pins, (&v6, maps::CONNTRACK_V6), action);
    }
    node.enter(|| cleanup(&options.bpffs).unwrap()).unwrap();
}

/// An agent that adopts tables has set none of their bits itself.
#[test]
fn bits_of_tables_that_are_adopted_are_set() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let options = options(node, TcAttach::Auto);
    let pins = &options.bpffs.join("maps");
    let kernel = node.enter(|| Kernel::start(&options).unwrap()).unwrap();
    let (v4, v6) = ends();
    kernel.tables().unwrap().perform(&steps()).unwrap();
    with_control(pins, |bytes| bytes[std::mem::offset_of!(Control, filters)..].fill(0));
    assert_eq!((bits(pins, &v4), bits(pins, &v6)), ((false, false), (false, false)));
    kernel.tables().unwrap().snapshot().unwrap();
    assert_eq!((bits(pins, &v4), bits(pins, &v6)), ((true, true), (true, true)));
    node.enter(|| cleanup(&options.bpffs).unwrap()).unwrap();
}

fn ends() -> (Ends<Ipv4>, Ends<Ipv6>) {
    let v4 = Ends {
        family: Family::V4,
        frontend: (ipv4("10.96.100.100"), "10.96.100.100:80"),
        backend: ipv4("10.248.1.21"),
    };
    let v6 = Ends {
        family: Family::V6,
        frontend: (ipv6("fd00:10:96::64"), "[fd00:10:96::64]:80"),
        backend: ipv6("fd00:248:1::21"),
    };
    (v4, v6)
}

fn ipv4(text: &str) -> Ipv4 {
    text.parse::<std::net::Ipv4Addr>().unwrap().into()
}

fn ipv6(text: &str) -> Ipv6 {
    text.parse::<std::net::Ipv6Addr>().unwrap().into()
}
