//! One case's view of its bench: addresses of one kind, and expectations in a line each.

use std::net::SocketAddr;

use lb_common::{
    abi::{BackendFlags, Counter, FrontendFlags, L4Proto},
    carrier,
};

use super::{
    BackendSpec, Bench, DEVICE_MAC, Device, Fate, FrontendSpec, Hook, Host, Kind, Outcome,
    frame::{Frame, Transport},
};

/// TCP flags of the segments that cases send; SCTP sends the chunks of the same meaning.
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;
pub(super) const FIN_ACK: u8 = 0x11;
pub(super) const SYN_ACK: u8 = SYN | ACK;
pub(super) const RST: u8 = 0x04;
pub(super) const RST_ACK: u8 = 0x14;
/// Type of the first chunk of an association (RFC 9260, 3.2).
pub(super) const INIT: u8 = 1;
/// Type of service or traffic class: assured forwarding, of ends that know congestion marks.
pub(super) const CLASS: u8 = 0x28 | 2;
/// Verification tag.
pub(super) const TAG: u32 = 0x0bad_cafe;
const SEQUENCE: u32 = 0xffff_fff0;
const ACKNOWLEDGEMENT: u32 = 0x1234_5678;
/// Port of all backends.
pub(super) const TARGET_PORT: u16 = 8080;

/// A bench, for one kind.
pub struct Net<'a> {
    bench: &'a mut dyn Bench,
    /// Which family and protocol.
    pub kind: Kind,
    /// Affinity timeout of frontends to write, in seconds; zero without affinity.
    pub affinity_timeout: u32,
}

impl<'a> Net<'a> {
    /// Looks at a bench as one kind.
    pub fn new(bench: &'a mut dyn Bench, kind: Kind) -> Self {
        Self { bench, kind, affinity_timeout: 0 }
    }

    /// Is the kind one of connections, TCP's or SCTP's?
    pub fn has_connections(&self) -> bool {
        self.kind.protocol.has_connections()
    }

    /// An address of the kind's family with a port.
    pub fn at(&self, host: Host, port: u16) -> SocketAddr {
        SocketAddr::new(host.address(self.kind.is_v4), port)
    }

    /// A client outside, from its usual port.
    pub fn client(&self) -> SocketAddr {
        self.at(Host::Client, 40000)
    }

