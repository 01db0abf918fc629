//! What a system call costs: to a Service, to its endpoint, and on a node without us.
//!
//! Socket programs see processes of a node's cgroup, so a child process measures. It holds both
//! ends itself: a packet is delivered within the call that sends it, and no time goes into waking
//! another process. Rounds go through all places in turn.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_test::{Family, Host, Topology};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::cluster::{TCP_PORT, UDP_PORT, VIP};
use crate::report::{Report, Unit, median};

/// Times that each place is measured.
const ROUNDS: usize = 60;
/// Calls of each kind in a round.
const CALLS: usize = 100;
/// Pieces of a bulk transfer, and their length in bytes: what one write and one read take.
const PIECES: usize = 256;
const PIECE: usize = 16 << 10;

/// A client and a server on one node, and what the client is told to call.
#[derive(Deserialize, Serialize)]
struct Place {
    cgroup: PathBuf,
    client: PathBuf,
    server: PathBuf,
    /// Addresses of TCP and UDP.
    targets: Vec<(SocketAddr, SocketAddr)>,
}

/// Microseconds of each call to one target: a median for each round.
#[derive(Default, Deserialize, Serialize)]
struct Series {
    tcp_connect: Vec<f64>,
    /// One transfer of [`PIECES`], each read before the next one is written.
    tcp_bulk: Vec<f64>,
    udp_connect: Vec<f64>,
    /// `sendmsg` and `recvmsg` of a datagram together.
    udp_exchange: Vec<f64>,
}

/// Adds the figures of the socket path.
pub(crate) fn measure(topology: &Topology, size: u32, report: &mut Report) -> Result<()> {
    let direct = |pod: &str| {
        let pod = topology.pod(pod);
        (pod.socket(Family::V4, TCP_PORT), pod.socket(Family::V4, UDP_PORT))
    };
    let vip = (SocketAddr::from((VIP, 80)), SocketAddr::from((VIP, 53)));
    let places = [
        place(topology, ["shell1", "web1"], vec![vip, direct("web1")]),
        place(topology, ["shell2", "web2"], vec![direct("web2")]),
    ];
    let program = std::env::current_exe()?;
    let shell = topology.pod("shell1");
    let places = serde_json::to_string(&places)?;
    let output = shell.run(&program.to_string_lossy(), &["--socket-places", &places])?;
    let [vip, direct, without]: [Series; 3] = serde_json::from_str(&output)?;
    let mut add = |name: &str, value: (f64, Unit), goal: Option<f64>| {
        report.add(name, size, value, goal);
    };
    let base = (median(&direct.tcp_connect), Unit::Microseconds);
    add("TCP connect to the pod", base, None);
    let ratio = (ratio(&vip.tcp_connect, &direct.tcp_connect), Unit::Times);
    add("TCP connect to the Service over the pod", ratio, Some(1.05));
    // A rate of 0.99.
    let ratio = (self::ratio(&vip.tcp_bulk, &direct.tcp_bulk), Unit::Times);
    add("TCP bulk transfer to the Service over the pod", ratio, Some(1.01));
    let mut more = |name: &str, with: &[f64], goal: Option<f64>, without: &[f64]| {
        add(name, (extra(with, without), Unit::Microseconds), goal);
    };
    more("TCP connect to the pod, added", &direct.tcp_connect, Some(0.3), &without.tcp_connect);
    more("UDP connect to the Service, added", &vip.udp_connect, Some(1.5), &without.udp_connect);
    more("UDP connect to the pod, added", &direct.udp_connect, Some(0.3), &without.udp_connect);
    let plain = &without.udp_exchange;
    more("UDP datagram to the Service and back, added", &vip.udp_exchange, Some(1.5), plain);
    more("UDP datagram to the pod and back, added", &direct.udp_exchange, Some(0.3), plain);
    Ok(())
}

fn place(topology: &Topology, pods: [&str; 2], targets: Vec<(SocketAddr, SocketAddr)>) -> Place {
    let [client, server]: [&Host; 2] = pods.map(|pod| &**topology.pod(pod));
    Place {
        cgroup: client.cgroup().path().to_owned(),
        client: client.netns().path(),
        server: server.netns().path(),
        targets,
    }
}

/// The ratio of two series that were taken in turn.
fn ratio(over: &[f64], under: &[f64]) -> f64 {
    median(&over.iter().zip(under).map(|(over, under)| over / under).collect::<Vec<_>>())
}

