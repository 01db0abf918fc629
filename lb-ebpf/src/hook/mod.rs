//! Where we are attached.

mod route;
pub mod sock_addr;
pub mod tc;