    /// A frontend's address.
    pub fn vip(&self, number: u8) -> SocketAddr {
        let address = if self.kind.is_v4 {
            [10, 96, 100, number].into()
        } else {
            [0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)].into()
        };
        SocketAddr::new(address, 80)
    }

    /// Where the backend on a host answers.
    pub fn target(&self, host: Host) -> SocketAddr {
        self.at(host, TARGET_PORT)
    }

    /// Writes the backend on a host, serving, in its first generation; its id.
    pub fn backend(&mut self, host: Host) -> u32 {
        self.backend_with(host, BackendFlags::SERVING, 1)
    }

    /// Writes the backend on a host; its id.
    pub fn backend_with(&mut self, host: Host, flags: BackendFlags, generation: u32) -> u32 {
        let id = 1 + host as u32;
        let is_local = matches!(host, Host::PodA | Host::PodB);
        let flags = if is_local { flags.with(BackendFlags::LOCAL) } else { flags };
        let address = self.target(host);
        self.bench.put_backend(id, &BackendSpec { address, flags, generation });
        id
    }

    /// Writes a backend of this node anywhere, serving, in its first generation.
    pub fn local_backend(&mut self, id: u32, address: SocketAddr) {
        let flags = BackendFlags::SERVING.with(BackendFlags::LOCAL);
        self.bench.put_backend(id, &BackendSpec { address, flags, generation: 1 });
    }

    /// Type and code of an error about a packet that is too long.
    pub fn too_big(&self) -> [u8; 2] {
        if self.kind.is_v4 { [3, 4] } else { [2, 0] }
    }

    /// Gives the id of the backend on a host to one on another node, with other addresses.
    pub fn new_owner(&mut self, host: Host, address: SocketAddr) {
        let spec = BackendSpec { address, flags: BackendFlags::SERVING, generation: 2 };
        self.bench.put_backend(1 + host as u32, &spec);
    }

    /// Clears a backend.
    pub fn no_backend(&mut self, id: u32, address: SocketAddr) {
        let flags = BackendFlags::NONE;
        self.bench.put_backend(id, &BackendSpec { address, flags, generation: 0 });
    }

    /// What the node carries packets in.
    pub fn carrier_kind(&self) -> carrier::Kind {
        self.bench.carrier_kind()
    }

    /// Writes a frontend that chooses from the same backends for everybody.
    pub fn frontend(&mut self, address: SocketAddr, backends: &[u32]) {
        self.frontend_with(address, FrontendFlags::NONE, [backends, backends]);
    }

    /// Puts the backend on a host behind the first frontend; the usual client, the frontend, the
    /// backend's address.
    pub fn serve(&mut self, host: Host) -> [SocketAddr; 3] {
        let (vip, id) = (self.vip(1), self.backend(host));
        self.frontend(vip, &[id]);
        [self.client(), vip, self.target(host)]
    }

    /// Writes a frontend with backends for clients on this node and from outside.
    pub fn frontend_with(
        &mut self,
        address: SocketAddr,
        flags: FrontendFlags,
        [internal, external]: [&[u32]; 2],
    ) {
        let Self { affinity_timeout, kind: Kind { protocol, .. }, .. } = *self;
        let spec = FrontendSpec { address, protocol, flags, affinity_timeout, internal, external };
        self.bench.put_frontend(&spec);
    }

    /// Makes the hosts within so many bits of these the sources of a Service port.
    pub fn sources(&mut self, service: u32, hosts: &[(Host, u8)]) {
        let prefix = |&(host, length): &(Host, u8)| (host.address(self.kind.is_v4), length);
        let prefixes: Vec<_> = hosts.iter().map(prefix).collect();
        self.bench.set_sources(service, &prefixes);
    }

    /// Bits of a whole address.
    pub fn whole(&self) -> u8 {
        if self.kind.is_v4 { 32 } else { 128 }
    }

    /// The first packet of a flow: a SYN, an INIT, or a datagram.
    pub fn first(&self, src: SocketAddr, dst: SocketAddr) -> Frame {
        self.segment(src, dst, SYN)
    }

    /// A later packet of a flow: an ACK, DATA, or a datagram.
    pub fn later(&self, src: SocketAddr, dst: SocketAddr) -> Frame {
        self.segment(src, dst, ACK)
    }

    /// A packet with these TCP flags; the chunk that says the same for SCTP, a datagram for UDP.
    pub fn segment(&self, src: SocketAddr, dst: SocketAddr, flags: u8) -> Frame {
        let transport = match self.kind.protocol {
            L4Proto::SCTP => Transport::Sctp { tag: TAG, chunk: chunk(flags) },
            L4Proto::TCP => {
                Transport::Tcp { sequence: SEQUENCE, acknowledgement: ACKNOWLEDGEMENT, flags }
            }
            _ => Transport::Udp,
        };
        Frame {
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            src,
            dst,
            class: CLASS,
            ttl: 61,
            options: Vec::new(),
            transport,
            payload: b"thirteen byte".to_vec(),
        }
    }

    /// Passes bytes, and expects nothing of them yet.
    pub fn judge(&mut self, hook: Hook, bytes: &[u8], fate: Fate) -> Outcome {
        self.bench.judge(hook, bytes, fate)
    }

    /// Walks over all flows so many times.
    pub fn walk(&mut self, times: u32) {
        self.bench.walk(times);
    }

    /// Passes a packet and expects its fate, no counter, and a correct frame.
    #[track_caller]
    pub fn pass(&mut self, hook: Hook, frame: &Frame, fate: Fate) -> Frame {
        let outcome = self.bench.judge(hook, &frame.encode(), fate);
        assert_eq!((outcome.fate, &outcome.counted[..]), (fate, &[][..]), "{frame:?}");
        decode(&outcome)
    }

    /// Passes a packet and expects it with other ends, and nothing else changed.
    #[track_caller]
    pub fn expect(&mut self, hook: Hook, frame: &Frame, fate: Fate, ends: [SocketAddr; 2]) {
        let [src, dst] = ends;
        let became = self.pass(hook, frame, fate);
        assert_eq!(became, Frame { src, dst, ..frame.clone() });
    }

    /// The same for a frame that is longer than its packet.
    #[track_caller]
    pub fn expect_padded(&mut self, hook: Hook, frame: &Frame, ends: [SocketAddr; 2]) {
        let [src, dst] = ends;
        let (bytes, padding) = (frame.encode(), [0x5a; 46]);
        let outcome = self.bench.judge(hook, &[&bytes[..], &padding].concat(), Fate::Next);
        assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Next, &[][..]), "{frame:?}");
        let (packet, rest) = outcome.bytes.split_at(bytes.len());
        assert_eq!(rest, padding);
        let became = Frame::decode(packet);
        assert_eq!(became, Ok(Frame { src, dst, ..frame.clone() }));
    }

    /// The same where this node forwards in place of its stack, which costs a hop.
    #[track_caller]
    pub fn expect_hop(&mut self, hook: Hook, frame: &Frame, fate: Fate, ends: [SocketAddr; 2]) {
        let [src, dst] = ends;
        let became = self.pass(hook, frame, fate);
        assert_eq!(became, Frame { src, dst, ttl: frame.ttl - 1, ..frame.clone() });
    }

    /// Passes a reply to a process of the node and expects it, delivered as if by the uplink.
    #[track_caller]
    pub fn expect_delivery(&mut self, at: Device, frame: &Frame, ends: [SocketAddr; 2]) {
        let [src, dst] = ends;
        self.expect_delivered(at, frame, &Frame { src, dst, ..frame.clone() });
    }

    /// Passes a packet for a process of the node and expects another one, delivered likewise.
    #[track_caller]
    pub fn expect_delivered(&mut self, at: Device, frame: &Frame, expected: &Frame) {
        let mut macs = frame.macs;
        let mut fate = Fate::Next;
        if at != Device::Uplink {
            fate = Fate::Sent(Device::Uplink);
            // Or the stack would take it for somebody else's.
            macs[0] = DEVICE_MAC;
        }
        let became = self.pass(Hook::Ingress(at), frame, fate);
        assert_eq!(became, Frame { macs, ..expected.clone() });
    }

    /// Passes a packet and expects it to be dropped and counted.
    #[track_caller]
    pub fn expect_drop(&mut self, hook: Hook, frame: &Frame, counter: Counter) {
        self.expect_bytes_drop(hook, &frame.encode(), counter);
    }

    /// Passes bytes and expects them to be dropped and counted.
    #[track_caller]
    pub fn expect_bytes_drop(&mut self, hook: Hook, bytes: &[u8], counter: Counter) {
        let outcome = self.bench.judge(hook, bytes, Fate::Dropped);
        assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Dropped, &[counter][..]));
    }

    /// Passes a packet that may be translated or dropped for lack of a port.
    pub(crate) fn try_pass(
        &mut self,
        hook: Hook,
        frame: &Frame,
        fate: Fate,
    ) -> Result<Frame, Counter> {
        let outcome = self.bench.judge(hook, &frame.encode(), fate);
        match outcome.counted[..] {
            [] => Ok(decode(&outcome)),
            [counter, ..] => Err(counter),
        }
    }

    /// Passes a packet and expects its refusal, sent back to where it came from.
    #[track_caller]
    pub fn expect_refusal(&mut self, hook: Hook, frame: &Frame) -> Frame {
        self.expect_answer(hook, frame, Counter::NoEndpoint)
    }

    /// Passes a packet and expects it counted and answered to where it came from.
    #[track_caller]
    pub fn expect_answer(&mut self, hook: Hook, frame: &Frame, counter: Counter) -> Frame {
        let (Hook::Egress(device) | Hook::HostEgress(device) | Hook::Ingress(device)) = hook;
        let fate = Fate::Sent(device);
        let outcome = self.bench.judge(hook, &frame.encode(), fate);
        assert_eq!((outcome.fate, &outcome.counted[..]), (fate, &[counter][..]));
        decode(&outcome)
    }

    /// Passes bytes and expects them back, on their way; some may be counted.
    #[track_caller]
    pub fn expect_untouched(&mut self, hook: Hook, bytes: &[u8], counted: &[Counter]) {
        let outcome = self.bench.judge(hook, bytes, Fate::Next);
        assert_eq!((outcome.fate, &outcome.counted[..]), (Fate::Next, counted), "{bytes:02x?}");
        assert_eq!(outcome.bytes, bytes);
    }
}

/// The type of the SCTP chunk that says what these flags say: DATA where there is none.
fn chunk(flags: u8) -> u8 {
    match flags {
        SYN => INIT,
        SYN_ACK => 2,
        RST | RST_ACK => 6,
        FIN_ACK => 7,
        _ => 0,
    }
}

#[track_caller]
fn decode(outcome: &Outcome) -> Frame {
    match Frame::decode(&outcome.bytes) {
        Ok(frame) => frame,
        Err(error) => panic!("{error} in {outcome:02x?}"),
    }
}
