//! The pages that people read, held against the source: codes of errors, names of settings and variables, links.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Five characters in the source that look like an SQLSTATE: success, and a number that is no code.
const NO_ERRORS: [&str; 2] = ["00000", "10000"];

#[test]
fn every_sqlstate_that_is_sent_is_explained_and_no_other() {
    let sent: BTreeSet<String> = literals("src/postgres")
        .into_iter()
        .filter(|text| is_sqlstate(text) && !NO_ERRORS.contains(&text.as_str()))
        .collect();
    assert!(sent.len() > 15, "the reader of sources finds too few: {sent:?}");
    let explained = codes("## Postgres", is_sqlstate);
    assert_eq!(sent, explained, "left: in src/postgres; right: in docs/errors.md");
}

#[test]
fn every_code_of_redis_that_is_sent_is_explained_and_no_other() {
    let sent: BTreeSet<String> = literals("src/redis")
        .iter()
        .filter_map(|text| redis_code(text))
        .map(str::to_owned)
        .collect();
    assert!(sent.len() > 5, "the reader of sources finds too few: {sent:?}");
    let explained = codes("## Redis", |text| redis_code(&format!("{text} x")).is_some());
    assert_eq!(sent, explained, "left: in src/redis; right: in docs/errors.md");
}

/// What begins with `ERR tidegate: ` or the like is told apart by its words.
#[test]
fn every_sentence_of_ours_is_explained() {
    let page = read("docs/errors.md");
    let mut seen = 0;
    for text in literals("src/redis") {
        let Some((code, sentence)) = text.trim_start_matches('-').split_once(" tidegate: ") else {
            continue;
        };
        // What is put in stands in braces; what follows `;` says what to do.
        let sentence = sentence.split(['{', ';', ',']).next().unwrap_or_default().trim();
        if sentence.is_empty() || !code.bytes().all(|byte| byte.is_ascii_uppercase()) {
            continue;
        }
        seen += 1;
        let words: Vec<&str> = sentence.split(' ').take(6).collect();
        let beginning = format!("`tidegate: {}", words.join(" "));
        assert!(page.contains(&beginning), "docs/errors.md says nothing of {beginning:?}");
    }
    assert!(seen > 15, "the reader of sources finds too few: {seen}");
}

/// An error that says "raise this" must name what there is.
#[test]
fn every_setting_that_is_named_exists() {
    let known = settings();
    assert!(known.contains("postgres.pool_size") && known.contains("workers"), "{known:?}");
    let mut texts: Vec<(String, String)> =
        pages().into_iter().map(|page| (page.display().to_string(), read(&page))).collect();
    texts.push(("src".to_owned(), literals("src").join("\n")));
    for (name, text) in texts {
        for word in words(&text) {
            let Some((section, key)) = word.split_once('.') else { continue };
            // `redis.call` and the like are Lua's.
            let ours = ["postgres", "redis", "admin", "push", "log"].contains(&section)
                && key.contains('_');
            assert!(!ours || known.contains(word), "{name} names {word}: no such setting");
        }
    }
}

#[test]
fn every_variable_that_is_named_exists() {
    let known: BTreeSet<String> = variables(&read("config/tidegate.toml"));
    let more = [
        "TIDEGATE_DATABASE_URL",
        "TIDEGATE_REDIS_URL",
        "TIDEGATE_CONFIG",
        "TIDEGATE_TEST_POSTGRES",
    ];
    for page in pages() {
        for name in variables(&read(&page)) {
            let tests = ["TIDEGATE_RANDOM", "TIDEGATE_ATTACKS", "TIDEGATE_TEST", "BUILD_"];
            let fits = known.contains(&name) || more.contains(&name.as_str());
            let other = tests.iter().any(|beginning| name.starts_with(beginning));
            assert!(fits || other, "{} names {name}: no such variable", page.display());
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = read(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.with_file_name("").join(file) };
            assert!(target.exists(), "{}: no {link}", page.display());
            assert!(
                anchor.is_empty() || anchors(&read(&target)).contains(anchor),
                "{}: no heading for {link}",
                page.display()
            );
        }
    }
}

/// The examples ask for the versions that bin/setup installs and the tests run.
#[test]
fn examples_ask_for_what_is_tested() {
    let setup = read("bin/setup");
    let python = read("docs/examples/django-celery/requirements.txt");
    let package: serde_json::Value =
        serde_json::from_str(&read("docs/examples/node-bullmq/package.json")).unwrap();
    let node = package["dependencies"].as_object().unwrap();
    let node = node.iter().map(|(name, version)| format!("{name}@{}", version.as_str().unwrap()));
    let asked: Vec<String> = python.lines().map(str::to_owned).chain(node).collect();
    assert!(asked.len() > 8, "{asked:?}");
    for package in asked {
        let installed = setup.split([' ', '(', ')', '\n']).any(|word| word == package);
        assert!(installed, "bin/setup does not install {package}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is written for people.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .iter()
        .map(|page| root().join(page))
        .collect();
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    pages
}

/// The string literals of all sources below `directory`, tests left out.
fn literals(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && !path.components().any(|part| part.as_os_str() == "tests")
            && path.file_name().is_none_or(|name| name != "tests.rs")
        {
            found.extend(literals_of(&fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

fn literals_of(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    let mut literal: Option<String> = None;
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (&mut literal, c) {
            (None, '"') => literal = Some(String::new()),
            // A quote as a character or a byte opens nothing.
            (None, '\'') => {
                if chars.peek() == Some(&'"') {
                    chars.next();
                }
            }
            (None, _) => {}
            (Some(_), '"') => found.extend(literal.take()),
            (Some(text), '\\') => match chars.next() {
                // The line goes on at its next word.
                Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                Some(other) => text.push(other),
                None => {}
            },
            (Some(text), c) => text.push(c),
        }
    }
    found
}

fn is_sqlstate(text: &str) -> bool {
    text.len() == 5
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

/// The code that an error's text begins with: capitals, and then words that are no more capitals.
fn redis_code(text: &str) -> Option<&str> {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (code, rest) = text.split_once(' ')?;
    let capitals = code.len() >= 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    let next = rest.split(' ').next().unwrap_or_default();
    let words = next.contains(|c: char| c.is_ascii_lowercase()) || code == "ERR";
    (capitals && words).then_some(code)
}

/// What stands in backticks in the first column of the table behind `heading`.
fn codes(heading: &str, is_code: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let page = read("docs/errors.md");
    let (_, part) = page.split_once(heading).expect("the heading");
    let part = part.split("\n## ").next().unwrap_or_default();
    let first = part.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    first.flat_map(|cell| cell.split('`')).filter(|word| is_code(word)).map(str::to_owned).collect()
}

/// The settings that `config/tidegate.toml` documents, by their path.
fn settings() -> BTreeSet<String> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in read("config/tidegate.toml").lines() {
        let line = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned() + ".";
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            found.insert(format!("{section}{key}"));
        }
    }
    found
}

/// Dotted names in a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
        .map(|word| word.trim_matches('.'))
        .filter(|word| word.contains('.'))
}

fn variables(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| word.starts_with("TIDEGATE_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// The anchors of a page's headings, as the usual renderers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            words.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
        })
        .collect()
}
