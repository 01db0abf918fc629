//! What others ask the agent over HTTP: is it well, what has it counted.
//! And what load balancers ask on behalf of one Service (`healthCheckNodePort`).

use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};

mod listen;
mod map_metrics;
mod metrics;
mod ports;
mod proxy_metrics;
mod served;
mod server;

pub use map_metrics::Walk;
pub use metrics::{ChangeKind, Metrics, Probe, ProxyNames};
pub use ports::HealthPorts;
pub use server::{Servers, serve};

/// How long an update may wait before the agent counts as stuck: kube-proxy's value (S4).
const TIMEOUT: SignedDuration = SignedDuration::from_secs(60);

/// The agent's own health (S4); clones are the same one.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    last_updated: Timestamp,
    queued_since: Option<Timestamp>,
    node_eligible: bool,
}

/// The answer at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// When the tables were last known to be in step.
    pub last_updated: Timestamp,
    /// Has no update waited too long?
    pub live: bool,
    /// May a load balancer in front send traffic to this node?
    pub node_eligible: bool,
}

impl Default for Health {
    fn default() -> Self {
        let last_updated = Timestamp::now();
        // The first sync counts as queued from the start.
        let queued_since = Some(last_updated);
        Self(Arc::new(Mutex::new(State { last_updated, queued_since, node_eligible: true })))
    }
}

impl Health {
    /// A change waits to be written; the oldest one counts.
    pub fn update_queued(&self) {
        self.state().queued_since.get_or_insert_with(Timestamp::now);
    }

    /// Everything known is written.
    pub fn updated(&self) {
        let mut state = self.state();
        state.last_updated = Timestamp::now();
        state.queued_since = None;
    }

    /// The node leaves (deleted, or tainted `ToBeDeletedByClusterAutoscaler`), or does not.
    pub fn set_node_eligible(&self, node_eligible: bool) {
        self.state().node_eligible = node_eligible;
    }

    /// How it stands at `time`.
    pub fn verdict(&self, time: Timestamp) -> Verdict {
        let state = self.state();
        let waited = state.queued_since.map(|since| time.duration_since(since));
        Verdict {
            last_updated: if waited.is_none() { time } else { state.last_updated },
            live: waited.is_none_or(|waited| waited <= TIMEOUT),
            node_eligible: state.node_eligible,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("invariant: no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    impl Health {
        /// One that has waited for its first sync for so long.
        pub(super) fn stuck_since(waited: std::time::Duration) -> Self {
            let health = Self::default();
            health.state().queued_since = Some(Timestamp::now() - waited);
            health
        }
    }

    /// Asks for a page over a connection of its own; the whole answer.
    pub(super) async fn request(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn an_update_that_waits_too_long_means_stuck_until_it_is_written() {
        let health = Health::default();
        health.updated();
        let later = |seconds| Timestamp::now() + SignedDuration::from_secs(seconds);
        assert!(health.verdict(later(3600)).live, "nothing to do");
        health.update_queued();
        assert!(health.verdict(later(59)).live);
        assert!(!health.verdict(later(61)).live);
        health.updated();
        assert!(health.verdict(later(61)).live);
    }

    #[test]
    fn an_agent_that_never_syncs_is_stuck() {
        let health = Health::default();
        assert!(!health.verdict(Timestamp::now() + SignedDuration::from_secs(61)).live);
    }
}
