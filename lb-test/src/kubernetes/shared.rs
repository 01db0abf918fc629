//! One control plane for the tests of a program that run at the same time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Result;

use super::{ControlPlane, Objects, run_inside};
use crate::Topology;

/// A test's part of a control plane, with a namespace of its own. The last one to go ends it.
#[derive(Debug)]
pub struct Shared {
    standing: Arc<Standing>,
    namespace: String,
}

#[derive(Debug)]
struct Standing {
    control_plane: ControlPlane,
    // After the programs in it.
    _topology: Topology,
}

impl Shared {
    /// Joins the control plane that stands, or starts one.
    ///
    /// # Errors
    /// When it can't start.
    pub fn join() -> Result<Self> {
        static STANDING: Mutex<Weak<Standing>> = Mutex::new(Weak::new());
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let namespace = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut place = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = place.upgrade() {
            return Ok(Self { standing, namespace });
        }
        let standing = Arc::new(Standing::start()?);
        *place = Arc::downgrade(&standing);
        Ok(Self { standing, namespace })
    }

    /// The control plane.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.standing.control_plane
    }

    /// Runs a test's work where it reaches the API server, with a client for the test's own
    /// namespace.
    ///
    /// # Errors
    /// When the namespace can't be made.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce(Objects) -> T + Send) -> Result<T> {
        let plane = self.control_plane();
        run_inside(plane.host(), async || {
            let objects = plane.objects(&self.namespace).await?;
            Ok(work(objects).await)
        })?
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.control_plane().logs());
        }
    }
}

impl Standing {
    fn start() -> Result<Self> {
        let topology = Topology::builder().client("control").build()?;
        let control_plane = ControlPlane::start(topology.client("control"))?;
        Ok(Self { control_plane, _topology: topology })
    }
}