/// The difference of two series that were taken in turn.
fn extra(with: &[f64], without: &[f64]) -> f64 {
    median(&with.iter().zip(without).map(|(with, without)| with - without).collect::<Vec<_>>())
}

/// The child: measures in each place and prints the series of all targets as JSON.
pub(crate) fn run_child(places: &str) -> Result<()> {
    let places: Vec<Place> = serde_json::from_str(places)?;
    let ends: Vec<Ends> = places.iter().map(Ends::open).collect::<Result<_>>()?;
    let targets = places.iter().map(|place| place.targets.len()).sum();
    let mut all: Vec<Series> = (0..targets).map(|_| Series::default()).collect();
    for _ in 0..ROUNDS {
        let mut series = all.iter_mut();
        for (place, ends) in places.iter().zip(&ends) {
            place.enter(&place.client)?;
            for ((tcp, udp), client) in place.targets.iter().zip(&ends.clients) {
                let series = series.next().context("a series for each target")?;
                series.tcp_connect.push(ends.tcp_connect(*tcp)?);
                series.tcp_bulk.push(ends.tcp_bulk(*tcp)?);
                series.udp_connect.push(udp_connect(*udp)?);
                series.udp_exchange.push(ends.udp_exchange(client, *udp)?);
            }
        }
    }
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}

impl Place {
    /// Moves this process, which has one thread, into the cgroup and a namespace.
    fn enter(&self, netns: &Path) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.procs"), "0").context("enter the cgroup")?;
        Ok(setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?)
    }
}

/// The sockets of a place that stay.
struct Ends {
    listener: TcpListener,
    server: UdpSocket,
    /// One for each target: a socket that knows a Service takes its endpoint for the Service.
    clients: Vec<UdpSocket>,
}

impl Ends {
    fn open(place: &Place) -> Result<Self> {
        let any = Ipv4Addr::UNSPECIFIED;
        place.enter(&place.server)?;
        let listener = TcpListener::bind((any, TCP_PORT))?;
        let server = UdpSocket::bind((any, UDP_PORT))?;
        place.enter(&place.client)?;
        let bind = |_: &_| UdpSocket::bind((any, 0));
        let clients = place.targets.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        for socket in clients.iter().chain([&server]) {
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        }
        Ok(Self { listener, server, clients })
    }

    /// Microseconds of `connect`, from the call to the connection.
    fn tcp_connect(&self, target: SocketAddr) -> Result<f64> {
        let address = SockaddrStorage::from(target);
        let one = || -> Result<f64> {
            let client =
                socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // Closed by a reset: nothing stays behind that would use up ports.
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&client, sockopt::Linger, &linger)?;
            let begun = Instant::now();
            connect(client.as_raw_fd(), &address).with_context(|| format!("connect {target}"))?;
            let time = begun.elapsed();
            self.listener.accept()?;
            Ok(time.as_secs_f64() * 1e6)
        };
        median_of(one)
    }

    /// Microseconds of a bulk transfer.
    fn tcp_bulk(&self, target: SocketAddr) -> Result<f64> {
        let mut client = TcpStream::connect(target)?;
        let (mut server, _) = self.listener.accept()?;
        let mut piece = vec![7; PIECE];
        let begun = Instant::now();
        for _ in 0..PIECES {
            client.write_all(&piece)?;
            server.read_exact(&mut piece)?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    }

    /// Microseconds of sending a datagram and of receiving the answer, both as the client.
    fn udp_exchange(&self, client: &UdpSocket, target: SocketAddr) -> Result<f64> {
        let mut bytes = [0; 64];
        let mut one = || -> Result<f64> {
            let begun = Instant::now();
            client.send_to(&[1; 32], target)?;
            let sent = begun.elapsed();
            let (length, from) = self.server.recv_from(&mut bytes)?;
            self.server.send_to(&bytes[..length], from)?;
            let begun = Instant::now();
            let (_, source) = client.recv_from(&mut bytes)?;
            let received = begun.elapsed();
            ensure!(source == target, "{source} answers for {target}");
            Ok((sent + received).as_secs_f64() * 1e6)
        };
        median_of(&mut one)
    }
}

/// Microseconds of `connect` of a UDP socket.
fn udp_connect(target: SocketAddr) -> Result<f64> {
    median_of(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let begun = Instant::now();
        socket.connect(target)?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    })
}

fn median_of(one: impl FnMut() -> Result<f64>) -> Result<f64> {
    let times: Vec<f64> = std::iter::repeat_with(one).take(CALLS).collect::<Result<_>>()?;
    Ok(median(&times))
}
