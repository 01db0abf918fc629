//! Which devices carry the packet programs: those of the newest picture, and no others.

use std::collections::BTreeMap;

use lb_common::abi::Device;

use super::problems::{Finder, Problems};
use crate::{
    dataplane::{Kernel, KernelError},
    model::{Problem, ProblemKey},
    net::NodeNetwork,
};

/// Which of the wanted devices are attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Which {
    /// All: what is attached already is made sure of.
    All,
    /// Those that are new or have changed.
    Changed,
}

/// The devices of one agent.
pub(super) struct Devices {
    kernel: Kernel,
    wanted: BTreeMap<u32, (String, Device)>,
    /// What the programs know; a device that could not be attached is not here.
    attached: BTreeMap<u32, (String, Device)>,
}

impl Devices {
    pub(super) fn new(kernel: Kernel) -> Self {
        Self { kernel, wanted: BTreeMap::new(), attached: BTreeMap::new() }
    }

    /// Brings the programs to the devices of this picture.
    pub(super) fn see(&mut self, network: &NodeNetwork, problems: &mut Problems) {
        let entry = |device: &crate::net::DeviceFacts| {
            let entry = device.entry(network.primary)?;
            Some((device.ifindex, (device.name.clone(), entry)))
        };
        self.wanted = network.devices.iter().filter_map(entry).collect();
        self.attach(Which::Changed, problems);
    }

    /// Does what an earlier try could not, and mends what somebody else has detached.
    pub(super) fn repair(&mut self, problems: &mut Problems) {
        self.attach(Which::All, problems);
    }

    fn attach(&mut self, which: Which, problems: &mut Problems) {
        problems.keep_devices(&self.wanted.values().map(|(name, _)| &**name).collect());
        self.detach_stale();
        for (ifindex, (name, device)) in &self.wanted {
            let is_known = self.attached.get(ifindex) == Some(&(name.clone(), *device));
            if is_known && which == Which::Changed {
                continue;
            }
            let attached = self.kernel.attach_device((*ifindex, name), device);
            match &attached {
                Ok(()) if is_known => {}
                Ok(()) => {
                    tracing::info!(device = name, ifindex, "attached");
                    self.attached.insert(*ifindex, (name.clone(), *device));
                }
                Err(_) => drop(self.attached.remove(ifindex)),
            }
            // A device that has just gone is missed by nobody: the next picture is without it.
            let failure = attached.err().filter(|error| !error.is_device_gone());
            let fault = failure.map(|error| fault(name, &error));
            problems.set(Finder::Device(name.clone()), fault);
        }
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
            if let Some((name, _)) = self.attached.remove(&ifindex) {
                tracing::info!(device = name, ifindex, "detached");
            }
        }
    }
}

fn fault(name: &str, error: &KernelError) -> Problem {
    Problem {
        key: ProblemKey { kind: "device", name: name.into() },
        field: String::new(),
        message: error.to_string(),
        mend: "its Services work by the socket path alone until it can be attached".to_owned(),
    }
}
