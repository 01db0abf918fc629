//! Where Services, endpoints and nodes come from: a cluster's API server, or a folder of manifests.
//!
//! A source turns Kubernetes objects into [`Event`]s of the model and runs until it is told to stop.
//! It is the only part of the agent that knows Kubernetes' own types. Not for: deciding what a node
//! serves, which `desired` does with the model.

pub mod cluster;
pub mod convert;
mod emit;
mod health;
pub mod manifests;
mod standing;

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::model::{Event, Problem};

pub use self::health::{Health, SourceHealth};
use self::{cluster::Cluster, manifests::Manifests};

/// Which source to use, and how.
#[derive(Clone, Debug)]
pub enum Options {
    /// A cluster's API server.
    Cluster(cluster::Options),
    /// A folder of manifests.
    Manifests(manifests::Options),
}

/// A source, ready to run.
#[derive(Debug)]
pub enum Source {
    /// A cluster's API server.
    Cluster(Cluster),
    /// A folder of manifests.
    Manifests(Manifests),
}

impl Source {
    /// Makes the source that `options` ask for; nothing is read yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        match options {
            Options::Cluster(options) => Self::Cluster(Cluster::new(options)),
            Options::Manifests(options) => Self::Manifests(Manifests::new(options)),
        }
    }

    /// How the source is doing; the handle stays valid while it runs.
    #[must_use]
    pub fn health(&self) -> Arc<SourceHealth> {
        match self {
            Self::Cluster(cluster) => cluster.health(),
            Self::Manifests(manifests) => manifests.health(),
        }
    }

    /// Where to tell of problems, so that the owners of objects hear of them; none where nobody
    /// would.
    pub fn complaints(&mut self) -> Option<mpsc::Sender<Problem>> {
        match self {
            Self::Cluster(cluster) => Some(cluster.complaints()),
            Self::Manifests(_) => None,
        }
    }

    /// Sends events until `stop` is cancelled or nobody listens any more.
    ///
    /// # Errors
    ///
    /// What keeps the source from starting. A fault that comes later is an [`Event::Problem`].
    pub async fn run(
        self,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        match self {
            Self::Cluster(cluster) => cluster.run(events, stop).await,
            Self::Manifests(manifests) => manifests.run(events, stop).await,
        }
    }
}

/// What keeps a source from starting.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The client of the API server cannot be made.
    #[error("API client: {reason}; check the kubeconfig's server, certificates and credentials")]
    Client {
        /// What the client said.
        reason: String,
    },
    /// The folder of manifests cannot be read.
    #[error("manifest folder {}: {error}; create it, or name another with --manifests", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The in-cluster account cannot be used.
    #[error(
        "in-cluster account: {reason}; run in a pod with a service account, or name a file with --kubeconfig or a folder with --manifests"
    )]
    InCluster {
        /// What is missing.
        reason: String,
    },
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {reason}; name a readable kubeconfig with --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The address given for the API server is none.
    #[error("--master {address}: {reason}; write it as https://HOST:PORT")]
    Master {
        /// What was given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The folder of manifests cannot be watched.
    #[error("watch manifest folder {}: {reason}; raise fs.inotify.max_user_instances and max_user_watches", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}
