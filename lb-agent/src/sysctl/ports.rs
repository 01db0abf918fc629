//! Ports that no process is given by chance: what to write to the kernel's list, and what of it is
//! ours to take back. Pure.

use std::{collections::BTreeSet, fmt, num::ParseIntError, str::FromStr};

use crate::config::PortRange;

/// A set of ports, in the kernel's notation: `8080,30000-32767`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Ports(BTreeSet<u16>);

impl Ports {
    /// Is there none?
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// These and the others.
    pub(super) fn with(&self, others: &Self) -> Self {
        Self(&self.0 | &others.0)
    }

    /// These without the others.
    pub(super) fn without(&self, others: &Self) -> Self {
        Self(&self.0 - &others.0)
    }
}

impl FromIterator<PortRange> for Ports {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        Self(ranges.into_iter().flat_map(|range| range.first..=range.last).collect())
    }
}

impl FromStr for Ports {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut ports = BTreeSet::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            ports.extend(first.trim().parse::<u16>()?..=last.trim().parse()?);
        }
        Ok(Self(ports))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ports = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = ports.next() {
            let mut last = first;
            while let Some(next) = ports.next_if(|next| Some(*next) == last.checked_add(1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

/// The list to write, and which of its ports nobody else has asked for.
///
/// `ours` are those that an earlier start added to the `current` list.
pub(super) fn reserve(current: &Ports, ours: &Ports, wanted: &Ports) -> (Ports, Ports) {
    let others = current.without(ours);
    let list = others.with(wanted);
    let added = list.without(&others);
    (list, added)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Ports {
        text.parse().unwrap()
    }

    fn reserved(current: &str, ours: &str, wanted: &str) -> (String, String) {
        let (list, added) = reserve(&ports(current), &ports(ours), &ports(wanted));
        (list.to_string(), added.to_string())
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "80", "80,8080", "1-3,5,7-9", "65535", "0-65535"] {
            assert_eq!(ports(text).to_string(), text);
        }
        assert_eq!(ports(" 3,1-2\n").to_string(), "1-3");
        assert!("x".parse::<Ports>().is_err() && "1-65536".parse::<Ports>().is_err());
    }

    #[test]
    fn nothing_of_others_is_lost_and_only_what_was_added_is_ours() {
        let twice = |text: &str| (text.to_owned(), text.to_owned());
        assert_eq!(reserved("", "", "30000-30009"), twice("30000-30009"));
        let expected = ("8080,29990-30009".to_owned(), "30005-30009".to_owned());
        assert_eq!(reserved("8080,29990-30004", "", "30000-30009"), expected);
    }

    #[test]
    fn another_range_takes_the_place_of_an_earlier_one() {
        let expected = ("8080,31000".to_owned(), "31000".to_owned());
        assert_eq!(reserved("8080,30000-30009", "30000-30009", "31000"), expected);
        assert_eq!(reserved("8080,31000", "31000", ""), ("8080".to_owned(), String::new()));
    }

    #[test]
    fn a_second_start_with_the_same_ranges_changes_nothing() {
        let expected = ("8080,30000-30009".to_owned(), "30000-30009".to_owned());
        assert_eq!(reserved("8080,30000-30009", "30000-30009", "30000-30009"), expected);
    }
}
