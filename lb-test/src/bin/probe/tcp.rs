//! TCP: new connections, connections that stay, and what getpeername shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Error, Result};
use serde_json::json;

use crate::http::Connection;
use crate::{Kept, Requests, Target, emit};

/// Counts answers by body, and failures, over all threads.
struct Tally {
    start: Instant,
    bodies: Mutex<BTreeMap<String, u64>>,
    failures: AtomicUsize,
}

impl Tally {
    fn new() -> Self {
        let (bodies, failures) = (Mutex::default(), AtomicUsize::new(0));
        Self { start: Instant::now(), bodies, failures }
    }

    fn answer(&self, body: &str) {
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        *bodies.entry(body.to_owned()).or_default() += 1;
    }

    /// Prints a failure with its time since the start and since `began`, in milliseconds.
    fn failure(&self, began: Instant, error: &Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let at = milliseconds(self.start);
        let fields = json!({"error": format!("{error:#}"), "at": at, "took": milliseconds(began)});
        emit("failure", fields);
    }

    fn summary(&self) {
        let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = self.failures.load(Ordering::Relaxed);
        let answers: u64 = bodies.values().sum();
        emit("summary", json!({"answers": answers, "failures": failures, "bodies": &*bodies}));
    }
}

/// Gets over a new connection for each request.
pub(crate) fn get(requests: &Requests) {
    let tally = Tally::new();
    in_threads(requests.parallel, || {
        for _ in requests.pace.requests() {
            let began = Instant::now();
            match get_once(&requests.target) {
                Ok((body, local)) => {
                    tally.answer(&body);
                    let took = milliseconds(began);
                    emit("answer", json!({"body": body, "local": local, "took": took}));
                }
                Err(error) => tally.failure(began, &error),
            }
        }
    });
    tally.summary();
}

fn get_once(target: &Target) -> Result<(String, String)> {
    let mut connection = Connection::open(target.address, target.timeout())?;
    let local = connection.local()?.to_string();
    Ok((connection.get()?, local))
}

/// Gets again and again over connections that stay; a broken one is a failure and stays broken,
/// unless the server has ended it and another is to be had.
pub(crate) fn keepalive(kept: &Kept) {
    let requests = &kept.requests;
    let tally = Tally::new();
    let first_answers = AtomicUsize::new(0);
    in_threads(requests.parallel, || {
        let open = || Connection::open(requests.target.address, requests.target.timeout());
        let began = Instant::now();
        let mut connection = match open() {
            Ok(connection) => connection,
            Err(error) => return tally.failure(began, &error),
        };
        for number in requests.pace.requests() {
            let began = Instant::now();
            let mut answer = connection.get();
            if answer.is_err() && kept.reconnect {
                answer = open().and_then(|other| {
                    connection = other;
                    connection.get()
                });
            }
            match answer {
                Ok(body) => tally.answer(&body),
                Err(error) => return tally.failure(began, &error),
            }
            let first = number == 0;
            if first && first_answers.fetch_add(1, Ordering::Relaxed) + 1 == requests.parallel {
                emit("ready", json!({"connections": requests.parallel}));
            }
        }
    });
    tally.summary();
}

/// Prints what getpeername shows after a connect.
pub(crate) fn peername(target: &Target) {
    let began = Instant::now();
    match Connection::open(target.address, target.timeout()).and_then(|open| open.peer()) {
        Ok(peer) => emit("peer", json!({"address": peer.to_string()})),
        Err(error) => Tally::new().failure(began, &error),
    }
}

fn in_threads(count: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(&work);
        }
    });
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
