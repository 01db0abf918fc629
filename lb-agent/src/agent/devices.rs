//! Which devices carry the packet programs: those of the newest picture, and no others.

use std::collections::BTreeMap;

use lb_common::abi::Device;

use super::{
    fast::{self, Choice, Drivers},
    problems::{Finder, Problems},
};
use crate::{
    dataplane::{Kernel, KernelError, XdpMode},
    model::{Problem, ProblemKey},
    net::{DeviceFacts, NodeNetwork},
};

/// Which of the wanted devices are attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Which {
    /// All: what is attached already is made sure of.
    All,
    /// Those that are new or have changed.
    Changed,
}

/// What is wanted of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Wanted {
    name: String,
    entry: Device,
    xdp: Choice,
}

/// The devices of one agent.
pub(super) struct Devices {
    kernel: Kernel,
    xdp: XdpMode,
    network: NodeNetwork,
    wanted: BTreeMap<u32, Wanted>,
    /// What the programs know; a device that could not be attached is not here.
    attached: BTreeMap<u32, Wanted>,
    /// How XDP stands at uplinks.
    standing: BTreeMap<u32, String>,
}

impl Devices {
    pub(super) fn new(kernel: Kernel, xdp: XdpMode) -> Self {
        let (network, wanted, attached, standing) = Default::default();
        Self { kernel, xdp, network, wanted, attached, standing }
    }

    /// Brings the programs to the devices of this picture.
    pub(super) fn see(&mut self, network: &NodeNetwork, problems: &mut Problems) {
        self.network = network.clone();
        self.judge();
        self.attach(Which::Changed, problems);
    }

    /// Works out what is wanted; what drivers say may change without a new picture.
    fn judge(&mut self) {
        let drivers = Drivers::ask(self.xdp);
        let entry = |device: &DeviceFacts| {
            let entry = device.entry(self.network.primary)?;
            let (entry, xdp) = drivers.judge(self.xdp, device, entry);
            Some((device.ifindex, Wanted { name: device.name.clone(), entry, xdp }))
        };
        self.wanted = self.network.devices.iter().filter_map(entry).collect();
    }

    /// Does what an earlier try could not, and mends what somebody else has detached.
    pub(super) fn repair(&mut self, problems: &mut Problems) {
        self.judge();
        self.attach(Which::All, problems);
    }

    fn attach(&mut self, which: Which, problems: &mut Problems) {
        problems.keep_devices(&self.wanted.values().map(|wanted| &*wanted.name).collect());
        self.detach_stale();
        for (ifindex, wanted) in self.wanted.clone() {
            if which == Which::Changed && self.attached.get(&ifindex) == Some(&wanted) {
                continue;
            }
            let faults = self.attach_one(ifindex, &wanted);
            problems.set(Finder::Device(wanted.name), faults);
        }
    }

    /// Attaches to one device; what was wrong.
    fn attach_one(&mut self, ifindex: u32, wanted: &Wanted) -> Vec<Problem> {
        let name = &*wanted.name;
        if let Err(error) = self.kernel.attach_device((ifindex, name), &wanted.entry) {
            self.attached.remove(&ifindex);
            // A device that has just gone is missed by nobody: the next picture is without it.
            let fault = (!error.is_device_gone()).then(|| fault(name, &error));
            return fault.into_iter().collect();
        }
        if self.attached.insert(ifindex, wanted.clone()).as_ref() != Some(wanted) {
            tracing::info!(device = name, ifindex, "attached");
        }
        // Behind TC, which takes what XDP leaves.
        let standing = fast::bring(&mut self.kernel, (ifindex, self.xdp), wanted.xdp);
        let Some((shown, wrong)) = standing else {
            self.standing.remove(&ifindex);
            return Vec::new();
        };
        if self.standing.get(&ifindex) != Some(&shown) {
            tracing::info!(device = name, ifindex, "XDP: {shown}");
        }
        self.standing.insert(ifindex, shown);
        wrong.map(|(message, mend)| problem(name, message, mend)).into_iter().collect()
    }

    /// How XDP stands at a device; none where it is not for it.
    pub(super) fn xdp(&self, ifindex: u32) -> Option<&str> {
        self.standing.get(&ifindex).map(|shown| &**shown)
    }

    /// Is the device attached?
    pub(super) fn is_attached(&self, ifindex: u32) -> bool {
        self.attached.contains_key(&ifindex)
    }

    /// Removes what is attached to devices that are not wanted, by this agent or an earlier one.
    fn detach_stale(&mut self) {
        let known = match self.kernel.devices() {
            Ok(known) => known,
            Err(error) => return tracing::error!(%error, "list devices"),
        };
        for (ifindex, _) in known {
            if self.wanted.contains_key(&ifindex) {
                continue;
            }
            if let Err(error) = self.kernel.detach_device(ifindex) {
                tracing::warn!(ifindex, %error, "detach");
            }
            self.standing.remove(&ifindex);
            if let Some(Wanted { name, .. }) = self.attached.remove(&ifindex) {
                tracing::info!(device = name, ifindex, "detached");
            }
        }
    }
}

fn fault(name: &str, error: &KernelError) -> Problem {
    let mend = "its Services work by the socket path alone until it can be attached";
    problem(name, error.to_string(), mend.to_owned())
}

fn problem(name: &str, message: String, mend: String) -> Problem {
    let key = ProblemKey { kind: "device", name: name.into() };
    Problem { key, field: String::new(), message, mend }
}
