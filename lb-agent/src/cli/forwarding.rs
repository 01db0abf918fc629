//! Flags of `run` and `check` for the way to endpoints on other nodes.

use clap::Args;

use crate::config::{DsrDispatch, Forwarding};

/// How packets come to endpoints on other nodes.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ForwardingArgs {
    /// How packets of clients outside come to endpoints on other nodes; a Service may say otherwise
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Forwarding::Snat)]
    pub(super) forwarding: Forwarding,
    /// What packets are carried in between nodes for dsr: UDP, or IP alone, which leaves them more room
    #[arg(long, value_enum, value_name = "HOW", default_value_t = DsrDispatch::Gue)]
    pub(super) dsr_dispatch: DsrDispatch,
    /// UDP port that packets are carried to between nodes for dsr, the same on all; 0 for none
    #[arg(long, value_name = "PORT", default_value_t = lb_common::carrier::PORT)]
    pub(super) dsr_port: u16,
}
