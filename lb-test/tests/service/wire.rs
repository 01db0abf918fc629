//! Frames as they stand on a wire: heard whole, and sent with whatever is in front of the IP header.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use lb_ebpf::cases::frame::Frame;
use lb_test::Host;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

const PATIENCE: Duration = Duration::from_secs(30);

/// Hears every frame of a host from here on.
pub(crate) fn tap(host: &Host) -> OwnedFd {
    host.enter(|| {
        let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let tap = socket(kind.0, kind.1, kind.2, SockProtocol::EthAll).unwrap();
        setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).unwrap();
        tap
    })
    .unwrap()
}

pub(crate) fn receive(tap: &OwnedFd, is_it: impl Fn(&Frame) -> bool) -> Option<Frame> {
    let end = Instant::now() + PATIENCE;
    let mut bytes = [0; 1 << 14];
    while Instant::now() < end {
        let Ok(length) = recv(tap.as_raw_fd(), &mut bytes, MsgFlags::empty()) else { continue };
        let frame = Frame::decode(&bytes[..length]).ok().filter(&is_it);
        if frame.is_some() {
            return frame;
        }
    }
    None
}

/// Sends a frame by a device, byte for byte.
pub(crate) fn send_by(from: &Host, device: &str, frame: &[u8]) {
    Wire::open(from, device).send(frame);
}

/// A device that frames are sent by.
pub(crate) struct Wire {
    raw: OwnedFd,
    to: libc::sockaddr_ll,
}

impl Wire {
    pub(crate) fn open(from: &Host, device: &str) -> Self {
        from.enter(|| {
            let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
            let raw = socket(kind.0, kind.1, kind.2, None).unwrap();
            // SAFETY: every field is an integer.
            let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            to.sll_ifindex = if_nametoindex(device).unwrap().cast_signed();
            Self { raw, to }
        })
        .unwrap()
    }

    /// Sends a frame, byte for byte.
    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: frame and address are as long as said.
        let sent = unsafe {
            libc::sendto(
                self.raw.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.to).cast(),
                u32::try_from(size_of_val(&self.to)).unwrap(),
            )
        };
        assert_eq!(sent.cast_unsigned(), frame.len(), "{}", std::io::Error::last_os_error());
    }
}

/// The link-layer address of a device.
pub(crate) fn mac(host: &Host, device: &str) -> [u8; 6] {
    let links = host.run("ip", &["-j", "link", "show", "dev", device]).unwrap();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    let bytes = links[0]["address"].as_str().unwrap().split(':');
    let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}
