//! Values that settings are made of, each parsed once from its text form.
//!
//! Not for: which setting has which default (that is `cli::run`).

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use jiff::SignedDuration;
use regex::Regex;

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortRange {
    /// First port; never zero.
    pub first: u16,
    /// Last port; never below the first.
    pub last: u16,
}

impl PortRange {
    /// Number of ports in the range.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Does any port lie in both ranges?
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::PortRange;
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse().map_err(|_| wrong());
        let range = Self { first: port(first)?, last: port(last)? };
        (range.first > 0 && range.first <= range.last).then_some(range).ok_or_else(wrong)
    }
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BindAddress {
    /// One address, or the unspecified IPv6 address for both families.
    Listen(SocketAddr),
    /// Nowhere.
    Off,
}

impl BindAddress {
    /// Parses `""` (off), `:PORT` (both families), `IP:PORT` and `[IP]:PORT`.
    ///
    /// # Errors
    ///
    /// The text is none of these.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Ok(Self::Off);
        }
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| ValueError::BindAddress)?;
            return Ok(Self::Listen((Ipv6Addr::UNSPECIFIED, port).into()));
        }
        text.parse().map(Self::Listen).map_err(|_| ValueError::BindAddress)
    }
}

/// One entry of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodePortAddresses {
    /// Every address of the node that is fit for it (S8).
    All,
    /// Addresses within a network.
    Cidr(IpNet),
    /// 127.0.0.1 and `::1`.
    Localhost,
    /// The node's first address of each family.
    Primary,
}

impl FromStr for NodePortAddresses {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "all" => Ok(Self::All),
            "localhost" => Ok(Self::Localhost),
            "primary" => Ok(Self::Primary),
            cidr => cidr.parse().map(Self::Cidr).map_err(|_| ValueError::NodePortAddresses),
        }
    }
}

/// A length of time in whole seconds, written as Go does: `24h0m0s`, or `0`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seconds(pub u32);

impl FromStr for Seconds {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "0" {
            return Ok(Self(0));
        }
        let duration: SignedDuration = text.parse().map_err(|_| ValueError::Seconds)?;
        duration.as_secs().try_into().map(Self).map_err(|_| ValueError::Seconds)
    }
}

/// Which devices get programs: a name, or a pattern that fits the whole name.
#[derive(Clone, Debug)]
pub struct DevicePattern {
    text: String,
    regex: Regex,
}

impl DevicePattern {
    /// Does it name this device?
    pub fn matches(&self, device: &str) -> bool {
        self.text == device || self.regex.is_match(device)
    }

    /// Is it one name, so that a missing device is a mistake?
    pub fn is_plain_name(&self) -> bool {
        self.text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
    }
}

impl PartialEq for DevicePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for DevicePattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let regex = Regex::new(&format!("^(?:{text})$")).map_err(|_| ValueError::Device)?;
        if text.is_empty() {
            return Err(ValueError::Device);
        }
        Ok(Self { text: text.to_owned(), regex })
    }
}

/// A text that is not a value of its setting.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// See [`BindAddress::parse`].
    #[error("expected IP:PORT, [IP]:PORT, :PORT for both families, or nothing for off")]
    BindAddress,
    /// See [`DevicePattern`].
    #[error("expected the name of a device or a regular expression")]
    Device,
    /// See [`network`](super::network).
    #[error("expected a CIDR such as 10.244.0.0/16")]
    Network,
    /// See [`NodePortAddresses`].
    #[error("expected a CIDR such as 192.0.2.0/24, or one of all, localhost, primary")]
    NodePortAddresses,
    /// See [`PortRange`].
    #[error("expected FIRST-LAST within 1-65535")]
    PortRange,
    /// See [`Seconds`].
    #[error("expected a length of time such as 24h, 1h30m or 0")]
    Seconds,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_read_and_compared() {
        let range: PortRange = "61000-65535".parse().unwrap();
        assert_eq!((range.first, range.last, range.count()), (61000, 65535, 4536));
        assert!(range.overlaps("65535-65535".parse().unwrap()));
        assert!(!range.overlaps("32768-60999".parse().unwrap()));
        for wrong in ["", "1", "2-1", "0-5", "1-65536", "a-b"] {
            assert_eq!(wrong.parse::<PortRange>(), Err(ValueError::PortRange), "{wrong}");
        }
    }

    #[test]
    fn lengths_of_time_are_those_of_kube_proxy() {
        for (text, seconds) in [("24h0m0s", 86_400), ("1h", 3600), ("0", 0), ("0s", 0), ("90s", 90)]
        {
            assert_eq!(text.parse(), Ok(Seconds(seconds)), "{text}");
        }
        for wrong in ["", "5", "-1h", "1 day", "soon"] {
            assert_eq!(wrong.parse::<Seconds>(), Err(ValueError::Seconds), "{wrong}");
        }
    }

    #[test]
    fn a_bind_address_without_an_address_means_both_families() {
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 10256));
        assert_eq!(BindAddress::parse(":10256"), Ok(BindAddress::Listen(both)));
        assert_eq!(BindAddress::parse(""), Ok(BindAddress::Off));
        assert_eq!(
            BindAddress::parse("127.0.0.1:1"),
            Ok(BindAddress::Listen("127.0.0.1:1".parse().unwrap()))
        );
        assert_eq!(BindAddress::parse("10256"), Err(ValueError::BindAddress));
    }

    #[test]
    fn a_device_pattern_fits_the_whole_name() {
        let eth: DevicePattern = "eth[0-9]+".parse().unwrap();
        assert!(eth.matches("eth0") && eth.matches("eth12") && !eth.matches("veth0"));
        assert!(!eth.is_plain_name());
        assert!("eth0.100".parse::<DevicePattern>().unwrap().is_plain_name());
        assert_eq!("eth(".parse::<DevicePattern>(), Err(ValueError::Device));
    }

    #[test]
    fn nodeport_addresses_are_words_or_networks() {
        assert_eq!("primary".parse(), Ok(NodePortAddresses::Primary));
        assert_eq!("fd00::/64".parse(), Ok(NodePortAddresses::Cidr("fd00::/64".parse().unwrap())));
        assert_eq!("everything".parse::<NodePortAddresses>(), Err(ValueError::NodePortAddresses));
    }
}
