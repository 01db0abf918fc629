//! A stream of datagrams that is answered one by one, and the longest silence in it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_test::PATIENT;
use lb_test::{Host, eventually};

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(4);

/// A stream from a socket of its own; ends when dropped.
pub(crate) struct Stream {
    answers: Arc<Mutex<Vec<Instant>>>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Begins to ask an echo server from `host`; returns when it answers.
    pub(crate) fn start(host: &Host, to: SocketAddr) -> Self {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = host.enter(|| UdpSocket::bind(any).unwrap()).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (answers, ends) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let sender = socket.try_clone().unwrap();
        let threads = vec![
            thread::spawn({
                let ends = Arc::clone(&ends);
                move || send(&sender, &ends)
            }),
            thread::spawn({
                let (answers, ends) = (Arc::clone(&answers), Arc::clone(&ends));
                move || receive(&socket, &answers, &ends)
            }),
        ];
        let stream = Self { answers, ends, threads };
        stream.flows_until(Instant::now());
        stream
    }

    /// Waits until an answer comes after `end`.
    #[track_caller]
    pub(crate) fn flows_until(&self, end: Instant) {
        eventually(PATIENT, "answers", || {
            let last = self.answers.lock().unwrap().last().copied();
            ensure!(last.is_some_and(|last| last > end), "the last came at {last:?}");
            Ok(())
        });
    }

    /// The longest time without an answer between `begin` and the last answer.
    pub(crate) fn longest_silence(&self, begin: Instant) -> Duration {
        let answers = self.answers.lock().unwrap();
        let first = answers.partition_point(|answer| *answer < begin).saturating_sub(1);
        answers[first..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn send(socket: &UdpSocket, ends: &AtomicBool) {
    while !ends.load(Relaxed) {
        // A host that cannot be reached right now is told to the next call.
        let _ = socket.send(b"x");
        thread::sleep(PACE);
    }
}

fn receive(socket: &UdpSocket, answers: &Mutex<Vec<Instant>>, ends: &AtomicBool) {
    let mut buffer = [0; 256];
    while !ends.load(Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            answers.lock().unwrap().push(Instant::now());
        }
    }
}
