//! The buildpack, of both kinds: run as a platform runs it, with the program from a file, and then what it leaves, as the
//! platform starts it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use support::ports;
use support::postgres::Postgres;
use support::tidegate::clean_command;

/// Every variable of the pgbouncer buildpack, a value, and what is said of it.
const VARIABLES: &[(&str, &str, &str)] = &[
    ("PGBOUNCER_URLS", "DATABASE_URL OTHER_URL", "urls = [\"DATABASE_URL\", \"OTHER_URL\"]"),
    ("PGBOUNCER_POOL_MODE", "session", "pool_mode = \"session\""),
    ("PGBOUNCER_DEFAULT_POOL_SIZE", "3", "pool_size = 3"),
    ("PGBOUNCER_MIN_POOL_SIZE", "1", "idle_min = 1"),
    ("PGBOUNCER_RESERVE_POOL_SIZE", "2", "reserve_size = 2"),
    ("PGBOUNCER_RESERVE_POOL_TIMEOUT", "5.25", "reserve_after_ms = 5250"),
    ("PGBOUNCER_MAX_CLIENT_CONN", "100", "client_limit = 100"),
    ("PGBOUNCER_MAX_PREPARED_STATEMENTS", "50", "statements_per_backend = 50"),
    ("PGBOUNCER_SERVER_LIFETIME", "1800", "server_lifetime_ms = 1800000"),
    ("PGBOUNCER_SERVER_IDLE_TIMEOUT", "0", "server_idle_ms = 2592000000"),
    ("PGBOUNCER_QUERY_WAIT_TIMEOUT", "7", "wait_ms = 7000"),
    ("PGBOUNCER_STATS_PERIOD", "60", "log_every_ms = 60000"),
    ("PGBOUNCER_PREPARED_STATEMENTS", "false", "does nothing"),
    ("PGBOUNCER_SERVER_RESET_QUERY", "discard all", "does nothing"),
    ("PGBOUNCER_IGNORE_STARTUP_PARAMETERS", "extra_float_digits", "does nothing"),
    ("PGBOUNCER_CONNECT_QUERY", "select 'a secret'", "does nothing"),
    ("PGBOUNCER_AUTH_TYPE", "scram-sha-256", "does nothing"),
    ("PGBOUNCER_SERVER_TLS_SSLMODE", "require", "does nothing"),
    ("PGBOUNCER_URL_NAMES", "main other", "does nothing"),
    ("PGBOUNCER_LOG_CONNECTIONS", "0", "does nothing"),
    ("PGBOUNCER_LOG_DISCONNECTIONS", "0", "does nothing"),
    ("PGBOUNCER_LOG_POOLER_ERRORS", "1", "does nothing"),
    ("PGBOUNCER_CONFIG_DIR", "elsewhere", "does nothing"),
    ("PGBOUNCER_SOMETHING_NEW", "1", "does nothing"),
];

