//! A client and UDP server for tests: what it meets goes to stdout as one JSON object a line.
//!
//! Socket programs work per cgroup, which a test's own threads can't change, so a test runs this
//! binary as a process of the node or pod. An address like `[::ffff:10.96.0.1]:80` makes an IPv6
//! socket that speaks IPv4. Failures of what is probed are lines; the exit code stays 0.

mod bind;
mod http;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Probes Services and prints JSON lines")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Binds each address in turn, by TCP and by UDP; prints `bound` or `failure` for each
    Bind {
        /// Addresses and ports
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
    },
    /// Gets `/` over new connections; prints an `answer` or `failure` each, then a `summary`
    TcpGet(Requests),
    /// Gets `/` again and again over connections that stay; prints `ready`, each `failure`, and a
    /// `summary`
    TcpKeepalive(Kept),
    /// Connects and prints `peer`, the address that getpeername shows
    Peername(Target),
    /// Sends datagrams; prints an `answer` with payload and source, or a `failure`, each
    Udp(Datagrams),
    /// Answers datagrams with `<name>:<client address>:<payload>`
    UdpServer(Server),
}

#[derive(Args)]
struct Target {
    /// Address and port
    address: SocketAddr,
    /// How long each answer may take
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 5000)]
    timeout: u64,
}

impl Target {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }
}

#[derive(Args)]
struct Requests {
    #[command(flatten)]
    target: Target,
    /// Connections at the same time
    #[arg(long, visible_alias = "connections", default_value_t = 1)]
    parallel: usize,
    /// Prints each answer over a connection that stays
    #[arg(long)]
    each: bool,
    /// How many and how often
    #[command(flatten)]
    pace: Pace,
}

#[derive(Args)]
struct Kept {
    #[command(flatten)]
    requests: Requests,
    /// Takes another connection for one that the server has ended, as browsers do
    #[arg(long)]
    reconnect: bool,
}

#[derive(Args)]
struct Datagrams {
    #[command(flatten)]
    target: Target,
    /// Connects the socket, so that only the address it sent to may answer
    #[arg(long)]
    connected: bool,
    /// Connects anew when somebody has closed the connected socket
    #[arg(long, requires = "connected")]
    reconnect: bool,
    /// Sends to this address as well, each time, over the same socket
    #[arg(long, value_name = "ADDRESS", conflicts_with = "connected")]
    also: Vec<SocketAddr>,
    /// Fills each datagram up to this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    size: usize,
    #[command(flatten)]
    pace: Pace,
}

#[derive(Args)]
struct Server {
    /// Port on all addresses of both families
    port: u16,
    /// What answers begin with
    #[arg(long)]
    name: String,
}

/// How many requests, or for how long, and how far apart, each connection by itself.
#[derive(Args, Clone)]
struct Pace {
    /// Requests of each connection
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Goes on for this long instead of counting
    #[arg(long, conflicts_with = "count")]
    seconds: Option<u64>,
    /// Pause between requests
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    interval: u64,
}

impl Pace {
    /// The number of each request, with the pause before all but the first.
    fn requests(&self) -> impl Iterator<Item = u64> + use<> {
        let (count, interval) = (self.count, Duration::from_millis(self.interval));
        let deadline = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        (0..).take_while(move |number| {
            if *number > 0 {
                std::thread::sleep(interval);
            }
            deadline.map_or(*number < count, |deadline| Instant::now() < deadline)
        })
    }
}

/// Prints one line whole, even from several threads.
fn emit(event: &str, mut fields: Value) {
    fields["event"] = json!(event);
    println!("{fields}");
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Bind { addresses } => bind::bind(&addresses),
        Command::TcpGet(requests) => tcp::get(&requests),
        Command::TcpKeepalive(kept) => tcp::keepalive(&kept),
        Command::Peername(target) => tcp::peername(&target),
        Command::Udp(datagrams) => return udp::send(&datagrams),
        Command::UdpServer(server) => return udp::serve(&server),
    }
    Ok(())
}
