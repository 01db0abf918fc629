//! Devices, sysctls and port ranges.

use std::fs;

use crate::config::{DevicePattern, PortRange};

use super::Finding;

pub(super) fn devices(named: &[DevicePattern]) -> Vec<Finding> {
    let present: Vec<_> = nix::net::if_::if_nameindex()
        .map(|devices| {
            devices.iter().map(|device| device.name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    named.iter().map(|pattern| device(pattern, &present)).collect()
}

fn device(pattern: &DevicePattern, present: &[String]) -> Finding {
    let matching: Vec<_> = present.iter().filter(|name| pattern.matches(name)).cloned().collect();
    if !matching.is_empty() {
        return Finding::ok("device", format!("{pattern}: {}", matching.join(", ")));
    }
    let mend = format!("name one of: {}", present.join(", "));
    if pattern.is_plain_name() {
        return Finding::fail(
            "device",
            format!("--device {pattern}: there is no such device"),
            mend,
        );
    }
    Finding::warn("device", format!("--device {pattern}: fits no device there is"), mend)
}

pub(super) fn sysctls() -> Vec<Finding> {
    vec![
        forwarding("ipv4-forwarding", "net/ipv4/ip_forward"),
        forwarding("ipv6-forwarding", "net/ipv6/conf/all/forwarding"),
        reverse_path(),
    ]
}

fn forwarding(name: &'static str, key: &str) -> Finding {
    let setting = key.replace('/', ".");
    match sysctl(key).as_deref() {
        Some("0") => Finding::warn(
            name,
            format!("{setting} = 0: this node forwards nothing to its pods"),
            format!("sysctl -w {setting}=1"),
        ),
        Some(value) => Finding::ok(name, format!("{setting} = {value}")),
        None => Finding::ok(name, "this family is switched off"),
    }
}

fn reverse_path() -> Finding {
    match sysctl("net/ipv4/conf/all/rp_filter").as_deref() {
        Some("1") => Finding::warn(
            "rp_filter",
            "net.ipv4.conf.all.rp_filter = 1 (strict): replies on another device are dropped",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        ),
        value => Finding::ok("rp_filter", format!("all = {}", value.unwrap_or("unknown"))),
    }
}

/// Ports that the node must not give away by chance, nor twice.
pub(super) fn ports(snat: PortRange, nodes: PortRange) -> Vec<Finding> {
    let own = sysctl("net/ipv4/ip_local_port_range").and_then(|text| parse_port_range(&text));
    let reserved = sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    vec![
        by_chance("snat-ports", snat, own, &reserved),
        if snat.overlaps(nodes) {
            Finding::fail(
                "node-ports",
                format!("--snat-port-range {snat} overlaps --service-node-port-range {nodes}"),
                "set one of them to ports outside of the other",
            )
        } else {
            by_chance("node-ports", nodes, own, &reserved)
        },
    ]
}

/// A process that asks for any port must not be given one of these.
fn by_chance(
    name: &'static str,
    range: PortRange,
    own: Option<PortRange>,
    reserved: &str,
) -> Finding {
    match own {
        Some(own) if own.overlaps(range) && is_reserved(range, reserved) => {
            Finding::ok(name, format!("{range} is in net.ipv4.ip_local_reserved_ports"))
        }
        Some(own) if own.overlaps(range) => Finding::ok(
            name,
            format!("{range} overlaps net.ipv4.ip_local_port_range {own}: run reserves it"),
        ),
        _ => Finding::ok(name, format!("{range} is outside of the host's own ports")),
    }
}

fn parse_port_range(text: &str) -> Option<PortRange> {
    text.split_whitespace().collect::<Vec<_>>().join("-").parse().ok()
}

fn is_reserved(range: PortRange, reserved: &str) -> bool {
    let mut parts = reserved.split(',').map(str::trim).filter_map(|part| {
        part.parse()
            .ok()
            .or_else(|| part.parse().ok().map(|port| PortRange { first: port, last: port }))
    });
    parts.any(|part: PortRange| part.first <= range.first && range.last <= part.last)
}

pub(super) fn sysctl(key: &str) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/sys/{key}")).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    #[test]
    fn a_missing_name_fails_and_a_pattern_without_a_device_warns() {
        let present = ["lo".to_owned(), "eth0".to_owned()];
        let outcome = |text: &str| device(&text.parse().unwrap(), &present).outcome;
        assert_eq!(outcome("eth0"), Outcome::Ok);
        assert_eq!(outcome("eth.*"), Outcome::Ok);
        assert_eq!(outcome("eth1"), Outcome::Fail);
        assert_eq!(outcome("cali.+"), Outcome::Warn);
        assert!(device(&"eth1".parse().unwrap(), &present).mend.contains("lo, eth0"));
    }

    #[test]
    fn overlaps_of_port_ranges_are_mentioned() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        let own = Some(range("32768-60999"));
        let finding =
            |text: &str, reserved: &str| by_chance("x", range(text), own, reserved).detail;
        assert!(finding("30000-32767", "").contains("outside"));
        assert!(
            finding("30000-33000", "").contains("ip_local_port_range 32768-60999: run reserves")
        );
        assert!(finding("30000-33000", "30000-33000").contains("is in net.ipv4.ip_local_reserved"));
        let clash = &ports(range("30000-40000"), range("30000-32767"))[1];
        assert_eq!(clash.outcome, Outcome::Fail);
        assert!(clash.detail.contains("overlaps --service-node-port-range"), "{}", clash.detail);
    }

    #[test]
    fn reserved_ports_may_be_given_away() {
        let range: PortRange = "61000-65535".parse().unwrap();
        assert!(is_reserved(range, "8080,61000-65535"));
        assert!(!is_reserved(range, "61000,61001-65000"));
        assert!(!is_reserved(range, ""));
        assert_eq!(parse_port_range("32768\t60999"), "32768-60999".parse().ok());
    }
}
