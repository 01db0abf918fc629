//! What all programs are told at once.

use std::path::Path;

use lb_common::abi::{Abi as _, Control, maps};

use super::{TableError, map::Map};

/// The one element of `CONTROL`.
pub(super) struct ControlMap(Map<u32, Control>);

impl ControlMap {
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        Map::open(folder, maps::CONTROL).map(Self)
    }

    /// Ends all that the packet path has cached: what was written until now is asked for again.
    ///
    /// Two writers at a time may count one change for both, which is enough.
    pub(super) fn renew(&self) -> Result<(), TableError> {
        let control = self.0.get(&0)?.unwrap_or(Control::zeroed());
        self.0.put(&0, &Control { epoch: control.epoch.wrapping_add(1), ..control })
    }
}
