//! Which flows may have an entry.

use super::layout::abi;
use crate::presence::PLACES;

abi! {
    /// One of the two elements of `PRESENCE`, a table of places: see [`presence`](crate::presence). The round
    /// lives and dies with its marks.
    pub struct Presence {
        /// Raised by the agent after each complete walk; zero before the first one.
        pub round: u32,
        /// Zero.
        pub pad: u32,
        /// The last mark of each place.
        pub marks: [u8; PLACES],
    }
}
