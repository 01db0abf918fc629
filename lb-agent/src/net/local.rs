//! Which devices lead to pods where a setting names them (S6): a pure function.

use lb_common::abi::DeviceRole;

use super::{NodeNetwork, SkipReason, Usage};
use crate::config::DetectLocal;

/// Gives devices the roles that follow from their names, if any do; a port of a bridge counts as
/// its bridge, since that is what its packets come in by.
pub fn name_pods(mut network: NodeNetwork, local: &DetectLocal) -> NodeNetwork {
    let bridge = |index: Option<u32>| {
        let bridges = network.devices.iter().filter(|device| device.kind == "bridge");
        bridges.into_iter().find(|device| Some(device.ifindex) == index)
    };
    let names: Vec<String> = network
        .devices
        .iter()
        .map(|device| bridge(device.master).unwrap_or(device).name.clone())
        .collect();
    for (device, name) in network.devices.iter_mut().zip(names) {
        device.usage = match (local.leads_to_pods(&name), device.usage) {
            (Some(true), Usage::Attach(_) | Usage::Skip(SkipReason::Idle)) => {
                Usage::Attach(DeviceRole::PODS)
            }
            (Some(false), Usage::Attach(_)) => Usage::Attach(DeviceRole::UPLINK),
            (_, usage) => usage,
        };
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{DeviceFacts, Layer};

    fn device(ifindex: u32, (name, kind): (&str, &str), usage: Usage) -> DeviceFacts {
        DeviceFacts {
            ifindex,
            name: name.to_owned(),
            kind: kind.to_owned(),
            usage,
            layer: Layer::Ethernet,
            mac: [0; 6],
            mtu: 1500,
            up: true,
            v4: Vec::new(),
            v6: Vec::new(),
            master: None,
            carries_vlans: false,
        }
    }

    fn network() -> NodeNetwork {
        let (pods, uplink) = (Usage::Attach(DeviceRole::PODS), Usage::Attach(DeviceRole::UPLINK));
        let devices = vec![
            device(1, ("lo", ""), Usage::Skip(SkipReason::Loopback)),
            device(2, ("eth0", ""), uplink),
            device(3, ("br0", "bridge"), Usage::Skip(SkipReason::Idle)),
            DeviceFacts { master: Some(3), ..device(4, ("veth1", "veth"), pods) },
            device(5, ("cali1", "veth"), pods),
            DeviceFacts { master: Some(2), ..device(6, ("eth1", ""), pods) },
        ];
        NodeNetwork { devices, ..NodeNetwork::default() }
    }

    fn roles(local: &DetectLocal) -> Vec<&'static str> {
        name_pods(network(), local).devices.iter().map(|device| device.usage.role_name()).collect()
    }

    #[test]
    fn s6_devices_named_as_the_pods_are_and_no_others_lead_to_pods() {
        let found = ["none", "uplink", "none", "pods", "pods", "pods"];
        assert_eq!(roles(&DetectLocal::Devices), found);
        assert_eq!(roles(&DetectLocal::NodeCidr), found);
        let bridge = DetectLocal::Bridge("br0".to_owned());
        assert_eq!(roles(&bridge), ["none", "uplink", "pods", "pods", "uplink", "uplink"]);
        let prefix = DetectLocal::NamePrefix("cali".to_owned());
        assert_eq!(roles(&prefix), ["none", "uplink", "none", "uplink", "pods", "uplink"]);
    }
}
