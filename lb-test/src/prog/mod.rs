//! The packet programs as they are, loaded in a node of a topology and run on single packets.
//!
//! `BPF_PROG_TEST_RUN` gives a program a packet at a device and returns verdict and packet. Where
//! a redirected packet would go is not among what it returns: tests on nodes show that.

mod fast;
pub mod shared;
pub mod size;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use lb_agent::dataplane::{
    FlowCache, Kernel, KernelOptions, MidFlow, Reader, SocketLb, StaleFinder, TcAttach, XdpHook,
};
use lb_agent::model::Family;
use lb_common::abi::{
    Affinity, AffinityKey, Counter, CtEntry, CtKey, Device as DeviceEntry, DeviceFlags, DeviceRole,
    Fragment, FragmentKey, Ipv4, Ipv6, maps,
};
use lb_common::carrier::Kind;
use lb_common::conntrack::Timeouts;
use lb_ebpf::cases::{
    BackendSpec, Bench, DEVICE_MAC, Device, Fate, FrontendSpec, Hook, Outcome, Prefix, SNAT_RANGE,
};
use nix::net::if_::if_nametoindex;

use crate::{NodeSpec, PodSpec, Topology, topology::Node};
use fast::{Fast, Finish};
use tables::Filled;

const NODE: &str = "node1";
/// Room for what a program makes of a packet.
const LARGEST: usize = 4096;
/// Offsets in `struct __sk_buff` of `include/uapi/linux/bpf.h`.
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const CONTEXT: usize = 44;
/// Verdicts of `include/uapi/linux/pkt_cls.h`.
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// What an uplink whose driver can do everything says.
const XDP: DeviceFlags = DeviceFlags::TAKES_FRAMES.with(DeviceFlags::RETURNS_FRAMES);

/// A node with the programs loaded and attached, and Services in its tables.
pub struct KernelBench {
    topology: Topology,
    bpffs: PathBuf,
    tables: Filled,
    walker: StaleFinder,
    cache: FlowCache,
    ingress: SchedClassifier,
    egress: SchedClassifier,
    fast: Option<Fast>,
    finished: u32,
    devices: [u32; Device::ALL.len()],
    carrier_kind: Kind,
}

impl KernelBench {
    /// Makes the node and loads the programs.
    ///
    /// # Errors
    /// When the machine refuses, the verifier included.
    pub fn start() -> Result<Self> {
        Self::start_with(Kind::Gue)
    }

