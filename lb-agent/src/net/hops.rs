//! Tells when known flows may have to go another way: a route, a rule, a neighbour or a link has
//! changed.
//!
//! Routes and rules are not remembered: each message counts. Of neighbours and links the last state
//! is, since most messages about them change nothing for a packet. An address counts by the routes
//! that it brings and takes. Not for: what devices are good for (`follow`).

use std::{collections::BTreeMap, io, net::IpAddr, time::Duration};

use futures::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    },
};
use tokio::time::sleep;

use super::follow::{Messages, Tasks};

/// Between two tellings, but for [`SETTLE`].
const PAUSE: Duration = Duration::from_millis(100);
/// A link is told of before the routes over it go, and IPv4's go without a word.
const SETTLE: Duration = Duration::from_millis(10);

/// The watch over next hops, until this is dropped.
#[derive(Debug)]
pub struct HopWatch {
    _tasks: Tasks,
}

/// Calls `tell` after each change of the calling thread's network that may lead packets elsewhere;
/// at once, but at most some ten times a second.
///
/// # Errors
///
/// The netlink socket, or the first list.
pub async fn watch_hops(tell: impl Fn() + Send + 'static) -> io::Result<HopWatch> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    let (connection, handle, messages) = new_multicast_connection(&groups)?;
    let reader = tokio::spawn(connection);
    let mut known = Known::default();
    known.list(&handle).await.map_err(io::Error::other)?;
    let watcher = tokio::spawn(watch(handle, messages, known, tell));
    // Aborted in this order: the watcher would take the reader's end for a fault.
    Ok(HopWatch { _tasks: Tasks([watcher, reader]) })
}

async fn watch(handle: Handle, mut messages: Messages, mut known: Known, tell: impl Fn()) {
    let mut change = Change::Nothing;
    loop {
        while change == Change::Nothing {
            let Some((message, _)) = messages.next().await else {
                tracing::error!("the netlink socket closed: routes are followed by time alone");
                return;
            };
            change = known.note(message.payload);
        }
        tell();
        if change == Change::Link {
            sleep(SETTLE).await;
            tell();
        }
        if change == Change::Anything
            && let Err(error) = known.list(&handle).await
        {
            tracing::warn!(%error, "list links and neighbours");
        }
        sleep(PAUSE).await;
        change = Change::Nothing;
        while let Ok((message, _)) = messages.try_recv() {
            change = change.max(known.note(message.payload));
        }
    }
}

/// What a message says that has changed; the later one says more.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Change {
    /// Nothing that packets depend on.
    #[default]
    Nothing,
    /// A route, a rule or a neighbour.
    Way,
    /// A link.
    Link,
    /// Messages were lost.
    Anything,
}

impl Change {
    fn way(is_changed: bool) -> Self {
        if is_changed { Self::Way } else { Self::Nothing }
    }

    fn link(is_changed: bool) -> Self {
        if is_changed { Self::Link } else { Self::Nothing }
    }
}

/// What packets depend on of a link.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Link {
    flags: LinkFlags,
    address: Vec<u8>,
    mtu: u32,
    master: u32,
}

/// Links, and link-layer addresses of neighbours that packets can be sent to.
#[derive(Debug, Default)]
struct Known {
    links: BTreeMap<u32, Link>,
    neighbours: BTreeMap<(u32, IpAddr), Vec<u8>>,
}

impl Known {
    /// Lists all of them anew.
    async fn list(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        *self = Self::default();
        let links: Vec<_> = handle.link().get().execute().try_collect().await?;
        for link in links {
            self.note_link(link);
        }
        let neighbours: Vec<_> = handle.neighbours().get().execute().try_collect().await?;
        for neighbour in neighbours {
            self.note_neighbour(neighbour);
        }
        Ok(())
    }

    fn note(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Change {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Change::Anything,
            _ => return Change::Nothing,
        };
        match message {
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => Change::Way,
            RouteNetlinkMessage::NewNeighbour(neighbour) => {
                Change::way(self.note_neighbour(neighbour))
            }
            RouteNetlinkMessage::DelNeighbour(mut neighbour) => {
                neighbour.header.state = NeighbourState::None;
                Change::way(self.note_neighbour(neighbour))
            }
            RouteNetlinkMessage::NewLink(link) => Change::link(self.note_link(link)),
            RouteNetlinkMessage::DelLink(link) if is_of_no_bridge(&link) => {
                Change::link(self.links.remove(&link.header.index).is_some())
            }
            _ => Change::Nothing,
        }
    }

