//! Kubernetes Events: a fault of an object is said where its owner looks for it.
//!
//! One for each object and field, at most once an hour. Not for: whether a problem is one (all who
//! find them), nor logs and metrics, which have every problem.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::{
    core::v1::{self as core, ObjectReference},
    discovery::v1 as discovery,
};
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, DynamicObject},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::client::chain;
use crate::model::Problem;

/// Between two Events about the same field of the same object.
const AGAIN: Duration = Duration::from_hours(1);
/// Between any two Events, so that a cluster full of faults is not a burden as well.
const PACE: Duration = Duration::from_millis(100);
/// Bytes of a note that the API server takes.
const NOTE: usize = 1024;

/// Publishes problems as Events on behalf of one node.
pub(super) struct Publisher {
    client: Client,
    recorder: Recorder,
    told: Told,
    failure: Option<String>,
}

/// When each was told.
#[derive(Debug, Default)]
struct Told(HashMap<(String, String), Instant>);

impl Publisher {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: "lb-agent".into(), instance: Some(node.into()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, told: Told::default(), failure: None }
    }

    /// Runs until nobody has problems to tell any more.
    pub(super) async fn run(mut self, mut problems: mpsc::Receiver<Problem>) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(problem) = problems.recv().await {
            let Some(resource) = resource(problem.key.kind) else { continue };
            if self.told.is_new(&problem, Instant::now()) {
                pace.tick().await;
                let result = self.publish(&problem, &resource).await;
                self.note(result.err().map(|error| chain(&error)));
            }
        }
    }

    async fn publish(&self, problem: &Problem, resource: &ApiResource) -> kube::Result<()> {
        let mut reference = reference(problem, resource);
        reference.uid = self.uid(&reference, resource).await?;
        self.recorder.publish(&event(problem), &reference).await
    }

    /// `kubectl describe` shows only Events that name it. By a list, which the account may do.
    async fn uid(
        &self,
        reference: &ObjectReference,
        resource: &ApiResource,
    ) -> kube::Result<Option<String>> {
        let client = self.client.clone();
        let api: Api<DynamicObject> = match &reference.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        };
        let name = reference.name.as_deref().unwrap_or_default();
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        let list = api.list_metadata(&only).await?;
        Ok(list.items.into_iter().next().and_then(|object| object.metadata.uid))
    }

    /// A failure is said once, until it is another one.
    fn note(&mut self, failure: Option<String>) {
        if let Some(error) = failure.as_ref().filter(|_| failure != self.failure) {
            tracing::warn!(
                "publish an Event: {error}; the account needs a ClusterRole rule apiGroups \
                 [\"events.k8s.io\"], resources [\"events\"], verbs [\"create\", \"patch\"]"
            );
        }
        self.failure = failure;
    }
}

impl Told {
    fn is_new(&mut self, problem: &Problem, now: Instant) -> bool {
        self.0.retain(|_, told| now.duration_since(*told) < AGAIN);
        let key = (format!("{} {}", problem.key.kind, problem.key.name), problem.field.clone());
        let is_new = !self.0.contains_key(&key);
        if is_new {
            self.0.insert(key, now);
        }
        is_new
    }
}

/// The API resource of a problem's kind; none for what is no object of the cluster.
fn resource(kind: &str) -> Option<ApiResource> {
    match kind {
        "EndpointSlice" => Some(ApiResource::erase::<discovery::EndpointSlice>(&())),
        "Node" => Some(ApiResource::erase::<core::Node>(&())),
        "Service" => Some(ApiResource::erase::<core::Service>(&())),
        _ => None,
    }
}

fn reference(problem: &Problem, resource: &ApiResource) -> ObjectReference {
    let (namespace, name) = match problem.key.name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, &*problem.key.name),
    };
    ObjectReference {
        api_version: Some(resource.api_version.clone()),
        kind: Some(resource.kind.clone()),
        namespace,
        name: Some(name.to_owned()),
        field_path: Some(problem.field.clone()).filter(|field| !field.is_empty()),
        ..ObjectReference::default()
    }
}

fn event(problem: &Problem) -> Event {
    let mut note = match &*problem.field {
        "" => format!("{}; {}", problem.message, problem.mend),
        field => format!("{field}: {}; {}", problem.message, problem.mend),
    };
    note.truncate(note.floor_char_boundary(NOTE));
    let (reason, action) = reason(problem);
    let (reason, action) = (reason.to_owned(), action.to_owned());
    Event { type_: EventType::Warning, reason, note: Some(note), action, secondary: None }
}

/// Reason and action, with kube-proxy's words where it has some.
fn reason(problem: &Problem) -> (&'static str, &'static str) {
    match &*problem.field {
        "spec.healthCheckNodePort" => ("FailedToStartServiceHealthcheck", "Listen"),
        "" => ("NotFullyServed", "Program"),
        _ => ("FieldNotUsed", "Program"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProblemKey;

    fn problem(name: &str, field: &str, message: &str) -> Problem {
        Problem {
            key: ProblemKey { kind: "Service", name: name.into() },
            field: field.into(),
            message: message.into(),
            mend: "mend it".into(),
        }
    }

    #[test]
    fn an_event_is_once_an_hour_for_each_object_and_field() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert!(told.is_new(&problem("a/b", "spec.ports[0].port", "one"), now));
        assert!(!told.is_new(&problem("a/b", "spec.ports[0].port", "two"), now));
        assert!(told.is_new(&problem("a/b", "spec.ports[1].port", "one"), now));
        assert!(told.is_new(&problem("a/c", "spec.ports[0].port", "one"), now));
        let mut is_new_after =
            |time| told.is_new(&problem("a/b", "spec.ports[0].port", "one"), now + time);
        assert!(!is_new_after(AGAIN.mul_f32(0.9)));
        assert!(is_new_after(AGAIN));
    }

    #[test]
    fn an_event_names_object_field_and_mend_within_what_the_server_takes() {
        let long = problem("shop/web", "spec.healthCheckNodePort", &"ä".repeat(1000));
        let event = event(&long);
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        let note = event.note.unwrap();
        assert!(note.starts_with("spec.healthCheckNodePort: ä") && note.len() <= NOTE, "{note}");
        let reference = reference(&long, &resource("Service").unwrap());
        assert_eq!(reference.namespace.as_deref(), Some("shop"));
        assert_eq!(reference.name.as_deref(), Some("web"));
        assert_eq!(reference.field_path.as_deref(), Some("spec.healthCheckNodePort"));
        assert!(resource("device").is_none() && resource("file").is_none());
    }
}
