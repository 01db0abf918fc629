//! Settings of the node's kernel, as one agent applies them: at its start, and later where a module
//! of the kernel was loaded only then.

use crate::{
    config::Settings,
    instance::Instance,
    sysctl::{self, Goal},
};

/// What to do about settings that nobody here may write.
const MEND: &str = "run the agent privileged; or set them on the host and leave them alone here with \
                    --conntrack-max-per-core=0, --conntrack-tcp-timeout-established=0 and \
                    --conntrack-tcp-timeout-close-wait=0";

/// Settings on their way to their goals.
pub(super) struct NodeSettings {
    node: sysctl::NodeSettings,
    missing: Vec<(&'static str, Goal)>,
}

impl NodeSettings {
    /// Reserves ports and sets what is there. A fault is logged and stops nothing.
    pub(super) fn start(settings: &Settings, instance: &Instance) -> Self {
        let node = sysctl::NodeSettings::new(instance.node_settings());
        let ports = [settings.node_ports, settings.snat_ports];
        if let Err(error) = node.reserve(ports) {
            let [nodes, snat] = ports;
            tracing::warn!("net.ipv4.ip_local_reserved_ports lacks {nodes},{snat}: {error}");
        }
        let mut started = Self { node, missing: sysctl::goals(&settings.netfilter) };
        started.retry();
        for (name, _) in &started.missing {
            tracing::debug!(setting = name, "is not there: nothing to set");
        }
        started
    }

    /// Sets what was not there before.
    pub(super) fn retry(&mut self) {
        if self.missing.is_empty() {
            return;
        }
        match self.node.apply(&self.missing) {
            Ok(applied) => {
                if !applied.failed.is_empty() {
                    tracing::warn!("not set: {}; {MEND}", applied.failed.join(", "));
                }
                self.missing = applied.missing;
            }
            Err(error) => tracing::warn!(%error, "keep a record of the node's settings"),
        }
    }
}
