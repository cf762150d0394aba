//! What the tests' tidegates show, and the secrets that they and their servers were given: kept in the directory that
//! `TIDEGATE_TEST_KEEP` names, for `tests/kept.rs` to look for the ones in the other.
//!
//! Each test process has a directory there: `secrets`, one a line, and a directory for each tidegate, by its process number.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use percent_encoding::percent_decode_str;

/// Names the directory.
pub const VARIABLE: &str = "TIDEGATE_TEST_KEEP";
/// The file with the secrets.
pub const SECRETS: &str = "secrets";
/// What the admin port shows, and the files that it is kept in.
const PAGES: [(&str, &str); 3] =
    [("/metrics", "metrics"), ("/", "page"), ("/status.json", "status.json")];
/// Longest time for one page: the test that ends goes on.
const SHORT: Duration = Duration::from_millis(300);
/// Variables that hold nothing but a secret.
const SECRET_VARIABLES: [&str; 3] = ["PASSWORD", "_TOKEN", "_SECRET"];

/// The directory of this test process, if anything is to be kept.
fn directory() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os(VARIABLE)?);
    let program = std::env::current_exe().expect("we run");
    let name = program.file_name().expect("a program has a name").to_string_lossy();
    let directory = home.join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("TIDEGATE_TEST_KEEP can be written");
    Some(directory)
}

/// Notes words that nothing may show.
pub fn secrets<Word: AsRef<str>>(words: impl IntoIterator<Item = Word>) {
    let Some(directory) = directory() else { return };
    let mut file = File::options().append(true).create(true).open(directory.join(SECRETS));
    for word in words {
        let word = word.as_ref();
        if !word.is_empty() && !word.contains('\n') {
            let file = file.as_mut().expect("our own directory");
            file.write_all(format!("{word}\n").as_bytes()).expect("our own file");
        }
    }
}

/// The lines of a private key.
pub fn key(pem: &str) {
    secrets(pem.lines().filter(|line| !line.starts_with("-----")));
}

/// A tidegate whose words and pages are kept.
pub struct Kept {
    directory: PathBuf,
    pid: u32,
    admin: Option<SocketAddr>,
    wraps: bool,
    /// Where its settings are: they may change while it lives.
    files: Vec<PathBuf>,
}

impl Kept {
    /// For the process `pid` that `command` has started, if that is a tidegate, and anything is to be kept.
    pub fn of(command: &Command, pid: u32) -> Option<Self> {
        if command.get_program() != env!("CARGO_BIN_EXE_tidegate") {
            return None;
        }
        let directory = directory()?.join(pid.to_string());
        fs::create_dir_all(&directory).expect("our own directory");
        let variables: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)))
            .collect();
        for (name, value) in &variables {
            note(name, value);
        }
        let arguments = command.get_args().map(|word| word.to_string_lossy().into_owned());
        let wraps = arguments.collect::<Vec<_>>().first().is_some_and(|word| word == "run");
        let admin = variables.iter().find(|(name, _)| *name == "TIDEGATE_ADMIN_LISTEN");
        let named = |name: &str| name.ends_with("_FILE") || name == "TIDEGATE_CONFIG";
        let files = variables.iter().filter(|(name, _)| named(name));
        let kept = Self {
            directory,
            pid,
            admin: admin.and_then(|(_, place)| place.parse().ok()),
            wraps,
            files: files.map(|(_, path)| PathBuf::from(path)).collect(),
        };
        kept.read_files();
        Some(kept)
    }

    /// Where its log goes.
    pub fn log(&self) -> File {
        File::create(self.directory.join("log")).expect("our own directory")
    }

    /// Where its standard output goes, unless that is the wrapped command's.
    pub fn output(&self) -> Option<File> {
        (!self.wraps)
            .then(|| File::create(self.directory.join("output")).expect("our own directory"))
    }

    /// Keeps what it shows now: call it while it lives.
    pub fn look(&self) {
        self.read_files();
        self.read_children();
        if let Ok(line) = fs::read(format!("/proc/{}/cmdline", self.pid)) {
            self.write("cmdline", &line);
        }
        for (path, file) in PAGES {
            if let Some(page) = self.admin.and_then(|admin| page(admin, path)) {
                self.write(file, &page);
            }
        }
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.directory.join(file), bytes).expect("our own directory");
    }

    fn read_files(&self) {
        // Another kind of file may be one whose reading takes as long as the test likes.
        for path in self.files.iter().filter(|path| path.is_file()) {
            if let Ok(text) = fs::read_to_string(path) {
                secrets(secrets_in(&text));
            }
        }
    }

    /// A wrapped command has credentials that were made for it.
    fn read_children(&self) {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        let children = tasks.flatten().filter_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).ok()?;
            Some(children.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        });
        for child in children.flatten() {
            let path = Path::new("/proc").join(child).join("environ");
            let environment = fs::read(path).unwrap_or_default();
            let environment = String::from_utf8_lossy(&environment);
            for (name, value) in environment.split('\0').filter_map(|pair| pair.split_once('=')) {
                note(name, value);
            }
        }
    }
}

fn page(admin: SocketAddr, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&admin, SHORT).ok()?;
    stream.set_read_timeout(Some(SHORT)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok()?;
    Some(text)
}

/// A variable of the environment.
fn note(name: &str, value: &str) {
    if SECRET_VARIABLES.iter().any(|end| name.ends_with(end)) {
        secrets([value]);
    }
    secrets(secrets_in(value));
}

/// The passwords in a URL, a connection string, a users file, or a file of settings.
pub fn secrets_in(text: &str) -> BTreeSet<String> {
    text.lines()
        .flat_map(|line| [in_urls(line), after_names(line), in_user_list(line)])
        .flatten()
        .collect()
}

fn in_urls(line: &str) -> Vec<String> {
    let places = line.split("://").skip(1).filter_map(|rest| {
        // A password with a bare `/` or `@` in it ends at the last `@` before what ends a word.
        let word = rest.split([' ', '"', '\'', ',']).next()?;
        let (_user, password) = word.rsplit_once('@')?.0.split_once(':')?;
        Some([password.to_owned(), percent_decode_str(password).decode_utf8_lossy().into_owned()])
    });
    places.flatten().collect()
}

fn after_names(line: &str) -> Vec<String> {
    let values =
        ["password", "token"].iter().flat_map(|name| line.split(name).skip(1)).map(|rest| {
            let value = rest.trim_start().strip_prefix('=').unwrap_or_default().trim_start();
            match value.chars().next() {
                Some(quote @ ('"' | '\'')) => value[1..].split(quote).next().unwrap_or_default(),
                _ => value.split([' ', '&', ',']).next().unwrap_or_default(),
            }
        });
    values.map(str::to_owned).collect()
}

/// `"user" "password"`.
fn in_user_list(line: &str) -> Vec<String> {
    let mut parts = line.strip_prefix('"').unwrap_or_default().split('"');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_user), Some(gap), Some(password)) if gap.trim().is_empty() => {
            vec![password.to_owned()]
        }
        _ => Vec::new(),
    }
}
