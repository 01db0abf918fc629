//! The kernel side on its own: programs load, maps and links outlive a start, tables read back
//! what was written.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::Arc,
};

use aya::maps::MapInfo;
use lb_agent::{
    dataplane::{
        BackendEntry, BackendId, FrontendAddress, FrontendEntry, Kernel, KernelOptions, MidFlow,
        Reader, ServiceId, SizeKept, SocketLb, Step, Tables as _, TcAttach, cleanup,
        pinned_conntrack,
    },
    model::{Family, Protocol},
};
use lb_common::abi::{
    Abi as _, BackendFlags, CachedFlow, Chunk, Device, DeviceRole, FrontendFlags, FrontendKind,
    Ipv4, Ipv6, Region, maps,
};
use lb_common::conntrack::Timeouts;
use lb_test::{Node, NodeSpec, Topology, require_topology};

#[path = "dataplane/filter.rs"]
mod filter;
#[path = "dataplane/sweep.rs"]
mod sweep;

fn options(node: &Node, tc_attach: TcAttach) -> KernelOptions {
    KernelOptions {
        bpffs: node.bpffs().join("lb"),
        cgroup: Some(node.cgroup().path().to_owned()),
        socket_lb: SocketLb::All,
        bind_protection: true,
        tc_attach,
        xdp: true,
        snat_ports: (61000, 65535),
        carrier_kind: lb_common::carrier::Kind::Gue,
        carrier_port: lb_common::carrier::PORT,
        mid_flow: MidFlow::Balanced,
        reset_tcp: false,
        timeouts: Timeouts::DEFAULT,
        conntrack_max: 1024,
        affinity_max: 1024,
        max_frontends: 1024,
        max_backends: 1024,
    }
}

fn steps() -> Vec<Step> {
    let service = ServiceId(7);
    let backend = |family, address: &str| {
        let entry = BackendEntry {
            address: address.parse().unwrap(),
            flags: BackendFlags::SERVING.with(BackendFlags::LOCAL),
            generation: 3,
            service,
        };
        Step::PutBackend(BackendId { family, index: 5 }, entry)
    };
    let region = |first_chunk| Region { first_chunk, length: 251 };
    let frontend = |address: &str, region| {
        let address: SocketAddr = address.parse().unwrap();
        let key =
            FrontendAddress { ip: address.ip(), port: address.port(), protocol: Protocol::Tcp };
        let entry = FrontendEntry {
            service,
            kind: FrontendKind::CLUSTER_IP,
            flags: FrontendFlags::DROP_EXTERNAL,
            affinity_timeout: 0,
            internal: region,
            external: Region::EMPTY,
        };
        Step::PutFrontend(key, entry)
    };
    let slots: Arc<[u32]> = vec![5; 251].into();
    vec![
        backend(Family::V4, "10.248.1.21:8080"),
        backend(Family::V6, "[fd00:248:1::21]:8080"),
        Step::PutRegion(region(0), Arc::clone(&slots)),
        // In another inner array than the first.
        Step::PutRegion(region(3 * 4096 + 16), slots),
        frontend("10.96.100.100:80", region(0)),
        frontend("[fd00:10:96::64]:80", region(3 * 4096 + 16)),
    ]
}

