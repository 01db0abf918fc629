//! What is fixed at load: read-only, so that the verifier removes dead paths.

use aya_ebpf::Global;
use lb_common::{carrier, conntrack::Timeouts};

/// 64 less the binary logarithm of the number of cached flows.
#[unsafe(no_mangle)]
pub static FLOWS_SHIFT: Global<u32> = Global::new(64 - 18);
/// Not zero if packets are carried by IPIP in place of GUE.
#[unsafe(no_mangle)]
pub static CARRIER_IPIP: Global<u32> = Global::new(0);
/// Port that carriers of GUE come to and are sent to, in host order; zero for none.
#[unsafe(no_mangle)]
pub static CARRIER_PORT: Global<u32> = Global::new(carrier::PORT as u32);
/// Ticks until a silent half-closed connection is forgotten.
#[unsafe(no_mangle)]
pub static CT_TCP_CLOSE_WAIT: Global<u32> = Global::new(Timeouts::DEFAULT.tcp_close_wait);
/// Ticks until a silent connection is forgotten.
#[unsafe(no_mangle)]
pub static CT_TCP_ESTABLISHED: Global<u32> = Global::new(Timeouts::DEFAULT.tcp_established);
/// Ticks until silent datagrams without an answer are forgotten.
#[unsafe(no_mangle)]
pub static CT_UDP: Global<u32> = Global::new(Timeouts::DEFAULT.udp);
/// Ticks until a silent stream of datagrams is forgotten.
#[unsafe(no_mangle)]
pub static CT_UDP_STREAM: Global<u32> = Global::new(Timeouts::DEFAULT.udp_stream);
/// Flows that one CPU remembers in a tick before they are proven.
#[unsafe(no_mangle)]
pub static HALF_OPEN_RATE: Global<u32> = Global::new(16384);
/// Cookie of the agent's own network namespace.
#[unsafe(no_mangle)]
pub static HOST_NETNS: Global<u64> = Global::new(0);
/// Mark for packets that are translated already.
#[unsafe(no_mangle)]
pub static MARK: Global<u32> = Global::new(1);
/// Not zero if connections that began before us are left to the stack.
#[unsafe(no_mangle)]
pub static MIGRATE: Global<u32> = Global::new(0);
/// Not zero if TCP connections to a backend that was removed are reset.
#[unsafe(no_mangle)]
pub static RESET_TCP: Global<u32> = Global::new(0);
/// Not zero if a refused `connect` can say `ECONNREFUSED`.
#[unsafe(no_mangle)]
pub static SET_RETVAL: Global<u32> = Global::new(0);
/// First port of the SNAT range.
#[unsafe(no_mangle)]
pub static SNAT_FIRST: Global<u32> = Global::new(61000);
/// Number of ports of the SNAT range.
#[unsafe(no_mangle)]
pub static SNAT_COUNT: Global<u32> = Global::new(4536);
/// Not zero if only sockets of the host are translated.
#[unsafe(no_mangle)]
pub static SOCKET_HOST_ONLY: Global<u32> = Global::new(0);
