//! Port numbers and protocols.

use std::num::NonZeroU16;

use super::Faults;
use crate::model::Protocol;

/// Reads a protocol as the API spells it.
pub(crate) fn parse_protocol(text: &str) -> Option<Protocol> {
    match text {
        "SCTP" => Some(Protocol::Sctp),
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

/// Reads a protocol; a missing one is TCP.
pub(super) fn protocol(text: Option<&str>, field: &str, faults: &mut Faults) -> Option<Protocol> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("TCP");
    let protocol = parse_protocol(text);
    if protocol.is_none() {
        faults.add(
            format!("{field}.protocol"),
            format!("unknown protocol \"{text}\""),
            "use TCP, UDP or SCTP",
        );
    }
    protocol
}

/// Reads a port number.
pub(super) fn port(number: i32, field: &str, faults: &mut Faults) -> Option<NonZeroU16> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        let message = format!("port {number} is out of range");
        faults.add(field, message, "use a number from 1 to 65535");
    }
    port
}
