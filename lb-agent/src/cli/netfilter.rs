//! Flags for netfilter's conntrack, with kube-proxy's names and defaults.

use clap::{ArgAction, Args};

use crate::config::{NetfilterSettings, Seconds};

/// Netfilter's conntrack is not the agent's own, which has `--conntrack-max`; times are for both.
#[derive(Args, Debug)]
#[command(
    next_help_heading = "Netfilter's conntrack, set as kube-proxy does (0: left alone), and times of the agent's own"
)]
#[allow(clippy::struct_field_names, reason = "flags are named by their fields")]
pub(super) struct NetfilterArgs {
    /// Entries of netfilter's table for each CPU
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    conntrack_max_per_core: u32,
    /// Entries of netfilter's table, however few CPUs there are
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    conntrack_min: u32,
    /// How long an idle TCP connection is remembered [for ours, 0 means 24h]
    #[arg(long, value_name = "TIME", default_value = "24h")]
    conntrack_tcp_timeout_established: Seconds,
    /// How long a half-closed TCP connection is remembered [for ours, 0 means 1h]
    #[arg(long, value_name = "TIME", default_value = "1h")]
    conntrack_tcp_timeout_close_wait: Seconds,
    /// Makes netfilter take TCP packets outside of the window as valid
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    conntrack_tcp_be_liberal: bool,
    /// How long datagrams without an answer are remembered [for ours, 0 means 30s]
    #[arg(long, value_name = "TIME", default_value = "0")]
    conntrack_udp_timeout: Seconds,
    /// How long an idle stream of datagrams is remembered [for ours, 0 means 2m]
    #[arg(long, value_name = "TIME", default_value = "0")]
    conntrack_udp_timeout_stream: Seconds,
}

impl NetfilterArgs {
    /// As settings.
    pub(super) fn settings(&self) -> NetfilterSettings {
        NetfilterSettings {
            max_per_core: self.conntrack_max_per_core,
            min: self.conntrack_min,
            tcp_established: self.conntrack_tcp_timeout_established.0,
            tcp_close_wait: self.conntrack_tcp_timeout_close_wait.0,
            tcp_be_liberal: self.conntrack_tcp_be_liberal,
            udp: self.conntrack_udp_timeout.0,
            udp_stream: self.conntrack_udp_timeout_stream.0,
        }
    }
}