#[test]
fn detect_and_release_say_what_a_platform_expects() {
    let app = tempfile::tempdir().unwrap();
    let detected = text(run(script("detect").arg(app.path())));
    assert_eq!(detected, (Some(0), "tidegate\n".to_owned(), String::new()));
    let released = text(run(script("release").arg(app.path())));
    assert_eq!(released, (Some(0), "--- {}\n".to_owned(), String::new()));
    let descriptor = fs::read_to_string(buildpack().join("buildpack.toml")).unwrap();
    let descriptor: toml::Table = descriptor.parse().unwrap();
    assert_eq!(descriptor["buildpack"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
}

/// An application that has come from the pgbouncer buildpack: its Procfile's command goes on, over the pool.
#[test]
fn a_dyno_starts_what_it_started_before() {
    let server = Postgres::start();
    let slug = Slug::compiled();
    let script = "echo \"$DATABASE_URL $DATABASE_URL_PGBOUNCER\"; psql -At \"$DATABASE_URL\" -c 'select 7*6'; exit 7";
    let mut dyno =
        slug.dyno(&format!("bin/start-pgbouncer bash -c '{}'", script.replace('\'', "'\\''")));
    dyno.env("DATABASE_URL", server.url()).env("PGBOUNCER_DEFAULT_POOL_SIZE", "3");
    let (code, stdout, stderr) = text(run(&mut dyno));
    assert_eq!(code, Some(7), "{stdout}{stderr}");
    let (urls, answer) = stdout.split_once('\n').unwrap();
    let (url, old_name) = urls.split_once(' ').unwrap();
    assert!(url != server.url() && url == old_name, "{urls}");
    assert_eq!(answer, "42\n");
    for note in ["start-pgbouncer is another word for", "became postgres.pool_size = 3"] {
        assert!(stderr.contains(note), "{stderr}");
    }
    assert!(!stderr.contains("app-secret"), "{stderr}");
}

#[test]
fn a_dyno_has_tidegate_on_its_path() {
    let slug = Slug::compiled();
    let mut dyno = slug.dyno("tidegate run -- sh -c 'echo $DATABASE_URL'");
    dyno.env("DATABASE_URL", "postgres://u:p@db.example/app");
    let (code, stdout, stderr) = text(run(&mut dyno));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.starts_with("postgres://u:") && stdout.contains("@127.0.0.1:"), "{stdout}");
    assert!(!stderr.contains("PGBOUNCER"), "{stderr}");
}

/// Each variable has its note, and what they became is what tidegate understands; no value is told that may be a secret.
#[test]
fn each_variable_has_its_note() {
    let slug = Slug::compiled();
    let mut dyno = slug.dyno("tidegate check");
    for name in ["DATABASE_URL", "OTHER_URL"] {
        dyno.env(name, format!("postgres://u:p@db.example/{name}"));
    }
    dyno.envs(VARIABLES.iter().map(|(name, value, _)| (name, value)));
    let (code, stdout, stderr) = text(run(&mut dyno));
    assert_eq!(code, Some(0), "{stderr}");
    for (name, _, said) in VARIABLES {
        let note = stderr.lines().find(|line| line.starts_with(&format!("tidegate: {name} ")));
        assert!(note.is_some_and(|note| note.contains(said)), "{name}: {stderr}");
    }
    assert!(!stderr.contains("secret"), "{stderr}");
    assert!(!stdout.contains("unknown"), "{stdout}");
    for part in ["at most 3 connections", "OTHER_URL"] {
        assert!(stdout.contains(part), "{stdout} lacks {part}");
    }
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating.md");
    let guide = fs::read_to_string(guide).unwrap();
    for (name, ..) in VARIABLES.iter().filter(|(name, ..)| !name.ends_with("_NEW")) {
        assert!(guide.contains(&format!("`{name}`")), "docs/migrating.md says nothing of {name}");
    }
}

/// What pgbouncer would have refused is left out: the dyno starts.
#[test]
fn what_can_not_be_taken_is_left_out() {
    let slug = Slug::compiled();
    let mut dyno = slug.dyno("tidegate check");
    dyno.env("DATABASE_URL", "postgres://u:p@db.example/app");
    let wrong = [
        ("PGBOUNCER_DEFAULT_POOL_SIZE", "0"),
        ("PGBOUNCER_MIN_POOL_SIZE", "-1"),
        ("PGBOUNCER_MAX_CLIENT_CONN", "99999999999999999999"),
        ("PGBOUNCER_QUERY_WAIT_TIMEOUT", "soon; echo no"),
        ("PGBOUNCER_POOL_MODE", "\"]\nany = true #"),
        ("PGBOUNCER_URLS", "DATABASE_URL $(id)"),
        ("PGBOUNCER_MAX_PREPARED_STATEMENTS", "0"),
        ("PGBOUNCER_SERVER_LIFETIME", ""),
    ];
    dyno.envs(wrong);
    let (code, stdout, stderr) = text(run(&mut dyno));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("at most 5 connections"), "{stdout}");
    let notes = stderr.lines().filter(|line| line.contains("does nothing")).count();
    // An empty variable is none.
    assert_eq!(notes, wrong.len() - 1, "{stderr}");
}

/// Whoever writes a file of settings means it.
#[test]
fn a_file_of_ones_own_counts_alone() {
    let slug = Slug::compiled();
    let own = tempfile::NamedTempFile::new().unwrap();
    fs::write(own.path(), "[postgres]\npool_size = 9\n").unwrap();
    let mut dyno = slug.dyno("tidegate check");
    dyno.env("DATABASE_URL", "postgres://u:p@db.example/app").env("TIDEGATE_CONFIG", own.path());
    let (code, stdout, stderr) = text(run(dyno.env("PGBOUNCER_DEFAULT_POOL_SIZE", "3")));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("at most 9 connections"), "{stdout}");
    assert!(stderr.contains("PGBOUNCER_* do nothing"), "{stderr}");
}

