//! The documents against the code: generated tables are fresh; tests, flags, tasks and counters
//! that are named exist.
//!
//! `UPDATE=1` writes the generated documents anew.

#![allow(clippy::unwrap_used, reason = "a test ends where it panics")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use lb_common::abi::{Counter, CounterKind};

const DROP_REASONS: &str = "docs/drop-reasons.md";
const COMMANDS: [&str; 5] = ["check", "cleanup", "run", "services", "status"];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Path and text of every document at the top and below `docs` and `deploy`.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![top().join("docs"), top().join("deploy")];
    let mut paths: Vec<PathBuf> =
        fs::read_dir(top()).unwrap().map(|entry| entry.unwrap().path()).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(&path).unwrap();
        found.push((path, text));
    }
    assert!(found.len() > 5, "the documents have moved");
    found
}

/// Whatever follows `prefix` on its line, up to the end of an inline code or a comment.
fn after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let lines = text.lines().flat_map(|line| line.split(prefix).skip(1));
    lines.map(|rest| rest.split(['`', '#', '|', '"']).next().unwrap_or_default()).collect()
}

fn drop_reasons() -> String {
    let mut text = String::from(
        "# Drop reasons\n\n\
         Written by `UPDATE=1 cargo test -p lb-agent --test docs` from `lb-common/src/abi/counter.rs`.\n\n\
         What the packet path counts, packet by packet. `lb-agent status` shows those that are not\n\
         zero, `lb_packets_total{reason, kind}` all of them. What to do about each stands in\n\
         [operations.md](operations.md#packets-that-are-not-translated).\n",
    );
    let kinds = [
        (CounterKind::Drop, "Dropped", "The packet is gone, without an answer."),
        (
            CounterKind::Reject,
            "Refused",
            "The client is told at once, by a TCP reset or an error of ICMP. Errors about packets that\n\
             cannot be forwarded are at most so many a second.",
        ),
        (CounterKind::Answer, "Answered", "In place of what is behind the address."),
        (
            CounterKind::Pass,
            "Passed on",
            "Left as it was, though it may have been meant for a Service.",
        ),
        (CounterKind::Serve, "Served", "Translated as any other, at once or in a moment."),
    ];
    for (kind, title, meaning) in kinds {
        write!(text, "\n## {title}\n\n{meaning}\n\n| reason | when |\n|---|---|\n").unwrap();
        for counter in Counter::ALL.iter().filter(|counter| counter.kind() == kind) {
            writeln!(text, "| `{}` | {} |", counter.name(), counter.description().trim()).unwrap();
        }
    }
    text
}

#[test]
fn the_list_of_drop_reasons_is_fresh() {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(top().join(DROP_REASONS), drop_reasons()).unwrap();
    }
    let hint = "run: UPDATE=1 cargo test -p lb-agent --test docs";
    assert_eq!(read(DROP_REASONS), drop_reasons(), "{DROP_REASONS} is out of date; {hint}");
}

#[test]
fn operations_say_what_to_do_about_each_counter() {
    let manual = read("docs/operations.md");
    let missing: Vec<_> = Counter::ALL
        .iter()
        .map(|counter| counter.name())
        .filter(|name| !manual.contains(&format!("| `{name}` |")))
        .collect();
    assert!(missing.is_empty(), "docs/operations.md says nothing of {missing:?}");
}

