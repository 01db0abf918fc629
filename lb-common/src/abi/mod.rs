//! Every byte that crosses the kernel boundary, and nothing else.
//!
//! All types are `#[repr(C)]`, without hidden padding (the [`layout::abi`] macro proves it at
//! compile time) and valid for every bit pattern. Addresses and ports are in network order, and
//! their types say so. A change of any layout asks for a new [`ABI_VERSION`]: an agent never
//! writes into maps of another version.

mod addr;
mod affinity;
mod backend;
mod cached;
mod conntrack;
mod control;
mod counter;
mod device;
mod fragment;
mod frontend;
mod layout;
mod presence;
mod socket;
mod source;
mod target;
mod wire;

pub use addr::{Address, BePort, Ipv4, Ipv6, L4Proto};
pub use affinity::{Affinity, AffinityKey, ClientKind};
pub use backend::{Backend, BackendFlags};
pub use cached::{CachedFlow, Hinted, NextHop};
pub use conntrack::{CtAction, CtEntry, CtKey, Swept};
pub use control::Control;
pub use counter::{Counter, CounterKind};
pub use device::{Device, DeviceFlags, DeviceRole};
pub use fragment::{Fragment, FragmentAction, FragmentKey};
pub use frontend::{Frontend, FrontendFlags, FrontendKey, FrontendKind, Region};
pub use layout::Abi;
pub use presence::Presence;
pub use socket::{SOCKET_PAIRS, SocketPair, SocketPeers, StaleSocket};
pub use source::{LOCAL_SOURCES, Source, SourceRange};
pub use target::Target;
pub use wire::{PlainIpv4, PlainIpv6};

/// Version of all layouts below, recorded beside the pinned maps.
pub const ABI_VERSION: u32 = 5;

/// Slots in one element of a chunk array: one cache line.
pub const SLOTS_PER_CHUNK: u32 = 16;
/// Elements of one inner array of `SLOTS`: as many as the largest Maglev table needs.
pub const CHUNKS_PER_ARRAY: u32 = 4096;
/// Inner arrays that `SLOTS` can hold.
pub const MAX_CHUNK_ARRAYS: u32 = 1024;
/// One cache line of slots: backend ids of the frontend's family.
pub type Chunk = [u32; SLOTS_PER_CHUNK as usize];

/// Names of the maps.
pub mod maps {
    /// All that are pinned: `FLOWS` and what fragments wait in are not, since nothing is lost with them.
    pub const ALL: [&str; 22] = [
        AFFINITY_V4,
        AFFINITY_V6,
        BACKENDS_V4,
        BACKENDS_V6,
        CONNTRACK_V4,
        CONNTRACK_V6,
        CONTROL,
        COUNTERS,
        DEVICES,
        FRAGMENTS_V4,
        FRAGMENTS_V6,
        FRONTENDS_V4,
        FRONTENDS_V6,
        HALF_OPEN_V4,
        HALF_OPEN_V6,
        PRESENCE,
        SLOTS,
        SOCKETS,
        SOURCE_RANGES_V4,
        SOURCE_RANGES_V6,
        TARGETS_V4,
        TARGETS_V6,
    ];
    /// LRU hash: [`AffinityKey`](super::AffinityKey) → [`Affinity`](super::Affinity) to a backend of
    /// IPv4.
    pub const AFFINITY_V4: &str = "AFFINITY_V4";
    /// LRU hash: [`AffinityKey`](super::AffinityKey) → [`Affinity`](super::Affinity) to a backend of
    /// IPv6.
    pub const AFFINITY_V6: &str = "AFFINITY_V6";
    /// Array: backend id → [`Backend`](super::Backend) of IPv4.
    pub const BACKENDS_V4: &str = "BACKENDS_V4";
    /// Array: backend id → [`Backend`](super::Backend) of IPv6.
    pub const BACKENDS_V6: &str = "BACKENDS_V6";
    /// LRU hash: [`CtKey`](super::CtKey) → [`CtEntry`](super::CtEntry), IPv4.
    pub const CONNTRACK_V4: &str = "CONNTRACK_V4";
    /// LRU hash: [`CtKey`](super::CtKey) → [`CtEntry`](super::CtEntry), IPv6.
    pub const CONNTRACK_V6: &str = "CONNTRACK_V6";
    /// Array of one [`Control`](super::Control).
    pub const CONTROL: &str = "CONTROL";
    /// Per-CPU array: [`Counter`](super::Counter) → `u64`.
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash: interface index → [`Device`](super::Device).
    pub const DEVICES: &str = "DEVICES";
    /// Array: place of a flow ([`cache`](crate::cache)) → [`CachedFlow`](super::CachedFlow), IPv4.
    pub const FLOWS_V4: &str = "FLOWS_V4";
    /// Array: place of a flow ([`cache`](crate::cache)) → [`CachedFlow`](super::CachedFlow), IPv6.
    pub const FLOWS_V6: &str = "FLOWS_V6";
    /// LRU hash: [`FragmentKey`](super::FragmentKey) → [`Fragment`](super::Fragment), IPv4.
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    /// LRU hash: [`FragmentKey`](super::FragmentKey) → [`Fragment`](super::Fragment), IPv6.
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    /// Per-CPU array, not pinned: `u64` entries of conntrack made and removed, for IPv4, then IPv6.
    pub const TURNOVER: &str = "TURNOVER";
    /// Array of one [`filter::Words`](crate::filter::Words), not pinned: the ends of living flows.
    pub const LIVING: &str = "LIVING";
    /// Hash: [`FrontendKey`](super::FrontendKey) → [`Frontend`](super::Frontend), IPv4.
    pub const FRONTENDS_V4: &str = "FRONTENDS_V4";
    /// Hash: [`FrontendKey`](super::FrontendKey) → [`Frontend`](super::Frontend), IPv6.
    pub const FRONTENDS_V6: &str = "FRONTENDS_V6";
    /// LRU hash: [`CtKey`](super::CtKey) → [`CtEntry`](super::CtEntry) of flows that are not proven, IPv4.
    pub const HALF_OPEN_V4: &str = "HALF_OPEN_V4";
    /// LRU hash: [`CtKey`](super::CtKey) → [`CtEntry`](super::CtEntry) of flows that are not proven, IPv6.
    pub const HALF_OPEN_V6: &str = "HALF_OPEN_V6";
    /// Array of two [`Presence`](super::Presence).
    pub const PRESENCE: &str = "PRESENCE";
    /// Array of arrays of [`Chunk`](super::Chunk).
    pub const SLOTS: &str = "SLOTS";
    /// Socket storage: [`SocketPeers`](super::SocketPeers).
    pub const SOCKETS: &str = "SOCKETS";
    /// Prefix trie: [`SourceRange`](super::SourceRange) → `u32` that says nothing, IPv4.
    pub const SOURCE_RANGES_V4: &str = "SOURCE_RANGES_V4";
    /// Prefix trie: [`SourceRange`](super::SourceRange) → `u32` that says nothing, IPv6.
    pub const SOURCE_RANGES_V6: &str = "SOURCE_RANGES_V6";
    /// Hash: [`Target`](super::Target) → `u32` backend id, IPv4.
    pub const TARGETS_V4: &str = "TARGETS_V4";
    /// Hash: [`Target`](super::Target) → `u32` backend id, IPv6.
    pub const TARGETS_V6: &str = "TARGETS_V6";
}

