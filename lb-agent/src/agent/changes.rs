//! What has been heard of and is not written yet, for the metrics (S20).

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    health::{ChangeKind, Metrics},
    model::{Change, Event, Family, ObjectName},
};

/// Changes on their way to the tables.
#[derive(Debug)]
pub(super) struct Changes {
    metrics: Arc<Metrics>,
    begun: Timestamp,
    endpoints: Count,
    services: Count,
    /// When what led to the waiting changes of each Service's endpoints happened.
    triggers: BTreeMap<ObjectName, Vec<(Family, Timestamp)>>,
}

/// Changes of one kind.
#[derive(Debug, Default)]
struct Count {
    /// Those that the metrics do not know of.
    new: u64,
    pending: u64,
}

/// What is kept of an event, which the model takes.
#[derive(Debug)]
pub(super) enum Heard {
    Other,
    Service,
    Slice(Family, Option<Timestamp>),
    SliceGone,
}

impl Heard {
    pub(super) fn of(event: &Event) -> Self {
        match event {
            Event::ServiceApplied(_) | Event::ServiceDeleted(_) => Self::Service,
            Event::SliceApplied(slice) => Self::Slice(slice.family, slice.last_change),
            Event::SliceDeleted(_) => Self::SliceGone,
            _ => Self::Other,
        }
    }
}

impl Changes {
    pub(super) fn new(metrics: Arc<Metrics>, begun: Timestamp) -> Self {
        let (endpoints, services) = (Count::default(), Count::default());
        Self { metrics, begun, endpoints, services, triggers: BTreeMap::new() }
    }

    /// Takes in an event, and what the model made of it. What is part of the first list is not
    /// measured, nor what happened before the agent began: it had no chance to be in time.
    pub(super) fn add(&mut self, heard: &Heard, change: &Change, is_first_list: bool) {
        let changed: &[ObjectName] = match change {
            Change::Services(names) => names,
            Change::Node | Change::Nothing => &[],
        };
        match heard {
            Heard::Other => {}
            Heard::Service => self.services.add(!changed.is_empty()),
            Heard::Slice(family, last_change) => {
                self.endpoints.add(!changed.is_empty());
                let time = last_change.filter(|time| !is_first_list && *time > self.begun);
                if let (Some(time), Some(owner)) = (time, changed.last()) {
                    self.triggers.entry(owner.clone()).or_default().push((*family, time));
                }
            }
            Heard::SliceGone => {
                self.endpoints.add(!changed.is_empty());
                // Its time is that of an earlier change.
                for owner in changed {
                    self.triggers.remove(owner);
                }
            }
        }
    }

    /// Everything that was heard of is written at `now`.
    pub(super) fn written(&mut self, now: Timestamp) {
        for (family, time) in std::mem::take(&mut self.triggers).into_values().flatten() {
            self.metrics.programmed(family, time, now);
        }
        self.endpoints.pending = 0;
        self.services.pending = 0;
    }

    /// Tells the metrics.
    pub(super) fn tell(&mut self) {
        for (kind, count) in [
            (ChangeKind::Endpoints, &mut self.endpoints),
            (ChangeKind::Service, &mut self.services),
        ] {
            self.metrics.set_changes(kind, std::mem::take(&mut count.new), count.pending);
        }
    }
}

impl Count {
    fn add(&mut self, is_change: bool) {
        self.new += 1;
        self.pending += u64::from(is_change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn owner() -> Change {
        Change::Services(vec![ObjectName::new("default", "web")])
    }

    fn changes() -> (Changes, Arc<Metrics>) {
        let metrics = Arc::<Metrics>::default();
        (Changes::new(Arc::clone(&metrics), at(0)), metrics)
    }

    #[track_caller]
    fn assert_shown(metrics: &Metrics, lines: &[&str]) {
        let text = metrics.text();
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn s20_each_trigger_is_measured_once_and_after_the_write() {
        let (mut changes, metrics) = changes();
        for seconds in [1, 2] {
            changes.add(&Heard::Slice(Family::V4, Some(at(seconds))), &owner(), false);
        }
        changes.add(&Heard::Slice(Family::V6, None), &owner(), false);
        changes.tell();
        assert!(!metrics.text().contains("programming_duration_seconds_count"), "not written");
        changes.written(at(4));
        changes.written(at(9));
        assert_shown(
            &metrics,
            &[
                "lb_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 2",
                "lb_network_programming_duration_seconds_sum{ip_family=\"IPv4\"} 5.0",
            ],
        );
    }

    #[test]
    fn s20_lists_old_changes_deletions_and_what_changes_nothing_are_not_measured() {
        let (mut changes, metrics) = changes();
        let slice = |seconds| Heard::Slice(Family::V4, Some(at(seconds)));
        changes.add(&slice(1), &owner(), true);
        changes.add(&slice(-1), &owner(), false);
        changes.add(&slice(1), &Change::Nothing, false);
        changes.written(at(4));
        let text = metrics.text();
        assert!(!text.contains("programming_duration_seconds_count"), "{text}");
        changes.add(&slice(1), &owner(), false);
        changes.add(&Heard::SliceGone, &owner(), false);
        changes.written(at(4));
        let text = metrics.text();
        assert!(!text.contains("programming_duration_seconds_count"), "{text}");
    }

    #[test]
    fn s20_changes_are_pending_until_they_are_written() {
        let (mut changes, metrics) = changes();
        changes.add(&Heard::Service, &owner(), true);
        changes.add(&Heard::Service, &Change::Nothing, false);
        changes.add(&Heard::Slice(Family::V4, None), &owner(), false);
        changes.tell();
        let total = [
            "lb_sync_proxy_rules_service_changes_total 2",
            "lb_sync_proxy_rules_endpoint_changes_total 1",
        ];
        assert_shown(&metrics, &total);
        assert_shown(&metrics, &["lb_sync_proxy_rules_service_changes_pending 1"]);
        assert_shown(&metrics, &["lb_sync_proxy_rules_endpoint_changes_pending 1"]);
        changes.written(at(1));
        changes.tell();
        assert_shown(&metrics, &total);
        assert_shown(&metrics, &["lb_sync_proxy_rules_service_changes_pending 0"]);
        assert_shown(&metrics, &["lb_sync_proxy_rules_endpoint_changes_pending 0"]);
    }
}
