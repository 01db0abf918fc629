//! What the agent tells all programs at once.

use super::layout::abi;
use crate::{cache::Factors, filter};

abi! {
    /// The one element of `CONTROL`: mapped by the agent, each word written by one store.
    pub struct Control {
        /// Another value ends all that is cached: the agent adds one with each change.
        pub epoch: u32,
        /// Which of the filters counts: zero or one, in the lowest bit; [`Control::MAKES_FILTER`].
        pub filter: u32,
        /// What sums of cached flows are keyed by: odd and random, written once.
        pub factors: Factors,
        /// The filter that counts, and one that is being made.
        pub filters: [filter::Words; 2],
    }
}

impl Control {
    /// Bit of `filter`: the filter that does not count is being made: walks over all flows note their ends in `LIVING`.
    pub const MAKES_FILTER: u32 = 2;
}
