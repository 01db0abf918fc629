//! The node agent.
//!
//! ```text
//! source (kube watch | manifest folder) ─► model ─► desired (pure) ─► reconcile ─► dataplane ─► kernel
//! netlink (links, addresses)            ─► node facts ──┘                            (maps, programs, links)
//! ```

pub mod dataplane;
pub mod desired;
pub mod model;
pub mod reconcile;
