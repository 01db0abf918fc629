//! What a running agent tells of itself, for `lb-agent status`.

use std::{io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::replace_file;

/// The status file: written by the agent, read by `status`, each time whole.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// When the agent started.
    pub started: Timestamp,
    /// Where Services come from, and how that is.
    pub source: SourceStatus,
    /// Is everything written that was listed?
    pub synced: bool,
    /// When the tables were last brought in step.
    pub last_sync: Option<Timestamp>,
    /// What was ended, since the start.
    #[serde(default)]
    pub stale: StaleStatus,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// Addresses of Services that are somebody else's on this node.
    #[serde(default)]
    pub left_alone: Vec<LeftAlone>,
    /// Devices, with what is attached to them.
    pub devices: Vec<DeviceStatus>,
}

/// An address of a Service that nothing is translated for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftAlone {
    /// `namespace/name`.
    pub service: String,
    /// Address, port and protocol.
    pub address: String,
    /// Why, in a few words.
    pub reason: String,
}

/// What led to backends that no longer serve, was silent for too long, or had no room.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaleStatus {
    /// Connected sockets that were closed.
    pub closed_sockets: u64,
    /// Conntrack entries that were deleted.
    pub deleted_entries: u64,
    /// Conntrack entries that were silent for too long.
    #[serde(default)]
    pub expired_entries: u64,
    /// Conntrack entries that a full table threw out.
    #[serde(default)]
    pub evicted_entries: u64,
}

/// Health of the source.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// URL of the API server, or the folder.
    pub from: String,
    /// Has everything been listed once?
    pub listed: bool,
    /// Why nothing is heard of it; none while all is well.
    pub error: Option<String>,
}

/// One device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// `uplink`, `pods`, or `none`.
    pub role: String,
    /// Hooks that our programs sit at, as `tcx ingress`; empty where nothing is attached.
    pub attached: Vec<String>,
    /// Why nothing is attached, where that is so.
    pub reason: Option<String>,
    /// `native`, `generic`, or `off` with the reason; none where XDP is not for the device.
    #[serde(default)]
    pub xdp: Option<String>,
}

impl Status {
    /// The first status of this process.
    pub fn starting(from: String) -> Self {
        Self {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Timestamp::now(),
            source: SourceStatus { from, ..SourceStatus::default() },
            synced: false,
            last_sync: None,
            stale: StaleStatus::default(),
            problems: Vec::new(),
            left_alone: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// Writes it in place of the last one.
    ///
    /// # Errors
    ///
    /// The folder can't be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace_file(path, &serde_json::to_vec_pretty(self)?)
    }

    /// Reads the last one; none if there was no agent yet.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is none of ours.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(Some(serde_json::from_slice(&bytes?)?)),
        }
    }
}
