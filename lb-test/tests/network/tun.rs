//! Two tun devices on two nodes and a cable between them, which stands for a `WireGuard` or an IPIP tunnel.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use std::thread::{self, JoinHandle};

use lb_test::{Host, Topology};

use crate::ip;

/// What each end takes at most, in bytes.
const MTU: u16 = 1400;
/// Between looks at whether the cable is to be cut, in milliseconds.
const LOOK: i32 = 50;

/// The cable; cut when dropped.
pub(crate) struct Tunnel {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// Gives node1 and node2 a device `tun0` with an address, each the way to the pods of the other.
    pub(crate) fn between_nodes(topology: &Topology) -> Self {
        let nodes = [(1, 2), (2, 1)].map(|(own, other)| {
            let node = topology.node(&format!("node{own}"));
            let device = node.enter(open).unwrap();
            ip(
                node,
                &[
                    &format!("link set tun0 mtu {MTU} up"),
                    &format!("addr add 172.23.0.{own}/24 dev tun0"),
                    &format!("addr add fd00:23::{own}/64 dev tun0 nodad"),
                    &format!("route replace 10.248.{other}.0/24 dev tun0"),
                    &format!("route del fd00:248:{other}::/64"),
                    &format!("route add fd00:248:{other}::/64 dev tun0"),
                ],
            );
            device
        });
        Self::join(nodes)
    }

    fn join([one, two]: [File; 2]) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let ways = [(one.try_clone().unwrap(), two.try_clone().unwrap()), (two, one)];
        let threads = ways.map(|(from, to)| {
            let ends = Arc::clone(&ends);
            thread::spawn(move || carry(from, to, &ends))
        });
        Self { ends, threads: threads.into() }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Makes `tun0` in the calling thread's namespace.
fn open() -> File {
    let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"tun0") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
    // SAFETY: the request lives until the call returns.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    device
}

/// Carries packets until the cable is cut.
fn carry(mut from: File, mut to: File, ends: &AtomicBool) {
    let mut packet = vec![0; 1 << 16];
    while !ends.load(Relaxed) {
        let mut ready = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one element, which lives until the call returns.
        if unsafe { libc::poll(&raw mut ready, 1, LOOK) } == 1
            && let Ok(length) = from.read(&mut packet)
        {
            // A device that is down loses it, as a cable would.
            let _ = to.write(&packet[..length]);
        }
    }
}

/// Leads a host's packets for a network through the tunnel.
#[track_caller]
pub(crate) fn lead(host: &Host, network: &str) {
    ip(host, &[&format!("route replace {network} dev tun0")]);
}
