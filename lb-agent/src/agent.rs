//! The agent at work: everything that runs between its start and the signal that ends it.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Settings,
    health::{self, Health, Metrics},
    instance::{DeviceStatus, Instance, Lock, Status},
    net::{self, NodeNetwork, Usage},
    telemetry::with_progress,
};

/// What the agent starts with. It holds the lock for as long as it lives.
#[derive(Debug)]
pub struct Start {
    /// What it was told.
    pub settings: Settings,
    /// Its files.
    pub instance: Instance,
    /// Its lock.
    pub lock: Lock,
    /// What it tells of itself.
    pub status: Status,
    /// Cancelled by SIGTERM and SIGINT.
    pub stop: CancellationToken,
}

/// Runs until `stop` is cancelled.
///
/// # Errors
///
/// What the agent can't work without is missing.
pub async fn agent(start: Start) -> anyhow::Result<()> {
    let Start { settings, instance, lock: _lock, mut status, stop } = start;
    tracing::info!(node = settings.node_name, source = %settings.source, "starting");
    let (health, metrics) = (Health::default(), Arc::new(Metrics::default()));
    let _servers = health::serve(settings.healthz, settings.metrics, &health, &metrics);
    let following = net::follow(settings.devices.clone());
    let following = with_progress("listing devices", following).await.context("list devices")?;
    let mut network = following.network.clone();
    loop {
        {
            let network = network.borrow_and_update();
            metrics.set_unsupported_devices(network.unsupported().count());
            status.devices = device_status(&network);
        }
        if let Err(error) = status.write(&instance.status()) {
            tracing::error!(%error, "write the status file");
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = network.changed() => changed.context("follow devices")?,
        }
    }
}

fn device_status(network: &NodeNetwork) -> Vec<DeviceStatus> {
    let devices = network.devices.iter().map(|device| DeviceStatus {
        name: device.name.clone(),
        ifindex: device.ifindex,
        role: device.usage.role_name().to_owned(),
        attached: Vec::new(),
        reason: match device.usage {
            Usage::Attach(_) => None,
            Usage::Skip(reason) => Some(reason.to_string()),
        },
    });
    devices.collect()
}
