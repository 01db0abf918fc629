//! Every map, and the only unsafe access to one.

pub mod answers;
pub mod cache;
pub mod device;
pub mod fragments;
pub mod held;
pub mod presence;
pub mod rebuild;
pub mod targets;

use core::{marker::PhantomData, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup},
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie::Key,
    },
    helpers::bpf_ktime_get_coarse_ns,
    macros::btf_map,
};
use lb_common::{
    abi::{
        Address, Affinity, AffinityKey, Backend, CHUNKS_PER_ARRAY, CachedFlow, Chunk, Counter,
        CtEntry, CtKey, Device, Frontend, FrontendKey, Ipv4, Ipv6, MAX_CHUNK_ARRAYS, Region,
        SLOTS_PER_CHUNK, SocketPeers, Source, Swept,
    },
    conntrack::{CtState, TICK_SHIFT},
    opening::Opening,
};
use lb_ebpf::{
    parse::Headers,
    tables::{Backends, CtRef, Ref},
};

pub use self::device::device;
use crate::globals::HALF_OPEN_RATE;

/// Elements begin at a page, so that one of IPv4's flows is one cache line.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// Sizes that the agent replaces at load.
const DEFAULT_SIZE: usize = 1 << 18;

#[btf_map]
static FRONTENDS_V4: HashMap<FrontendKey<Ipv4>, Frontend, DEFAULT_SIZE, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
static FRONTENDS_V6: HashMap<FrontendKey<Ipv6>, Frontend, DEFAULT_SIZE, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
static BACKENDS_V4: Array<Backend<Ipv4>, DEFAULT_SIZE> = Array::new();
#[btf_map]
static BACKENDS_V6: Array<Backend<Ipv6>, DEFAULT_SIZE> = Array::new();
#[btf_map]
static CONNTRACK_V4: LruHashMap<CtKey<Ipv4>, CtEntry<Ipv4>, DEFAULT_SIZE> = LruHashMap::new();
#[btf_map]
static CONNTRACK_V6: LruHashMap<CtKey<Ipv6>, CtEntry<Ipv6>, DEFAULT_SIZE> = LruHashMap::new();
#[btf_map]
static HALF_OPEN_V4: LruHashMap<CtKey<Ipv4>, CtEntry<Ipv4>, DEFAULT_SIZE> = LruHashMap::new();
#[btf_map]
static HALF_OPEN_V6: LruHashMap<CtKey<Ipv6>, CtEntry<Ipv6>, DEFAULT_SIZE> = LruHashMap::new();
#[btf_map]
static OPENING: PerCpuArray<Opening, 1> = PerCpuArray::new();
#[btf_map]
static AFFINITY_V4: LruHashMap<AffinityKey, Affinity, DEFAULT_SIZE> = LruHashMap::new();
#[btf_map]
static AFFINITY_V6: LruHashMap<AffinityKey, Affinity, DEFAULT_SIZE> = LruHashMap::new();
#[btf_map]
static SLOTS: ArrayOfMaps<
    Array<Chunk, { CHUNKS_PER_ARRAY as usize }>,
    { MAX_CHUNK_ARRAYS as usize },
