//! What the agent tells all programs at once.

use super::layout::abi;

abi! {
    /// The one element of `CONTROL`. 8 bytes, each field written by one store.
    pub struct Control {
        /// Another value ends all that is cached: the agent adds one with each change.
        pub epoch: u32,
        /// Which half of `FILTER` counts: zero or one.
        pub filter: u32,
    }
}
