//! `lb-agent check`: prints what the node lacks.

use std::{path::Path, process::ExitCode};

use clap::Args;
use serde::Serialize;

use super::{
    output::{OutputArgs, table},
    run::NodeArgs,
};
use crate::check::{self, Finding, Outcome};

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

pub(super) fn check(arguments: &CheckArgs, bpffs: &Path) -> anyhow::Result<ExitCode> {
    let findings = check::all(&arguments.node.plan(bpffs));
    let ok = findings.iter().all(|finding| finding.outcome != Outcome::Fail);
    let report = Report { ok, findings };
    arguments.output.output.print(&report, || text(&report.findings))?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let outcome = match finding.outcome {
            Outcome::Fail => "FAIL",
            Outcome::Ok => "ok",
            Outcome::Warn => "warn",
        };
        vec![outcome.to_owned(), finding.name.to_owned(), detail(finding)]
    });
    table(&["RESULT", "CHECK", "DETAIL"], rows)
}

fn detail(finding: &Finding) -> String {
    match &*finding.mend {
        "" => finding.detail.clone(),
        mend => format!("{}\n-> {mend}", finding.detail),
    }
}
