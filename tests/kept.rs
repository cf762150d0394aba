//! What the tests' tidegates have shown holds no secret: their logs, pages, metrics and command lines, and the programs themselves.
//!
//! ```text
//! TIDEGATE_TEST_KEEP=/tmp/kept bin/test
//! TIDEGATE_TEST_KEEP=/tmp/kept cargo test --test kept -- --ignored --nocapture no_secret
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use support::kept::{SECRETS, VARIABLE, secrets_in};
use support::postgres::{PASSWORD, Postgres};
use support::redis::Redis;
use support::tidegate::Setup;

/// What is shorter may stand anywhere by chance.
const SHORTEST: usize = 8;
/// What a URL need not encode (RFC 3986).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The ways in which a secret may be written.
fn forms(secret: &str) -> BTreeSet<Vec<u8>> {
    let bytes = secret.as_bytes();
    let encoded = |set| utf8_percent_encode(secret, set).to_string();
    let mut numbers = format!("{bytes:?}");
    numbers.retain(|letter| !"[]".contains(letter));
    let hexadecimal = bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    let mut forms = vec![
        secret.to_owned(),
        encoded(NON_ALPHANUMERIC),
        encoded(RESERVED),
        secret.escape_debug().to_string(),
        hexadecimal.to_uppercase(),
        hexadecimal,
        numbers,
    ];
    forms.extend((0..3).flat_map(|before| in_base64(bytes, before)));
    forms.into_iter().filter(|form| form.len() >= SHORTEST).map(String::into_bytes).collect()
}

/// As it looks in the base64 of something longer, with so many bytes before it: without the letters that others have a part in.
fn in_base64(secret: &[u8], before: usize) -> [String; 2] {
    let whole = [&vec![0; before], secret].concat();
    let (first, end) = ((before * 8).div_ceil(6), whole.len() * 8 / 6);
    [BASE64_STANDARD_NO_PAD.encode(&whole), BASE64_URL_SAFE_NO_PAD.encode(&whole)]
        .map(|text| text[first..end].to_owned())
}

/// A form, and the secret that it is of.
type Form = (Vec<u8>, String);

/// All forms of all secrets, by their beginning.
struct Sought(HashMap<[u8; SHORTEST], Vec<Form>, foldhash::fast::RandomState>);

impl Sought {
    fn of(secrets: &BTreeSet<String>) -> Self {
        let mut all: HashMap<_, Vec<_>, _> = HashMap::default();
        for secret in secrets {
            for form in forms(secret) {
                let beginning = form[..SHORTEST].try_into().unwrap();
                all.entry(beginning).or_default().push((form, secret.clone()));
            }
        }
        Self(all)
    }

    /// Where they are: the place and the secret.
    fn found_in(&self, bytes: &[u8]) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (at, window) in bytes.windows(SHORTEST).enumerate() {
            let beginning: &[u8; SHORTEST] = window.try_into().unwrap();
            for (form, secret) in self.0.get(beginning).into_iter().flatten() {
                if bytes[at..].starts_with(form) {
                    found.push((at, &**secret));
                }
            }
        }
        found
    }
}

/// The secrets of all test processes, and the files in which they must not be.
fn kept(home: &Path) -> (BTreeSet<String>, Vec<PathBuf>) {
    let (mut secrets, mut files) = (BTreeSet::new(), Vec::new());
    for process in entries(home) {
        let known = fs::read_to_string(process.join(SECRETS)).unwrap_or_default();
        secrets.extend(known.lines().map(str::to_owned));
        let gates = entries(&process).into_iter().filter(|path| path.is_dir());
        files.extend(gates.flat_map(|gate| entries(&gate)));
    }
    (secrets, files)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// One sentence for each secret in each file.
fn complaints(sought: &Sought, files: &[PathBuf]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        for (at, secret) in sought.found_in(&bytes) {
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            complaints.push(format!("{}:{line} (byte {at}) shows {secret:?}", file.display()));
        }
    }
    complaints
}