> = ArrayOfMaps::new();
#[btf_map]
static SOURCE_RANGES_V4: LpmTrie<Source<Ipv4>, u32, DEFAULT_SIZE> = LpmTrie::new();
#[btf_map]
static SOURCE_RANGES_V6: LpmTrie<Source<Ipv6>, u32, DEFAULT_SIZE> = LpmTrie::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();
#[btf_map]
static FLOWS_V4: Array<CachedFlow<Ipv4>, DEFAULT_SIZE, MMAPABLE> = Array::new();
#[btf_map]
static FLOWS_V6: Array<CachedFlow<Ipv6>, DEFAULT_SIZE, MMAPABLE> = Array::new();
#[btf_map]
static DECISION_V4: PerCpuArray<CachedFlow<Ipv4>, 1> = PerCpuArray::new();
#[btf_map]
static DECISION_V6: PerCpuArray<CachedFlow<Ipv6>, 1> = PerCpuArray::new();
#[btf_map]
static SCRATCH_V4: PerCpuArray<CtEntry<Ipv4>, 1> = PerCpuArray::new();
#[btf_map]
static SCRATCH_V6: PerCpuArray<CtEntry<Ipv6>, 1> = PerCpuArray::new();
#[btf_map]
static HEADERS_V4: PerCpuArray<Headers<Ipv4>, 1> = PerCpuArray::new();
#[btf_map]
static HEADERS_V6: PerCpuArray<Headers<Ipv6>, 1> = PerCpuArray::new();
#[btf_map]
static SWEPT_V4: Array<Swept, 1> = Array::new();
#[btf_map]
static SWEPT_V6: Array<Swept, 1> = Array::new();
/// Entries of conntrack made and removed, for IPv4, then for IPv6.
#[btf_map]
static TURNOVER: PerCpuArray<u64, 4> = PerCpuArray::new();
#[btf_map]
static ROUTE: PerCpuArray<RouteQuery, 1> = PerCpuArray::new();
/// What each socket remembers.
#[btf_map]
pub static SOCKETS: SkStorage<SocketPeers> = SkStorage::new();

/// The maps of one family.
pub trait Maps: Sized + 'static {
    /// The frontend at an address.
    fn frontend(key: &FrontendKey<Self>) -> Option<Frontend>;
    /// The backend with an id, if it is live.
    fn backend(id: u32) -> Option<Backend<Self>>;
    /// The backend that a client was given last.
    fn affinity(client: &AffinityKey) -> Option<Ref<Affinity>>;
    /// Writes the backend that a client was given.
    fn keep(client: &AffinityKey, affinity: &Affinity);
    /// Does any range hold this source?
    fn has_source(source: &Source<Self>) -> bool;
    /// The entry of a flow, looked up whatever its place says.
    fn conntrack(flow: &CtKey<Self>) -> Option<CtRef<Self>>;
    /// Writes the entry of a flow.
    fn track(flow: &CtKey<Self>, entry: CtRef<Self>);
    /// Writes the entry of a flow that has none.
    fn claim(flow: &CtKey<Self>, entry: CtRef<Self>) -> bool;
    /// Removes the entry of a flow.
    fn forget(flow: &CtKey<Self>);
    /// Removes the entry of a flow from those that are not proven.
    fn forget_half_open(flow: &CtKey<Self>);
    /// Room for one entry, for this CPU and this program run.
    fn scratch() -> Option<CtRef<Self>>;
    /// Room for the headers of one packet, for this CPU and this program run.
    fn headers() -> Option<&'static mut Headers<Self>>;
    /// Room for the decision on one packet, for this CPU and this program run.
    fn decision() -> Option<&'static mut CachedFlow<Self>>;
    /// An element of the flow cache.
    fn cached(place: u32) -> Option<*mut CachedFlow<Self>>;
    /// What the walk over all flows has found so far; there is one at a time.
    fn swept() -> Option<&'static mut Swept>;
    /// An address of a device that can be a source.
    fn source(device: &Device) -> Option<Self>;
}

