//! A generator of floods: frames from addresses and ports that are made up, each from another one, as
//! fast as one core sends them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use lb_ebpf::cases::frame::{Frame, Transport};
use lb_test::{Family, Host, Topology};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, socket};
use nix::unistd::Pid;

use crate::wire::mac;

/// Frames that are given to the kernel at a time.
const BATCH: usize = 64;
const ETHERNET: usize = 14;
/// Networks that nobody is in (RFC 2544, RFC 3849).
const NOBODY: [&str; 2] = ["198.18.0.0/15", "2001:db8:f::/48"];

/// What a flood is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Segments of connections that there are not.
    Ack,
    /// One datagram of each flow.
    Datagram,
    /// First segments of connections.
    Syn,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Syn, Self::Ack, Self::Datagram];

    fn transport(self) -> Transport {
        let segment = |flags| Transport::Tcp { sequence: 1, acknowledgement: 1, flags };
        match self {
            Self::Ack => segment(0x10),
            Self::Datagram => Transport::Udp,
            Self::Syn => segment(0x02),
        }
    }
}

/// Sends by the fabric's end of node1's cable, so that nobody forwards a flood but the node.
pub(crate) struct Generator {
    raw: OwnedFd,
    fabric: Host,
    macs: [[u8; 6]; 2],
    random: u64,
}

impl Generator {
    /// Answers to those who are not there end in the fabric.
    pub(crate) fn new(topology: &Topology) -> Self {
        let (fabric, node) = (topology.fabric(), topology.node("node1"));
        for network in NOBODY {
            fabric.run("ip", &["route", "add", "blackhole", network]).unwrap();
        }
        let raw = fabric.enter(|| {
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let raw = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
            // SAFETY: every field is an integer.
            let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            at.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            at.sll_ifindex = if_nametoindex("node1").unwrap().cast_signed();
            // No protocol: it sends, and hears nothing.
            bind(raw.as_raw_fd(), &link_address(&at)).unwrap();
            raw
        });
        let macs = [mac(node, "eth0"), mac(fabric, "br0")];
        Self { raw: raw.unwrap(), fabric: fabric.clone(), macs, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Floods an address from this thread, on one CPU, until told to end; how many frames were sent.
    pub(crate) fn flood(&mut self, kind: Kind, to: SocketAddr, end: &AtomicBool) -> u64 {
        stay_on_one_cpu();
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let mut frames = vec![self.template(kind, to, family); BATCH];
        let template = frames[0].clone();
        let mut sent = 0;
        while !end.load(Ordering::Relaxed) {
            for frame in &mut frames {
                frame.copy_from_slice(&template);
                make_up(frame, kind, family, next(&mut self.random));
            }
            sent += self.send(&frames);
        }
        sent
    }

    /// A frame from address and port zero of a network that nobody is in.
    fn template(&self, kind: Kind, to: SocketAddr, family: Family) -> Vec<u8> {
        let src = match family {
            Family::V4 => Ipv4Addr::new(198, 18, 0, 0).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0).into(),
        };
        let frame = Frame {
            macs: self.macs,
            src: SocketAddr::new(src, 0),
            dst: to,
            class: 0,
            ttl: 64,
            options: Vec::new(),
            transport: kind.transport(),
            payload: b"flood?".to_vec(),
        };
        frame.encode()
    }

    fn send(&self, frames: &[Vec<u8>]) -> u64 {
        let mut pieces: Vec<_> = frames.iter().map(|frame| piece(frame)).collect();
        let message = |piece: &mut libc::iovec| {
            // SAFETY: every field is an integer or a pointer, for which none is a value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (piece, 1);
            message
        };
        let mut messages: Vec<_> = pieces.iter_mut().map(message).collect();
        let count = u32::try_from(messages.len()).unwrap();
        // SAFETY: as many messages as said, of one piece each, all of which outlive the call.
        let sent = unsafe { libc::sendmmsg(self.raw.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        // A queue that is full for a moment is no fault.
        u64::try_from(sent).unwrap_or_default()
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        for network in NOBODY {
            // The topology may be gone.
            let _ = self.fabric.run("ip", &["route", "del", "blackhole", network]);
        }
    }
}

/// What the kernel does with a frame it then does on the same one.
fn stay_on_one_cpu() {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).unwrap();
    let last = (0..CpuSet::count()).rfind(|cpu| all.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(last).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

fn link_address(at: &libc::sockaddr_ll) -> nix::sys::socket::LinkAddr {
    use nix::sys::socket::SockaddrLike as _;
    let length = u32::try_from(size_of_val(at)).unwrap();
    // SAFETY: the address is as long as said.
    let address = unsafe {
        nix::sys::socket::LinkAddr::from_raw(std::ptr::from_ref(at).cast(), Some(length))
    };
    address.unwrap()
}

fn piece(frame: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() }
}

/// Writes a source address and port into a template, and mends its checksums.
fn make_up(frame: &mut [u8], kind: Kind, family: Family, random: u64) {
    let [low, port, high] = [0, 16, 32].map(|shift| low_word(random >> shift));
    let (address, l4, header_checksum) = match family {
        Family::V4 => (ETHERNET + 14, ETHERNET + 20, Some(ETHERNET + 10)),
        Family::V6 => (ETHERNET + 20, ETHERNET + 40, None),
    };
    let checksum = l4 + if matches!(kind, Kind::Datagram) { 6 } else { 16 };
    frame[address..][..2].copy_from_slice(&low.to_be_bytes());
    frame[l4..][..2].copy_from_slice(&port.to_be_bytes());
    let mut words = u32::from(low) + u32::from(port);
    if family == Family::V6 {
        frame[address + 2..][..2].copy_from_slice(&high.to_be_bytes());
        words += u32::from(high);
    }
    if let Some(at) = header_checksum {
        add(frame, at, low.into());
    }
    add(frame, checksum, words);
}

/// Mends the checksum at a place for words that were zero (RFC 1624).
fn add(frame: &mut [u8], at: usize, words: u32) {
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut sum = u32::from(!old) + words;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[at..at + 2].copy_from_slice(&(!low_word(sum.into())).to_be_bytes());
}

#[allow(clippy::cast_possible_truncation, reason = "the low word is what is asked for")]
const fn low_word(number: u64) -> u16 {
    number as u16
}

/// The next number of a row in which none follows from what is seen of it.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

#[test]
fn frames_that_are_made_up_are_whole() {
    for kind in Kind::ALL {
        for family in Family::BOTH {
            let to = SocketAddr::new(family.loopback(), 80);
            let src = SocketAddr::new(family.unspecified(), 0);
            let frame = Frame {
                macs: [[2; 6]; 2],
                src,
                dst: to,
                class: 0,
                ttl: 64,
                options: Vec::new(),
                transport: kind.transport(),
                payload: b"flood?".to_vec(),
            };
            let mut bytes = frame.encode();
            let mut random = 7;
            make_up(&mut bytes, kind, family, next(&mut random));
            let made_up = Frame::decode(&bytes).unwrap();
            assert_ne!(made_up.src, src);
            assert_eq!(Frame { src, ..made_up }, frame);
        }
    }
}