/// The program in each of its builds.
fn programs() -> Vec<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_tidegate"));
    let target = program.parent().and_then(Path::parent).unwrap();
    let builds = entries(target).into_iter().map(|build| build.join("tidegate"));
    builds.filter(|program| program.is_file()).collect()
}

#[test]
#[ignore = "by hand: after a run of the tests with TIDEGATE_TEST_KEEP"]
fn what_was_kept_holds_no_secret() {
    let home = std::env::var_os(VARIABLE).expect("TIDEGATE_TEST_KEEP names what was kept");
    let (secrets, files) = kept(Path::new(&home));
    let (long, short): (BTreeSet<_>, BTreeSet<_>) =
        secrets.into_iter().partition(|secret| secret.len() >= SHORTEST);
    assert!(!long.is_empty() && !files.is_empty(), "nothing was kept");
    let programs = programs();
    println!("{} secrets, {} files, {} programs", long.len(), files.len(), programs.len());
    println!("too short to be told from other words, and not looked for: {short:?}");
    let complaints = complaints(&Sought::of(&long), &[files, programs].concat());
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The part of the test below whose tidegate is kept.
#[test]
#[ignore = "the run of another"]
fn a_test_like_any_other() {
    let (postgres, redis) = (Postgres::start(), Redis::with_password());
    let script = "trap 'exit 0' TERM; while sleep 0.05; do :; done";
    let setup = Setup::new().postgres(&postgres).redis(&redis);
    let gate = setup.arguments(&["run", "--", "sh", "-c", script]).start();
    assert_eq!(gate.redis_client().command(&["AUTH", "said-by-a-client"]).error(), "WRONGPASS");
}

#[test]
fn what_is_planted_is_found() {
    let home = tempfile::tempdir().unwrap();
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.args(["--ignored", "--exact", "a_test_like_any_other"]).env(VARIABLE, home.path());
    let output = run.output().unwrap();
    let (secrets, files) = kept(home.path());
    let names = ["cmdline", "log", "metrics", "page", "status.json"];
    let kept: Vec<_> =
        files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(kept, names, "{output:?}");
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() > 0));
    for known in [PASSWORD, support::redis::PASSWORD, "said-by-a-client"] {
        assert!(secrets.contains(known), "{known}: {secrets:?}");
    }
    let made = secrets.iter().filter(|secret| !secret.contains('-'));
    assert!(made.count() >= 4, "the command's own and the verifiers' keys: {secrets:?}");
    let sought = Sought::of(&secrets);
    assert_eq!(complaints(&sought, &files), [""; 0]);
    let page = &files[2];
    let text = fs::read_to_string(page).unwrap();
    for secret in &secrets {
        for form in forms(secret) {
            let mut planted = format!("{text}one more line\n").into_bytes();
            planted.extend(form);
            fs::write(page, planted).unwrap();
            let found = complaints(&sought, &files);
            let place = format!("{}:{} ", page.display(), text.lines().count() + 2);
            assert!(found.iter().any(|one| one.starts_with(&place)), "{secret}: {found:?}");
        }
    }
    let whole = BASE64_STANDARD_NO_PAD.encode(format!("user:{PASSWORD}."));
    assert!(!sought.found_in(whole.as_bytes()).is_empty());
}

#[test]
fn passwords_are_seen_where_they_are_written() {
    for (text, expected) in [
        ("postgres://u:s%20t@h/d", &["s t", "s%20t"][..]),
        ("x = \"redis://:a/b@h\"", &["a/b"]),
        ("host=h password='it is' user=u", &["it is"]),
        ("password=plain user=u", &["plain"]),
        ("[[namespaces]]\npassword = \"word\"\n", &["word"]),
        ("\"u\" \"listed\"", &["listed"]),
        ("postgres://u@h/d", &[]),
        ("host=h user=u", &[]),
    ] {
        let seen: BTreeSet<String> =
            secrets_in(text).into_iter().filter(|word| !word.is_empty()).collect();
        assert_eq!(seen, expected.iter().map(|word| (*word).to_owned()).collect(), "{text}");
    }
}
