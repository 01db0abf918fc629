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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn read(text: &str) -> (Option<Forwarding>, Vec<String>) {
        let mut faults = Faults::new("Service", &ObjectName::new("default", "web"));
        let annotations = BTreeMap::from([(FORWARDING.to_owned(), text.to_owned())]);
        let found = forwarding(Some(&annotations), &mut faults);
        (found, faults.into_problems().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_service_says_how_it_is_forwarded() {
        assert_eq!(read("dsr"), (Some(Forwarding::Dsr), Vec::new()));
        assert_eq!(read("hybrid"), (Some(Forwarding::Hybrid), Vec::new()));
        assert_eq!(read("snat"), (Some(Forwarding::Snat), Vec::new()));
    }

    #[test]
    fn what_it_says_otherwise_is_not_used() {
        let problem = "Service default/web: metadata.annotations[lb-agent/forwarding]: unknown way \
                       \"DSR\", not used; use snat, dsr or hybrid";
        assert_eq!(read("DSR"), (None, vec![problem.to_owned()]));
    }
}
