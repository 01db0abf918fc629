//! What the agent tells of itself: status file, health and metrics.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    devices::Devices,
    engine::{Engine, Written},
    problems::Problems,
};
use crate::{
    dataplane::{Reader, TableError},
    desired::{FrontendAddress, PortKey},
    health::{Health, Metrics},
    instance::{DeviceStatus, Instance, LeftAlone, SourceStatus, Status},
    net::{DeviceFacts, IPVS_DEVICE, NodeNetwork, Usage},
    source::SourceHealth,
};

/// Where the agent's state is shown.
pub(super) struct Report {
    status: Status,
    written: Option<Status>,
    path: PathBuf,
    bpffs: PathBuf,
    network: NodeNetwork,
    seen: Written,
    /// Something has come since everything was written.
    has_queued: bool,
    source: Arc<SourceHealth>,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Report {
    pub(super) fn new(
        status: Status,
        instance: &Instance,
        bpffs: &Path,
        (source, health, metrics): (Arc<SourceHealth>, Health, Arc<Metrics>),
    ) -> Self {
        metrics.queued(Timestamp::now());
        Self {
            status,
            written: None,
            path: instance.status(),
            bpffs: bpffs.to_owned(),
            network: NodeNetwork::default(),
            seen: Written::default(),
            has_queued: true,
            source,
            health,
            metrics,
        }
    }

    /// Something waits to be written.
    pub(super) fn queued(&mut self) {
        self.has_queued = true;
        self.metrics.queued(Timestamp::now());
        self.health.update_queued();
    }

    /// Takes in a new picture of the node's network.
    pub(super) fn see(&mut self, network: &NodeNetwork) {
        self.metrics.set_unsupported_devices(network.unsupported().count());
        self.network = network.clone();
    }

    /// Reads counters and maps for the metrics; conntrack only if nobody walks over it anyway.
    pub(super) fn measure(&self, is_swept: bool) {
        if let Err(error) = self.try_measure(is_swept) {
            tracing::warn!(%error, "read the counters");
        }
    }

    fn try_measure(&self, is_swept: bool) -> Result<(), TableError> {
        let Some(reader) = Reader::open(&self.bpffs) else { return Ok(()) };
        for (counter, packets) in reader.counters()? {
            self.metrics.set_packets(counter, packets);
        }
        let fill = if is_swept { reader.fill_of_others()? } else { reader.fill()? };
        for map in &fill {
            self.metrics.set_map(map);
        }
        Ok(())
    }

    /// Shows how things stand, where that changed.
    pub(super) fn update(&mut self, engine: &Engine, devices: &Devices, problems: &Problems) {
        let written = engine.written();
        self.status.synced = engine.is_synced();
        self.health.set_node_eligible(engine.is_node_eligible());
        if self.status.synced {
            self.health.updated();
            if std::mem::take(&mut self.has_queued) {
                self.metrics.in_step(Timestamp::now());
            }
        }
        if written.runs != self.seen.runs {
            self.metrics.synced(written.duration, written.steps - self.seen.steps);
            self.seen = written;
            self.status.last_sync = Some(Timestamp::now());
        }
        self.status.stale = self.metrics.ended();
        self.status.problems = problems.sentences().cloned().collect();
        let left_alone = engine.left_alone().iter();
        self.status.left_alone =
            left_alone.map(|(address, port)| left_alone_by(address, port, &self.network)).collect();
        self.metrics.set_problems(self.status.problems.len());
        let health = self.source.look();
        self.status.source =
            SourceStatus { from: health.name, listed: health.listed, error: health.last_error };
        let shown = |device: &DeviceFacts| device_status(device, devices);
        self.status.devices = self.network.devices.iter().map(shown).collect();
        self.write();
    }

    fn write(&mut self) {
        if self.written.as_ref() == Some(&self.status) {
            return;
        }
        match self.status.write(&self.path) {
            Ok(()) => self.written = Some(self.status.clone()),
            Err(error) => tracing::error!(%error, path = %self.path.display(), "write the status"),
        }
    }
}

/// Says who has the address (S22).
fn left_alone_by(address: &FrontendAddress, port: &PortKey, network: &NodeNetwork) -> LeftAlone {
    let devices = network.devices.iter().filter(|device| device.name != IPVS_DEVICE);
    let holder = devices.into_iter().find(|device| device.addresses().any(|ip| ip == address.ip));
    let holder = holder.map_or("a device".to_owned(), |device| format!("device {}", device.name));
    LeftAlone {
        service: port.service.to_string(),
        address: address.to_string(),
        reason: format!("held by {holder}"),
    }
}

fn device_status(device: &DeviceFacts, devices: &Devices) -> DeviceStatus {
    let hooks = ["tc ingress", "tc egress"].map(str::to_owned);
    let attached = if devices.is_attached(device.ifindex) { hooks.to_vec() } else { Vec::new() };
    DeviceStatus {
        name: device.name.clone(),
        ifindex: device.ifindex,
        role: device.usage.role_name().to_owned(),
        attached,
        reason: match device.usage {
            Usage::Attach(_) => None,
            Usage::Skip(reason) => Some(reason.to_string()),
        },
        xdp: devices.xdp(device.ifindex).map(str::to_owned),
    }
}