macro_rules! maps {
    ($family:ty, $frontends:ident, $backends:ident, $affinity:ident, $sources:ident, $conntrack:ident, $half_open:ident, $scratch:ident, $headers:ident, $decision:ident, $flows:ident, $swept:ident, $turnover:expr, $source:expr) => {
        impl Maps for $family {
            #[inline(always)]
            fn frontend(key: &FrontendKey<Self>) -> Option<Frontend> {
                // SAFETY: copied out at once; without preallocation an entry is freed only after
                // a grace period.
                unsafe { $frontends.get(key) }.copied()
            }

            #[inline(always)]
            fn backend(id: u32) -> Option<Backend<Self>> {
                $backends.get(id).copied().filter(Backend::is_live)
            }

            #[inline(always)]
            fn affinity(client: &AffinityKey) -> Option<Ref<Affinity>> {
                let entry = NonNull::new($affinity.get_ptr_mut(client)?)?;
                // SAFETY: as for `conntrack`.
                Some(unsafe { Ref::new(entry) })
            }

            #[inline(always)]
            fn keep(client: &AffinityKey, affinity: &Affinity) {
                // A full LRU map makes room; the client can do without the entry.
                let _ = $affinity.insert(client, affinity, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn has_source(source: &Source<Self>) -> bool {
                let bits = 8 * size_of::<Source<Self>>() as u32;
                $sources.get(&Key::new(bits, *source)).is_some()
            }

            #[inline(always)]
            fn conntrack(flow: &CtKey<Self>) -> Option<CtRef<Self>> {
                let entry =
                    $conntrack.get_ptr_mut(flow).or_else(|| $half_open.get_ptr_mut(flow))?;
                let entry = NonNull::new(entry)?;
                // SAFETY: elements of an LRU map stay allocated for as long as the map; one that
                // is reused meanwhile holds another valid entry.
                Some(unsafe { CtRef::new(entry) })
            }

            #[inline(always)]
            fn track(flow: &CtKey<Self>, entry: CtRef<Self>) {
                // SAFETY: the entry is allocated, and nothing else writes to it meanwhile.
                let entry = unsafe { &*entry.as_ptr() };
                // A full LRU map makes room; the flow can do without the entry.
                if CtState(entry.state).is_half_open() {
                    let _ = $half_open.insert(flow, entry, u64::from(BPF_ANY));
                    return;
                }
                // Nearly always there is none.
                if $conntrack.insert(flow, entry, u64::from(BPF_NOEXIST)).is_ok() {
                    count_flow($turnover);
                } else {
                    let _ = $conntrack.insert(flow, entry, u64::from(BPF_ANY));
                }
            }

            #[inline(always)]
            fn claim(flow: &CtKey<Self>, entry: CtRef<Self>) -> bool {
                // SAFETY: as for `track`.
                let entry = unsafe { &*entry.as_ptr() };
                if CtState(entry.state).is_half_open() {
                    return $half_open.insert(flow, entry, u64::from(BPF_NOEXIST)).is_ok();
                }
                let is_claimed = $conntrack.insert(flow, entry, u64::from(BPF_NOEXIST)).is_ok();
                if is_claimed {
                    count_flow($turnover);
                }
                is_claimed
            }

            #[inline(always)]
            fn forget(flow: &CtKey<Self>) {
                // One that is gone already is as good.
                if $conntrack.remove(flow).is_ok() {
                    count_flow($turnover + 1);
                }
                Self::forget_half_open(flow);
            }

            #[inline(always)]
            fn forget_half_open(flow: &CtKey<Self>) {
                let _ = $half_open.remove(flow);
            }

            #[inline(always)]
            fn scratch() -> Option<CtRef<Self>> {
                let entry = NonNull::new($scratch.get_ptr_mut(0)?)?;
                // SAFETY: a per-CPU array stays allocated; TC programs are not preempted by each
                // other.
                Some(unsafe { CtRef::new(entry) })
            }

            #[inline(always)]
            fn headers() -> Option<&'static mut Headers<Self>> {
                // SAFETY: as for `scratch`; one program run looks at one packet.
                unsafe { $headers.get_ptr_mut(0)?.as_mut() }
            }

            #[inline(always)]
            fn decision() -> Option<&'static mut CachedFlow<Self>> {
                // SAFETY: as for `headers`.
                unsafe { $decision.get_ptr_mut(0)?.as_mut() }
            }

            #[inline(always)]
            fn cached(place: u32) -> Option<*mut CachedFlow<Self>> {
                $flows.get_ptr_mut(place)
            }

            #[inline(always)]
            fn swept() -> Option<&'static mut Swept> {
                // SAFETY: an array stays allocated; the agent walks in one thread.
                unsafe { $swept.get_ptr_mut(0)?.as_mut() }
            }

            #[inline(always)]
            fn source(device: &Device) -> Option<Self> {
                $source(device)
            }
        }
    };
}

