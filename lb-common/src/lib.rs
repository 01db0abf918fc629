//! Types and pure logic shared by the kernel programs and the agent.
//!
//! | module | what |
//! |---|---|
//! | [`abi`] | every byte that crosses the kernel boundary, and nothing else |
//! | [`filter`], [`cache`] | two bits that tell what is not ours; what is known of a flow, in one cache line |
//! | [`presence`] | one byte that tells that a flow has no entry |
//! | [`flow`] | a 5-tuple as it stands on the wire, and its hash |
//! | [`conntrack`] | what a packet makes of the state of its flow; how long a silent flow is kept |
//! | [`checksum`], [`crc32c`] | RFC 1624 arithmetic; the same for the checksum of SCTP |
//! | [`carrier`] | how a packet is brought to another node, and what it says of its backend |
//! | [`limit`], [`opening`] | how many answers of its own a node makes; how many flows it remembers before they are proven |
//! | [`maglev`] | the table of slots (feature `alloc`) |
//!
//! Not for: anything that talks to a kernel, from either side.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod abi;
pub mod cache;
pub mod carrier;
pub mod checksum;
pub mod conntrack;
pub mod crc32c;
pub mod filter;
pub mod flow;
pub mod limit;
#[cfg(feature = "alloc")]
pub mod maglev;
pub mod opening;
pub mod presence;
