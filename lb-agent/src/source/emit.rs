//! Sends events while someone listens and nobody asked to stop.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::model::Event;

/// The run is over: stop was asked for, or nobody listens any more.
#[derive(Debug)]
pub(super) struct Stopped;

/// The way out of a source.
#[derive(Debug)]
pub(super) struct Emitter {
    pub(super) events: mpsc::Sender<Event>,
    pub(super) stop: CancellationToken,
}

impl Emitter {
    /// Sends one event; waits while the listener is busy.
    pub(super) async fn send(&self, event: Event) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            sent = self.events.send(event) => sent.map_err(|_| Stopped),
        }
    }

    /// Sends events in their order.
    pub(super) async fn send_all(
        &self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<(), Stopped> {
        for event in events {
            self.send(event).await?;
        }
        Ok(())
    }
}
