//! What Services say to this program by annotations, all of one domain.

use std::collections::BTreeMap;

use clap::ValueEnum as _;

use super::Faults;
use crate::model::Forwarding;

/// How packets come to endpoints on other nodes, in place of `--forwarding`.
const FORWARDING: &str = "lb-agent/forwarding";

/// Are there annotations of ours among these? Others mean nothing here.
pub(in crate::source) fn is_ours(key: &str) -> bool {
    key == FORWARDING
}

/// What a Service says of forwarding.
pub(super) fn forwarding(
    annotations: Option<&BTreeMap<String, String>>,
    faults: &mut Faults,
) -> Option<Forwarding> {
    let text = annotations?.get(FORWARDING)?;
    let found = Forwarding::from_str(text, false);
    if found.is_err() {
        faults.add(
            format!("metadata.annotations[{FORWARDING}]"),
            format!("unknown way \"{text}\", not used"),
            "use snat, dsr or hybrid",
        );
    }
    found.ok()
}
