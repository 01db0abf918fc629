//! The command line: what is asked for, and what it ends with.
//!
//! Exit codes: 0 fine, 1 failed or unhealthy, 2 usage. Every flag `--some-name` is also the
//! environment variable `LB_SOME_NAME`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::telemetry::{self, LogFormat};

mod check;
mod cleanup;
mod forwarding;
mod local;
mod netfilter;
mod output;
mod parse;
pub mod run;
mod services;
mod status;

pub use services::{Answer, ServiceRow, rows};

const EXAMPLES: &str = "\
Examples:
  lb-agent check                                  what is missing on this node?
  lb-agent run --manifests ./services             Services from a folder, no cluster needed
  lb-agent run --kubeconfig /etc/kubernetes/lb    Services from a cluster
  lb-agent services -o wide                       who answers where
  lb-agent cleanup                                leave the node as it was

Exit codes: 0 fine, 1 failed or unhealthy, 2 usage.
A setting comes from its flag, else from its LB_ variable, else from --config, else its default.";

/// Load balances Kubernetes Services with eBPF, without iptables, nftables or IPVS.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version, after_help = EXAMPLES, subcommand_required = true)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
    /// What to say of the file before anything else.
    #[arg(skip)]
    note: Option<String>,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
struct Common {
    /// Folder of the pinned maps, programs and links; made, and bpffs mounted there, if absent
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lb", global = true)]
    bpffs: PathBuf,
    /// What is logged: error, warn, info, debug, trace, or filter directives
    #[arg(short = 'v', long, value_name = "LEVEL", default_value = "info", global = true)]
    #[arg(value_parser = parse_filter)]
    log_level: String,
    /// Shape of log lines
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The node agent: keeps the kernel's tables in step until it is told to stop
    Run(Box<run::RunArgs>),
    /// Can this node run the agent? Each shortfall with its mend
    Check(Box<check::CheckArgs>),
    /// Health of the agent, attached devices, map fill, packets not translated
    Status(output::OutputArgs),
    /// Frontends and their backends; works with the agent dead
    Services(services::ServicesArgs),
    /// Removes everything the agent left on this node
    Cleanup(cleanup::CleanupArgs),
}

/// Does what the command line asks for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse::parse(arguments) {
        Ok(cli) => cli,
        Err(stop) => return stop.exit(),
    };
    telemetry::install(&cli.common.log_level, cli.common.log_format);
    if let Some(note) = &cli.note {
        tracing::warn!("{note}");
    }
    match cli.perform() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each told once: many of ours quote their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| match cause.to_string() {
        cause if told.contains(&cause) => told,
        cause if told.is_empty() => cause,
        cause => format!("{told}: {cause}"),
    })
}

impl Cli {
    fn perform(self) -> anyhow::Result<ExitCode> {
        let bpffs = self.common.bpffs;
        match self.command {
            Command::Run(arguments) => run::run(*arguments, bpffs),
            Command::Check(arguments) => check::check(&arguments, &bpffs),
            Command::Status(arguments) => status::status(arguments, &bpffs),
            Command::Services(arguments) => services::services(&arguments, &bpffs),
            Command::Cleanup(arguments) => cleanup::cleanup(&arguments, &bpffs),
        }
    }
}

fn parse_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
