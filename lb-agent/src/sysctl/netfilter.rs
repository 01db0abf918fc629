//! What a Service proxy makes of netfilter's conntrack (S16), by kube-proxy's rules and defaults
//! (`pkg/proxy/conntrack/sysctls.go`). Pure.

use lb_common::conntrack::{Timeouts, ticks};

use super::value::Goal;

/// The most that the number of CPUs alone may ask for.
const MOST_BY_CPUS: u64 = 1 << 20;
/// Entries for each bucket of the hash table, at most.
const ENTRIES_PER_BUCKET: u64 = 4;

/// kube-proxy's settings for netfilter's conntrack. Zero always means: leave it alone.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NetfilterSettings {
    /// Entries for each CPU.
    pub max_per_core: u32,
    /// Entries however few CPUs there are.
    pub min: u32,
    /// Seconds until an idle TCP connection is forgotten.
    pub tcp_established: u32,
    /// Seconds until a half-closed TCP connection is forgotten.
    pub tcp_close_wait: u32,
    /// Are TCP packets outside of the window taken as valid?
    pub tcp_be_liberal: bool,
    /// Seconds until datagrams without an answer are forgotten.
    pub udp: u32,
    /// Seconds until an idle stream of datagrams is forgotten.
    pub udp_stream: u32,
}

impl NetfilterSettings {
    /// The times for the agent's own conntrack: the same, and defaults for what is left alone.
    pub fn timeouts(&self) -> Timeouts {
        let or = |seconds, default| if seconds == 0 { default } else { ticks(seconds) };
        let default = Timeouts::DEFAULT;
        Timeouts {
            tcp_established: or(self.tcp_established, default.tcp_established),
            tcp_close_wait: or(self.tcp_close_wait, default.tcp_close_wait),
            udp: or(self.udp, default.udp),
            udp_stream: or(self.udp_stream, default.udp_stream),
        }
    }

    /// Each setting, as a path below `/proc/sys`, and what it should be on a node with `cpus` CPUs.
    pub(super) fn goals(&self, cpus: u32) -> [(&'static str, Goal); 7] {
        let max = self.max(cpus);
        let buckets = max.map_or(Goal::Untouched, |max| Goal::AtLeast(max / ENTRIES_PER_BUCKET));
        [
            ("net/netfilter/nf_conntrack_max", max.map_or(Goal::Untouched, Goal::Exactly)),
            ("net/netfilter/nf_conntrack_buckets", buckets),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", exactly(self.tcp_established)),
            ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", exactly(self.tcp_close_wait)),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", exactly(self.tcp_be_liberal.into())),
            ("net/netfilter/nf_conntrack_udp_timeout", exactly(self.udp)),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", exactly(self.udp_stream)),
        ]
    }

    fn max(&self, cpus: u32) -> Option<u64> {
        let by_cpus = u64::from(self.max_per_core) * u64::from(cpus);
        let max = if by_cpus > MOST_BY_CPUS { MOST_BY_CPUS } else { by_cpus.max(self.min.into()) };
        (self.max_per_core > 0 && max > 0).then_some(max)
    }
}

fn exactly(value: u32) -> Goal {
    if value == 0 { Goal::Untouched } else { Goal::Exactly(value.into()) }
}

/// The number of CPUs in a list of the kernel's: `0-3,5`.
pub(super) fn count_cpus(cpus: &str) -> Option<u32> {
    cpus.trim().split(',').try_fold(0_u32, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn max(max_per_core: u32, min: u32, cpus: u32) -> [Goal; 2] {
        let settings = NetfilterSettings { max_per_core, min, ..NetfilterSettings::default() };
        let [(_, max), (_, buckets), ..] = settings.goals(cpus);
        [max, buckets]
    }

    #[test]
    fn s16_conntrack_has_room_by_cpus_within_bounds() {
        let room = |max| [Goal::Exactly(max), Goal::AtLeast(max / 4)];
        assert_eq!(max(32_768, 131_072, 1), room(131_072));
        assert_eq!(max(32_768, 131_072, 8), room(262_144));
        assert_eq!(max(32_768, 131_072, 128), room(1_048_576));
        assert_eq!(max(10, 2_000_000, 4), room(2_000_000));
        assert_eq!(max(0, 131_072, 8), [Goal::Untouched; 2]);
    }

    #[test]
    fn s16_zero_leaves_a_setting_alone() {
        let nothing = NetfilterSettings::default();
        assert!(nothing.goals(4).iter().all(|(_, goal)| *goal == Goal::Untouched));
        let some = NetfilterSettings { tcp_be_liberal: true, udp: 30, ..nothing };
        let set: Vec<_> =
            some.goals(4).into_iter().filter(|(_, goal)| *goal != Goal::Untouched).collect();
        let expected = [
            ("net/netfilter/nf_conntrack_tcp_be_liberal", Goal::Exactly(1)),
            ("net/netfilter/nf_conntrack_udp_timeout", Goal::Exactly(30)),
        ];
        assert_eq!(set, expected);
    }

    #[test]
    fn s16_times_are_those_of_our_own_conntrack_too() {
        assert_eq!(NetfilterSettings::default().timeouts(), Timeouts::DEFAULT);
        let some = NetfilterSettings { tcp_close_wait: 60, udp_stream: 300, ..Default::default() };
        let expected = Timeouts { tcp_close_wait: 56, udp_stream: ticks(300), ..Timeouts::DEFAULT };
        assert_eq!(some.timeouts(), expected);
    }

    #[test]
    fn cpus_are_counted() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,5,8-9"), Some(7));
        assert_eq!(count_cpus(""), None);
        assert_eq!(count_cpus("3-0"), None);
    }
}
