//! What the kernel holds, and how it is changed: the edge that `reconcile` acts through.
//!
//! [`Tables`] is all that the agent writes for Services. `bpf` performs it on pinned maps, `fake`
//! in memory. Not for: deciding what to write, or in which order.

mod backends;
mod cgroup;
mod clsact;
mod control;
mod drain;
pub mod fake;
pub mod faulty;
mod filter;
mod kernel;
mod load;
mod map;
mod mapped;
mod memory;
mod options;
mod pings;
mod pins;
mod presence;
mod reader;
mod sizes;
mod slots;
mod sources;
mod stale;
mod sys;
mod tables;
mod targets;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind, Region, maps};

use crate::model::Family;

pub use crate::desired::FrontendAddress;
pub use control::FlowCache;
pub use drain::Drain;
pub use kernel::{Kernel, KernelError};
pub use load::object;
pub use memory::Memory;
pub use options::{KernelOptions, MidFlow, SocketLb, TcAttach, XdpMode};
pub use pins::{CleanupError, PinsError, check_version, cleanup};
pub use reader::{MapFill, Reader};
pub use sizes::{SizeKept, pinned_conntrack};
pub use stale::StaleFinder;
pub use tables::KernelTables;
pub use xdp::XdpHook;

/// The setting that gives a map more room; empty where its size is fixed.
fn size_flag(map: &str) -> Option<&'static str> {
    match map {
        maps::FRONTENDS_V4 | maps::FRONTENDS_V6 => Some("max-frontends"),
        maps::BACKENDS_V4 | maps::BACKENDS_V6 | maps::TARGETS_V4 | maps::TARGETS_V6 => {
            Some("max-backends")
        }
        maps::AFFINITY_V4 | maps::AFFINITY_V6 => Some("affinity-max"),
        maps::CONNTRACK_V4 | maps::CONNTRACK_V6 | maps::HALF_OPEN_V4 | maps::HALF_OPEN_V6 => {
            Some("conntrack-max")
        }
        maps::SOURCE_RANGES_V4 | maps::SOURCE_RANGES_V6 => Some(""),
        _ => None,
    }
}

/// Number of a Service port in the kernel's tables; never zero.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceId(pub u32);

/// Place of a backend in the table of its family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BackendId {
    /// Which table.
    pub family: Family,
    /// Index; zero is never used.
    pub index: u32,
}

/// One entry of the frontend table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrontendEntry {
    /// The Service port it belongs to.
    pub service: ServiceId,
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// Refuse or drop, for whom, and which list each side chooses from.
    pub flags: FrontendFlags,
    /// Affinity timeout in seconds; zero without affinity.
    pub affinity_timeout: u32,
    /// Slots for clients on this node.
    pub internal: Region,
    /// Slots for clients from outside.
    pub external: Region,
}

/// One entry of a backend table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackendEntry {
    /// Address and port of the endpoint; of the family of its [`BackendId`].
    pub address: SocketAddr,
    /// Local, serving, open to affinity.
    pub flags: BackendFlags,
    /// Which use of the id it is; never zero.
    pub generation: u32,
    /// The Service port it belongs to.
    pub service: ServiceId,
}

/// One write. A list of them is performed in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Writes a backend, or replaces one.
    PutBackend(BackendId, BackendEntry),
    /// Writes the slots of a region that no frontend uses yet: backend indices.
    PutRegion(Region, Arc<[u32]>),
    /// Lets a range of sources in to a Service port whose frontends check them.
    PutSourceRange(ServiceId, IpNet),
    /// Writes a frontend, or replaces one whole.
    PutFrontend(FrontendAddress, FrontendEntry),
    /// Removes a frontend; one that is not there is no error.
    RemoveFrontend(FrontendAddress),
    /// Waits until no program can still be reading what earlier steps replaced or removed.
    Settle,
    /// Clears a backend, but keeps note of its generation.
    RemoveBackend(BackendId),
    /// Lets a range of sources in no longer; one that is not there is no error.
    RemoveSourceRange(ServiceId, IpNet),
}

/// Everything the tables hold, read back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Frontends by address.
    pub frontends: BTreeMap<FrontendAddress, FrontendEntry>,
    /// Live backends by id.
    pub backends: BTreeMap<BackendId, BackendEntry>,
    /// Generation of the last use of each cleared backend, where the table keeps it: the next use
    /// must have another, also by another agent.
    pub retired: BTreeMap<BackendId, u32>,
    /// Slots of each region that a frontend names, by its first chunk.
    pub regions: BTreeMap<u32, (Region, Arc<[u32]>)>,
    /// Whom Service ports let in, where their frontends check it.
    pub source_ranges: BTreeSet<(ServiceId, IpNet)>,
}

/// Why a step was not performed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A table has no room; the size is a setting.
    #[error("map {map} is full at {capacity} entries; raise --{flag}")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its size.
        capacity: u32,
        /// The setting that mends it.
        flag: &'static str,
    },
    /// The map is of another version of this program.
    #[error(
        "map {map} has entries of another size, left by another version: `lb-agent cleanup` removes it"
    )]
    Shape {
        /// Name of the map.
        map: &'static str,
    },
    /// A system call ended with an error.
    #[error("{operation} of map {map}: {source}")]
    System {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// How far [`Tables::perform`] came.
#[derive(Debug, thiserror::Error)]
#[error("step {done}: {source}")]
pub struct PerformError {
    /// Steps before this index have been performed; this one has not.
    pub done: usize,
    /// Why.
    pub source: TableError,
}

/// The kernel's tables for Services.
pub trait Tables: Send {
    /// Performs the steps in order and stops at the first that fails.
    ///
    /// Neighbouring steps of one kind may be written in one system call.
    ///
    /// # Errors
    ///
    /// The index of the failed step, and why.
    fn perform(&mut self, steps: &[Step]) -> Result<(), PerformError>;

    /// Reads everything back.
    ///
    /// # Errors
    ///
    /// A system call that failed.
    fn snapshot(&mut self) -> Result<Snapshot, TableError>;

    /// How many backends of a family the table holds (ids are `1..capacity`).
    fn backend_capacity(&self, family: Family) -> u32;
}