#[test]
fn switched_off_the_command_runs_without_a_pool() {
    let slug = Slug::compiled();
    for off in ["0", "false", "no"] {
        let mut dyno = slug.dyno("bin/start-pgbouncer-stunnel sh -c 'echo $DATABASE_URL; exit 3'");
        let url = "postgres://u:p@db.example/app";
        dyno.env("DATABASE_URL", url).env("PGBOUNCER_ENABLED", off);
        let (code, stdout, stderr) = text(run(&mut dyno));
        assert_eq!((code, stdout.trim()), (Some(3), url), "{stderr}");
    }
    let (code, _, stderr) = text(run(&mut slug.dyno("bin/start-pgbouncer")));
    assert!(code == Some(2) && stderr.contains("usage"), "{stderr}");
}

#[test]
fn what_lies_in_the_applications_bin_stays() {
    let slug = Slug::empty();
    fs::create_dir(slug.home().join("bin")).unwrap();
    fs::write(slug.home().join("bin/start-pgbouncer"), "theirs").unwrap();
    let (code, stdout, stderr) = text(slug.compile());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("is there already, and stays"), "{stdout}");
    assert_eq!(fs::read_to_string(slug.home().join("bin/start-pgbouncer")).unwrap(), "theirs");
    // Ours is no stranger: a second build says nothing.
    let slug = Slug::compiled();
    let (code, stdout, _) = text(slug.compile());
    assert!(code == Some(0) && !stdout.contains("already"), "{stdout}");
}

