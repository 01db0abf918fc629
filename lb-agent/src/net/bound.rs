//! Which ports processes of this node have already, from `/proc/net`.

use std::{collections::BTreeSet, fs};

use crate::model::Protocol;

/// The tables of sockets, and the state in which a socket has its port for whoever comes:
/// `TCP_LISTEN`, and for UDP `TCP_CLOSE`, which means not connected (`include/net/tcp_states.h`).
const TABLES: [(&str, Protocol, &str); 4] = [
    ("tcp", Protocol::Tcp, "0A"),
    ("tcp6", Protocol::Tcp, "0A"),
    ("udp", Protocol::Udp, "07"),
    ("udp6", Protocol::Udp, "07"),
];

/// Ports that sockets of the agent's network namespace wait on, whatever their addresses.
pub fn bound_ports() -> BTreeSet<(Protocol, u16)> {
    let mut ports = BTreeSet::new();
    for (table, protocol, state) in TABLES {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        ports.extend(waiting(&text, state).map(|port| (protocol, port)));
    }
    ports
}

fn waiting<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _remote, found) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, port) = local.rsplit_once(':')?;
        (found == state).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_wait_are_told_from_connected_ones() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 00000000:7580 00000000:0000 0A 00000000:00000000\n   \
                     1: 0100007F:7581 0100007F:0016 01 00000000:00000000\n";
        assert_eq!(waiting(table, "0A").collect::<Vec<_>>(), [30080]);
        assert_eq!(waiting("", "0A").count(), 0);
    }

    #[test]
    fn sockets_of_both_protocols_and_families_are_seen() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let tcp = std::net::TcpListener::bind(address).unwrap();
            let udp = std::net::UdpSocket::bind(address).unwrap();
            let ports = [
                (Protocol::Tcp, tcp.local_addr().unwrap().port()),
                (Protocol::Udp, udp.local_addr().unwrap().port()),
            ];
            assert!(ports.iter().all(|port| bound_ports().contains(port)), "{ports:?}");
        }
    }
}
