//! The real kube-proxy, in nftables mode, on a node of a topology.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Programs, start};
use crate::host::Host;
use crate::process::{Process, tail};
use crate::programs::curl;
use crate::wait::try_eventually;

/// What tells that the rules of a family have been written.
const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=";
/// The networks of the pods.
const PODS: &str = "10.248.0.0/16,fd00:248::/32";
/// Longer than a start takes on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A running kube-proxy; dropped, it is killed, and its rules stay.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
}

impl KubeProxy {
    /// Starts it on the node called `host` and waits until its rules stand, in both families. Its
    /// Node object must tell its addresses.
    ///
    /// # Errors
    /// When it ends, or has not written its rules within 30 seconds.
    pub fn start(host: &Host, kubeconfig: &Path) -> Result<Self> {
        let arguments = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", host.name()),
            "--proxy-mode=nftables".into(),
            format!("--cluster-cidr={PODS}"),
            // They belong to the machine's first network namespace.
            "--conntrack-max-per-core=0".into(),
            "--conntrack-tcp-timeout-established=0".into(),
            "--conntrack-tcp-timeout-close-wait=0".into(),
        ];
        let mut process = start(host, &Programs::find()?.kube_proxy, &arguments)?;
        let ended = try_eventually(START, "rules of kube-proxy", || {
            if let Some(status) = process.ended()? {
                return Ok(Some(status));
            }
            let page = curl(host, "http://127.0.0.1:10249/metrics", &[])?;
            let times: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(SYNCED)).collect();
            let is_set = |line: &&str| !line.ends_with(" 0");
            ensure!(times.iter().filter(|line| is_set(line)).count() == 2, "{times:?}");
            Ok(None)
        });
        let ended = ended.with_context(|| tail(&process.log(), 20))?;
        match ended {
            None => Ok(Self { process }),
            Some(status) => bail!("kube-proxy ended: {status}\n{}", tail(&process.log(), 20)),
        }
    }

    /// Ends it as a kubelet does; its rules stay.
    ///
    /// # Errors
    /// When it does not end within 10 seconds.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// Removes the rules that it left on a host, as `kube-proxy --cleanup` does.
    ///
    /// # Errors
    /// When the command fails.
    pub fn cleanup(host: &Host) -> Result<()> {
        let program = Programs::find()?.kube_proxy;
        host.run(&program.to_string_lossy(), &["--cleanup"]).map(drop)
    }
}
