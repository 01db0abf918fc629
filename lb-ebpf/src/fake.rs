//! A node without a kernel: packets as byte buffers, tables in memory, routes by heart.

mod buffer;
mod carriers;
mod half_open;
mod held;
mod judge;
mod presence;

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{HashMap, HashSet},
    iter,
    net::{IpAddr, SocketAddr},
    ptr::NonNull,
};

use lb_common::{
    abi::{
        Abi, Address, Affinity, AffinityKey, Backend, BePort, CachedFlow, Counter, CtEntry, CtKey,
        Fragment, FragmentKey, Frontend, FrontendFlags, FrontendKey, FrontendKind, Ipv4, Ipv6,
        L4Proto, NextHop, Region, Source, SourceRange,
    },
    cache::{FACTORS, Factors, Stamp},
    carrier::{self, Kind},
    conntrack::{TICK_SHIFT, Timeouts},
    filter, limit,
};

use buffer::Buffer;
use held::HeldFragments;
pub(crate) use held::Meanwhile;
use presence::Marks;

use crate::{
    cases::{
        BackendSpec, Bench, Device, Fate, FrontendSpec, Hook, Host, Outcome, Prefix, SERVICE,
        SNAT_RANGE,
    },
    parse,
    path::{answer::Answers, fragment::Fragments},
    tables::{Backends, CtRef, Ref, Tables},
};

/// Odd factors; nobody attacks these tests.
const ODD: Factors = [0x9e37_79b9_7f4a_7c15; FACTORS];
/// Largest packet that any device takes.
const MTU: u16 = 1500;
/// Link-layer addresses of the next hop: frames' own, so that what is sent by them looks the same.
const MACS: [u32; 3] = [0x0000_0002, 0x0002_0100, 0x0200_0000];

/// An address of a family that the specifications of cases hold.
trait FromIp: Address + Into<IpAddr> {
    fn from_ip(ip: IpAddr) -> Option<Self>;
}

impl FromIp for Ipv4 {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V4(ip) = ip { Some(ip.into()) } else { None }
    }
}

impl FromIp for Ipv6 {
    fn from_ip(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V6(ip) = ip { Some(ip.into()) } else { None }
    }
}

/// An entry that stays where it is.
type Entry<T> = Box<UnsafeCell<T>>;

/// A table of flows.
type Flows<A> = RefCell<HashMap<Vec<u8>, Entry<CtEntry<A>>>>;

/// The tables of one family, and the device that the packet is at.
struct FakeTables<A> {
    backends: HashMap<u32, Backend<A>>,
    frontends: HashMap<Vec<u8>, Frontend>,
    regions: HashMap<u32, Vec<u32>>,
    affinity: RefCell<HashMap<AffinityKey, Entry<Affinity>>>,
    sources: HashMap<u32, Vec<SourceRange<A>>>,
    conntrack: Flows<A>,
    half_open: Flows<A>,
    scratch: Entry<CtEntry<A>>,
    fragments: RefCell<HashMap<Vec<u8>, Fragment<A>>>,
    held: HeldFragments,
    next_answer: Cell<u64>,
    filter: HashSet<u32>,
    flows: RefCell<HashMap<Vec<u8>, CachedFlow<A>>>,
    /// Flows that may still be remembered before they are proven.
    rememberable: Cell<u32>,
    /// First packets whose flows were not remembered.
    unremembered: Cell<u32>,
    epoch: u32,
    presence: Marks,
    /// Where the last question to the routing table led.
    routed: Cell<u32>,
    device: Device,
    nanoseconds: Cell<u64>,
    snat_range: (u16, u16),
    migrates: bool,
    resets_removed: bool,
    carrier_kind: Kind,
}

impl<A: FromIp> FakeTables<A> {
    fn new() -> Self {
        Self {
            backends: HashMap::new(),
            frontends: HashMap::new(),
            regions: HashMap::new(),
            affinity: RefCell::default(),
            sources: HashMap::new(),
            conntrack: RefCell::default(),
            half_open: RefCell::default(),
            scratch: Box::new(UnsafeCell::new(CtEntry::zeroed())),
            fragments: RefCell::default(),
            held: HeldFragments::default(),
            next_answer: Cell::default(),
            filter: HashSet::new(),
            flows: RefCell::default(),
            rememberable: Cell::new(u32::MAX),
            unremembered: Cell::default(),
            epoch: 0,
            presence: Marks::new(),
            routed: Cell::new(0),
            device: Device::Uplink,
            nanoseconds: Cell::new(1000 << TICK_SHIFT),
            snat_range: SNAT_RANGE,
            migrates: false,
            resets_removed: false,
            carrier_kind: Kind::Gue,
        }
    }

