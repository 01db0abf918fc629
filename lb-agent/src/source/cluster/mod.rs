//! A cluster's API server: Services, `EndpointSlices` and this node's own object.
//!
//! Three watches convert what they hear at once; nothing but names is kept. Not for: what the
//! objects mean for this node.

mod backoff;
mod client;
mod events;
mod failure;
mod known;
mod object;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    backoff::Backoff,
    events::Publisher,
    failure::Failures,
    known::Known,
    object::{Read, reads},
    watch::{Change, Update, Watch},
};
use super::{
    SourceError, SourceHealth, convert,
    emit::{Emitter, Stopped},
    standing::Standing,
};
use crate::model::{Event, ObjectName, Problem, ProblemKey};

/// Updates that wait while the listener is busy.
const UPDATES_WAITING: usize = 256;

/// Problems that wait to become Events; more of them are in the log alone.
const COMPLAINTS_WAITING: usize = 256;

/// Which cluster, and how to reach it. Without a kubeconfig and an address it is the one whose pod
/// this is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server; wins over the kubeconfig's.
    pub master: Option<String>,
    /// The name of this node.
    pub node_name: String,
    /// First and longest wait before something that failed is tried again.
    pub retry: (Duration, Duration),
}

impl Options {
    /// First and longest wait between tries.
    pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
}

/// The source.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    complaints: Option<mpsc::Receiver<Problem>>,
    health: Arc<SourceHealth>,
}

/// A kind that is watched.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Kind {
    Node,
    Service,
    Slice,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Node, Self::Service, Self::Slice];

    /// Kind of an object, as problems name it.
    fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
        }
    }

    /// API group and resource, as RBAC rules name them.
    fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("", "nodes"),
            Self::Service => ("", "services"),
            Self::Slice => ("discovery.k8s.io", "endpointslices"),
        }
    }

    fn deleted(self, name: ObjectName) -> Event {
        match self {
            Self::Node => Event::NodeDeleted,
            Self::Service => Event::ServiceDeleted(name),
            Self::Slice => Event::SliceDeleted(name),
        }
    }
}

impl Cluster {
    /// Makes the source; nothing is reached yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, complaints: None, health: Arc::new(SourceHealth::named("cluster".into())) }
    }

    /// How the source is doing.
    #[must_use]
    pub fn health(&self) -> Arc<SourceHealth> {
        Arc::clone(&self.health)
    }

    /// Where to tell of problems, to be said as Kubernetes Events while the source runs.
    pub(super) fn complaints(&mut self) -> mpsc::Sender<Problem> {
        let (sender, problems) = mpsc::channel(COMPLAINTS_WAITING);
        self.complaints = Some(problems);
        sender
    }

    /// Sends events until `stop` is cancelled or nobody listens any more.
    ///
    /// # Errors
    ///
    /// The client cannot be made. An API server that cannot be reached, or refuses, is a problem.
    pub async fn run(
        self,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let (client, server) = client::connect(&self.options).await?;
        self.health.rename(format!("cluster {server}"));
        let (sender, mut updates) = mpsc::channel(UPDATES_WAITING);
        let mut tasks = watches(&client, &self.options, &sender);
        if let Some(problems) = self.complaints {
            tasks.spawn(Publisher::new(client, &self.options.node_name).run(problems));
        }
        let mut teller = Teller {
            emitter: Emitter { events, stop },
            failures: Failures::new(&server),
            health: self.health,
            known: Known::default(),
            standing: Standing::default(),
            listed: false,
        };
        while let Some(update) = teller.next(&mut updates).await {
            if let Err(Stopped) = teller.tell(update).await {
                break;
            }
        }
        Ok(())
    }
}

