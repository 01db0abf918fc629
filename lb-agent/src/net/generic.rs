//! What devices can do, asked by generic netlink: XDP, and whether VLAN tags are taken off.

use std::{collections::BTreeMap, io};

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_generic::{
    GenlFamily, GenlMessage,
    constants::GENL_HDRLEN,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Types of `include/uapi/linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `CTRL_ATTR_FAMILY_ID` of `include/uapi/linux/genetlink.h`.
const FAMILY_ID: u16 = 1;

/// What a device's driver does with XDP: bits of `include/uapi/linux/netdev.h`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// It runs programs that drop, pass on, and send back by the same device.
    pub const BASIC: Self = Self(1);
    /// It sends frames that came in by another device.
    pub const TRANSMIT: Self = Self(4);

    /// Are all of these there?
    pub const fn has(self, features: Self) -> bool {
        self.0 & features.0 == features.0
    }
}

/// What every device of the calling thread's namespace does with XDP, by its index.
///
/// # Errors
///
/// What the kernel says: that there is nothing to ask before Linux 6.3.
pub fn xdp_features() -> io::Result<BTreeMap<u32, XdpFeatures>> {
    let answers = ask(DevicesQuestion, NLM_F_DUMP)?;
    Ok(answers.iter().filter_map(|answer| device_features(answer)).collect())
}

/// Does a device take the tags off VLAN frames, so that an XDP program does not see them?
///
/// # Errors
///
/// What the kernel says, as of a device that has gone.
pub fn strips_vlan_tags(ifindex: u32) -> io::Result<bool> {
    let answers = ask(OffloadsQuestion { ifindex }, NLM_F_ACK)?;
    Ok(answers.iter().any(|answer| is_offload_on(answer, "rx-vlan-hw-parse")))
}

/// `NETDEV_CMD_DEV_GET` of `include/uapi/linux/netdev.h`, for all devices.
#[derive(Debug)]
struct DevicesQuestion;

impl GenlFamily for DevicesQuestion {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        1
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for DevicesQuestion {
    fn buffer_len(&self) -> usize {
        0
    }

    fn emit(&self, _: &mut [u8]) {}
}

/// `ETHTOOL_MSG_FEATURES_GET` of `include/uapi/linux/ethtool_netlink.h`.
#[derive(Debug)]
struct OffloadsQuestion {
    ifindex: u32,
}

impl OffloadsQuestion {
    /// `ETHTOOL_A_FEATURES_HEADER` with `ETHTOOL_A_HEADER_DEV_INDEX`.
    fn attribute(&self) -> DefaultNla {
        let index = [DefaultNla::new(1, self.ifindex.to_ne_bytes().to_vec())];
        let mut header = vec![0; index.as_slice().buffer_len()];
        index.as_slice().emit(&mut header);
        DefaultNla::new(1 | netlink_packet_core::NLA_F_NESTED, header)
    }
}

impl GenlFamily for OffloadsQuestion {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        11
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for OffloadsQuestion {
    fn buffer_len(&self) -> usize {
        [self.attribute()].as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        [self.attribute()].as_slice().emit(buffer);
    }
}

/// Index and features of an answer: `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
fn device_features(attributes: &[u8]) -> Option<(u32, XdpFeatures)> {
    let ifindex = u32::from_ne_bytes(*attribute(attributes, 1)?.first_chunk()?);
    let features = u64::from_ne_bytes(*attribute(attributes, 3)?.first_chunk()?);
    Some((ifindex, XdpFeatures(features)))
}

/// Is an offload named among those that are on (`ETHTOOL_A_FEATURES_ACTIVE`)?
fn is_offload_on(attributes: &[u8], name: &str) -> bool {
    let bits = attribute(attributes, 4).and_then(|active| attribute(active, 3));
    let is_named = |bit: NlaBuffer<&[u8]>| {
        let bytes = attribute(bit.value(), 2).and_then(|bytes| bytes.strip_suffix(b"\0"));
        bytes == Some(name.as_bytes())
    };
    all(bits.unwrap_or_default()).any(is_named)
}

/// The value of the attribute of a kind.
fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let start = attributes.as_ptr() as usize;
    let found = all(attributes).find(|attribute| attribute.kind() == kind)?;
    let (from, length) = (found.value().as_ptr() as usize - start, found.value_length());
    attributes.get(from..from + length)
}

fn all(attributes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(attributes).filter_map(Result::ok)
}

/// The attributes of each answer to a question.
fn ask<F>(question: F, flags: u16) -> io::Result<Vec<Vec<u8>>>
where
    F: GenlFamily + Emitable + std::fmt::Debug,
{
    let socket = Socket::new(NETLINK_GENERIC)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let name = GenlCtrlAttrs::FamilyName(F::family_name().to_owned());
    let family = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] };
    let answers = exchange(&socket, GenlMessage::from_payload(family), NLM_F_ACK)?;
    let number = answers.iter().find_map(|answer| attribute(answer, FAMILY_ID)?.first_chunk());
    let number = number.ok_or(io::ErrorKind::NotFound)?;
    let mut message = GenlMessage::from_payload(question);
    message.set_resolved_family_id(u16::from_ne_bytes(*number));
    exchange(&socket, message, flags)
}

fn exchange<F>(socket: &Socket, question: GenlMessage<F>, flags: u16) -> io::Result<Vec<Vec<u8>>>
where
    F: GenlFamily + Emitable + std::fmt::Debug,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    while receive(socket, &mut answers)? {}
    Ok(answers)
}

/// Takes in one datagram of an answer; false after the last.
fn receive(socket: &Socket, answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        match message.message_type() {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let number =
                    message.payload().first_chunk().map_or(0, |it| i32::from_ne_bytes(*it));
                return if number == 0 {
                    Ok(false)
                } else {
                    Err(io::Error::from_raw_os_error(-number))
                };
            }
            _ => answers.push(message.payload().get(GENL_HDRLEN..).unwrap_or_default().to_vec()),
        }
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// A device's answers, in a namespace that has `lo` alone.
    #[test]
    fn the_loopback_device_has_neither_xdp_nor_vlan_tags() {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
            assert_eq!(xdp_features().unwrap(), BTreeMap::from([(1, XdpFeatures(0))]));
            assert!(!strips_vlan_tags(1).unwrap());
            let missing = strips_vlan_tags(77).unwrap_err();
            assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        });
        thread.join().unwrap();
    }
}
