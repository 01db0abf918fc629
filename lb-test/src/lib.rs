//! Topologies of network namespaces and real programs in them, for tests, demo and benchmarks.
//!
//! A [`Topology`] is a small cluster on one machine: a fabric router, nodes, pods and clients
//! outside, each in its own network namespace and cgroup. It goes away when it is dropped, after
//! a panic too, and what a killed run left behind goes away when the next run starts.
//!
//! ```text
//!   client ──┐ 172.21.0.0/24             172.20.0.0/24 ┌── node1 ─┬─ pod (routed)
//!            ├── outside0 ── fabric ── br0 ────────────┤          └─ cbr0 ─ pod (bridged)
//!   client2 ─┘               (router)                  └── node2 ─── pod
//! ```
//!
//! Nothing here touches the devices, the root cgroup or the routes of the machine itself.

pub mod address;
pub mod agent;
mod assembly;
pub mod builder;
pub mod cgroup;
pub mod clock;
pub mod host;
pub mod kubernetes;
pub mod manifests;
pub mod netns;
pub mod process;
pub mod prog;
pub mod programs;
pub mod require;
pub mod run;
pub mod topology;
pub mod wait;
mod wiring;
mod world;

pub use address::Family;
pub use agent::{Agent, AgentOptions, Room, SocketLb, Source};
pub use builder::{NodeSpec, PodSpec};
pub use host::Host;
pub use process::Process;
pub use topology::{Node, Pod, Topology};
pub use wait::{PATIENT, eventually, hold_once, try_eventually};
