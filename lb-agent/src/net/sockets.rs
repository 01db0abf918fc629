//! Closes sockets of other programs, in whatever network namespace they are (`SOCK_DESTROY`).
//!
//! A socket is named by its cookie, which the kernel never gives twice: no other one can be hit.
//! The program finds its socket's next call failed with `ECONNABORTED`, and connects again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use lb_common::abi::{Ipv6, L4Proto, StaleSocket};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkSerializable, Parseable as _,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, SOCK_DIAG_BY_FAMILY, SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::sched::{CloneFlags, setns};

/// Types and fields of `include/uapi/linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The network namespace that the calling thread is in.
const HERE: &str = "/proc/thread-self/ns/net";

/// Closes those of the sockets that are still connected as said, and tells their cookies; and why a
/// namespace could not be searched, where some socket was not found in the others.
///
/// Takes the calling thread through other network namespaces: call it on a thread of its own. It is
/// brought back, since a namespace lives for as long as a thread is in it.
pub fn close(stale: &[StaleSocket]) -> (BTreeSet<u64>, io::Result<()>) {
    let home = match File::open(HERE) {
        Ok(home) => home,
        Err(error) => return (BTreeSet::new(), Err(error)),
    };
    let (closed, result) = close_everywhere(stale);
    let back = setns(home, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    (closed, result.and(back))
}

fn close_everywhere(stale: &[StaleSocket]) -> (BTreeSet<u64>, io::Result<()>) {
    let mut open: BTreeMap<u64, &StaleSocket> =
        stale.iter().map(|socket| (socket.cookie, socket)).collect();
    let mut closed = BTreeSet::new();
    let mut result = Ok(());
    for namespace in namespaces() {
        if open.is_empty() {
            return (closed, Ok(()));
        }
        // One that has gone since it was listed has no sockets either.
        let Ok(file) = File::open(&namespace) else { continue };
        let searched = setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| close_here(&mut open, &mut closed));
        if let Err(error) = searched {
            let context = format!("{}: {error}", namespace.display());
            result = result.and(Err(io::Error::new(error.kind(), context)));
        }
    }
    (closed, result)
}

/// Can this kernel close a socket of another program? Asks for one that cannot be.
///
/// # Errors
///
/// What it says: `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`.
pub fn can_close() -> io::Result<()> {
    Diag::open()?.destroy(L4Proto::UDP.0, AF_INET, SocketId::new_v4())
}

/// Every network namespace that a process is in or that has a name, once.
fn namespaces() -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let of_processes = entries("/proc").into_iter().filter(|path| is_number(path));
    let of_processes = of_processes.map(|process| process.join("ns/net"));
    let named = entries("/run/netns").into_iter().chain(entries("/var/run/netns"));
    let is_new = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|metadata| seen.insert((metadata.dev(), metadata.ino())))
    };
    of_processes.chain(named).filter(is_new).collect()
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn is_number(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Closes those of the sockets that are in the thread's network namespace.
fn close_here(
    open: &mut BTreeMap<u64, &StaleSocket>,
    closed: &mut BTreeSet<u64>,
) -> io::Result<()> {
    let diag = Diag::open()?;
    let protocols: BTreeSet<u8> = open.values().map(|socket| socket.protocol.0).collect();
    for (protocol, family) in
        protocols.into_iter().flat_map(|protocol| [(protocol, AF_INET), (protocol, AF_INET6)])
    {
        for found in diag.connected(protocol, family)? {
            let cookie = cookie(&found);
            if open.get(&cookie).is_some_and(|stale| is_connected_to(&found, stale)) {
                diag.destroy(protocol, family, found)?;
                open.remove(&cookie);
                closed.insert(cookie);
            }
        }
    }
    Ok(())
}

/// A socket that has another peer by now is no longer meant.
fn is_connected_to(found: &SocketId, stale: &StaleSocket) -> bool {
    let address: Ipv6 = match found.destination_address {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        std::net::IpAddr::V6(v6) => v6.into(),
    };
    (address, found.destination_port) == (stale.backend, stale.backend_port.get())
}

fn cookie(id: &SocketId) -> u64 {
    let word = |at: usize| {
        let bytes = id.cookie[at..].first_chunk();
        u64::from(bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes)))
    };
    word(4) << 32 | word(0)
}

/// A question to the kernel about sockets of the namespace that it was opened in.
struct Diag(Socket);

impl Diag {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Lists the connected sockets of a protocol.
    fn connected(&self, protocol: u8, family: u8) -> io::Result<Vec<SocketId>> {
        let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        let request = SockDiagMessage::InetRequest(request(protocol, family, id));
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        while self.receive(&mut found)? {}
        Ok(found)
    }

    /// Closes one socket; one that is gone meanwhile is as good.
    fn destroy(&self, protocol: u8, family: u8, id: SocketId) -> io::Result<()> {
        let request = SockDiagMessage::InetRequest(request(protocol, family, id));
        self.send(SockDiagDestroy::new(request), NLM_F_REQUEST | NLM_F_ACK)?;
        match self.receive(&mut Vec::new()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn send(&self, message: impl NetlinkSerializable, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let payload = netlink_packet_core::NetlinkPayload::InnerMessage(message);
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    /// Takes in one datagram of an answer; false after the last.
    fn receive(&self, found: &mut Vec<SocketId>) -> io::Result<bool> {
        let (bytes, _) = self.0.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            match message.message_type() {
                NLMSG_DONE => return Ok(false),
                NLMSG_ERROR => return failure(message.payload()).map(|()| false),
                SOCK_DIAG_BY_FAMILY => {
                    let header = InetResponseHeader::parse(message.payload());
                    found.push(header.map_err(io::Error::other)?.socket_id);
                }
                _ => {}
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(true)
    }
}

/// The error number that an answer begins with; zero acknowledges.
fn failure(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        None | Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
    }
}

fn request(protocol: u8, family: u8, socket_id: SocketId) -> InetRequest {
    // A connected UDP socket is in the state of the same name as an established connection.
    let states = if L4Proto(protocol) == L4Proto::UDP {
        StateFlags::ESTABLISHED
    } else {
        StateFlags::all().difference(StateFlags::LISTEN | StateFlags::TIME_WAIT)
    };
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id }
}
