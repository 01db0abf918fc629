//! What happens to a packet, as code that needs no kernel.
//!
//! ```text
//! hook (binary) ─► packet (bytes) ─► parse (headers, flow) ─► path (what to do) ─► rewrite
//!                                                               │
//!                                                               ▼
//!                                                             tables (what the maps say)
//! ```
//!
//! Generic over [`packet::Packet`] and [`tables::Tables`], once for IPv4 and IPv6: the hooks of the
//! binary instantiate it over socket buffers and BPF maps, the tests over byte buffers and fakes.
//! Not for: anything that calls the kernel.
#![cfg_attr(not(any(test, feature = "cases")), no_std)]

pub mod affinity;
#[cfg(any(test, feature = "cases"))]
pub mod cases;
mod extension;
#[cfg(test)]
mod fake;
pub mod packet;
pub mod parse;
pub mod path;
pub mod rewrite;
pub mod tables;
#[cfg(test)]
mod tests;
