//! The node agent.
//!
//! ```text
//! source (kube watch | manifest folder) ─► model ─► desired (pure) ─► reconcile ─► dataplane ─► kernel
//! netlink (links, addresses)            ─► node facts ──┘                            (maps, programs, links)
//! ```

pub mod agent;
pub mod check;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod desired;
pub mod health;
pub mod instance;
pub mod model;
pub mod names;
pub mod net;
pub mod reconcile;
pub mod source;
pub mod sysctl;
pub mod telemetry;
