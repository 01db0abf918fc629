//! Listens to a source as the agent does, and waits until what it said comes to something.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_agent::{
    model::{Event, Model, ObjectName, Problem, ProblemKey, Service},
    source::{Options, Source, SourceError, SourceHealth},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running source and all that it said.
pub(crate) struct Listener {
    events: mpsc::Receiver<Event>,
    pub(crate) heard: Vec<Event>,
    pub(crate) model: Model,
    pub(crate) problems: BTreeMap<ProblemKey, Vec<Problem>>,
    pub(crate) listed: usize,
    pub(crate) health: Arc<SourceHealth>,
    stop: CancellationToken,
    run: JoinHandle<Result<(), SourceError>>,
}

impl Listener {
    pub(crate) fn start(options: Options) -> Self {
        let source = Source::new(options);
        let health = source.health();
        let (sender, events) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let run = tokio::spawn(source.run(sender, stop.clone()));
        let (heard, model, problems) = (Vec::new(), Model::default(), BTreeMap::new());
        Self { events, heard, model, problems, listed: 0, health, stop, run }
    }

    /// Waits until `holds`; a source that ends or stays silent fails the test.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !holds(self) {
            let heard = tokio::time::timeout_at(end, self.events.recv()).await;
            let event = heard.unwrap_or_else(|_| panic!("did not come: {what}\n{self}"));
            self.hear(event.unwrap_or_else(|| panic!("the source ended before: {what}\n{self}")));
        }
    }

    pub(crate) async fn until_listed(&mut self) {
        self.until("listed", |heard| heard.listed > 0).await;
    }

    fn hear(&mut self, event: Event) {
        match &event {
            Event::Listed => self.listed += 1,
            Event::Problem(problem) => {
                self.problems.entry(problem.key.clone()).or_default().push(problem.clone());
            }
            Event::ProblemSolved(key) => {
                self.problems.remove(key).expect("a problem told before");
            }
            _ => {}
        }
        self.heard.push(event.clone());
        self.model.apply(event);
    }

    pub(crate) fn service(&self, name: &str) -> Option<&Service> {
        self.model.service(&ObjectName::new("default", name))
    }

    /// Addresses of all endpoints of `default/name`.
    pub(crate) fn endpoints(&self, name: &str) -> Vec<String> {
        let name = ObjectName::new("default", name);
        let slices = self.model.slices(&name);
        slices.flat_map(|slice| &slice.endpoints).map(|e| e.address.to_string()).collect()
    }

    /// Whether a standing problem says all of `parts`.
    pub(crate) fn complains(&self, parts: &[&str]) -> bool {
        let mut texts = self.problems.values().flatten().map(ToString::to_string);
        texts.any(|text| parts.iter().all(|part| text.contains(part)))
    }

    /// Ends the source; gives what it came to.
    pub(crate) async fn stop(self) -> Result<(), SourceError> {
        self.stop.cancel();
        timeout(PATIENCE, self.run).await.expect("stops when told to").expect("no panic")
    }

    /// What a source that ends by itself came to.
    #[allow(dead_code, reason = "each test file uses its part")]
    pub(crate) async fn outcome(self) -> Result<(), SourceError> {
        timeout(PATIENCE, self.run).await.expect("ends").expect("no panic")
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "health: {:?}", self.health.look())?;
        writeln!(f, "heard, the last 20 of {}:", self.heard.len())?;
        let first = self.heard.len().saturating_sub(20);
        self.heard.iter().skip(first).try_for_each(|event| writeln!(f, "  {event:?}"))
    }
}
