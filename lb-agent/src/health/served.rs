//! One health check port at work: it takes connections and gives each its one answer (S3).

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::Health;
use crate::{
    desired::HealthCheck,
    model::{Family, ObjectName},
};

/// Connections to one port at a time; more of them wait.
const CONNECTIONS: usize = 256;
/// How long one may take.
const LONGEST: Duration = Duration::from_secs(10);
/// Before the next try where the process has no descriptor left for a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// Tells load balancers how many endpoints there are to share the load.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// A port that is served until it is closed.
#[derive(Debug)]
pub(super) struct Served {
    counts: Arc<Counts>,
    tasks: JoinSet<()>,
}

/// What probers of each family are told.
#[derive(Debug, Default)]
struct Counts {
    v4: AtomicUsize,
    v6: AtomicUsize,
}

/// What an answer is made of.
#[derive(Clone, Debug)]
struct Answers {
    service: ObjectName,
    counts: Arc<Counts>,
    health: Health,
}

impl Served {
    /// Begins to serve on all `listeners`.
    pub(super) fn start(
        service: &ObjectName,
        check: &HealthCheck,
        health: &Health,
        listeners: Vec<TcpListener>,
    ) -> Self {
        let served = Self { counts: Arc::default(), tasks: JoinSet::new() };
        served.set(check);
        let (service, health) = (service.clone(), health.clone());
        let answers = Answers { service, counts: Arc::clone(&served.counts), health };
        let mut tasks = served.tasks;
        for listener in listeners {
            tasks.spawn(accept(listener, answers.clone()));
        }
        Self { tasks, ..served }
    }

    /// From now on these are the counts.
    pub(super) fn set(&self, check: &HealthCheck) {
        for family in [Family::V4, Family::V6] {
            self.counts.of(family).store(check.count(family), Ordering::Relaxed);
        }
    }

    /// From now on there are no more than these.
    pub(super) fn lower(&self, check: &HealthCheck) {
        for family in [Family::V4, Family::V6] {
            self.counts.of(family).fetch_min(check.count(family), Ordering::Relaxed);
        }
    }

    /// Returns when nothing listens any more.
    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Counts {
    fn of(&self, family: Family) -> &AtomicUsize {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Takes connections until it is aborted; they end with it.
async fn accept(listener: TcpListener, answers: Answers) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, peer)) => {
                    let family = Family::of(peer.ip().to_canonical());
                    connections.spawn(serve(stream, family, answers.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, service = %answers.service, "accept a health check");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Gives one answer, whatever the request.
async fn serve(stream: TcpStream, family: Family, answers: Answers) {
    let service = service_fn(|_| async { Ok::<_, Infallible>(answers.answer(family)) });
    let mut server = http1::Builder::new();
    let server = server.keep_alive(false).half_close(true).title_case_headers(true);
    match timeout(LONGEST, server.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "serve a health check"),
        Err(_) => tracing::trace!("a health check took too long"),
    }
}

impl Answers {
    fn answer(&self, family: Family) -> Response<String> {
        let count = self.counts.of(family).load(Ordering::Relaxed);
        let is_healthy = self.health.verdict(Timestamp::now()).live;
        let mut answer = Response::new(self.body(count, is_healthy));
        if count == 0 || !is_healthy {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(WEIGHT, HeaderValue::from(count));
        answer
    }

    fn body(&self, count: usize, is_healthy: bool) -> String {
        let ObjectName { namespace, name } = &self.service;
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
        )
    }
}