    fn put_backend(&mut self, id: u32, backend: &BackendSpec) {
        let Some(address) = A::from_ip(backend.address.ip()) else { return };
        let BackendSpec { flags, generation, .. } = *backend;
        let port = BePort::new(backend.address.port());
        let service = if generation == 0 { 0 } else { SERVICE };
        let bits = [L4Proto::SCTP, L4Proto::TCP, L4Proto::UDP]
            .map(|protocol| filter::backend(&address, port, protocol));
        self.filter.extend(bits);
        self.epoch += 1;
        self.backends.insert(id, Backend { address, port, flags, generation, service });
    }

    fn put_region(&mut self, ids: &[u32]) -> Region {
        let first_chunk = u32::try_from(self.regions.len()).expect("few regions");
        self.regions.insert(first_chunk, ids.to_vec());
        Region { first_chunk, length: u32::try_from(ids.len()).expect("few ids") }
    }

    fn put_frontend(&mut self, spec: &FrontendSpec<'_>) {
        let Some(address) = A::from_ip(spec.address.ip()) else { return };
        let key = FrontendKey::new(address, BePort::new(spec.address.port()), spec.protocol);
        self.filter.insert(filter::frontend(&key.address, key.port, key.protocol));
        self.epoch += 1;
        let frontend = Frontend {
            service: SERVICE,
            flags: spec.flags,
            kind: FrontendKind::CLUSTER_IP,
            affinity_timeout: spec.affinity_timeout,
            internal: self.put_region(spec.internal),
            external: self.put_region(spec.external),
        };
        self.frontends.insert(key.as_bytes().to_vec(), frontend);
    }

    fn set_sources(&mut self, service: u32, prefixes: &[Prefix]) {
        let range = |&(ip, length)| Some(SourceRange::new(service, A::from_ip(ip)?, length));
        self.sources.insert(service, prefixes.iter().filter_map(range).collect());
    }
}

impl<A: FromIp> FakeTables<A> {
    /// The table that an entry belongs in.
    fn table(&self, entry: CtRef<A>) -> &Flows<A> {
        if entry.seen().0.is_half_open() { &self.half_open } else { &self.conntrack }
    }

    fn evict_from(&mut self, src: SocketAddr) {
        let is_from =
            |key: &CtKey<A>| (key.src.into(), key.src_port.get()) == (src.ip(), src.port());
        for table in [&mut self.conntrack, &mut self.half_open] {
            let flows = table.get_mut();
            flows.retain(|key, _| !CtKey::from_bytes(key).is_some_and(|key| is_from(&key)));
        }
    }
}

fn reference<T: Abi>(entry: &Entry<T>) -> Ref<T> {
    let place = NonNull::new(entry.get()).expect("a box is not null");
    // SAFETY: entries are boxed, and live as long as the tables.
    unsafe { Ref::new(place) }
}

impl<A: FromIp> Backends<A> for FakeTables<A> {
    fn backend(&self, id: u32) -> Option<Backend<A>> {
        self.backends.get(&id).copied().filter(Backend::is_live)
    }

    fn affinity(&self, client: &AffinityKey) -> Option<Ref<Affinity>> {
        self.affinity.borrow().get(client).map(reference)
    }

    fn keep(&self, client: &AffinityKey, affinity: &Affinity) {
        let entry = Box::new(UnsafeCell::new(*affinity));
        self.affinity.borrow_mut().insert(*client, entry);
    }

    fn nanoseconds(&self) -> u64 {
        self.nanoseconds.get()
    }
}

impl<A: FromIp> FakeTables<A> {
    /// One tick of the cache for each of conntrack.
    fn stamp(&self) -> Stamp<'static> {
        let jiffies = u64::from(self.now()) << 8;
        Stamp { factors: &ODD, epoch: self.epoch, jiffies }
    }

    fn read(&self, stamp: &Stamp<'_>, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool {
        let flows = self.flows.borrow();
        let Some(element) = flows.get(flow.as_bytes()) else { return false };
        *decision = *element;
        stamp.vouches(decision, &stamp.key(flow))
    }

    fn write(&self, stamp: &Stamp<'_>, decision: &mut CachedFlow<A>) {
        decision.check = stamp.sum(decision, &stamp.key(&decision.flow));
        self.flows.borrow_mut().insert(decision.flow.as_bytes().to_vec(), *decision);
    }
}