    /// Has a link changed that was there already? Packets come to a new one by a new route.
    fn note_link(&mut self, message: LinkMessage) -> bool {
        if !is_of_no_bridge(&message) {
            return false;
        }
        let flags = message.header.flags & (LinkFlags::Up | LinkFlags::Running);
        let mut link = Link { flags, ..Link::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::Address(address) => link.address = address,
                LinkAttribute::Controller(master) => link.master = master,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                _ => {}
            }
        }
        let before = self.links.insert(message.header.index, link.clone());
        before.is_some_and(|before| before != link)
    }

    /// Has a neighbour got another address that packets could be sent to before? Those to one that had
    /// none ask for its address each time.
    fn note_neighbour(&mut self, message: NeighbourMessage) -> bool {
        let header = message.header;
        let (mut ip, mut address) = (None, Vec::new());
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    ip = Some(IpAddr::V4(v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    ip = Some(IpAddr::V6(v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => address = bytes,
                _ => {}
            }
        }
        // Those of bridges and VXLANs are link-layer addresses themselves.
        let Some(ip) = ip else { return false };
        let key = (header.ifindex, ip);
        if !is_usable(header.state) {
            return self.neighbours.remove(&key).is_some();
        }
        let before = self.neighbours.insert(key, address.clone());
        before.is_some_and(|before| before != address)
    }
}

/// Is it of the device itself, and not of its place in a bridge?
fn is_of_no_bridge(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

/// Are packets sent to a neighbour in this state (`NUD_VALID` of `include/net/neighbour.h`)?
fn is_usable(state: NeighbourState) -> bool {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    matches!(state, Delay | Noarp | Permanent | Probe | Reachable | Stale)
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
    };

    use rtnetlink::{
        packet_core::{NetlinkHeader, NetlinkMessage},
        packet_route::neighbour::NeighbourHeader,
        sys::SocketAddr,
    };
    use tokio::time::Instant;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn neighbour(state: NeighbourState, mac: &[u8]) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader { ifindex: 3, state, ..NeighbourHeader::default() };
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(IP)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))
    }

    fn link(flags: LinkFlags, family: AddressFamily) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut message = LinkMessage::default();
        (message.header.index, message.header.flags) = (4, flags);
        message.header.interface_family = family;
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message))
    }

    #[test]
    fn a_neighbour_counts_when_its_address_changes_or_goes() {
        use NeighbourState::{Failed, Incomplete, Reachable, Stale};
        let mut known = Known::default();
        let mut note = |state, mac: &[u8]| known.note(neighbour(state, mac));
        assert_eq!(note(Incomplete, &[]), Change::Nothing);
        assert_eq!(note(Reachable, &MAC), Change::Nothing, "nothing could be sent to it before");
        assert_eq!(note(Stale, &MAC), Change::Nothing);
        assert_eq!(note(Reachable, &[9; 6]), Change::Way);
        assert_eq!(note(Failed, &[9; 6]), Change::Way);
        assert_eq!(note(Failed, &[]), Change::Nothing);
    }

    #[test]
    fn a_link_counts_when_it_changes_but_not_for_its_bridge() {
        let mut known = Known::default();
        let (up, none) = (LinkFlags::Up | LinkFlags::Running, LinkFlags::empty());
        let mut told = |flags, family| known.note(link(flags, family));
        assert_eq!(told(up, AddressFamily::Unspec), Change::Nothing, "it is new");
        assert_eq!(told(up | LinkFlags::Promisc, AddressFamily::Unspec), Change::Nothing);
        assert_eq!(told(none, AddressFamily::Bridge), Change::Nothing);
        assert_eq!(told(none, AddressFamily::Unspec), Change::Link);
        assert_eq!(known.note(NetlinkPayload::Overrun(Vec::new())), Change::Anything);
    }

    /// A flood of messages is told of a few times, and what comes last is not missed.
    #[tokio::test]
    async fn many_changes_are_told_of_ten_times_a_second() {
        let (sender, messages) = futures::channel::mpsc::unbounded();
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        drop(connection);
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let tell = move || {
            count.fetch_add(1, Relaxed);
        };
        let watcher = tokio::spawn(watch(handle, messages, Known::default(), tell));
        let begin = Instant::now();
        for mac in 0..50 {
            let message = neighbour(NeighbourState::Reachable, &[mac; 6]);
            let message = NetlinkMessage::new(NetlinkHeader::default(), message);
            sender.unbounded_send((message, SocketAddr::new(0, 0))).unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        // In this order: a thread that waits for a CPU in between must not count too little time.
        let before = told.load(Relaxed);
        let tens = begin.elapsed().as_millis() / 100;
        assert!(
            before > 2 && u128::from(before) <= tens + 1,
            "told {before} times in {tens} tenths"
        );
        let message =
            NetlinkMessage::new(NetlinkHeader::default(), neighbour(NeighbourState::Failed, &[]));
        sender.unbounded_send((message, SocketAddr::new(0, 0))).unwrap();
        while told.load(Relaxed) == before {
            assert!(begin.elapsed() < Duration::from_secs(10), "the last one is missed");
            sleep(Duration::from_millis(10)).await;
        }
        watcher.abort();
    }
}
