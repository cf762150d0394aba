//! A throwaway Postgres: `initdb` once per target directory and version, then a copy for each server.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::pg::{Connection, Login};
use super::process::Process;
use super::{eventually, kept, ports};

pub const USER: &str = "app";
pub const PASSWORD: &str = "app-secret";
pub const DATABASE: &str = "app";

/// Databases and roles that every server has: `app`/`app-secret` by SCRAM in the databases `app` and
/// `other`; the superuser `postgres` without a password, to look behind the curtain.
const ROLES: &str = "create role app login password 'app-secret'; \
     create role reader login password 'reader-secret'; \
     create database app owner app; create database other owner app";

const HBA: &str = "local all all trust\n\
     host all postgres 127.0.0.1/32 trust\n\
     host all all 127.0.0.1/32 scram-sha-256\n";

/// Which of the machine's Postgres a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The system's own: the newest that Debian has.
    Installed,
    /// Protocol 3.2, `search_path` reported: bin/setup puts it beside the client libraries.
    Eighteen,
}

/// Names the version for tests that do not choose one themselves: `18`. bin/test runs some a second time so.
const CHOICE: &str = "TIDEGATE_TEST_POSTGRES";

impl Version {
    fn chosen() -> Self {
        match std::env::var(CHOICE) {
            Err(_) => Self::Installed,
            Ok(choice) if choice == "18" => Self::Eighteen,
            Ok(other) => panic!("{CHOICE}={other}: leave it out, or say 18"),
        }
    }

    fn template(self) -> &'static str {
        match self {
            Self::Installed => "postgres-template-2",
            Self::Eighteen => "postgres-18-template-2",
        }
    }
}

pub struct Postgres {
    data: TempDir,
    programs: Programs,
    port: u16,
    server: Option<Process>,
}

impl Postgres {
    /// A running server.
    pub fn start() -> Self {
        Self::of(Version::chosen())
    }

    /// A running server of this version.
    pub fn of(version: Version) -> Self {
        let mut server = Self::prepare(version);
        server.resume();
        server
    }

    /// A server that has a port and data but does not run yet.
    pub fn stopped() -> Self {
        Self::prepare(Version::chosen())
    }

    /// A server that only reads: a standby whose primary is nowhere to be found.
    pub fn standby() -> Self {
        let mut server = Self::stopped();
        let signal = server.data.path().join("standby.signal");
        File::create(&signal).expect("the data directory can be written");
        hand_over(&signal);
        server.resume();
        server
    }

    /// A running server that standbys may follow.
    pub fn primary() -> Self {
        let mut server = Self::stopped();
        server.append("pg_hba.conf", "host replication postgres 127.0.0.1/32 trust\n");
        server.resume();
        server
    }

    /// A running standby that follows `primary`, which has the same beginning.
    pub fn standby_of(primary: &Self) -> Self {
        let mut server = Self::stopped();
        let primary = format!("host=127.0.0.1 port={} user=postgres", primary.port);
        server.append("postgresql.auto.conf", &format!("primary_conninfo = '{primary}'\n"));
        server.append("pg_hba.conf", "host replication postgres 127.0.0.1/32 trust\n");
        server.demote();
        server
    }

    /// Starts a server that is stopped, as a standby.
    pub fn demote(&mut self) {
        self.append("standby.signal", "");
        self.resume();
    }

    fn append(&self, file: &str, text: &str) {
        let path = self.data.path().join(file);
        let file = fs::OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("our own directory");
        hand_over(&path);
    }

    /// A running server with TLS: these are its settings, the files they name beside its data, and the lines of pg_hba.conf
    /// in front of which the superuser is trusted.
    pub fn with_tls(version: Version, settings: &str, files: &[(&str, &str)], hba: &str) -> Self {
        let mut server = Self::prepare(version);
        let data = server.data.path();
        for (name, text) in files {
            fs::write(data.join(name), text).expect("our own directory");
            run(Command::new("chmod").arg("0600").arg(data.join(name)));
        }
        let hba = format!("host all postgres 127.0.0.1/32 trust\n{hba}\n");
        fs::write(data.join("pg_hba.conf"), hba).expect("our own directory");
        fs::write(data.join("postgresql.auto.conf"), settings).expect("our own directory");
        hand_over(data);
        server.resume();
        server
    }

    fn prepare(version: Version) -> Self {
        let programs = Programs::of(version);
        let data = copy_of_template(version, &programs);
        Self { data, programs, port: ports::free(), server: None }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its unix socket is; all who come that way are trusted.
    pub fn socket_directory(&self) -> String {
        self.data.path().to_str().expect("a temp path is UTF-8").to_owned()
    }

    pub fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    pub fn url_with(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Starts a server that is stopped, and waits until it takes logins.
    pub fn resume(&mut self) {
        let mut server = launch(&self.programs, self.data.path(), self.port);
        let login = superuser("postgres");
        eventually("Postgres takes logins", || {
            let gone = server.exited();
            assert!(gone.is_none(), "Postgres ended: {gone:?}\n{}", server.output());
            Connection::try_open(self.port, &login).ok()
        });
        self.server = Some(server);
    }

    /// Stops it in the fast way: sessions are told 57P01.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let status = server.end(Signal::INT, Duration::from_secs(15));
            assert!(status.is_some(), "Postgres did not stop:\n{}", server.output());
        }
    }

    pub fn restart(&mut self) {
        self.stop();
        self.resume();
    }

    /// To the server's first process: the one that takes connections.
    pub fn signal(&self, signal: Signal) {
        self.server.as_ref().expect("it runs").signal(signal);
    }

    /// As the application would connect without tidegate.
    pub fn direct(&self) -> Connection {
        Connection::open(self.port, &Login::app())
    }