    /// The same with programs that carry packets so.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_with(carrier_kind: Kind) -> Result<Self> {
        let builder = Topology::builder().node(NodeSpec::new(NODE)).client("client");
        let builder = builder.pod(PodSpec::routed("a", NODE).at(21));
        let topology = builder.pod(PodSpec::routed("b", NODE).at(22)).build()?;
        let node = topology.node(NODE);
        let bpffs = node.bpffs().join("lb");
        let (mut kernel, devices) = node.netns().enter(|| load(node, carrier_kind))??;
        let program = |name| SchedClassifier::from_pin(bpffs.join("programs").join(name));
        let (ingress, egress) = (program("lb_tc_ingress")?, program("lb_tc_egress")?);
        let tables = Filled::new(kernel.tables()?);
        let walker = kernel.take_stale().context("taken once")??;
        let cache = kernel.flow_cache()?;
        let (fast, finished) = (None, 0);
        let mut bench = Self {
            topology,
            bpffs,
            tables,
            walker,
            cache,
            ingress,
            egress,
            fast,
            finished,
            devices,
            carrier_kind,
        };
        // From the first one on, marks are believed.
        bench.walk(1);
        Ok(bench)
    }

    /// Has each packet that comes in by the uplink judged by XDP first.
    ///
    /// # Errors
    /// When the machine refuses.
    pub fn put_xdp_ahead(&mut self) -> Result<()> {
        let uplink = self.devices[Device::Uplink as usize];
        self.fast = Some(Fast::new(self.topology.node(NODE), &self.bpffs, uplink)?);
        Ok(())
    }

    /// Is as after its start: without XDP, Services, and what is remembered of flows, fragments and clients.
    ///
    /// # Errors
    /// When a table cannot be read or written.
    pub fn reset(&mut self) -> Result<()> {
        const V4: (usize, usize) = (size_of::<FragmentKey<Ipv4>>(), size_of::<Fragment<Ipv4>>());
        const V6: (usize, usize) = (size_of::<FragmentKey<Ipv6>>(), size_of::<Fragment<Ipv6>>());
        self.fast = None;
        self.clear()?;
        self.empty::<{ V4.0 }, { V4.1 }>(maps::FRAGMENTS_V4)?;
        self.empty::<{ V6.0 }, { V6.1 }>(maps::FRAGMENTS_V6)?;
        self.cache.renew();
        Ok(())
    }

    /// Forgets all Services, and what is remembered of flows and clients.
    ///
    /// # Errors
    /// When a table cannot be read or written.
    pub fn clear(&mut self) -> Result<()> {
        const AFFINITY: (usize, usize) = (size_of::<AffinityKey>(), size_of::<Affinity>());
        const REST_V4: (usize, usize) =
            (size_of::<FragmentKey<Ipv4>>(), size_of::<Fragment<Ipv4>>());
        const REST_V6: (usize, usize) =
            (size_of::<FragmentKey<Ipv6>>(), size_of::<Fragment<Ipv6>>());
        self.tables.clear()?;
        self.empty::<{ REST_V4.0 }, { REST_V4.1 }>(maps::FRAGMENTS_V4)?;
        self.empty::<{ REST_V6.0 }, { REST_V6.1 }>(maps::FRAGMENTS_V6)?;
        self.empty::<{ AFFINITY.0 }, { AFFINITY.1 }>(maps::AFFINITY_V4)?;
        self.empty::<{ AFFINITY.0 }, { AFFINITY.1 }>(maps::AFFINITY_V6)?;
        self.forget_flows().map(|_| ())
    }

    /// Forgets all flows but those that are cached; tells how many entries that were.
    ///
    /// # Errors
    /// When a table cannot be read or written.
    pub fn forget_flows(&mut self) -> Result<usize> {
        const V4: (usize, usize) = (size_of::<CtKey<Ipv4>>(), size_of::<CtEntry<Ipv4>>());
        const V6: (usize, usize) = (size_of::<CtKey<Ipv6>>(), size_of::<CtEntry<Ipv6>>());
        Ok(self.empty::<{ V4.0 }, { V4.1 }>(maps::CONNTRACK_V4)?
            + self.empty::<{ V6.0 }, { V6.1 }>(maps::CONNTRACK_V6)?
            + self.empty::<{ V4.0 }, { V4.1 }>(maps::HALF_OPEN_V4)?
            + self.empty::<{ V6.0 }, { V6.1 }>(maps::HALF_OPEN_V6)?)
    }

    fn empty<const KEY: usize, const VALUE: usize>(&self, map: &str) -> Result<usize> {
        let map = Map::from_map_data(MapData::from_pin(self.bpffs.join("maps").join(map))?)?;
        let mut map = HashMap::<_, [u8; KEY], [u8; VALUE]>::try_from(map)?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        for key in &keys {
            map.remove(key)?;
        }
        Ok(keys.len())
    }

    /// How many packets XDP has not passed on to TC.
    pub fn finished_by_xdp(&self) -> u32 {
        self.finished
    }

    /// The folder of pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Goes through the flows of some families, as part of a walk.
    fn walk_over(&self, families: &[Family]) -> Result<()> {
        for family in families {
            self.walker.mark_half_open(*family)?;
            self.walker.sweep(*family)?;
        }
        Ok(())
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        let reader = Reader::open(&self.bpffs).context("no pinned maps")?;
        Ok(reader.counters()?)
    }

    /// Runs the program of a hook; its verdict and what the packet has become.
    fn run(&self, hook: Hook, bytes: &[u8]) -> Result<(i32, Vec<u8>)> {
        let index = |device: Device| self.devices[device as usize];
        let (program, from, at) = match hook {
            Hook::Egress(device) => (&self.egress, index(Device::PodB), index(device)),
            Hook::HostEgress(device) => (&self.egress, 0, index(device)),
            Hook::Ingress(device) => (&self.ingress, index(device), index(device)),
        };
        let mut context = [0; CONTEXT];
        context[INGRESS_IFINDEX..IFINDEX].copy_from_slice(&from.to_ne_bytes());
        context[IFINDEX..CONTEXT].copy_from_slice(&at.to_ne_bytes());
        let mut output = vec![0; LARGEST];
        let result = self.topology.node(NODE).netns().enter(|| {
            program.test_run(TestRunOptions {
                data_in: Some(bytes),
                data_out: Some(&mut output),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
        })??;
        output.truncate(result.data_size_out as usize);
        Ok((result.return_value.cast_signed(), output))
    }

    fn outcome(&mut self, hook: Hook, bytes: &[u8], expected: Fate) -> Result<Outcome> {
        let before = self.counters()?;
        if let (Some(fast), Hook::Ingress(Device::Uplink)) = (&self.fast, hook) {
            let finish = fast.run(self.topology.node(NODE), bytes)?;
            let counted = self.moved_since(&before)?;
            let (fate, bytes) = match finish {
                Finish::Passed if counted.is_empty() => {
                    return self.outcome_by_tc(hook, bytes, expected);
                }
                Finish::Passed => anyhow::bail!("passed on, and counted: {counted:?}"),
                Finish::Dropped => (Fate::Dropped, bytes.to_vec()),
                Finish::Sent(bytes) => (Fate::Sent(Device::Uplink), bytes),
            };
            self.finished += 1;
            return Ok(Outcome { fate, bytes, counted });
        }
        self.outcome_by_tc(hook, bytes, expected)
    }

    fn moved_since(&self, before: &[(Counter, u64)]) -> Result<Vec<Counter>> {
        let after = self.counters()?;
        let moved = before
            .iter()
            .zip(&after)
            .flat_map(|(&(counter, old), &(_, new))| (old..new).map(move |_| counter));
        Ok(moved.collect())
    }

    fn outcome_by_tc(&self, hook: Hook, bytes: &[u8], expected: Fate) -> Result<Outcome> {
        let before = self.counters()?;
        let (verdict, became) = self.run(hook, bytes)?;
        let bytes = fast::without_crossing(bytes, became);
        let fate = match (verdict, expected) {
            (NEXT, _) => Fate::Next,
            (SHOT, _) => Fate::Dropped,
            (REDIRECT, Fate::Sent(device)) => Fate::Sent(device),
            (REDIRECT, _) => Fate::Sent(Device::Uplink),
            (other, _) => anyhow::bail!("verdict {other} at {hook:?}"),
        };
        Ok(Outcome { fate, bytes, counted: self.moved_since(&before)? })
    }
}

/// A case ends with its first failure, so what the kernel refuses ends it too.
impl Bench for KernelBench {
    fn put_backend(&mut self, id: u32, backend: &BackendSpec) {
        self.tables.put_backend(id, backend).expect("a table with room for each backend");
    }

    fn put_frontend(&mut self, frontend: &FrontendSpec<'_>) {
        self.tables.put_frontend(frontend).expect("a table with room for each frontend");
    }

    fn set_sources(&mut self, service: u32, prefixes: &[Prefix]) {
        self.tables.set_sources(service, prefixes).expect("a table with room for each range");
    }

    fn carrier_kind(&self) -> Kind {
        self.carrier_kind
    }

    fn walk(&mut self, times: u32) {
        for _ in 0..times {
            self.walker.begin_walk();
            self.walk_over(&[Family::V4]).expect("the walk of an agent that is killed");
            self.walk_over(&[Family::V4, Family::V6]).expect("a whole walk");
            self.walker.end_walk();
        }
    }

    fn judge(&mut self, hook: Hook, bytes: &[u8], expected: Fate) -> Outcome {
        self.outcome(hook, bytes, expected).expect("a program that can be run")
    }
}

/// Loads the programs on a node and attaches them to its devices; run inside its namespace.
fn load(node: &Node, carrier_kind: Kind) -> Result<(Kernel, [u32; Device::ALL.len()])> {
    let mut kernel = Kernel::start(&KernelOptions { carrier_kind, ..options(node) })?;
    let mut indices = [0; Device::ALL.len()];
    for device in Device::ALL {
        let (name, role) = match device {
            Device::PodA => ("veth-a", DeviceRole::PODS),
            Device::PodB => ("veth-b", DeviceRole::PODS),
            Device::Uplink => ("eth0", DeviceRole::UPLINK),
        };
        let entry = DeviceEntry {
            source_v4: Ipv4::from(node.addresses().v4),
            source_v6: Ipv6::from(node.addresses().v6),
            role,
            mac: DEVICE_MAC,
            flags: if role == DeviceRole::UPLINK { XDP } else { DeviceFlags::NONE },
            pad: 0,
        };
        let index = if_nametoindex(name).with_context(|| format!("device {name}"))?;
        kernel.attach_device((index, name), &entry)?;
        if role == DeviceRole::UPLINK {
            kernel.attach_xdp(index, XdpHook::Native)?;
        }
        indices[device as usize] = index;
    }
    Ok((kernel, indices))
}

/// Small tables, so that a bench is made quickly.
pub fn options(node: &Node) -> KernelOptions {
    KernelOptions {
        bpffs: node.bpffs().join("lb"),
        cgroup: Some(node.cgroup().path().to_owned()),
        socket_lb: SocketLb::All,
        bind_protection: true,
        tc_attach: TcAttach::Auto,
        xdp: true,
        snat_ports: (SNAT_RANGE.0, SNAT_RANGE.0 + SNAT_RANGE.1 - 1),
        carrier_kind: Kind::Gue,
        carrier_port: lb_common::carrier::PORT,
        mid_flow: MidFlow::Balanced,
        reset_tcp: false,
        timeouts: Timeouts::DEFAULT,
        conntrack_max: 16384,
        affinity_max: 16384,
        max_frontends: 256,
        max_backends: 256,
    }
}
