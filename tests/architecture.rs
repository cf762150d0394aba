//! The shape, kept: imports go down the floors, the core knows no IO, the two protocols do not know
//! each other, and every source file says what it is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each unit, low to high; the sans-IO core lies below the ground. A new file needs a
/// line here: that is the moment to think about where it belongs.
const FLOORS: &[(i32, &[&str])] = &[
    (5, &["main", "cli", "lib", "top"]),
    (4, &["app", "supervisor", "admin", "push"]),
    (
        3,
        &[
            "postgres::session",
            "postgres::console",
            "postgres::greet",
            "postgres::replication",
            "postgres::service",
            "postgres::mod",
            "redis::session",
            "redis::service",
            "redis::mod",
        ],
    ),
    (
        2,
        &[
            "postgres::backend",
            "postgres::bounds",
            "postgres::connect",
            "postgres::hosts",
            "postgres::hub",
            "postgres::listen",
            "postgres::cancel",
            "postgres::clean",
            "postgres::clients",
            "postgres::orders",
            "postgres::overdue",
            "postgres::plan",
            "postgres::shares",
            "postgres::routes",
            "postgres::view",
            "redis::backend",
            "redis::blocking",
            "redis::census",
            "redis::lane",
            "redis::clients",
            "redis::entrance",
            "redis::incoming",
            "redis::pubsub",
            "redis::mailbox",
            "redis::pinned",
            "redis::plan",
            "redis::unblock",
            "redis::upstream",
            "redis::view",
        ],
    ),
    (1, &["pool"]),
    (0, &["net", "config", "metrics", "lifecycle", "status"]),
    (
        CORE,
        &[
            "postgres::wire",
            "postgres::message",
            "postgres::greeting",
            "postgres::login",
            "postgres::scram",
            "postgres::exchange",
            "postgres::settings",
            "postgres::statements",
            "postgres::sql",
            "postgres::truth",
            "postgres::relay",
            "redis::wire",
            "redis::command",
            "redis::greeting",
            "redis::login",
            "redis::pop",
            "redis::roster",
            "redis::exchange",
            "redis::lane::loss",
            "redis::namespace",
            "redis::scripts",
            "redis::transaction",
        ],
    ),
];
const CORE: i32 = -1;

/// What the core may not know: IO, clocks, chance, logging, counting.
const FORBIDDEN_IN_CORE: &[&str] = &[
    "tokio",
    "std::net",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "std::io::Read",
    "std::io::Write",
    "tracing",
    "prometheus",
    "rand",
    "getrandom",
    "std::env",
    "std::fs",
];

/// One unit of the source: a file, or a directory with all its files.
#[derive(Default)]
struct Unit {
    text: String,
    imports: BTreeSet<String>,
}

#[test]
fn imports_go_down_the_floors() {
    for (name, unit) in units() {
        let here = floor(&name);
        for import in &unit.imports {
            let there = floor(import);
            let within_core = here == CORE && there == CORE && room(&name) == room(import);
            let allowed = there < here || (there == here && here != CORE) || within_core;
            assert!(allowed, "{name} (floor {here}) imports {import} (floor {there})");
        }
    }
}

#[test]
fn no_units_import_each_other_in_a_circle() {
    let units = units();
    for start in units.keys() {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = units[start].imports.iter().collect();
        while let Some(name) = next.pop() {
            assert_ne!(name, start, "{start} imports itself, by way of {seen:?}");
            if seen.insert(name)
                && let Some(unit) = units.get(name)
            {
                next.extend(&unit.imports);
            }
        }
    }
}

#[test]
fn the_protocols_do_not_know_each_other() {
    for (name, unit) in units() {
        for import in &unit.imports {
            let both = [room(&name), room(import)];
            let mixed = both == ["postgres", "redis"] || both == ["redis", "postgres"];
            assert!(!mixed, "{name} imports {import}");
        }
    }
}