/// The watches end when the set is dropped.
fn watches(client: &Client, options: &Options, updates: &mpsc::Sender<Update>) -> JoinSet<()> {
    let backoff = || Backoff::new(options.retry.0, options.retry.1);
    let not_ours = format!("!{},!{}", convert::SERVICE_PROXY_NAME, convert::HEADLESS);
    let mut set = JoinSet::new();
    let convert = reads(Kind::Service, convert::service, Event::ServiceApplied);
    let services = Watch::new(Kind::Service, api::<core::Service>(client), convert);
    set.spawn(services.labels(&not_ours).run(updates.clone(), backoff()));
    let convert = reads(Kind::Slice, convert::slice, Event::SliceApplied);
    let slices = Watch::new(Kind::Slice, api::<discovery::EndpointSlice>(client), convert);
    set.spawn(slices.labels(&not_ours).run(updates.clone(), backoff()));
    let convert = reads(Kind::Node, convert::node, Event::NodeApplied);
    let node = Watch::new(Kind::Node, api::<core::Node>(client), convert);
    let own = format!("metadata.name={}", options.node_name);
    set.spawn(node.fields(&own).run(updates.clone(), backoff()));
    set
}

/// Objects of the kind `K`, not yet read as such.
fn api<K: Resource<DynamicType = ()>>(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
}

/// Turns what the watches hear into events, one at a time.
struct Teller {
    emitter: Emitter,
    failures: Failures,
    health: Arc<SourceHealth>,
    known: Known,
    standing: Standing,
    listed: bool,
}

impl Teller {
    async fn next(&self, updates: &mut mpsc::Receiver<Update>) -> Option<Update> {
        tokio::select! {
            () = self.emitter.stop.cancelled() => None,
            () = self.emitter.events.closed() => None,
            update = updates.recv() => update,
        }
    }

    async fn tell(&mut self, Update { kind, change }: Update) -> Result<(), Stopped> {
        if let Change::Failed(failure) = change {
            self.failures.add(kind, failure);
            return self.tell_failures().await;
        }
        self.health.contact();
        if self.failures.solve(kind) {
            self.tell_failures().await?;
        }
        match change {
            Change::Applied { name, read, problems } => {
                self.applied(kind, name, read, problems).await
            }
            Change::Deleted(name) => self.deleted(kind, name).await,
            Change::ListBegun => {
                self.known.begin_list(kind);
                Ok(())
            }
            Change::Listed => self.end_list(kind).await,
            Change::Contact | Change::Failed(_) => Ok(()),
        }
    }

    async fn applied(
        &mut self,
        kind: Kind,
        name: ObjectName,
        read: Read,
        problems: Vec<Problem>,
    ) -> Result<(), Stopped> {
        let told = self.standing.set(&key(kind, &name), problems);
        self.known.heard_of(kind, &name);
        match read {
            Read::Applied(event) => {
                self.known.insert(kind, name);
                self.emitter.send(event).await?;
            }
            Read::Ignored if self.known.remove(kind, &name) => {
                self.emitter.send(kind.deleted(name)).await?;
            }
            Read::Ignored | Read::Unreadable => {}
        }
        self.emitter.send_all(told).await
    }

    async fn deleted(&mut self, kind: Kind, name: ObjectName) -> Result<(), Stopped> {
        let told = self.standing.set(&key(kind, &name), Vec::new());
        if self.known.remove(kind, &name) {
            self.emitter.send(kind.deleted(name)).await?;
        }
        self.emitter.send_all(told).await
    }

    async fn end_list(&mut self, kind: Kind) -> Result<(), Stopped> {
        let problems_of = |name: &ObjectName| key(kind, name);
        let gone = self.known.end_list(kind);
        for name in gone {
            let told = self.standing.set(&problems_of(&name), Vec::new());
            self.emitter.send(kind.deleted(name)).await?;
            self.emitter.send_all(told).await?;
        }
        if !self.listed && Kind::ALL.into_iter().all(|kind| self.known.is_listed(kind)) {
            self.listed = true;
            self.health.listed();
            self.emitter.send(Event::Listed).await?;
        }
        Ok(())
    }

    async fn tell_failures(&mut self) -> Result<(), Stopped> {
        let problems = self.failures.problems();
        self.health.error(problems.first().map(ToString::to_string));
        let told = self.standing.set(self.failures.key(), problems);
        self.emitter.send_all(told).await
    }
}

fn key(kind: Kind, name: &ObjectName) -> ProblemKey {
    ProblemKey { kind: kind.name(), name: name.to_string().into() }
}
