//! Lists and watches one kind, for as long as the agent runs.
//!
//! The list is a stream where the server has that, else pages. A watch that ends goes on from the
//! last version heard of; one that the server has forgotten (410) lists again. Written on the bare
//! client rather than on its watcher, because that one says neither when a watch stands again
//! after a failure nor when a server ends each watch at once.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures::{Stream, TryStreamExt};
use kube::{
    Api, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    core::DynamicObject,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    Kind,
    backoff::Backoff,
    failure::Failure,
    object::{Convert, Read, name},
};
use crate::model::{ObjectName, Problem};

/// Objects of one page of a list.
const PAGE: u32 = 500;
/// How long the server keeps a watch open, in seconds.
const WATCH_SECONDS: u32 = 290;
/// A watch in which nothing is heard for longer is dead.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// A streamed list that is silent for longer is one the server does not know how to end.
const LIST_SILENCE: Duration = Duration::from_secs(20);
/// A watch that the server ends sooner is counted as failed.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// Annotation of the bookmark that ends a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";

/// What one watch says.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) kind: Kind,
    pub(super) change: Change,
}

#[derive(Debug)]
pub(super) enum Change {
    /// An object is there.
    Applied { name: ObjectName, read: Read, problems: Vec<Problem> },
    /// The server answered.
    Contact,
    /// An object is gone.
    Deleted(ObjectName),
    /// Something went wrong; it is tried again.
    Failed(Failure),
    /// All that is there will be named, until `Listed`.
    ListBegun,
    /// All that is there has been named since `ListBegun`.
    Listed,
}

/// A watch of one kind.
pub(super) struct Watch {
    kind: Kind,
    api: Api<DynamicObject>,
    labels: Option<String>,
    fields: Option<String>,
    convert: Convert,
    streamed_list: bool,
}

/// Why a turn ended, and from which version the next one goes on; none means a list.
enum End {
    Failed(Option<String>, Failure),
    Over(Option<String>),
    /// Nobody listens any more.
    Stopped,
}

impl Watch {
    pub(super) fn new(kind: Kind, api: Api<DynamicObject>, convert: Convert) -> Self {
        Self { kind, api, labels: None, fields: None, convert, streamed_list: true }
    }

    pub(super) fn labels(self, selector: &str) -> Self {
        Self { labels: Some(selector.to_owned()), ..self }
    }

    pub(super) fn fields(self, selector: &str) -> Self {
        Self { fields: Some(selector.to_owned()), ..self }
    }

    /// Runs until nobody listens.
    pub(super) async fn run(mut self, updates: mpsc::Sender<Update>, mut backoff: Backoff) {
        let mut version = None;
        loop {
            let begun = Instant::now();
            let end = match version.take() {
                Some(version) => self.watch(&updates, version).await,
                None if self.streamed_list => self.list_by_stream(&updates).await,
                None => self.list_by_page(&updates).await,
            };
            if begun.elapsed() > SHORT_WATCH {
                backoff.reset();
            }
            match end {
                End::Failed(next, failure) => {
                    version = next;
                    if self.send(&updates, Change::Failed(failure)).await.is_none() {
                        return;
                    }
                    tokio::select! {
                        () = sleep(backoff.wait()) => {}
                        () = updates.closed() => return,
                    }
                }
                End::Over(next) => version = next,
                End::Stopped => return,
            }
        }
    }

