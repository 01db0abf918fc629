//! Which ranges of sources a Service port needs in the tables, and when others may go.
//!
//! Pure, as `plan`. Ranges appear before the frontends that check them, and go only when no program
//! can miss them: else a client that is allowed would be dropped.

use lb_common::abi::FrontendFlags;

use crate::{
    dataplane::{ServiceId, Step},
    desired::PortTables,
    model::Family,
};

use super::{held::Held, held::Realized, plan::Plan};

/// Writes the ranges that are not there yet.
pub(super) fn put(id: ServiceId, tables: &PortTables, held: &Held, plan: &mut Plan) {
    for range in tables.source_ranges().filter(|range| !held.source_ranges.contains(range)) {
        plan.push(id, Step::PutSourceRange(id, *range));
    }
}

/// Removes the ranges that are not wanted, once nothing depends on them.
pub(super) fn remove(
    id: ServiceId,
    tables: Option<&PortTables>,
    realized: &Realized,
    plan: &mut Plan,
) {
    let Some(held) = realized.ports.get(&id) else { return };
    for range in &held.source_ranges {
        let family = Family::of(range.addr());
        let wanted = tables.and_then(|tables| tables.families.get(&family));
        let is_wanted = wanted.is_some_and(|wanted| wanted.source_ranges.contains(range));
        if !is_wanted && !is_needed(id, tables, realized, family) {
            plan.push(id, Step::RemoveSourceRange(id, *range));
        }
    }
}

/// Do frontends of the family still check their sources without what is wanted in place of this?
fn is_needed(
    id: ServiceId,
    tables: Option<&PortTables>,
    realized: &Realized,
    family: Family,
) -> bool {
    let Some(tables) = tables else { return false };
    let held = realized.ports.get(&id).map(|held| &held.source_ranges);
    let wanted = tables.families.get(&family).map(|family| &family.source_ranges);
    let is_replaced = wanted.is_some_and(|wanted| {
        !wanted.is_empty() && held.is_some_and(|held| wanted.is_subset(held))
    });
    let mut checking = realized.frontends_of(id).filter(|(address, entry)| {
        Family::of(address.ip) == family
            && entry.flags.has(FrontendFlags::CHECK_SOURCE)
            && tables.frontend(address).is_some()
    });
    !is_replaced && checking.next().is_some()
}
