//! Checks on the files of the repository: their length, and where documents point to.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::command;

/// Lines a file may have, tests included.
const MOST_LINES: usize = 500;
/// Files that programs write.
const GENERATED: [&str; 3] = ["Cargo.lock", "go.mod", "go.sum"];

/// Returns a line for each file that is too long.
pub(crate) fn oversized() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files()? {
        let name = Path::new(&path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(text) = fs::read_to_string(command::top().join(&path)) else { continue };
        let lines = text.lines().count();
        if lines > MOST_LINES && !GENERATED.contains(&name) && !name.starts_with("LICENSE") {
            findings.push(format!("{path}: {lines} lines, more than {MOST_LINES}"));
        }
    }
    Ok(findings)
}

/// Returns a line for each link in a document that leads to no file.
pub(crate) fn dead_links() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in &files_of("md")? {
        let Ok(text) = fs::read_to_string(command::top().join(path)) else { continue };
        for (line, link) in file_links(&text) {
            if !leads_somewhere(Path::new(path), link) {
                findings.push(format!("{path}:{line}: no file {link}"));
            }
        }
    }
    Ok(findings)
}

/// The files with an extension, relative to the top.
pub(crate) fn files_of(extension: &str) -> Result<Vec<String>> {
    let mut files = files()?;
    files.retain(|path| Path::new(path).extension().is_some_and(|found| found == extension));
    Ok(files)
}

/// The files that git knows or would take in, relative to the top.
fn files() -> Result<Vec<String>> {
    let mut git = command::program("git");
    // The folder may belong to somebody else, as in a container.
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]);
    Ok(command::output(&mut git)?.split_terminator('\0').map(str::to_owned).collect())
}

/// Returns the links to files, each with its line number; code blocks hold none.
fn file_links(document: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in document.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:") {
                links.push((number + 1, path));
            }
        }
    }
    links
}

fn leads_somewhere(document: &Path, link: &str) -> bool {
    let folder = document.parent().unwrap_or(Path::new(""));
    let path = link.strip_prefix('/').map_or_else(|| folder.join(link), Into::into);
    command::top().join(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_are_found_and_others_left_alone() {
        let document = "[a](docs/a.md#part) [b](https://b.example/c.md)\n\
            ```text\n[c](c.md)\n```\n[d](#here) ![e](e.svg \"title\")\n";
        assert_eq!(file_links(document), [(1, "docs/a.md"), (5, "e.svg")]);
    }

    #[test]
    fn links_are_relative_to_their_document_or_to_the_top() {
        assert!(leads_somewhere(Path::new("xtask/README.md"), "src/main.rs"));
        assert!(leads_somewhere(Path::new("xtask/README.md"), "/Cargo.toml"));
        assert!(!leads_somewhere(Path::new("xtask/README.md"), "Cargo.lock.md"));
    }
}