impl<A: FromIp> Tables<A> for FakeTables<A> {
    fn may_be_to_frontend(&self, flow: &CtKey<A>) -> bool {
        self.filter.contains(&filter::frontend(&flow.dst, flow.dst_port, flow.protocol))
    }

    fn may_be_from_backend(&self, flow: &CtKey<A>) -> bool {
        self.filter.contains(&filter::backend(&flow.src, flow.src_port, flow.protocol))
    }

    fn recall(&self, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool {
        self.read(&self.stamp(), flow, decision)
    }

    fn cache(&self, decision: &mut CachedFlow<A>) {
        self.write(&self.stamp(), decision);
    }

    fn uncache(&self, flow: &CtKey<A>) {
        self.flows.borrow_mut().remove(flow.as_bytes());
    }

    fn hint(&self, flow: &CtKey<A>, decision: &mut CachedFlow<A>) -> bool {
        self.read(&Stamp::of_hints(&ODD, self.now()), flow, decision)
    }

    fn keep_hint(&self, decision: &mut CachedFlow<A>) {
        self.write(&Stamp::of_hints(&ODD, self.now()), decision);
    }

    fn may_remember(&self) -> bool {
        let left = self.rememberable.get();
        self.rememberable.set(left.saturating_sub(1));
        left > 0
    }

    fn is_ahead(&self) -> bool {
        false
    }

    fn count_unremembered(&self) {
        self.unremembered.set(self.unremembered.get() + 1);
    }

    fn forget_half_open(&self, flow: &CtKey<A>) {
        self.half_open.borrow_mut().remove(flow.as_bytes());
    }

    fn note_use(&self, flow: &CtKey<A>) {
        self.mark(flow);
    }

    fn conntrack(&self, flow: &CtKey<A>) -> Option<CtRef<A>> {
        if !self.may_be_there(flow) {
            return None;
        }
        let find = |table: &Flows<A>| table.borrow().get(flow.as_bytes()).map(reference);
        find(&self.conntrack).or_else(|| find(&self.half_open))
    }

    fn track(&self, flow: &CtKey<A>, entry: CtRef<A>) {
        self.mark(flow);
        self.uncache(flow);
        let mut flows = self.table(entry).borrow_mut();
        let place = flows.entry(flow.as_bytes().to_vec());
        reference(place.or_insert_with(|| Box::new(UnsafeCell::new(entry.get())))).set(entry.get());
    }

    fn claim(&self, flow: &CtKey<A>, entry: CtRef<A>) -> bool {
        let is_free = !self.table(entry).borrow().contains_key(flow.as_bytes());
        if is_free {
            self.track(flow, entry);
        }
        is_free
    }

    fn forget(&self, flow: &CtKey<A>) {
        self.uncache(flow);
        self.conntrack.borrow_mut().remove(flow.as_bytes());
        self.forget_half_open(flow);
    }

    fn scratch(&self) -> Option<CtRef<A>> {
        Some(reference(&self.scratch))
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.frontends.get(key.as_bytes()).copied()
    }

    fn slot(&self, region: Region, slot: u32) -> Option<u32> {
        let slots = self.regions.get(&region.first_chunk)?;
        slots.get(slot as usize).copied().filter(|id| *id != 0)
    }

    fn has_source(&self, source: &Source<A>) -> bool {
        let mut ranges = self.sources.values().flatten();
        ranges.any(|range| {
            let bits = |of: &Source<A>| bits(of.as_bytes(), range.bits);
            bits(&range.first) == bits(source)
        })
    }

    fn device(&self) -> u32 {
        self.device as u32
    }

    fn is_uplink(&self) -> bool {
        self.device == Device::Uplink
    }

    fn source_at(&self, _device: u32) -> Option<A> {
        A::from_ip(Host::Node.address(A::HEADER == Ipv4::HEADER))
    }

    fn route(&self, _src: A, dst: A) -> Option<NextHop> {
        let is_at = |host: Host| dst.into() == host.address(A::HEADER == Ipv4::HEADER);
        let device = match dst {
            _ if is_at(Host::PodA) => Device::PodA,
            _ if is_at(Host::PodB) => Device::PodB,
            _ => Device::Uplink,
        };
        self.routed.set(device as u32);
        Some(NextHop { mtu: MTU, macs: MACS, ..NextHop::of(device as u32) })
    }

    fn now(&self) -> u32 {
        u32::try_from(self.nanoseconds.get() >> TICK_SHIFT).expect("a time within 146 years")
    }

    fn udp_timeout(&self) -> u32 {
        Timeouts::DEFAULT.udp_stream
    }

    fn migrates(&self) -> bool {
        self.migrates
    }

    fn resets_removed(&self) -> bool {
        self.resets_removed
    }

    fn carrier_kind(&self) -> Kind {
        self.carrier_kind
    }

    fn carrier_port(&self) -> BePort {
        BePort::new(carrier::PORT)
    }

    fn snat_range(&self) -> (u32, u32) {
        let (first, count) = self.snat_range;
        (first.into(), count.into())
    }
}

impl<A: FromIp> Fragments<A> for FakeTables<A> {
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment<A>> {
        self.fragments.borrow().get(key.as_bytes()).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment<A>) {
        self.fragments.borrow_mut().insert(key.as_bytes().to_vec(), *fragment);
    }