/// Rows of the table in a document's section, without its head.
fn rows(document: &str, section: &str) -> Vec<String> {
    let text = read(document);
    let section = text.split(&format!("\n## {section}")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(str::to_owned).collect()
}

/// Does a source hold a test of this name: a function, or one that a macro makes of `case => name`?
fn holds_test(source: &str, name: &str) -> bool {
    let is_made = |line: &str| {
        let names = line.split_once(" => ").map_or("", |(_, names)| names);
        names.split([',', ';']).any(|made| made.trim() == name)
    };
    source.contains(&format!("fn {name}(")) || source.lines().any(is_made)
}

#[test]
fn every_invariant_names_a_test() {
    let rows = rows("ARCHITECTURE.md", "Invariants");
    assert!(rows.len() > 10, "the table of invariants has moved");
    for row in rows {
        assert!(row.contains(".rs::"), "an invariant without a test: {row}");
    }
}

const CONFORMANCE: &str = "docs/conformance.md";

#[test]
fn every_rule_of_services_names_a_test_or_is_not_kept_yet() {
    let rows = rows(CONFORMANCE, "Service rules");
    let numbers: Vec<&str> = rows.iter().filter_map(|row| row.split(['|', ' ']).nth(2)).collect();
    let wanted: Vec<String> = (1..=22).map(|number| format!("S{number}")).collect();
    assert_eq!(numbers, wanted);
    for row in rows {
        assert!(row.contains(".rs::") != row.contains("not yet"), "one of both: {row}");
    }
}

#[test]
fn every_upstream_test_is_held_or_decided_elsewhere() {
    let rows = rows(CONFORMANCE, "Upstream end-to-end tests");
    let rows: Vec<_> = rows.iter().filter(|row| *row != "| test | held by |").collect();
    assert!(rows.len() > 100, "the tables of upstream's tests have moved");
    for row in rows {
        let answers = [".rs::", ".yaml`", "| elsewhere: ", "not yet |"];
        assert!(answers.iter().any(|answer| row.contains(answer)), "no answer: {row}");
    }
}

#[test]
fn no_gap_of_conformance_is_hidden() {
    let text = read(CONFORMANCE);
    let said = after(&text, "Rows that say *not yet*: ");
    let said = said.first().and_then(|count| count.trim_end_matches('.').parse().ok());
    let gaps = text.lines().filter(|line| line.starts_with("| ") && line.contains("not yet"));
    assert_eq!(said, Some(gaps.count()), "{CONFORMANCE} says how many rows have a gap");
}

/// Each path has its test: what is named of one holds of the other.
#[test]
fn every_test_by_the_packet_path_has_a_twin_by_the_socket_path() {
    let text = read(CONFORMANCE);
    let named: Vec<_> = text
        .split('`')
        .filter(|code| code.contains(".rs::") && code.ends_with("_by_the_packet_path"))
        .collect();
    assert!(named.len() > 20, "the tests of the packet path have other names");
    for name in named {
        let (file, short) = name.split_once("::").unwrap();
        let twin = short.replace("_by_the_packet_path", "_by_the_socket_path");
        assert!(holds_test(&read(file), &twin), "{file}: {short} has no twin");
    }
}

#[test]
fn every_scenario_that_is_named_exists() {
    for (document, text) in documents() {
        let named = text.split('`').filter(|code| code.starts_with("lb-agent/tests/scenarios/"));
        for path in named.filter(|path| !path.contains('*')) {
            assert!(top().join(path).exists(), "{}: there is no {path}", document.display());
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    for (document, text) in documents() {
        for (before, name) in text.split(".rs::").zip(text.split(".rs::").skip(1)) {
            let file = before.rsplit(['`', ' ']).next().unwrap_or_default();
            let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            let source = read(&format!("{file}.rs"));
            assert!(
                holds_test(&source, name),
                "{}: there is no test {name} in {file}.rs",
                document.display()
            );
        }
    }
}

#[test]
fn every_command_and_flag_of_the_agent_that_is_shown_exists() {
    let help: BTreeMap<&str, String> = COMMANDS
        .into_iter()
        .map(|command| {
            let mut agent = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
            let output = agent.args([command, "--help"]).output().unwrap();
            (command, String::from_utf8(output.stdout).unwrap())
        })
        .collect();
    for (document, text) in documents() {
        let shown = after(&text, "lb-agent ");
        for mut words in shown.into_iter().map(str::split_whitespace) {
            let Some(help) = words.next().and_then(|command| help.get(command)) else { continue };
            for flag in words.filter(|word| word.starts_with("--")) {
                let flag = flag.split(['=', ',', ';', ')', ']', '.']).next().unwrap();
                let exists =
                    help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n"));
                assert!(exists, "{}: lb-agent has no {flag} there", document.display());
            }
        }
    }
}

#[test]
fn every_task_that_is_shown_exists() {
    let tasks = read("xtask/src/main.rs");
    for (document, text) in documents() {
        for rest in after(&text, "cargo xtask ") {
            let task: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            let Some(first) = task.chars().next() else { continue };
            let variant = format!("\n    {}{}", first.to_ascii_uppercase(), &task[1..]);
            assert!(tasks.contains(&variant), "{}: no task {task}", document.display());
        }
    }
}
