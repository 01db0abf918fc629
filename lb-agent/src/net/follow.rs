//! Keeps a picture of the node's network: listed whole, then listed again whenever something of it
//! changes.
//!
//! Messages only say that a new list is due, so a lost one (`ENOBUFS`) costs nothing but that.

use std::{io, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::SocketAddr,
};
use tokio::{sync::watch, task::JoinHandle};

use super::{NodeNetwork, classify, dump, name_pods};
use crate::config::{DetectLocal, DevicePattern};

/// What comes close together is listed once.
const BURST: Duration = Duration::from_millis(20);
/// Between tries, when listing ends with an error.
const RETRY: Duration = Duration::from_secs(1);

/// What netlink tells of the network.
pub(super) type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// The picture, kept up to date until this is dropped.
#[derive(Debug)]
pub struct Following {
    /// The newest picture; the first one is complete.
    pub network: watch::Receiver<NodeNetwork>,
    _tasks: Tasks,
}

/// Tasks that end with their owner.
#[derive(Debug)]
pub(super) struct Tasks(pub(super) [JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// What settings say of devices.
#[derive(Clone, Debug, Default)]
pub struct DeviceSettings {
    /// Those to use; empty means all that are fit.
    pub named: Vec<DevicePattern>,
    /// Which of them lead to pods.
    pub local: DetectLocal,
}

/// Lists the network of the calling thread's namespace and follows it.
///
/// # Errors
///
/// The netlink socket, or the first list.
pub async fn follow(settings: DeviceSettings) -> io::Result<Following> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, messages) = new_multicast_connection(&groups)?;
    let reader = tokio::spawn(connection);
    let first = list(&handle, &settings).await.map_err(io::Error::other)?;
    let (sender, network) = watch::channel(first);
    let follower = tokio::spawn(keep(handle, messages, settings, sender));
    // Aborted in this order: the follower would take the reader's end for a fault.
    Ok(Following { network, _tasks: Tasks([follower, reader]) })
}

/// Lists the network of the calling thread's namespace once.
///
/// # Errors
///
/// The netlink socket, or the list.
pub fn picture(settings: &DeviceSettings) -> io::Result<NodeNetwork> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let reader = tokio::spawn(connection);
        let listed = list(&handle, settings).await.map_err(io::Error::other);
        reader.abort();
        listed
    })
}

async fn list(handle: &Handle, settings: &DeviceSettings) -> Result<NodeNetwork, rtnetlink::Error> {
    let dump = dump::dump(handle).await?;
    let network = classify(&dump.links, &dump.addresses, &dump.routes, &settings.named);
    Ok(name_pods(network, &settings.local))
}

async fn keep(
    handle: Handle,
    mut messages: Messages,
    settings: DeviceSettings,
    sender: watch::Sender<NodeNetwork>,
) {
    while let Some((message, _)) = messages.next().await {
        if !matters(&message.payload) {
            continue;
        }
        tokio::time::sleep(BURST).await;
        while messages.try_recv().is_ok() {}
        publish(&handle, &settings, &sender).await;
    }
    tracing::error!("the netlink socket closed: devices and addresses are followed no longer");
}

async fn publish(handle: &Handle, settings: &DeviceSettings, sender: &watch::Sender<NodeNetwork>) {
    loop {
        match list(handle, settings).await {
            Ok(new) => {
                sender.send_if_modified(|old| {
                    let is_new = *old != new;
                    *old = new;
                    is_new
                });
                return;
            }
            Err(error) => tracing::warn!(%error, "list devices and addresses"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Can the picture depend on it? Routes change by the thousand on some nodes.
fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => !dump::route_facts(route).is_empty(),
        NetlinkPayload::InnerMessage(_) | NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use lb_common::abi::DeviceRole;
    use nix::sched::{CloneFlags, unshare};
    use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

    use super::*;
    use crate::net::Usage;

    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    /// Runs a future in a thread whose network namespace is new and ends with it.
    fn in_new_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(test());
        });
        thread.join().unwrap();
    }

    async fn changes_to(following: &Following, wanted: impl Fn(&NodeNetwork) -> bool) {
        let mut network = following.network.clone();
        let changed = tokio::time::timeout(Duration::from_secs(10), network.wait_for(wanted));
        let seen = changed.await.is_ok();
        assert!(seen, "not seen: {:#?}", following.network.borrow());
    }

    fn usage(network: &NodeNetwork, name: &str) -> Option<Usage> {
        network.devices.iter().find(|device| device.name == name).map(|device| device.usage)
    }

    #[test]
    fn lost_messages_are_made_up_for_by_a_new_list() {
        assert!(matters(&NetlinkPayload::Overrun(Vec::new())));
        assert!(!matters(&NetlinkPayload::Noop));
    }

    #[test]
    fn a_device_an_address_and_a_route_are_seen_when_they_come_and_go() {
        in_new_namespace(|| async {
            let following = follow(DeviceSettings::default()).await.unwrap();
            assert_eq!(following.network.borrow().devices.len(), 1, "lo alone");

            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().add(LinkVeth::new("v0", "v1").build()).execute().await.unwrap();
            changes_to(&following, |network| usage(network, "v0").is_some()).await;
            let v0 = nix::net::if_::if_nametoindex("v0").unwrap();
            let mtu = LinkUnspec::new_with_index(v0).mtu(1400).build();
            handle.link().set(mtu).execute().await.unwrap();
            changes_to(&following, |network| network.devices.iter().any(|it| it.mtu == 1400)).await;

            for name in ["v0", "v1"] {
                let index = nix::net::if_::if_nametoindex(name).unwrap();
                let up = LinkUnspec::new_with_index(index).up().build();
                handle.link().set(up).execute().await.unwrap();
            }
            handle.address().add(v0, V4.into(), 24).execute().await.unwrap();
            handle.address().add(v0, V6.into(), 64).execute().await.unwrap();
            changes_to(&following, |network| {
                let both = [IpAddr::from(V4), V6.into()];
                both.iter().all(|address| network.addresses.contains(address))
            })
            .await;

            let gateway = Ipv4Addr::new(192, 0, 2, 1);
            let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
            handle.route().add(default).execute().await.unwrap();
            changes_to(&following, |network| {
                network.primary.v4 == Some(V4)
                    && usage(network, "v0") == Some(Usage::Attach(DeviceRole::UPLINK))
            })
            .await;

            handle.link().del(v0).execute().await.unwrap();
            changes_to(&following, |network| {
                network.devices.len() == 1 && !network.addresses.contains(&IpAddr::from(V4))
            })
            .await;
        });
    }
}
