//! A real Kubernetes control plane in a host of a topology: etcd, API server, controller manager.
//!
//! There is no scheduler and no kubelet: a test makes Pods with `spec.nodeName` and writes their
//! status itself, and the real controllers make `EndpointSlices` of them. All ports are in the
//! host's own network namespace, so any number of control planes run side by side.

mod credentials;
mod listener;
mod objects;
mod programs;
mod proxy;
mod shared;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime;

use self::credentials::{ADMIN, Credentials, admin_header};
pub use self::listener::Listener;
pub use self::objects::Objects;
pub use self::programs::Programs;
pub use self::proxy::KubeProxy;
pub use self::shared::Shared;
use crate::address::Family;
use crate::host::Host;
use crate::process::{Process, tail};
use crate::programs::curl;
use crate::wait::try_eventually;

/// Where the API server listens, on both families.
const PORT: u16 = 6443;
/// Where it listens while nobody who has a kubeconfig should find it.
const HIDDEN_PORT: u16 = 6444;
/// The network that the API server gives Services' addresses from.
const SERVICE_RANGES: &str = "10.96.0.0/12,fd00:10:96::/108";
/// What makes slices of Pods and Endpoints, and removes them with their Services.
const CONTROLLERS: &str = "endpointslice-controller,endpointslice-mirroring-controller,\
                           garbage-collector-controller";
/// Longer than a start takes on a busy machine.
const START: Duration = Duration::from_mins(1);

/// Ends the test as skipped where no control plane can run.
#[macro_export]
macro_rules! require_kubernetes {
    () => {
        $crate::require_topology!();
        if let Err(reason) = $crate::kubernetes::Programs::find() {
            $crate::require::record_skip(&format!("{reason:#}"));
            return;
        }
    };
}

/// A running control plane; dropped, it ends.
#[derive(Debug)]
pub struct ControlPlane {
    host: Host,
    programs: Programs,
    credentials: Credentials,
    // In the order in which they end: an API server without its etcd takes long to give up.
    controllers: Option<Process>,
    api: Option<Process>,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts one on `host` and waits until the API server is ready.
    ///
    /// # Errors
    /// When a program is missing, ends, or is not ready within a minute.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, &[])
    }

    /// Starts one as [`Self::start`] does, whose controllers get these arguments, too.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_with(host: &Host, arguments: &[&str]) -> Result<Self> {
        let programs = Programs::find()?;
        let credentials = Credentials::create(host, PORT)?;
        let etcd = start_etcd(host, &programs)?;
        let (controllers, api) = (None, None);
        let host = host.clone();
        let mut plane = Self { host, programs, credentials, controllers, api, _etcd: etcd };
        plane.start_api_at(PORT)?;
        plane.controllers = Some(plane.start_controllers(arguments)?);
        Ok(plane)
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The kubeconfig of an administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.credentials.admin_kubeconfig()
    }

    /// Writes the kubeconfig of a user: `limited`, who may do nothing until a `ClusterRoleBinding`
    /// names them, or one whom [`ControlPlane::add_user`] made or who is not known.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn kubeconfig_of(&self, user: &str) -> Result<PathBuf> {
        self.credentials.kubeconfig(user, PORT)
    }

    /// Lets the API server know `user` from its next start on.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn add_user(&self, user: &str) -> Result<()> {
        self.credentials.add_user(user)
    }

    /// An administrator's client for the objects of one namespace, which is made; for a runtime
    /// inside [`ControlPlane::host`].
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn objects(&self, namespace: &str) -> Result<Objects> {
        let objects = Objects::connect(&self.kubeconfig(), namespace).await?;
        let manifest =
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n");
        objects.apply(&manifest).await?;
        Ok(objects)
    }

    /// Kills the API server, as a crash does, and starts it again on the same data.
    ///
    /// # Errors
    /// When it is not ready within a minute.
    pub fn restart_api(&mut self) -> Result<()> {
        self.kill_api()?;
        self.start_api_at(PORT)
    }

    /// Kills the API server; [`ControlPlane::restart_api`] starts it again.
    ///
    /// # Errors
    /// When it may not be killed.
    pub fn kill_api(&mut self) -> Result<()> {
        self.api.take().map_or(Ok(()), |mut api| api.kill9().map(drop))
    }

    /// Kills the API server and starts it on a port that no kubeconfig names but the one returned:
    /// for all others it is down, while its objects change.
    ///
    /// # Errors
    /// When it is not ready within a minute.
    pub fn hide_api(&mut self) -> Result<PathBuf> {
        self.kill_api()?;
        self.start_api_at(HIDDEN_PORT)?;
        self.credentials.kubeconfig(ADMIN, HIDDEN_PORT)
    }

    /// The ends of the programs' logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let programs = [&self.api, &self.controllers].into_iter().flatten();
        let ends =
            programs.map(|one| format!("{}:\n{}", one.log_path().display(), tail(&one.log(), 30)));
        ends.collect::<Vec<_>>().join("\n")
    }

    fn start_api_at(&mut self, port: u16) -> Result<()> {
        let arguments = api_arguments(&self.host, &self.credentials, port);
        let mut api = start(&self.host, &self.programs.api_server, &arguments)?;
        self.credentials.trust_server()?;
        self.wait_ready(&mut api, port)?;
        self.api = Some(api);
        Ok(())
    }

    fn wait_ready(&self, api: &mut Process, port: u16) -> Result<()> {
        let address = self.host.socket(Family::V4, port);
        let url = format!("https://{address}/readyz");
        let header = admin_header();
        let ended = try_eventually(START, "ready API server", || {
            if let Some(status) = api.ended()? {
                return Ok(Some(status));
            }
            // A try to connect costs nothing beside a start of curl.
            self.host.enter(|| TcpStream::connect_timeout(&address, START))??;
            curl(&self.host, &url, &["--insecure", "--header", &header]).map(|_ready| None)
        })?;
        match ended {
            None => Ok(()),
            Some(status) => bail!("API server ended: {status}\n{}", tail(&api.log(), 20)),
        }
    }

    fn start_controllers(&self, more: &[&str]) -> Result<Process> {
        let kubeconfig = self.kubeconfig();
        let mut arguments = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            // Slices follow Pods at once; the default gathers changes for half a second.
            "--endpointslice-updates-batch-period=0s".into(),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        start(&self.host, &self.programs.controller_manager, &arguments)
    }
}

