//! Listens to the agent's own source of a cluster, as the agent does, and waits until what it
//! said comes to something. Looks at one namespace: others belong to other tests.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lb_agent::model::{
    Endpoint, EndpointSlice, Event, Model, ObjectName, Problem, ProblemKey, Service,
};
use lb_agent::source::{Options, Source, SourceError, cluster};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Longer than anything takes; only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running source and all that it said.
pub struct Listener {
    namespace: String,
    events: mpsc::Receiver<Event>,
    run: JoinHandle<Result<(), SourceError>>,
    stop: CancellationToken,
    heard: Vec<Event>,
    model: Model,
    problems: BTreeMap<ProblemKey, Vec<Problem>>,
    listed: bool,
}

impl Listener {
    /// Starts the source that an agent with `--kubeconfig` has, on node `node`.
    #[must_use]
    pub fn cluster(kubeconfig: PathBuf, node: &str, namespace: &str) -> Self {
        let retry = (Duration::from_millis(50), Duration::from_millis(500));
        let (kubeconfig, master) = (Some(kubeconfig), None);
        let options = cluster::Options { kubeconfig, master, node_name: node.into(), retry };
        Self::start(Options::Cluster(options), namespace)
    }

    /// Starts a source; needs the runtime that it is to run on.
    #[must_use]
    pub fn start(options: Options, namespace: &str) -> Self {
        let (sender, events) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let run = tokio::spawn(Source::new(options).run(sender, stop.clone()));
        let (heard, model, problems) = (Vec::new(), Model::default(), BTreeMap::new());
        let namespace = namespace.to_owned();
        Self { namespace, events, run, stop, heard, model, problems, listed: false }
    }

    /// Waits until `holds`.
    ///
    /// # Panics
    /// When it does not come, with what was heard.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        assert!(self.comes(holds).await, "did not come: {what}\n{self}");
    }

    /// Waits until `holds` and says whether it came.
    ///
    /// # Panics
    /// When the source ends, with what was heard.
    pub async fn comes(&mut self, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            let Ok(event) = timeout_at(end, self.events.recv()).await else { return false };
            self.hear(event.unwrap_or_else(|| panic!("the source ended\n{self}")));
        }
        true
    }

    /// Waits until every kind is listed.
    ///
    /// # Panics
    /// When that does not come.
    pub async fn until_listed(&mut self) {
        self.until("listed", |listener| listener.listed).await;
    }

    /// Ends the source.
    ///
    /// # Panics
    /// When it fails or does not end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // What is still said must not keep the source from ending.
        while self.events.recv().await.is_some() {}
        let ended = timeout_at(Instant::now() + PATIENCE, self.run).await;
        assert!(matches!(ended, Ok(Ok(Ok(())))), "{ended:?}");
    }

    /// What was said of the namespace's objects, in order.
    #[must_use]
    pub fn heard(&self) -> &[Event] {
        &self.heard
    }

    /// Forgets what was heard, but for what it came to.
    pub fn forget(&mut self) {
        self.heard.clear();
    }

    /// What it all came to.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The problems that stand.
    #[must_use]
    pub fn problems(&self) -> Vec<&Problem> {
        self.problems.values().flatten().collect()
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.model.service(&ObjectName::new(&self.namespace, name))
    }

    /// The slices of a Service.
    #[must_use]
    pub fn slices(&self, service: &str) -> Vec<&EndpointSlice> {
        self.model.slices(&ObjectName::new(&self.namespace, service)).collect()
    }

    /// The endpoints of a Service, by address.
    #[must_use]
    pub fn endpoints(&self, service: &str) -> BTreeMap<String, &Endpoint> {
        let endpoints = self.slices(service).into_iter().flat_map(|slice| &slice.endpoints);
        endpoints.map(|endpoint| (endpoint.address.to_string(), endpoint)).collect()
    }

    /// The addresses of the endpoints that are ready, sorted.
    #[must_use]
    pub fn ready(&self, service: &str) -> Vec<String> {
        let endpoints = self.endpoints(service).into_iter();
        endpoints.filter(|(_, endpoint)| endpoint.ready).map(|(address, _)| address).collect()
    }

    fn hear(&mut self, event: Event) {
        match &event {
            Event::Listed => self.listed = true,
            Event::Problem(problem) => {
                self.problems.entry(problem.key.clone()).or_default().push(problem.clone());
            }
            Event::ProblemSolved(key) => drop(self.problems.remove(key)),
            _ => {}
        }
        if self.is_ours(&event) {
            self.heard.push(event.clone());
        }
        self.model.apply(event);
    }

    fn is_ours(&self, event: &Event) -> bool {
        let name = match event {
            Event::ServiceApplied(service) => &service.name,
            Event::SliceApplied(slice) => &slice.name,
            Event::ServiceDeleted(name) | Event::SliceDeleted(name) => name,
            _ => return true,
        };
        *name.namespace == *self.namespace
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "problems: {:#?}", self.problems())?;
        writeln!(f, "heard, the last 20 of {}:", self.heard.len())?;
        let first = self.heard.len().saturating_sub(20);
        self.heard.iter().skip(first).try_for_each(|event| writeln!(f, "  {event:?}"))
    }
}
