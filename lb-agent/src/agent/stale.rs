//! Ends what leads to backends that no longer serve (S11): connected sockets are closed, UDP flows
//! forgotten.
//!
//! A thread of its own: it visits every socket and flow, and goes through network namespaces.
//! What to do follows from the tables alone, so that nothing is missed while no agent runs.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::StaleSocket;
use tokio::sync::Notify;

use crate::{dataplane::StaleFinder, health::Metrics, model::Family, net::sockets};

/// Rounds that look for a socket before it counts as not connected after all.
const TRIES: u8 = 3;
/// Until a socket is looked for again that was in the middle of its `connect`.
const AGAIN: Duration = Duration::from_millis(100);
/// Rounds take at most one part of so many of the thread's time.
const SHARE: u32 = 5;

/// Wakes the thread that ends what is stale.
#[derive(Debug)]
pub(super) struct Sweeper(SyncSender<()>);

impl Sweeper {
    /// Starts the thread; it ends with the last of its handles.
    ///
    /// It notifies `ended` of what the metrics have to tell.
    pub(super) fn start(
        finder: StaleFinder,
        metrics: Arc<Metrics>,
        ended: Arc<Notify>,
    ) -> io::Result<Self> {
        // One wake-up that waits is enough for all that happened before it.
        let (sender, wakes) = sync_channel(1);
        let tries = Tries::default();
        let sweep = Sweep { finder, metrics, ended, tries, complained: false };
        thread::Builder::new().name("stale".to_owned()).spawn(move || sweep.run(&wakes))?;
        Ok(Self(sender))
    }

    /// Backends may have stopped serving.
    pub(super) fn wake(&self) {
        // Full: the round to come is still ahead.
        let _ = self.0.try_send(());
    }
}

struct Sweep {
    finder: StaleFinder,
    metrics: Arc<Metrics>,
    ended: Arc<Notify>,
    tries: Tries,
    complained: bool,
}

impl Sweep {
    fn run(mut self, wakes: &Receiver<()>) {
        loop {
            let wait = if self.tries.is_open() { AGAIN } else { Duration::MAX };
            match wakes.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let begun = Instant::now();
            let before = self.metrics.ended();
            self.round();
            if self.metrics.ended() != before {
                self.ended.notify_one();
            }
            thread::sleep(begun.elapsed() * (SHARE - 1));
        }
    }

    /// Closes sockets first: their programs wait for an answer that never comes.
    fn round(&mut self) {
        if let Err(error) = self.close_sockets() {
            // The same each time, as on a kernel without CONFIG_INET_DIAG_DESTROY.
            if !std::mem::replace(&mut self.complained, true) {
                tracing::warn!(%error, "close sockets whose backend is gone");
            }
        }
        for family in [Family::V4, Family::V6] {
            let begun = Instant::now();
            match self.finder.forget_flows(family) {
                Ok(entries) => self.metrics.swept(family, entries, begun.elapsed()),
                Err(error) => tracing::warn!(%error, "forget flows whose backend is gone"),
            }
        }
    }

    fn close_sockets(&mut self) -> io::Result<()> {
        let stale = self.tries.open(&self.finder.sockets()?);
        if stale.is_empty() {
            return Ok(());
        }
        let (closed, result) = sockets::close(&stale);
        for socket in &stale {
            self.tries.note(socket, closed.contains(&socket.cookie));
        }
        self.metrics.closed(closed.len() as u64);
        tracing::debug!(found = stale.len(), closed = closed.len(), "sockets of removed backends");
        result
    }
}

/// Which use of which socket: cookie, backend id and generation.
type Use = (u64, u32, u32);

/// How often each stale socket has been looked for: its program may have disconnected it, or be in
/// the middle of its `connect`.
#[derive(Debug, Default)]
struct Tries(BTreeMap<Use, u8>);

impl Tries {
    /// Those of the stale sockets that are worth a look; all others are no longer remembered.
    fn open(&mut self, stale: &[StaleSocket]) -> Vec<StaleSocket> {
        let known = stale.iter().map(|socket| {
            let key = key(socket);
            (key, self.0.get(&key).copied().unwrap_or_default())
        });
        self.0 = known.collect();
        stale.iter().filter(|socket| self.0[&key(socket)] < TRIES).copied().collect()
    }

    /// A socket was looked for; one that was closed is done with.
    fn note(&mut self, socket: &StaleSocket, closed: bool) {
        let tries = self.0.entry(key(socket)).or_default();
        *tries = if closed { TRIES } else { *tries + 1 };
    }

    /// Is any of them to be looked for again?
    fn is_open(&self) -> bool {
        self.0.values().any(|tries| *tries < TRIES)
    }
}

fn key(socket: &StaleSocket) -> Use {
    (socket.cookie, socket.backend_id, socket.generation)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Abi as _;

    use super::*;

    fn socket(cookie: u64, generation: u32) -> StaleSocket {
        StaleSocket { cookie, generation, ..StaleSocket::zeroed() }
    }

    #[test]
    fn a_socket_that_is_not_found_is_looked_for_a_few_times_only() {
        let mut tries = Tries::default();
        for _ in 0..TRIES {
            assert_eq!(tries.open(&[socket(1, 1)]).len(), 1);
            tries.note(&socket(1, 1), false);
        }
        assert!(!tries.is_open());
        assert!(tries.open(&[socket(1, 1)]).is_empty());
        assert_eq!(tries.open(&[socket(1, 2)]).len(), 1, "it has connected anew");
    }

    #[test]
    fn a_socket_that_was_closed_is_done_with_until_it_connects_again() {
        let mut tries = Tries::default();
        assert_eq!(tries.open(&[socket(1, 1), socket(2, 1)]).len(), 2);
        tries.note(&socket(1, 1), true);
        tries.note(&socket(2, 1), false);
        assert!(tries.is_open());
        assert_eq!(tries.open(&[socket(1, 1), socket(2, 1)]), [socket(2, 1)]);
        assert!(tries.open(&[]).is_empty());
        assert!(!tries.is_open(), "what is gone is no longer looked for");
    }
}