/// Runs `work` on a runtime whose threads are in the namespace of `host`; what it spawns goes on
/// while `work` itself blocks.
///
/// # Errors
/// When the topology is gone.
pub fn run_inside<T: Send>(host: &Host, work: impl AsyncFnOnce() -> T + Send) -> Result<T> {
    host.enter(|| {
        // Threads are made in the namespace of the thread that makes them.
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(runtime.context("start a runtime")?.block_on(work()))
    })?
}

fn start_etcd(host: &Host, programs: &Programs) -> Result<Process> {
    let (client, peer) = (etcd_url(2379), etcd_url(2380));
    let arguments = [
        format!("--data-dir={}", host.directory().join("etcd").display()),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    start(host, &programs.etcd, &arguments)
}

fn etcd_url(port: u16) -> String {
    format!("http://{}", SocketAddr::from(([127, 0, 0, 1], port)))
}

fn api_arguments(host: &Host, credentials: &Credentials, port: u16) -> Vec<String> {
    let key = credentials.account_key();
    let key = key.display();
    vec![
        format!("--etcd-servers={}", etcd_url(2379)),
        format!("--cert-dir={}", credentials.certificates().display()),
        format!("--secure-port={port}"),
        format!("--advertise-address={}", host.ip(Family::V4)),
        format!("--external-hostname={}", host.ip(Family::V4)),
        // The Service `kubernetes` needs no endpoints here.
        "--endpoint-reconciler-type=none".into(),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        format!("--token-auth-file={}", credentials.tokens().display()),
        "--authorization-mode=RBAC".into(),
        // Pods are made without service accounts, which no controller here provides.
        "--disable-admission-plugins=ServiceAccount".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={key}"),
        format!("--service-account-signing-key-file={key}"),
    ]
}

fn start(host: &Host, program: &Path, arguments: &[String]) -> Result<Process> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    host.start(&name, &program.to_string_lossy(), &arguments)
}
