//! Addresses and prefixes as Kubernetes writes them.
//!
//! Leading zeros are decimal, never octal: `10.96.0.011` is 10.96.0.11 (CVE-2021-29923).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Faults;
use crate::model::{Family, is_routable};

/// Reads an address; leading zeros of an IPv4 part are decimal.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_octet(parts.next()?)?;
    }
    parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Digits alone: a sign is refused.
fn parse_octet(part: &str) -> Option<u8> {
    part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?
}

/// Reads a prefix such as `10.0.0.0/8`; host bits are cleared, whitespace around it is ignored (S9).
#[must_use]
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    if !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let net = IpNet::new(parse_address(address)?, length.parse().ok()?).ok()?;
    Some(net.trunc())
}

/// The family as the API spells it.
pub(crate) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Reads an address that traffic can be sent to, of one of `families` (of any, if none are given).
pub(crate) fn usable_address(
    text: &str,
    families: &[Family],
    field: &str,
    faults: &mut Faults,
) -> Option<IpAddr> {
    let Some(address) = parse_address(text) else {
        faults.add(field, format!("\"{text}\" is not an IP address"), "write an IP address");
        return None;
    };
    if !is_routable(address) {
        let message = format!("{address} is {}", kind_name(address));
        faults.add(field, message, "use an address that other machines can reach");
        return None;
    }
    let family = Family::of(address);
    if !families.is_empty() && !families.contains(&family) {
        let allowed: Vec<_> = families.iter().map(|family| family_name(*family)).collect();
        let message = format!("{address} is not an {} address", allowed.join(" or "));
        faults.add(field, message, "use an address of that family, or change the families");
        return None;
    }
    Some(address)
}

/// What an address is that is not routable.
fn kind_name(address: IpAddr) -> &'static str {
    match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 form",
        _ => "a link-local address",
    }
}
