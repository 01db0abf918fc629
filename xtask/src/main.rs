//! The one door: set-up, build, test, demo and bench.

fn main() {}