#[test]
fn the_core_does_no_io_and_knows_no_clock() {
    for (name, unit) in units().iter().filter(|(name, _)| floor(name) == CORE) {
        for word in FORBIDDEN_IN_CORE {
            let found = unit.text.lines().find(|line| contains_path(line, word));
            assert!(found.is_none(), "{name} knows {word}: {}", found.unwrap_or_default());
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for path in files(&root().join("src"), "rs") {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not begin with //!", path.display());
        let lines = without_tests(&text).lines().count();
        assert!(lines <= 900, "{} has {lines} lines: split it", path.display());
    }
}

#[test]
fn the_repository_names_no_machine() {
    // Put together here, so that this file does not name them itself.
    let forbidden = [["/wo", "rk/"], ["/ro", "ot/"], ["/tmp/", "tg"], ["/ho", "me/"]]
        .map(|parts| parts.concat());
    for path in everything() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for word in &forbidden {
            let found = text.lines().position(|line| line.contains(word.as_str()));
            assert!(found.is_none(), "{}:{} names {word}", path.display(), found.unwrap_or(0) + 1);
        }
    }
}

#[test]
fn the_reader_of_imports_reads_them() {
    let text = "use crate::pool::{Lease, Pool};\nuse crate::{config, postgres::{wire::Frame, login}};\n\
                use super::exchange;\nfn f() { crate::net::bind(); } // crate::app\n\
                #[cfg(test)]\nmod tests { use crate::admin; }";
    let read = imports("postgres::session", &without_tests(text));
    let wanted =
        ["config", "net", "pool", "postgres::exchange", "postgres::login", "postgres::wire"];
    assert_eq!(read.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
    assert!(contains_path("use std::{net::IpAddr}", "std::net"));
    assert!(!contains_path("let operand = tokio_like;", "rand"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn room(name: &str) -> &str {
    name.split("::").next().unwrap_or(name)
}

fn floor(name: &str) -> i32 {
    let found = FLOORS.iter().find(|(_, units)| units.contains(&name));
    found.map(|(floor, _)| *floor).unwrap_or_else(|| panic!("give {name} a floor in this test"))
}

fn units() -> BTreeMap<String, Unit> {
    let src = root().join("src");
    let mut units: BTreeMap<String, Unit> = BTreeMap::new();
    for path in files(&src, "rs") {
        let name = unit_of(path.strip_prefix(&src).unwrap());
        let text = without_tests(&fs::read_to_string(&path).unwrap());
        let unit = units.entry(name.clone()).or_default();
        unit.imports.extend(imports(&name, &text));
        unit.imports.remove(&name);
        unit.text.push_str(&text);
    }
    units
}

/// `postgres/session/relay.rs` belongs to `postgres::session`, `net/tls.rs` to `net`.
fn unit_of(path: &Path) -> String {
    let path = path.with_extension("");
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
    match parts[..] {
        [room @ ("postgres" | "redis"), file, ..] => format!("{room}::{}", stem(file)),
        [first, ..] => first.to_owned(),
        [] => panic!("a path has parts"),
    }
}

/// `session_copy.rs` stands beside `session.rs` and belongs to it; so do `backend_*` and the like.
fn stem(file: &str) -> &str {
    let known = FLOORS.iter().flat_map(|(_, units)| units.iter());
    let is_known = known.into_iter().any(|unit| unit.ends_with(&format!("::{file}")));
    if is_known { file } else { file.split('_').next().unwrap_or(file) }
}

/// The code alone: no comments, and nothing after the first `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |all, line| all + line + "\n")
}

/// The units that `text`, code of the unit `name`, names with `crate::` or `super::`.
fn imports(name: &str, text: &str) -> BTreeSet<String> {
    let flat: String = text.split_whitespace().collect::<Vec<_>>().join("");
    let mut found = BTreeSet::new();
    for (start, prefix) in [("crate::", ""), ("super::", room(name))] {
        if start == "super::" && !name.contains("::") {
            continue;
        }
        for (at, _) in flat.match_indices(start) {
            let before = flat[..at].chars().next_back();
            let is_whole = before
                .is_none_or(|c| !c.is_alphanumeric() || at >= 3 && flat[..at].ends_with("use"));
            if is_whole {
                expand(prefix, &flat[at + start.len()..], &mut found);
            }
        }
    }
    found.into_iter().filter_map(|path| unit_named(&path)).collect()
}

/// Follows one path of a use tree, into its braces.
fn expand(prefix: &str, rest: &str, found: &mut BTreeSet<String>) {
    if let Some(inner) = rest.strip_prefix('{') {
        for item in items(inner) {
            expand(prefix, item, found);
        }
        return;
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}::{word}") };
    found.insert(path.clone());
    if let Some(deeper) = after.strip_prefix("::")
        && path.matches("::").count() < 1
    {
        expand(&path, deeper, found);
    }
}

/// The items of a brace group, up to its end.
fn items(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                items.push(&inner[start..at]);
                start = at + 1;
            }
            '}' => {
                items.push(&inner[start..at]);
                return items;
            }
            _ => {}
        }
    }
    items
}

fn unit_named(path: &str) -> Option<String> {
    let known = |name: &str| FLOORS.iter().any(|(_, units)| units.contains(&name));
    if known(path) {
        return Some(path.to_owned());
    }
    let (room, file) = path.split_once("::")?;
    let by_stem = format!("{room}::{}", stem(file));
    [by_stem, room.to_owned()].into_iter().find(|name| known(name))
}

/// Whether `line` names the path `word`, whole words only; `std::{net…` counts as `std::net`.
fn contains_path(line: &str, word: &str) -> bool {
    let line = line.replace("::{", "::").replace(' ', "");
    line.match_indices(word).any(|(at, _)| {
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let before = line[..at].chars().next_back();
        let glued = is_word(before) && !line[..at].ends_with("use");
        !glued && !is_word(line[at + word.len()..].chars().next())
    })
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.ends_with("tests.rs") || directory.ends_with("tests") {
            // Tests of a unit may look where its code may not.
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every file of the repository, without what is built or fetched.
fn everything() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![root().to_owned()];
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && ![".git", "target", ".cache", "node_modules"].contains(&name) {
                next.push(path);
            } else if path.is_file() && name != ".git" {
                found.push(path);
            }
        }
    }
    found
}
