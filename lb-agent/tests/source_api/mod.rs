//! A tiny API server: lists and watches three kinds, and fails on demand.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    body::Body,
    extract::RawQuery,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::mpsc};

pub(crate) const SERVICES: &str = "services";
pub(crate) const SLICES: &str = "endpointslices";
pub(crate) const NODES: &str = "nodes";

/// A server on a port of its own, with a runtime of its own, so that it can go away with all its
/// connections.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    world: Arc<Mutex<World>>,
    runtime: Option<Runtime>,
}

/// What the server knows; it outlives a restart, as etcd does.
#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    /// Version, kind and line of each change.
    history: Vec<(u64, &'static str, String)>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    watchers: Vec<(&'static str, mpsc::UnboundedSender<String>)>,
    /// Code with which requests of a kind are answered.
    faults: HashMap<&'static str, u16>,
    no_streamed_lists: bool,
    cuts_watches: bool,
    requests: Vec<(&'static str, HashMap<String, String>)>,
}

impl Api {
    pub(crate) fn new() -> Self {
        let world = Arc::new(Mutex::new(World { version: 1, ..World::default() }));
        let mut api = Self { address: ([127, 0, 0, 1], 0).into(), world, runtime: None };
        api.start();
        api
    }

    /// Starts it, after a stop on the same port.
    pub(crate) fn start(&mut self) {
        let runtime = Runtime::new().unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let kind = |kind: &'static str, world: &Arc<Mutex<World>>| {
            let world = Arc::clone(world);
            get(
                move |headers: HeaderMap, query| async move { answer(kind, &world, &headers, query) },
            )
        };
        let router: Router = Router::new()
            .route("/api/v1/services", kind(SERVICES, &self.world))
            .route("/apis/discovery.k8s.io/v1/endpointslices", kind(SLICES, &self.world))
            .route("/api/v1/nodes", kind(NODES, &self.world))
            .with_state(());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// Goes away, with all its connections.
    pub(crate) fn stop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        self.world().watchers.clear();
    }

    pub(crate) fn apply(&self, kind: &'static str, object: Value) {
        self.world().apply(kind, object);
    }

    pub(crate) fn delete(&self, kind: &'static str, name: &str) {
        let mut world = self.world();
        let object = world.objects.remove(&(kind, name.to_owned())).unwrap();
        world.tell(kind, "DELETED", object);
    }

    /// Ends all watches, as a server does after some minutes.
    pub(crate) fn end_watches(&self) {
        self.world().watchers.clear();
    }

    /// Forgets what happened so far: watches that go on from before it must list again.
    pub(crate) fn forget(&self) {
        let mut world = self.world();
        world.forgotten = world.version;
    }

    pub(crate) fn fail(&self, kind: &'static str, code: u16) {
        self.world().faults.insert(kind, code);
    }

    pub(crate) fn mend(&self) {
        self.world().faults.clear();
    }

    pub(crate) fn refuse_streamed_lists(&self) {
        self.world().no_streamed_lists = true;
    }

    pub(crate) fn cut_watches(&self, cut: bool) {
        self.world().cuts_watches = cut;
    }

    /// Sends a line to all watches of a kind.
    pub(crate) fn say(&self, kind: &'static str, line: &Value) {
        self.world().send(kind, &format!("{line}\n"));
    }

    /// The requests for a kind that have a parameter; a header `authorization` is one too.
    pub(crate) fn requests(&self, kind: &str, parameter: &str) -> Vec<HashMap<String, String>> {
        let world = self.world();
        let asked =
            world.requests.iter().filter(|(k, query)| *k == kind && query.contains_key(parameter));
        asked.map(|(_, query)| query.clone()).collect()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl World {
    fn apply(&mut self, kind: &'static str, object: Value) {
        let key = (kind, object["metadata"]["name"].as_str().unwrap().to_owned());
        let was_there = self.objects.get(&key).is_some_and(|old| is_selected(kind, old));
        self.version += 1;
        let mut object = object;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key, object.clone());
        match (was_there, is_selected(kind, &object)) {
            (false, true) => self.tell(kind, "ADDED", object),
            (true, true) => self.tell(kind, "MODIFIED", object),
            (true, false) => self.tell(kind, "DELETED", object),
            (false, false) => {}
        }
    }

    fn tell(&mut self, kind: &'static str, what: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let line = format!("{}\n", json!({"type": what, "object": object}));
        self.history.push((self.version, kind, line.clone()));
        self.send(kind, &line);
    }

    fn send(&mut self, kind: &'static str, line: &str) {
        self.watchers.retain(|(k, to)| *k != kind || to.send(line.to_owned()).is_ok());
    }

    fn selected(&self, kind: &'static str) -> Vec<&Value> {
        let of_kind = self.objects.iter().filter(|((k, _), _)| *k == kind);
        of_kind.map(|(_, object)| object).filter(|object| is_selected(kind, object)).collect()
    }

    fn list(&self, kind: &'static str, query: &HashMap<String, String>) -> Value {
        let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
        let (first, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(500));
        let all = self.selected(kind);
        let page: Vec<_> = all.iter().skip(first).take(limit).collect();
        let end = first + page.len();
        let more = if end < all.len() { end.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": more});
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": page})
    }

    /// The lines with which a watch begins.
    fn first_lines(&self, kind: &'static str, query: &HashMap<String, String>) -> Vec<String> {
        if query.contains_key("sendInitialEvents") {
            let added =
                |object: &Value| format!("{}\n", json!({"type": "ADDED", "object": object}));
            let mut lines: Vec<_> = self.selected(kind).into_iter().map(added).collect();
            let mark = json!({"type": "BOOKMARK", "object": {"kind": "x", "apiVersion": "v1",
                "metadata": {"resourceVersion": self.version.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"}}}});
            lines.push(format!("{mark}\n"));
            return lines;
        }
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let missed = self.history.iter().filter(|(version, k, _)| *k == kind && *version > from);
        missed.map(|(_, _, line)| line.clone()).collect()
    }

    fn watch(&mut self, kind: &'static str, query: &HashMap<String, String>) -> Response {
        let from = query["resourceVersion"].parse::<u64>().unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        if from != 0 && from < self.forgotten {
            let gone = json!({"type": "ERROR", "object": failure(410)});
            sender.send(format!("{gone}\n")).unwrap();
        } else {
            for line in self.first_lines(kind, query) {
                sender.send(line).unwrap();
            }
            if from == 0 || !self.cuts_watches {
                self.watchers.push((kind, sender));
            }
        }
        let lines = futures::stream::unfold(receiver, |mut lines| async {
            lines.recv().await.map(|line| (Ok::<_, Infallible>(line), lines))
        });
        Body::from_stream(lines).into_response()
    }
}

/// What the selectors of the watches leave: the server must be asked with them.
fn is_selected(kind: &str, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    let excluded = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
    match kind {
        NODES => object["metadata"]["name"] == "node-1",
        _ => excluded.iter().all(|label| labels.get(label).is_none()),
    }
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "message": format!("made to fail with {code}"), "reason": "Made"})
}

fn answer(
    kind: &'static str,
    world: &Mutex<World>,
    headers: &HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let mut query = parameters(&query.unwrap_or_default());
    if let Some(who) = headers.get("authorization") {
        query.insert("authorization".into(), who.to_str().unwrap().into());
    }
    let mut world = world.lock().unwrap();
    world.requests.push((kind, query.clone()));
    let refused = world.no_streamed_lists && query.contains_key("sendInitialEvents");
    let fault = world.faults.get(kind).copied().or(refused.then_some(422));
    if let Some(code) = fault {
        let status = StatusCode::from_u16(code).unwrap();
        return (status, Json(failure(code))).into_response();
    }
    if query.contains_key("watch") {
        return world.watch(kind, &query);
    }
    Json(world.list(kind, &query)).into_response()
}

fn parameters(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), unescaped(value))).collect()
}

fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        plain.push(char::from(u8::from_str_radix(code, 16).unwrap()));
        plain.push_str(rest);
    }
    plain
}
