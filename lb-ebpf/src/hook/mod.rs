//! Where we are attached.

pub mod bind;
mod carrier;
mod frame;
pub mod ip_device;
mod peers;
mod route;
mod skb;
pub mod sock_addr;
pub mod stale;
pub mod sweep;
mod tables;
pub mod tc;
pub mod xdp;
