//! Scenarios: cluster objects in, tables by name out. `tests/scenarios/README.md` says how to add
//! one; `UPDATE=1 cargo test -p lb-agent --test scenarios` writes the expectations anew.
//!
//! Each story is told many times, and must be the same story each time: as it stands; backwards
//! within each document while one write in ten fails; with a restart after each event; and, for
//! each write of it, once with this write failing and once with the agent dying there.

#![allow(clippy::unwrap_used, reason = "a test ends where it panics")]

#[path = "scenarios/dump.rs"]
mod dump;
#[path = "scenarios/objects.rs"]
mod objects;
mod pipeline;
#[path = "scenarios/story.rs"]
mod story;

use std::{collections::BTreeSet, env, fs, path::Path, thread};

use pipeline::{
    Pipeline,
    trial::{Fault, Script},
};
use story::Chapter;

/// How a story is told.
#[derive(Clone, Debug, Default)]
struct Telling {
    /// The events of each document in reverse order.
    backwards: bool,
    /// Another agent after each event.
    restarts: bool,
    script: Script,
}

/// What each document's expectation should be, and how many writes it took.
fn tell(chapters: &[Chapter], telling: &Telling) -> (Vec<String>, usize) {
    let mut pipeline = Pipeline::new(telling.script.clone());
    let mut before = BTreeSet::new();
    let mut told = Vec::new();
    for (place, chapter) in chapters.iter().enumerate() {
        play(&mut pipeline, chapter, telling);
        let mut after = dump::lines(&mut pipeline);
        after.extend(chapter.problems.iter().map(|problem| format!("problem: {problem}")));
        told.push(if place == 0 { dump::whole(&after) } else { dump::difference(&before, &after) });
        before = after;
    }
    (told, pipeline.tables().writes())
}

fn play(pipeline: &mut Pipeline, chapter: &Chapter, telling: &Telling) {
    if chapter.restart {
        pipeline.restart();
    }
    if let Some(facts) = &chapter.facts {
        pipeline.see(facts.clone());
    }
    let mut events = chapter.events.clone();
    if telling.backwards {
        events.reverse();
    }
    for event in events {
        pipeline.take([event]);
        pipeline.settle_alive();
        if telling.restarts {
            pipeline.restart();
        }
    }
    pipeline.settle_alive();
}

/// Every way to tell a story of so many writes but the plain one.
fn tellings(writes: usize) -> Vec<Telling> {
    let tenths = (0..10 * writes).step_by(10).map(|write| (write, Fault::Fails)).collect();
    let mut tellings = vec![
        Telling { backwards: true, script: tenths, ..Telling::default() },
        Telling { restarts: true, ..Telling::default() },
        Telling { restarts: true, backwards: true, ..Telling::default() },
    ];
    for write in 0..writes {
        for fault in [Fault::Fails, Fault::Kills] {
            let script = [(write, fault)].into();
            tellings.push(Telling { backwards: write % 2 == 1, script, ..Telling::default() });
        }
    }
    tellings
}

/// The text of a document with another expectation.
fn with_expectation(text: &str, expectation: &str) -> String {
    let input: String = text
        .lines()
        .take_while(|line| !line.starts_with("expect:"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let body: String = expectation.lines().flat_map(|line| ["  ", line, "\n"]).collect();
    format!("{input}expect: |\n{body}")
}

fn run(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let texts: Vec<&str> = text.split("---\n").collect();
    let chapters = story::chapters(&texts);
    let (told, writes) = tell(&chapters, &Telling::default());
    for telling in tellings(writes) {
        assert_eq!(told, tell(&chapters, &telling).0, "{}: {telling:?}", path.display());
    }
    let written: Vec<String> =
        texts.iter().zip(&told).map(|(text, told)| with_expectation(text, told)).collect();
    let written = written.join("---\n");
    if env::var_os("UPDATE").is_some() {
        fs::write(path, written).unwrap();
    } else {
        assert_eq!(text, written, "{}: UPDATE=1 accepts what is right", path.display());
    }
}

#[test]
fn every_scenario_gives_the_tables_it_expects() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    assert!(!paths.is_empty());
    thread::scope(|scope| {
        for path in &paths {
            scope.spawn(|| run(path));
        }
    });
}