    fn has_frontends(&self, address: A) -> bool {
        self.frontends.iter().any(|(key, frontend)| {
            let key = FrontendKey::<A>::from_bytes(key).expect("a key");
            key.address == address && !frontend.flags.has(FrontendFlags::HOST_ONLY)
        })
    }
}

impl<A: FromIp> Answers<A> for FakeTables<A> {
    fn may_answer(&self) -> bool {
        let next = limit::admit(self.next_answer.get(), self.nanoseconds.get());
        next.inspect(|next| self.next_answer.set(*next)).is_some()
    }
}

/// The first bits of some bytes, as a trie of prefixes compares them.
fn bits(bytes: &[u8], count: u32) -> Vec<bool> {
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1));
    bits.take(count as usize).collect()
}

/// Judges packets by the paths over these fakes.
pub(crate) struct FakeBench {
    v4: FakeTables<Ipv4>,
    v6: FakeTables<Ipv6>,
}

impl FakeBench {
    pub(crate) fn new() -> Self {
        Self { v4: FakeTables::new(), v6: FakeTables::new() }
    }

    /// Sets first port and number of ports of the SNAT range.
    pub(crate) fn set_snat_range(&mut self, range: (u16, u16)) {
        (self.v4.snat_range, self.v6.snat_range) = (range, range);
    }

    /// Has connections that began before us left to the stack.
    pub(crate) fn migrate(&mut self) {
        (self.v4.migrates, self.v6.migrates) = (true, true);
    }

    /// Has connections to removed backends reset.
    pub(crate) fn reset_removed(&mut self) {
        (self.v4.resets_removed, self.v6.resets_removed) = (true, true);
    }

    /// Forgets the entries of flows with this source, as a full table may.
    pub(crate) fn evict_from(&mut self, src: SocketAddr) {
        self.v4.evict_from(src);
        self.v6.evict_from(src);
    }

    /// Lets time pass, in units of 2^30 ns.
    pub(crate) fn pass_time(&mut self, ticks: u32) {
        self.pass_nanoseconds(u64::from(ticks) << TICK_SHIFT);
    }

    /// Lets time pass, in ns.
    pub(crate) fn pass_nanoseconds(&mut self, nanoseconds: u64) {
        *self.v4.nanoseconds.get_mut() += nanoseconds;
        *self.v6.nanoseconds.get_mut() += nanoseconds;
    }
}

impl Bench for FakeBench {
    fn put_backend(&mut self, id: u32, backend: &BackendSpec) {
        self.v4.put_backend(id, backend);
        self.v6.put_backend(id, backend);
    }

    fn put_frontend(&mut self, frontend: &FrontendSpec<'_>) {
        self.v4.put_frontend(frontend);
        self.v6.put_frontend(frontend);
    }

    fn set_sources(&mut self, service: u32, prefixes: &[Prefix]) {
        self.v4.set_sources(service, prefixes);
        self.v6.set_sources(service, prefixes);
    }

    fn carrier_kind(&self) -> Kind {
        self.v4.carrier_kind
    }

    fn walk(&mut self, times: u32) {
        self.walk_over_all(times);
    }

    fn judge(&mut self, hook: Hook, bytes: &[u8], _expected: Fate) -> Outcome {
        let mut packet = Buffer(bytes.to_vec());
        let (fate, counter) = match parse::ethertype(&packet) {
            Ipv4::ETHERTYPE => judge::judge_by(&mut self.v4, hook, &mut packet),
            Ipv6::ETHERTYPE => judge::judge_by(&mut self.v6, hook, &mut packet),
            _ => (Fate::Next, None),
        };
        let released = iter::repeat_n(Counter::FragmentReleased, self.released());
        Outcome { fate, bytes: packet.0, counted: counter.into_iter().chain(released).collect() }
    }
}
