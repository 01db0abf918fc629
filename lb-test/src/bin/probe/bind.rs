//! What `bind` says of an address.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use serde_json::json;

use crate::emit;

/// Binds a socket of each protocol to each address and lets it go again.
pub(crate) fn bind(addresses: &[SocketAddr]) {
    for address in addresses {
        let tcp = TcpListener::bind(address).and_then(|socket| socket.local_addr());
        say("TCP", *address, &tcp);
        let udp = UdpSocket::bind(address).and_then(|socket| socket.local_addr());
        say("UDP", *address, &udp);
    }
}

fn say(protocol: &str, address: SocketAddr, local: &io::Result<SocketAddr>) {
    let asked = format!("{protocol} {address}");
    match local {
        Ok(local) => emit("bound", json!({"asked": asked, "port": local.port()})),
        Err(error) => emit("failure", json!({"asked": asked, "error": error.to_string()})),
    }
}