/// Names of the read-only globals that the agent sets at load.
pub mod globals {
    /// `u32`: 64 less the binary logarithm of the number of elements of `FLOWS`.
    pub const FLOWS_SHIFT: &str = "FLOWS_SHIFT";
    /// `u32`: not zero if packets are carried by IPIP in place of GUE.
    pub const CARRIER_IPIP: &str = "CARRIER_IPIP";
    /// `u32`: port that carriers of GUE come to and are sent to; zero for none.
    pub const CARRIER_PORT: &str = "CARRIER_PORT";
    /// `u32`: ticks until a silent half-closed connection is forgotten.
    pub const CT_TCP_CLOSE_WAIT: &str = "CT_TCP_CLOSE_WAIT";
    /// `u32`: ticks until a silent connection is forgotten.
    pub const CT_TCP_ESTABLISHED: &str = "CT_TCP_ESTABLISHED";
    /// `u32`: ticks until silent datagrams without an answer are forgotten.
    pub const CT_UDP: &str = "CT_UDP";
    /// `u32`: ticks until a silent stream of datagrams is forgotten.
    pub const CT_UDP_STREAM: &str = "CT_UDP_STREAM";
    /// `u32`: flows that one CPU remembers in a tick before they are proven.
    pub const HALF_OPEN_RATE: &str = "HALF_OPEN_RATE";
    /// `u64`: cookie of the agent's own network namespace.
    pub const HOST_NETNS: &str = "HOST_NETNS";
    /// `u32`: mark for packets translated already; different on each node.
    pub const MARK: &str = "MARK";
    /// `u32`: not zero if connections that began before us are left to the stack.
    pub const MIGRATE: &str = "MIGRATE";
    /// `u32`: not zero if connections to a backend that was removed are reset.
    pub const RESET_TCP: &str = "RESET_TCP";
    /// `u32`: not zero if a refused `connect` can say `ECONNREFUSED` (Linux 5.18).
    pub const SET_RETVAL: &str = "SET_RETVAL";
    /// `u32`: first port of the SNAT range.
    pub const SNAT_FIRST: &str = "SNAT_FIRST";
    /// `u32`: number of ports of the SNAT range.
    pub const SNAT_COUNT: &str = "SNAT_COUNT";
    /// `u32`: not zero if only sockets of the host are translated.
    pub const SOCKET_HOST_ONLY: &str = "SOCKET_HOST_ONLY";
}
