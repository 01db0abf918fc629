//! Requests in the background, each over a new connection, counted one by one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_test::{Host, programs, try_eventually};
use serde_json::Value;

use crate::interrupt;

/// Requests of one run of the probe, over two connections at a time.
pub(crate) const PROBE: [&str; 6] = ["--parallel", "2", "--count", "50", "--interval", "2"];
/// How long many requests may take: far longer than they do.
const PROGRESS: Duration = Duration::from_mins(1);

/// One client that asks again and again.
pub(crate) struct Client {
    pub(crate) host: Host,
    pub(crate) address: SocketAddr,
    count: Mutex<Count>,
}

/// What a client has met.
#[derive(Clone, Default)]
pub(crate) struct Count {
    /// Requests that were answered.
    pub(crate) answers: u64,
    /// What became of each of the others.
    pub(crate) failures: Vec<String>,
    /// The longest time an answer took, in milliseconds.
    pub(crate) slowest: f64,
}

impl Client {
    pub(crate) fn new(host: &Host, address: SocketAddr) -> Self {
        Self { host: host.clone(), address, count: Mutex::default() }
    }

    /// What it has met so far.
    pub(crate) fn count(&self) -> Count {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until it is told to stop; every request that was begun is seen to its end.
    fn ask(&self, stop: &AtomicBool) {
        let address = self.address.to_string();
        let mut arguments = vec!["tcp-get", &address];
        arguments.extend(PROBE);
        while !stop.load(Ordering::Relaxed) {
            match programs::probe(&self.host, &arguments) {
                Ok(events) => events.iter().for_each(|event| self.locked().add(event)),
                Err(error) => return self.locked().failures.push(format!("{error:#}")),
            }
        }
    }
}

impl Count {
    fn add(&mut self, event: &Value) {
        match event["event"].as_str() {
            Some("answer") => {
                self.answers += 1;
                self.slowest = self.slowest.max(event["took"].as_f64().unwrap_or_default());
            }
            Some("failure") => self.failures.push(event.to_string()),
            _ => (),
        }
    }
}

/// Lets all clients ask while `work` is done.
pub(crate) fn during(clients: &[Client], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| client.ask(&stop));
        }
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// Waits until each client has been answered `more` times again.
pub(crate) fn wait_answers(clients: &[Client], more: u64) -> Result<()> {
    for client in clients {
        let goal = client.count().answers + more;
        try_eventually(PROGRESS, "answers to the loop of requests", || {
            let Count { answers, failures, .. } = client.count();
            let over = interrupt::received() || !failures.is_empty();
            ensure!(over || answers >= goal, "{answers} of {goal} from {}", client.host.name());
            Ok(())
        })?;
    }
    interrupt::check()
}