maps!(
    Ipv4,
    FRONTENDS_V4,
    BACKENDS_V4,
    AFFINITY_V4,
    SOURCE_RANGES_V4,
    CONNTRACK_V4,
    HALF_OPEN_V4,
    SCRATCH_V4,
    HEADERS_V4,
    DECISION_V4,
    FLOWS_V4,
    SWEPT_V4,
    0,
    |device: &Device| { Some(device.source_v4).filter(|source| *source != Ipv4(0)) }
);
maps!(
    Ipv6,
    FRONTENDS_V6,
    BACKENDS_V6,
    AFFINITY_V6,
    SOURCE_RANGES_V6,
    CONNTRACK_V6,
    HALF_OPEN_V6,
    SCRATCH_V6,
    HEADERS_V6,
    DECISION_V6,
    FLOWS_V6,
    SWEPT_V6,
    2,
    |device: &Device| { Some(device.source_v6).filter(|source| *source != Ipv6([0; 4])) }
);

/// [`Backends`] in the maps of one family.
pub struct BpfBackends<A>(PhantomData<A>);

impl<A> BpfBackends<A> {
    /// All of them.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<A: Address + Maps> Backends<A> for BpfBackends<A> {
    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend<A>> {
        A::backend(id)
    }

    #[inline(always)]
    fn affinity(&self, client: &AffinityKey) -> Option<Ref<Affinity>> {
        A::affinity(client)
    }

    #[inline(always)]
    fn keep(&self, client: &AffinityKey, affinity: &Affinity) {
        A::keep(client, affinity);
    }

    #[inline(always)]
    fn nanoseconds(&self) -> u64 {
        nanoseconds()
    }
}

/// May this CPU remember one more flow that is not proven, in this tick?
#[inline(always)]
pub fn may_remember() -> bool {
    let Some(opening) = OPENING.get_ptr_mut(0) else { return false };
    // SAFETY: a per-CPU value, and a TC program is not preempted by another one.
    unsafe { (*opening).admit(now(), HALF_OPEN_RATE.load()) }
}

/// The backend id in a slot of a region.
#[inline(always)]
pub fn slot(region: Region, slot: u32) -> Option<u32> {
    let chunk = region.first_chunk + slot / SLOTS_PER_CHUNK;
    let chunk = SLOTS.get_value(chunk / CHUNKS_PER_ARRAY, &(chunk % CHUNKS_PER_ARRAY))?;
    chunk.get((slot % SLOTS_PER_CHUNK) as usize).copied().filter(|id| *id != 0)
}

/// A question to the routing table, and its answer.
#[repr(C)]
pub struct RouteQuery {
    /// Both, as the kernel has them.
    pub lookup: bpf_fib_lookup,
    /// Not zero if the next hop's link-layer address is known.
    pub is_known: u32,
}

/// Room for one question, for this CPU and this program run.
#[inline(always)]
pub fn route_query() -> Option<&'static mut RouteQuery> {
    // SAFETY: a per-CPU array stays allocated; TC programs are not preempted by each other, and
    // none asks two questions at a time.
    unsafe { ROUTE.get_ptr_mut(0)?.as_mut() }
}

/// Counts one entry that is made or removed.
///
/// A function of its own, as others below that are called from many places: each look into a map is as many
/// instructions wherever it stands, and the kernel's time to load a program grows with both.
#[inline(always)]
fn count_flow(index: u32) {
    lb_count_flow(index);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_count_flow(index: u32) -> u32 {
    if let Some(entries) = TURNOVER.get_ptr_mut(index) {
        // SAFETY: a per-CPU value; what an interruption loses is one entry.
        unsafe { *entries += 1 };
    }
    0
}

/// Counts one packet.
#[inline(always)]
pub fn count(counter: Counter) {
    count_number(counter as u32);
}

/// Counts one packet under the counter of this number, if there is one.
#[inline(always)]
pub fn count_number(counter: u32) {
    lb_count(counter);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_count(counter: u32) -> u32 {
    if let Some(packets) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: a per-CPU value, and a TC program is not preempted by another one.
        unsafe { *packets += 1 };
    }
    0
}

/// The time in units of 2^30 ns.
#[inline(always)]
pub fn now() -> u32 {
    (nanoseconds() >> TICK_SHIFT) as u32
}

#[inline(always)]
fn nanoseconds() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
