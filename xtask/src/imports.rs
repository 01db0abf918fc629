//! Checks which part of lb-agent may use which: data flows
//! `source → model → desired → reconcile → dataplane`, and each stage knows only those before it.
//!
//! Reads paths in the source text, not the compiler's view: a path that a macro makes is not seen.
//! Tests at the end of a file may use anything.

use std::fs;

use anyhow::Result;

use crate::{command, tree};

/// The crate whose modules have an order.
const CRATE: &str = "lb-agent/src/";

/// Modules of the crate and the only modules of it that each may use.
const LAYERS: [(&str, &[&str]); 5] = [
    ("model", &["model"]),
    ("desired", &["desired", "model"]),
    ("reconcile", &["dataplane", "desired", "model", "reconcile"]),
    ("source", &["model", "source"]),
    ("dataplane", &["dataplane", "desired", "model"]),
];

/// Other crates and the only modules that may use them.
const KEPT_IN: [(&str, &str); 3] =
    [("aya", "dataplane"), ("k8s_openapi", "source"), ("kube", "source")];

/// Other crates and the modules that must do without them, being pure.
const KEPT_OUT: [(&str, &[&str]); 1] = [("tokio", &["model", "desired"])];

/// Returns a line for each path that goes where it must not.
pub(crate) fn violations() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in &tree::files_of("rs")? {
        let Some(module) = path.strip_prefix(CRATE).and_then(module_of) else { continue };
        let Ok(text) = fs::read_to_string(command::top().join(path)) else { continue };
        for (number, statement) in statements(&text) {
            let reasons = forbidden(module, &statement).into_iter();
            findings.extend(reasons.map(|reason| format!("{path}:{number}: {reason}")));
        }
    }
    Ok(findings)
}

/// `desired/maglev.rs` and `desired.rs` are of the module `desired`.
fn module_of(path: &str) -> Option<&str> {
    path.split(['/', '.']).next()
}

/// The lines before the tests, without comments, numbered from 1; a `use` of several lines is one.
fn statements(text: &str) -> Vec<(usize, String)> {
    let mut statements: Vec<(usize, String)> = Vec::new();
    let mut in_use = false;
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    for (index, line) in lines.enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        match statements.last_mut() {
            Some((_, open)) if in_use => open.push_str(code),
            _ => statements.push((index + 1, code.to_owned())),
        }
        let begins_use =
            code.starts_with("use ") || (code.starts_with("pub") && code.contains(" use "));
        in_use = (in_use || begins_use) && !code.contains(';');
    }
    statements
}

/// Returns why a line must not stand in a module: one reason for each path that is out of place.
fn forbidden(module: &str, line: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == module) {
        let used = modules_used(line);
        let strangers = used.into_iter().filter(|used| !allowed.contains(used));
        reasons.extend(strangers.map(|used| format!("`{module}` must not use `{used}`")));
    }
    for (name, home) in KEPT_IN {
        if module != home && uses_crate(line, name) {
            reasons.push(format!("only `{home}` may use {name}"));
        }
    }
    for (name, pure) in KEPT_OUT {
        if pure.contains(&module) && uses_crate(line, name) {
            reasons.push(format!("`{module}` is pure and must not use {name}"));
        }
    }
    reasons
}

/// The modules that `crate::module` and `crate::{module, …}` name; items at the top are no modules.
fn modules_used(line: &str) -> Vec<&str> {
    let mut modules = Vec::new();
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(members(group)),
            None => modules.push(first_word(rest)),
        }
    }
    modules.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    modules
}

/// The first words of a group's members, whatever is nested in them.
fn members(group: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let mut start = 0;
    let mut members = Vec::new();
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                members.push(first_word(group[start..index].trim_start()));
                start = index + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    members
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !is_word(c)).next().unwrap_or_default()
}

/// Tells whether a line has a path that starts at the crate `name`.
fn uses_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(index, _)| {
        let (before, after) = (&line[..index], &line[index + name.len()..]);
        let imported = before.trim_end().ends_with("use") && !after.starts_with(is_word);
        let starts_a_path = !before.ends_with(|c: char| is_word(c) || c == ':');
        imported || (starts_a_path && after.starts_with("::"))
    })
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pure_stage_knows_only_the_stages_before_it() {
        assert!(forbidden("desired", "use crate::model::Service;").is_empty());
        assert_eq!(forbidden("desired", "use crate::dataplane::Dataplane;").len(), 1);
        assert_eq!(forbidden("model", "use crate::{desired::{a, b}, model, source};").len(), 2);
        assert_eq!(forbidden("model", "    let x: crate::source::X = y;").len(), 1);
    }

    #[test]
    fn kubernetes_crates_stay_in_the_source() {
        assert!(forbidden("source", "use kube::Api;").is_empty());
        assert_eq!(forbidden("cli", "use kube::Api;").len(), 1);
        assert_eq!(forbidden("cli", "let x: Vec<k8s_openapi::X> = y;").len(), 1);
        assert!(forbidden("cli", "source::kube::watch(my_kube::x, kube.name)").is_empty());
    }

    #[test]
    fn aya_stays_in_the_dataplane_and_tokio_out_of_pure_code() {
        assert!(forbidden("dataplane", "use aya::Ebpf;").is_empty());
        assert_eq!(forbidden("reconcile", "use aya;").len(), 1);
        assert_eq!(forbidden("desired", "tokio::spawn(x)").len(), 1);
        assert!(forbidden("reconcile", "tokio::spawn(x)").is_empty());
    }

    #[test]
    fn comments_and_tests_are_not_read() {
        let text = "// use kube::Api;\nuse a::b; // crate::source\n#[cfg(test)]\nuse kube::Api;\n";
        let code: String = statements(text).into_iter().map(|(_, line)| line).collect();
        assert_eq!(code, "use a::b; ");
    }

    #[test]
    fn a_group_over_several_lines_is_read_whole() {
        let statements = statements("use crate::{\n    model::A,\n    source::B,\n};\nx();\n");
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[1], (5, "x();".into()));
        assert_eq!(forbidden("model", &statements[0].1), ["`model` must not use `source`"]);
    }

    #[test]
    fn a_file_belongs_to_the_module_of_its_folder() {
        assert_eq!(module_of("desired/maglev.rs"), Some("desired"));
        assert_eq!(module_of("desired.rs"), Some("desired"));
    }
}
