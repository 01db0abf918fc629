//! What direct server return asks of this node: its port, its MTUs and its reverse path filtering.

use lb_common::{
    abi::{DeviceRole, Ipv4, Ipv6},
    carrier::Kind,
};

use super::{Finding, Plan, network::sysctl};
use crate::{
    config::{DsrDispatch, Forwarding},
    model::Protocol,
    net::{self, DeviceFacts, NodeNetwork},
};

pub(super) fn findings(plan: &Plan<'_>, network: &NodeNetwork) -> Vec<Finding> {
    if plan.forwarding == Forwarding::Snat {
        return listener(plan.dsr_port).into_iter().collect();
    }
    if plan.dsr_port == 0 && plan.dsr_dispatch == DsrDispatch::Gue {
        return vec![Finding::fail(
            "dsr-port",
            "--dsr-port=0: other nodes get carriers that none takes out",
            "set --dsr-port to the same port on all nodes, --dsr-dispatch=ipip, or --forwarding=snat",
        )];
    }
    let mut findings: Vec<_> = listener(plan.dsr_port).into_iter().collect();
    findings.extend(narrow(network, plan.dsr_dispatch.kind()));
    findings.extend(strict(network, rp_filter));
    findings
}

/// Carriers go to pods' addresses, and to the node's own where a pod has the node's network.
fn listener(port: u16) -> Option<Finding> {
    if port == 0 {
        return None;
    }
    let name = "dsr-port";
    if !net::bound_ports().contains(&(Protocol::Udp, port)) {
        return Some(Finding::ok(name, format!("no process of the host listens on UDP {port}")));
    }
    Some(Finding::warn(
        name,
        format!(
            "a process of the host listens on UDP {port}: of what comes for it, the agent takes what looks \
             like a carrier"
        ),
        "move it, or set --dsr-port to another port, the same on all nodes",
    ))
}

/// Uplinks on which pods' longest packets do not fit a carrier.
fn narrow(network: &NodeNetwork, kind: Kind) -> Vec<Finding> {
    let of_role = |role| network.devices.iter().filter(move |it| it.role() == Some(role));
    let pods = of_role(DeviceRole::PODS).map(|device| device.mtu).max();
    let finding = |device: &DeviceFacts| {
        let (uplink, pods) = (device.mtu, pods?);
        let [v4, v6] = [kind.overhead::<Ipv4>(), kind.overhead::<Ipv6>()];
        let [v4, v6] = [v4, v6].map(|bytes| u32::try_from(bytes).unwrap_or_default());
        let detail = format!("{}: MTU {uplink}, pods {pods}", device.name);
        if uplink >= pods + v6 {
            return Some(Finding::ok("dsr-mtu", detail));
        }
        let [most_v4, most_v6] = [v4, v6].map(|overhead| uplink.saturating_sub(overhead));
        Some(Finding::warn(
            "dsr-mtu",
            format!(
                "{detail}: packets above {most_v4} bytes (IPv6: {most_v6}) fit no carrier, and clients have to learn that"
            ),
            format!(
                "ip link set {} mtu {} on all nodes and what is between them, or pods' devices to {most_v6}",
                device.name,
                pods + v6
            ),
        ))
    };
    of_role(DeviceRole::UPLINK).filter_map(finding).collect()
}

/// What comes out of a carrier has a client for its source, whose route may lead by another uplink.
fn strict(network: &NodeNetwork, rp_filter: impl Fn(&str) -> u32) -> Vec<Finding> {
    let uplinks = network.devices.iter().filter(|it| it.role() == Some(DeviceRole::UPLINK));
    let uplinks: Vec<_> = uplinks.filter(|device| device.up).collect();
    if uplinks.len() < 2 {
        return Vec::new();
    }
    let strict = uplinks.iter().filter(|device| rp_filter(&device.name) == 1).map(|device| {
        let name = device.name.replace('.', "/");
        Finding::warn(
            "dsr-rp_filter",
            format!("net.ipv4.conf.{name}.rp_filter = 1 (strict): carried packets of clients whose route leads by another device are dropped"),
            format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
        )
    });
    let strict: Vec<_> = strict.collect();
    if strict.is_empty() { vec![Finding::ok("dsr-rp_filter", "off or loose")] } else { strict }
}

/// The larger one of a device's own and of what is for all counts.
fn rp_filter(device: &str) -> u32 {
    let value =
        |name: &str| sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))?.parse::<u32>().ok();
    value(device).max(value("all")).unwrap_or_default()
}
