//! Devices as the agent will see them: XDP at uplinks, and what direct server return needs of them.

use super::{Finding, Plan, carriers};
use crate::{
    agent::fast::{self, Drivers, Outlook},
    net::{self, NodeNetwork},
};

pub(super) fn findings(plan: &Plan<'_>) -> Vec<Finding> {
    match net::picture(&plan.devices) {
        Ok(network) => {
            let mut findings = xdp(plan, &network);
            findings.extend(carriers::findings(plan, &network));
            findings
        }
        Err(error) => vec![Finding::fail(
            "netlink",
            format!("list devices: {error}"),
            "let the agent open netlink sockets",
        )],
    }
}

fn xdp(plan: &Plan<'_>, network: &NodeNetwork) -> Vec<Finding> {
    let drivers = Drivers::ask(plan.xdp);
    let devices = network.devices.iter();
    let outlooks = devices.filter_map(|device| {
        let outlook = fast::outlook(&drivers, plan.xdp, device)?;
        Some(standing(&device.name, outlook))
    });
    outlooks.collect()
}

/// What is off for a reason that can be mended is a loss of speed, and nothing else.
fn standing(name: &str, outlook: Outlook) -> Finding {
    let detail = format!("{name}: {}", outlook.shown);
    match outlook.mend {
        Some(mend) => Finding::warn("xdp", detail, mend),
        None => Finding::ok("xdp", detail),
    }
}