fn starts_twice_and_keeps_its_tables(tc_attach: TcAttach) {
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let options = options(node, tc_attach);
    let uplink = node.enter(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
    let device = Device { role: DeviceRole::UPLINK, ..Device::zeroed() };
    let start = || {
        node.enter(|| {
            let mut kernel = Kernel::start(&options).unwrap();
            kernel.attach_device((uplink, "eth0"), &device).unwrap();
            kernel.tables().unwrap()
        })
        .unwrap()
    };
    start().perform(&steps()).unwrap();
    let links = Reader::open(&options.bpffs).unwrap().links();
    let written = start().snapshot().unwrap();
    assert_eq!(written.frontends.len(), 2);
    assert_eq!(written.backends.len(), 2);
    assert_eq!(written.regions.len(), 2);
    assert!(written.regions.values().all(|(_, slots)| slots.iter().all(|slot| *slot == 5)));
    let reader = Reader::open(&options.bpffs).unwrap();
    assert_eq!(reader.links(), links, "the second start exchanged what the first one attached");
    assert_eq!(reader.devices().unwrap(), [(uplink, device)]);
    assert_memory_is_told(&reader, &options.bpffs.join("maps"));
    let cleared = BackendId { family: Family::V6, index: 5 };
    start().perform(&[Step::RemoveBackend(cleared)]).unwrap();
    let after = start().snapshot().unwrap();
    assert_eq!(after.backends.len(), 1);
    assert_eq!(after.retired.get(&cleared), Some(&3), "the next use goes on from here");
    let removed = node.enter(|| cleanup(&options.bpffs).unwrap()).unwrap();
    assert!(removed.len() > 20, "{removed:?}");
    assert!(Reader::open(&options.bpffs).is_none());
}

/// All of it: slots lie in maps of their own, and what is cached of flows in maps that only programs hold.
fn assert_memory_is_told(reader: &Reader, maps: &Path) {
    let pinned: u64 = std::fs::read_dir(maps).unwrap().map(|entry| bytes(&entry.unwrap())).sum();
    let (slots, cached) = (
        2 * 4096 * size_of::<Chunk>(),
        4096 * (size_of::<CachedFlow<Ipv4>>() + size_of::<CachedFlow<Ipv6>>()),
    );
    let (memory, hidden) = (reader.memory(), u64::try_from(slots + cached).unwrap());
    assert!(memory.maps >= pinned + hidden, "{memory:?}, of pinned maps {pinned}");
    let fill = reader.fill().unwrap().into_iter();
    let is_of_flows = |name: &str| name.starts_with("CONNTRACK") || name.starts_with("HALF_OPEN");
    let flows: u64 = fill.filter(|map| is_of_flows(map.name)).map(|map| map.bytes).sum();
    assert_eq!(memory.flows, flows);
}

/// Kernel memory of a pinned map.
fn bytes(pin: &std::fs::DirEntry) -> u64 {
    let map = MapInfo::from_pin(pin.path()).and_then(|info| info.fd()).unwrap();
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn starts_twice_and_keeps_its_tables_by_tcx() {
    require_topology!();
    starts_twice_and_keeps_its_tables(TcAttach::Auto);
}

#[test]
fn starts_twice_and_keeps_its_tables_by_clsact() {
    require_topology!();
    starts_twice_and_keeps_its_tables(TcAttach::Clsact);
}

#[test]
fn a_start_with_the_other_way_to_attach_leaves_nothing_of_the_first() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let uplink = node.enter(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
    let device = Device { role: DeviceRole::UPLINK, ..Device::zeroed() };
    let tcx = vec![format!("{uplink}-egress"), format!("{uplink}-ingress")];
    let clsact = vec![format!("{uplink}-clsact")];
    for (tc_attach, expected) in
        [(TcAttach::Auto, &tcx), (TcAttach::Clsact, &clsact), (TcAttach::Auto, &tcx)]
    {
        let options = options(node, tc_attach);
        node.enter(|| {
            let mut kernel = Kernel::start(&options).unwrap();
            kernel.attach_device((uplink, "eth0"), &device).unwrap();
        })
        .unwrap();
        let mut links = Reader::open(&options.bpffs).unwrap().links();
        links.retain(|link| link.starts_with(|first: char| first.is_ascii_digit()));
        assert_eq!(links, *expected, "{tc_attach:?}");
        for direction in ["ingress", "egress"] {
            let filters = node.run("tc", &["filter", "show", "dev", "eth0", direction]).unwrap();
            assert_eq!(filters.is_empty(), tc_attach == TcAttach::Auto, "{direction}: {filters}");
        }
    }
    node.enter(|| cleanup(&options(node, TcAttach::Auto).bpffs).unwrap()).unwrap();
}

#[test]
fn a_filter_of_a_cni_stays_beside_ours() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let options = options(node, TcAttach::Clsact);
    let uplink = node.enter(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
    let device = Device { role: DeviceRole::UPLINK, ..Device::zeroed() };
    let tc = |words: &str| {
        let arguments: Vec<_> = words.split_whitespace().collect();
        node.run("tc", &arguments).unwrap()
    };
    let filters = || {
        let shown = tc("filter show dev eth0 ingress");
        shown
            .lines()
            .filter(|line| line.contains(" handle "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut kernel = node.enter(|| Kernel::start(&options).unwrap()).unwrap();
    // Any program will do that is not the one at ingress.
    let program = options.bpffs.join("programs/lb_tc_egress");
    let foreign = "dev eth0 ingress protocol all pref 1 handle 1 bpf direct-action";
    tc("qdisc add dev eth0 clsact");
    tc(&format!("filter add {foreign} object-pinned {}", program.display()));
    let before = filters();
    assert_eq!(before.len(), 1, "{before:?}");
    node.enter(|| kernel.attach_device((uplink, "eth0"), &device).unwrap()).unwrap();
    let beside = filters();
    assert!(beside.len() == 2 && beside.contains(&before[0]), "{beside:?} without {before:?}");
    drop(kernel);
    node.enter(|| cleanup(&options.bpffs).unwrap()).unwrap();
    assert_eq!(filters(), before);
}

#[test]
fn a_device_that_is_gone_is_told_from_one_that_refuses() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let device = Device { role: DeviceRole::PODS, ..Device::zeroed() };
    for tc_attach in [TcAttach::Auto, TcAttach::Clsact] {
        let options = options(node, tc_attach);
        let error = node.enter(|| {
            let mut kernel = Kernel::start(&options).unwrap();
            kernel.attach_device((4095, "gone"), &device).unwrap_err()
        });
        let error = error.unwrap();
        assert!(error.is_device_gone(), "{tc_attach:?}: {error}");
        node.enter(|| cleanup(&options.bpffs).unwrap()).unwrap();
    }
}

#[test]
fn a_cgroup_that_is_none_leaves_the_sockets_with_the_old_one() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let right = options(node, TcAttach::Auto);
    let wrong = KernelOptions { cgroup: Some(node.bpffs().to_owned()), ..right.clone() };
    let started = |options: &KernelOptions| node.enter(|| Kernel::start(options).is_ok()).unwrap();
    assert!(started(&right));
    let links = Reader::open(&right.bpffs).unwrap().links();
    assert!(!started(&wrong));
    assert_eq!(Reader::open(&right.bpffs).unwrap().links(), links);
    assert!(started(&right));
    node.enter(|| cleanup(&right.bpffs).unwrap()).unwrap();
}

#[test]
fn tables_keep_the_size_that_they_were_made_with() {
    require_topology!();
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let small = options(node, TcAttach::Auto);
    let large = KernelOptions { conntrack_max: 2048, ..small.clone() };
    let kept = |options: &KernelOptions| {
        node.enter(|| Kernel::start(options).unwrap().sizes_kept().to_vec()).unwrap()
    };
    assert_eq!(pinned_conntrack(&small.bpffs), None);
    assert_eq!(kept(&small), []);
    let of = |map| SizeKept { map, capacity: 1024, wanted: 2048, flag: "conntrack-max" };
    assert_eq!(kept(&large), [of(maps::CONNTRACK_V4), of(maps::CONNTRACK_V6)]);
    assert_eq!(pinned_conntrack(&small.bpffs), Some(1024));
    node.enter(|| cleanup(&small.bpffs).unwrap()).unwrap();
}
