//! Ends what leads to backends that no longer serve (S11): connected sockets are closed, UDP flows
//! forgotten; forgets flows that have been silent for too long; and makes the filter anew on the way.
//!
//! A thread of its own: it visits every socket and flow, and goes through network namespaces.
//! What to do follows from the tables alone, so that nothing is missed while no agent runs.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::StaleSocket;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use super::conntrack::{self, Evictions, Fill};
use crate::{
    dataplane::{StaleFinder, TableError},
    health::{Metrics, Walk},
    model::Family,
    net::sockets,
};

/// Rounds that look for a socket before it counts as not connected after all.
const TRIES: u8 = 3;
/// Until a socket is looked for again that was in the middle of its `connect`.
const AGAIN: Duration = Duration::from_millis(100);
/// Between two filters: while something is removed all the time, each keeps what the next one leaves out.
const FILTER: Duration = Duration::from_mins(1);
/// Rounds take at most one part of so many of the thread's time.
const SHARE: u32 = 5;

/// Wakes the thread that ends what is stale, and shows how full conntrack is.
#[derive(Debug)]
pub(super) struct Sweeper {
    wakes: SyncSender<()>,
    fills: Arc<Mutex<[Fill; 2]>>,
}

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
        let fills = Arc::default();
        let sweep = Sweep {
            finder,
            metrics,
            ended,
            fills: Arc::clone(&fills),
            evictions: <[Evictions; 2]>::default(),
            tries: Tries::default(),
            complained: false,
            filter_made: Instant::now(),
        };
        thread::Builder::new().name("stale".to_owned()).spawn(move || sweep.run(&wakes))?;
        Ok(Self { wakes: sender, fills })
    }

    /// Backends may have stopped serving.
    pub(super) fn wake(&self) {
        // Full: the round to come is still ahead.
        let _ = self.wakes.try_send(());
    }

    /// How full conntrack was at the last walk, of each family.
    pub(super) fn fills(&self) -> [(Family, Fill); 2] {
        let [v4, v6] = *self.fills.lock().unwrap_or_else(PoisonError::into_inner);
        [(Family::V4, v4), (Family::V6, v6)]
    }
}

struct Sweep {
    finder: StaleFinder,
    metrics: Arc<Metrics>,
    ended: Arc<Notify>,
    fills: Arc<Mutex<[Fill; 2]>>,
    evictions: [Evictions; 2],
    tries: Tries,
    complained: bool,
    filter_made: Instant,
}

impl Sweep {
    fn run(mut self, wakes: &Receiver<()>) {
        let mut pause = conntrack::pause(&[], Duration::ZERO);
        if !self.finder.are_marks_believed() {
            pause = Duration::ZERO;
        }
        loop {
            let wait = if self.tries.is_open() { AGAIN } else { pause };
            match wakes.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let begun = cpu_time();
            let walked = self.round();
            let cost = cpu_time().saturating_sub(begun);
            pause = conntrack::pause(walked.as_flattened(), cost);
            *self.fills.lock().unwrap_or_else(PoisonError::into_inner) = walked[0];
            self.ended.notify_one();
            thread::sleep(cost * (SHARE - 1));
        }
    }

    /// Closes sockets first: their programs wait for an answer that never comes. Tells how full conntrack is, and the
    /// table of flows that are not proven.
    fn round(&mut self) -> [[Fill; 2]; 2] {
        if let Err(error) = self.close_sockets() {
            // The same each time, as on a kernel without CONFIG_INET_DIAG_DESTROY.
            if !std::mem::replace(&mut self.complained, true) {
                tracing::warn!(%error, "close sockets whose backend is gone");
            }
        }
        let filter = self.begin_filter();
        let walked = self.walk().and_then(|fills| if filter { self.walk() } else { Ok(fills) });
        if filter && walked.is_ok() {
            self.finder.end_filter();
        }
        walked.unwrap_or_else(|error| {
            tracing::warn!(%error, "forget flows whose backend is gone, or that are silent");
            Default::default()
        })
    }

    /// Begins a new filter if one is due, and none was made a short while ago.
    fn begin_filter(&mut self) -> bool {
        if self.filter_made.elapsed() < FILTER || !self.finder.is_filter_due() {
            return false;
        }
        self.filter_made = Instant::now();
        let begun = self.finder.begin_filter();
        begun.inspect_err(|error| tracing::warn!(%error, "make the filter anew")).is_ok()
    }

    fn walk(&mut self) -> Result<[[Fill; 2]; 2], TableError> {
        self.finder.begin_walk();
        let half_open = [self.mark_half_open(Family::V4)?, self.mark_half_open(Family::V6)?];
        let proven = [self.forget_flows(Family::V4)?, self.forget_flows(Family::V6)?];
        self.finder.end_walk();
        Ok([proven, half_open])
    }

    /// Flows of a flood make their marks useless: the more of them, the sooner the next walk.
    fn mark_half_open(&self, family: Family) -> Result<Fill, TableError> {
        let (entries, capacity) = self.finder.mark_half_open(family)?;
        Ok(Fill { entries, capacity })
    }

    fn forget_flows(&mut self, family: Family) -> Result<Fill, TableError> {
        let begun = Instant::now();
        let swept = self.finder.sweep(family)?;
        let duration = begun.elapsed();
        let capacity = self.finder.capacity();
        let evictions = &mut self.evictions[usize::from(family == Family::V6)];
        let room = (capacity, self.finder.cpus());
        let evicted = evictions.note(self.finder.added(family)?, &swept, room);
        let walk = Walk { swept, evicted, capacity, duration };
        self.metrics.walked(family, &walk);
        Ok(Fill { entries: walk.left(), capacity })
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

/// Time that this thread has had a CPU: less than has passed where others want one, too.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("invariant: Linux has this clock").into()
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