    async fn list_by_page(&self, updates: &mpsc::Sender<Update>) -> End {
        let mut params = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        if self.send(updates, Change::ListBegun).await.is_none() {
            return End::Stopped;
        }
        loop {
            let list = match self.api.list(&params).await {
                Ok(list) => list,
                Err(error) => return End::Failed(None, Failure::new(self.kind, "list", &error)),
            };
            for object in list.items {
                if self.send(updates, self.applied(object)).await.is_none() {
                    return End::Stopped;
                }
            }
            params.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let listed = self.send(updates, Change::Listed).await;
                return listed.map_or(End::Stopped, |()| End::Over(list.metadata.resource_version));
            }
        }
    }

    async fn list_by_stream(&mut self, updates: &mpsc::Sender<Update>) -> End {
        let params = WatchParams { send_initial_events: true, ..self.watch_params() };
        let stream = match self.api.watch(&params, "0").await {
            Ok(stream) => stream,
            // The server does not have streamed lists: say nothing, and list by page.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                self.streamed_list = false;
                return End::Over(None);
            }
            Err(error) => return End::Failed(None, Failure::new(self.kind, "watch", &error)),
        };
        if self.send(updates, Change::ListBegun).await.is_none() {
            return End::Stopped;
        }
        let end = self.follow(updates, stream, None).await;
        if matches!(end, End::Over(None)) {
            self.streamed_list = false;
        }
        end
    }

    async fn watch(&self, updates: &mpsc::Sender<Update>, version: String) -> End {
        let stream = match self.api.watch(&self.watch_params(), &version).await {
            Ok(stream) => stream,
            Err(kube::Error::Api(status)) if status.code == 410 => return End::Over(None),
            Err(error) => {
                return End::Failed(Some(version), Failure::new(self.kind, "watch", &error));
            }
        };
        let begun = Instant::now();
        if self.send(updates, Change::Contact).await.is_none() {
            return End::Stopped;
        }
        match self.follow(updates, stream, Some(version)).await {
            End::Over(Some(version)) if begun.elapsed() < SHORT_WATCH => {
                End::Failed(Some(version), Failure::of_short_watch(self.kind))
            }
            end => end,
        }
    }

    /// Hears a watch out. Without a `version` it is a streamed list first.
    async fn follow(
        &self,
        updates: &mpsc::Sender<Update>,
        stream: impl Stream<Item = kube::Result<WatchEvent<DynamicObject>>>,
        mut version: Option<String>,
    ) -> End {
        let mut stream = pin!(stream);
        loop {
            let silence = if version.is_some() { SILENCE } else { LIST_SILENCE };
            let event = match timeout(silence, stream.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) if version.is_none() => return self.cut_list(),
                Ok(Ok(None)) | Err(_) => return End::Over(version),
                Ok(Err(error)) => {
                    return End::Failed(version, Failure::new(self.kind, "watch", &error));
                }
            };
            match self.hear(updates, event, &mut version).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    async fn hear(
        &self,
        updates: &mpsc::Sender<Update>,
        event: WatchEvent<DynamicObject>,
        version: &mut Option<String>,
    ) -> Result<(), End> {
        let is_list = version.is_none();
        let change = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                renew(version, object.resource_version());
                self.applied(object)
            }
            WatchEvent::Deleted(object) => {
                renew(version, object.resource_version());
                Change::Deleted(name(&object))
            }
            WatchEvent::Bookmark(mark) if is_list => {
                if !mark.metadata.annotations.contains_key(LIST_END) {
                    return Ok(());
                }
                *version = Some(mark.metadata.resource_version);
                Change::Listed
            }
            WatchEvent::Bookmark(mark) => {
                renew(version, Some(mark.metadata.resource_version));
                Change::Contact
            }
            WatchEvent::Error(status) if status.code == 410 => return Err(self.expired(is_list)),
            WatchEvent::Error(status) => {
                let failure = Failure::of_status(self.kind, "watch", &status);
                return Err(End::Failed(version.take(), failure));
            }
        };
        self.send(updates, change).await.ok_or(End::Stopped)
    }

    /// The server has forgotten the version: that is no failure, unless it was a list.
    fn expired(&self, is_list: bool) -> End {
        if is_list { self.cut_list() } else { End::Over(None) }
    }

    fn cut_list(&self) -> End {
        End::Failed(None, Failure::of_short_watch(self.kind))
    }

    fn watch_params(&self) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            ..WatchParams::default()
        }
    }

    fn applied(&self, object: DynamicObject) -> Change {
        let name = name(&object);
        let (read, problems) = (self.convert)(object);
        Change::Applied { name, read, problems }
    }

    async fn send(&self, updates: &mpsc::Sender<Update>, change: Change) -> Option<()> {
        updates.send(Update { kind: self.kind, change }).await.ok()
    }
}

/// During a streamed list the versions of single objects say nothing about the whole.
fn renew(version: &mut Option<String>, newer: Option<String>) {
    if let (Some(version), Some(newer)) = (version, newer.filter(|newer| !newer.is_empty())) {
        *version = newer;
    }
}