    pub fn superuser(&self) -> Connection {
        Connection::open(self.port, &superuser(DATABASE))
    }

    /// How many sessions of `user` the server has now.
    pub fn sessions_of(&self, user: &str) -> usize {
        let sql = format!("select count(*) from pg_stat_activity where usename = '{user}'");
        self.superuser().one(&sql).parse().expect("a count")
    }

    /// Who has a verifier's keys needs no password. A standby has its primary's.
    fn note_verifiers(&self) {
        let Ok(mut owner) = Connection::try_open(self.port, &superuser("postgres")) else { return };
        let sql = "select coalesce(string_agg(rolpassword, ' '), '') from pg_authid";
        for verifier in owner.one(sql).split(' ') {
            // RFC 5803: SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>
            kept::secrets(verifier.rsplit('$').next().iter().flat_map(|keys| keys.split(':')));
        }
    }

    pub fn log(&self) -> String {
        self.server.as_ref().map(Process::output).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::env::var_os(kept::VARIABLE).is_some() && self.server.is_some() {
            self.note_verifiers();
        }
    }
}

fn superuser(database: &str) -> Login {
    Login { user: "postgres".into(), database: database.into(), ..Login::app() }
}

fn launch(programs: &Programs, data: &Path, port: u16) -> Process {
    let mut command = as_server_user(&programs.named("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string()]);
    command.arg("-c").arg(format!("unix_socket_directories={}", data.display()));
    for setting in [
        "listen_addresses=127.0.0.1",
        "fsync=off",
        "full_page_writes=off",
        "shared_buffers=16MB",
        "max_connections=60",
        "max_prepared_transactions=4",
        "autovacuum=off",
        "wal_level=replica",
        "max_wal_senders=4",
        "log_line_prefix=%m %u@%d ",
    ] {
        command.args(["-c", setting]);
    }
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("LC_ALL", "C").env("TZ", "UTC");
    Process::start(command, Signal::QUIT)
}

fn copy_of_template(version: Version, programs: &Programs) -> TempDir {
    let template = template(version, programs);
    let data = tempfile::Builder::new().prefix("tidegate-pg-").tempdir().expect("a temp dir");
    run(Command::new("cp").arg("-r").arg(template.join(".")).arg(data.path()));
    hand_over(data.path());
    data
}

/// The template's path; made by whichever test process comes first, while the others wait.
fn template(version: Version, programs: &Programs) -> PathBuf {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&home).expect("the target directory can be written");
    let lock = File::create(home.join("postgres.lock")).expect("a lock file");
    lock.lock().expect("a lock");
    let template = home.join(version.template());
    if !template.exists() {
        let made = initialise(programs);
        let fresh = home.join("postgres-template.new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh).expect("an unfinished template can go");
        }
        run(Command::new("cp").arg("-r").arg(made.path()).arg(&fresh));
        fs::rename(&fresh, &template).expect("same directory");
    }
    template
}

fn initialise(programs: &Programs) -> TempDir {
    let data = tempfile::Builder::new().prefix("tidegate-pg-").tempdir().expect("a temp dir");
    hand_over(data.path());
    let mut initdb = as_server_user(&programs.named("initdb"));
    initdb.arg("-D").arg(data.path());
    run(initdb
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])
        .args(["--wal-segsize=1", "--no-sync"]));
    fs::write(data.path().join("pg_hba.conf"), HBA).expect("our own directory");
    hand_over(data.path());
    let port = ports::free();
    let mut server = launch(programs, data.path(), port);
    let mut connection = eventually("the new Postgres takes logins", || {
        Connection::try_open(port, &superuser("postgres")).ok()
    });
    for sql in ROLES.split("; ") {
        connection.query(sql).expect_no_error();
    }
    drop(connection);
    assert!(server.end(Signal::INT, Duration::from_secs(15)).is_some(), "{}", server.output());
    data
}

/// Postgres refuses to run as root: there it runs as nobody.
fn as_server_user(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command
}

fn hand_over(directory: &Path) {
    run(Command::new("chmod").arg("0700").arg(directory));
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").args(["-R", "nobody:nogroup"]).arg(directory));
    }
}

/// Where the server's programs are.
struct Programs {
    home: Option<PathBuf>,
    /// Holds `home` when that is a copy.
    _copy: Option<TempDir>,
}

impl Programs {
    fn of(version: Version) -> Self {
        if version == Version::Installed {
            return Self { home: None, _copy: None };
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp");
        let installed = fs::canonicalize(target.join("clients/postgres-18/programs"))
            .expect("Postgres 18 is missing: run bin/setup");
        if !rustix::process::geteuid().is_root() {
            return Self { home: Some(installed.join("bin")), _copy: None };
        }
        // Whom root makes the server run as may not be let in where root keeps this checkout. Links
        // to its files cost nothing, but only within one file system.
        let copy = tempfile::Builder::new().prefix("tidegate-pg18-").tempdir().expect("a temp dir");
        run(Command::new("chmod").arg("0755").arg(copy.path()));
        let home = copy.path().join("programs");
        let linked = Command::new("cp").arg("-rl").arg(&installed).arg(&home).output();
        if !linked.is_ok_and(|output| output.status.success()) {
            run(Command::new("cp").arg("-r").arg(installed.join(".")).arg(&home));
        }
        Self { home: Some(home.join("bin")), _copy: Some(copy) }
    }

    fn named(&self, name: &str) -> PathBuf {
        self.home.as_ref().map_or_else(|| tool(name), |home| home.join(name))
    }
}

/// Debian keeps the server's programs out of PATH, a directory for each major version.
pub fn tool(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; bin/setup installs what the tests need")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
