//! Where we are attached.

pub mod bind;
mod route;
pub mod sock_addr;
pub mod stale;
pub mod sweep;
pub mod tc;
