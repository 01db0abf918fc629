//! UDP: a client that shows where answers come from, and an echo server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Error, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt::Ipv6V6Only,
};
use serde_json::json;
use std::os::fd::AsRawFd;

use crate::{Datagrams, Server, emit};

/// The largest datagram, in bytes.
const DATAGRAM_MAX: usize = 65_535;

/// Sends numbered datagrams over one socket and prints each answer with its source.
pub(crate) fn send(datagrams: &Datagrams) -> Result<()> {
    let address = datagrams.target.address;
    let mut socket = match open(datagrams) {
        Ok(socket) => socket,
        Err(error) => {
            fail(0, &error);
            return Ok(());
        }
    };
    let targets: Vec<_> = [address].into_iter().chain(datagrams.also.iter().copied()).collect();
    let rounds = datagrams.pace.requests();
    for (round, target) in rounds.flat_map(|round| targets.iter().map(move |to| (round, *to))) {
        let number = format!("{round:0>width$}", width = datagrams.size);
        let to = (!datagrams.connected).then_some(target);
        match exchange(&socket, to, &number) {
            Ok((payload, source)) => {
                let local = socket.local_addr()?.to_string();
                let fields = json!({
                    "number": round, "payload": payload, "source": source, "local": local,
                });
                emit("answer", fields);
            }
            Err(error) => {
                fail(round, &error);
                if datagrams.reconnect {
                    match open(datagrams) {
                        Ok(new) => socket = new,
                        Err(error) => fail(round, &error),
                    }
                }
            }
        }
    }
    Ok(())
}

fn fail(round: u64, error: &Error) {
    emit("failure", json!({"number": round, "error": format!("{error:#}")}));
}

/// A socket on any port, connected if that is asked for.
fn open(datagrams: &Datagrams) -> Result<UdpSocket> {
    let address = datagrams.target.address;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).context("bind")?;
    socket.set_read_timeout(Some(datagrams.target.timeout()))?;
    if datagrams.connected {
        socket.connect(address).context("connect")?;
    }
    Ok(socket)
}

/// Sends to an address, or to the one that the socket is connected to, and waits for the answer.
fn exchange(socket: &UdpSocket, to: Option<SocketAddr>, text: &str) -> Result<(String, String)> {
    match to {
        None => socket.send(text.as_bytes()).context("send")?,
        Some(address) => socket.send_to(text.as_bytes(), address).context("send")?,
    };
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (length, source) = socket.recv_from(&mut buffer).context("receive")?;
        let payload = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        // A late answer to an earlier datagram is not this one's.
        if payload.ends_with(&format!(":{text}")) {
            return Ok((payload.into_owned(), source.to_string()));
        }
    }
}

/// Answers datagrams of both families until it is killed.
pub(crate) fn serve(server: &Server) -> Result<()> {
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, server.port)).context("bind IPv4")?;
    let v6 = bind_v6_only(server.port).context("bind IPv6")?;
    emit("listening", json!({"port": server.port}));
    std::thread::scope(|scope| {
        let v4 = scope.spawn(|| echo(&v4, &server.name));
        echo(&v6, &server.name)?;
        v4.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn echo(socket: &UdpSocket, name: &str) -> Result<()> {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        // A refused earlier answer shows up here and is the client's affair.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = format!("{name}:{client}:").into_bytes();
        answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if let Err(error) = socket.send_to(&answer, client) {
            emit("failure", json!({"client": client.to_string(), "error": error.to_string()}));
        }
    }
}

/// An IPv6 socket beside an IPv4 one on the same port.
fn bind_v6_only(port: u16) -> Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    setsockopt(&socket, Ipv6V6Only, &true)?;
    let address = std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
    Ok(socket.into())
}