#[test]
fn what_is_fetched_must_have_its_checksum() {
    let address = format!("file://{}", env!("CARGO_BIN_EXE_tidegate"));
    let sum = Command::new("sha256sum").arg(env!("CARGO_BIN_EXE_tidegate")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    for (sum, code, said) in [
        (sum.as_str(), 0, concat!("tidegate ", env!("CARGO_PKG_VERSION"))),
        (&"0".repeat(64), 1, "does not have the checksum"),
        ("", 1, "set both"),
    ] {
        let slug = Slug::empty();
        slug.set("BUILD_TIDEGATE_URL", &address);
        slug.set("BUILD_TIDEGATE_SHA256", sum);
        slug.unset("BUILD_TIDEGATE_FILE");
        let (status, stdout, stderr) = text(slug.compile());
        assert_eq!(status, Some(code), "{stderr}");
        assert!(format!("{stdout}{stderr}").contains(said), "{stdout}{stderr}");
        assert_eq!(slug.home().join(".tidegate/bin/tidegate").exists(), code == 0);
    }
}

#[test]
fn a_build_without_a_program_that_runs_fails() {
    let slug = Slug::empty();
    slug.unset("BUILD_TIDEGATE_FILE");
    let (code, _, stderr) = text(slug.compile());
    assert!(code == Some(1) && stderr.contains("bin/package"), "{stderr}");
    let other = tempfile::NamedTempFile::new().unwrap();
    fs::write(other.path(), "\u{7f}ELF of another machine").unwrap();
    slug.set("BUILD_TIDEGATE_FILE", other.path().to_str().unwrap());
    let (code, _, stderr) = text(slug.compile());
    assert!(code == Some(1) && stderr.contains("glibc 2.34"), "{stderr}");
}

/// The archive holds the program: nothing is to be said or fetched.
#[test]
fn a_package_is_all_that_a_build_needs() {
    let slug = Slug::empty();
    slug.unset("BUILD_TIDEGATE_FILE");
    let target = slug.place.path().join("target");
    fs::create_dir(&target).unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("bin/package");
    let mut command = clean(package.to_str().unwrap());
    command.arg(env!("CARGO_BIN_EXE_tidegate")).env("CARGO_TARGET_DIR", &target);
    let (code, stdout, stderr) = text(run(&mut command));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let unpacked = slug.place.path().join("buildpack");
    fs::create_dir(&unpacked).unwrap();
    let archive = target.join("tidegate-buildpack.tgz");
    run(Command::new("tar").arg("-C").arg(&unpacked).arg("-xzf").arg(archive));
    let compile = unpacked.join("bin/compile");
    let (code, stdout, stderr) = text(run(clean(compile.to_str().unwrap()).arg(slug.home())));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(slug.home().join(".tidegate/bin/tidegate").exists());
}

/// The Cloud Native kind: a layer for the launcher, and variables that it sets.
#[test]
fn an_image_has_a_layer() {
    let place = tempfile::tempdir().unwrap();
    let [app, layers, platform] = ["app", "layers", "platform"].map(|name| place.path().join(name));
    for directory in [&app, &layers, &platform.join("env")] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(platform.join("env/BUILD_TIDEGATE_FILE"), env!("CARGO_BIN_EXE_tidegate")).unwrap();
    let (code, _, stderr) = text(run(script("build").current_dir(&app).args([
        layers.as_os_str(),
        platform.as_os_str(),
        "plan.toml".as_ref(),
    ])));
    assert_eq!(code, Some(0), "{stderr}");
    let types: toml::Table =
        fs::read_to_string(layers.join("tidegate.toml")).unwrap().parse().unwrap();
    assert_eq!(types["types"]["launch"].as_bool(), Some(true));
    let layer = layers.join("tidegate");
    for program in ["bin/tidegate", "exec.d/tidegate", "lib/from-pgbouncer"] {
        let mode = fs::metadata(layer.join(program)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{program}");
    }
    assert!(app.join("bin/start-pgbouncer").exists());

    let mut launch = clean("bash");
    // What the launcher reads is what comes on descriptor 3.
    launch.args(["-c", "exec \"$1\" 3>&1 >/dev/null", "bash"]).arg(layer.join("exec.d/tidegate"));
    let (code, stdout, _) = text(run(&mut launch));
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "nothing to set is nothing said");
    let (code, stdout, stderr) = text(run(launch.env("PGBOUNCER_POOL_MODE", "session")));
    assert_eq!(code, Some(0), "{stderr}");
    let set: toml::Table = stdout.parse().unwrap();
    let file = PathBuf::from(set["TIDEGATE_CONFIG"].as_str().unwrap());
    assert!(fs::read_to_string(&file).unwrap().contains("pool_mode = [\"session\"]"));
    fs::remove_file(file).unwrap();
}

/// An application's directory, as the platform builds it and as its dynos find it.
struct Slug {
    place: TempDir,
}

impl Slug {
    fn empty() -> Self {
        let slug = Self { place: tempfile::tempdir().unwrap() };
        for directory in ["app", "cache", "env", "tmp"] {
            fs::create_dir(slug.place.path().join(directory)).unwrap();
        }
        slug.set("BUILD_TIDEGATE_FILE", env!("CARGO_BIN_EXE_tidegate"));
        slug
    }

    fn compiled() -> Self {
        let slug = Self::empty();
        let (code, _, stderr) = text(slug.compile());
        assert_eq!(code, Some(0), "{stderr}");
        slug
    }

    fn home(&self) -> PathBuf {
        self.place.path().join("app")
    }

    /// A variable that the platform hands to the build.
    fn set(&self, name: &str, value: &str) {
        fs::write(self.place.path().join("env").join(name), value).unwrap();
    }

    fn unset(&self, name: &str) {
        fs::remove_file(self.place.path().join("env").join(name)).unwrap();
    }

    fn compile(&self) -> Output {
        let place = self.place.path();
        run(script("compile").arg(self.home()).arg(place.join("cache")).arg(place.join("env")))
    }

    /// A dyno's shell: profile scripts first, then the Procfile's line.
    fn dyno(&self, line: &str) -> Command {
        let mut command = clean("bash");
        let sourced = format!("for file in .profile.d/*.sh; do . \"$file\"; done; {line}");
        command.args(["-c", &sourced]).current_dir(self.home()).env("HOME", self.home());
        command.env("TMPDIR", self.place.path().join("tmp"));
        command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{}", ports::free()));
        command.env("TIDEGATE_POSTGRES_LISTEN", format!("127.0.0.1:{}", ports::free()));
        command
    }
}

fn buildpack() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("buildpack")
}

fn script(name: &str) -> Command {
    let script = buildpack().join("bin").join(name);
    clean(script.to_str().unwrap())
}

/// `program` without anything in its environment that concerns these tests.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in clean_command().get_envs().filter(|(_, value)| value.is_none()) {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: Output) -> (Option<i32>, String, String) {
    let words = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), words(output.stdout), words(output.stderr))
}
