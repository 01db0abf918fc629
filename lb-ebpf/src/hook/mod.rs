//! Where we are attached.

mod route;
pub mod sock_addr;
pub mod stale;
pub mod tc;
