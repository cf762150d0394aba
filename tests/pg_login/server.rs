//! A throwaway Postgres: its own data directory, free port and socket directory, stopped by its pid.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

/// The user and group `nobody`, as whom Postgres runs when the tests run as root.
const NOBODY: u32 = 65_534;

pub(crate) struct Server {
    pub(crate) port: u16,
    directory: TempDir,
    process: Child,
}

/// What a server presents to TLS clients.
pub(crate) struct Certificate<'a> {
    pub(crate) chain: &'a str,
    pub(crate) key: &'a str,
}

impl Server {
    /// Starts a server with these lines of pg_hba.conf (the unix socket is trusted besides).
    pub(crate) fn start(hba: &str, certificate: Option<&Certificate<'_>>) -> Self {
        let directory = tempfile::Builder::new().prefix("tidegate-pg").tempdir().unwrap();
        give_away(directory.path());
        let data = directory.path().join("data");
        let made = as_nobody("initdb")
            .args([
                "-U",
                "postgres",
                "--auth=trust",
                "--no-sync",
                "--no-locale",
                "-E",
                "UTF8",
                "-D",
            ])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        write(&data.join("pg_hba.conf"), &format!("local all all trust\n{hba}\n"));
        let mut settings = String::from("fsync=off\nshared_buffers=16MB\nmax_connections=20\n");
        if let Some(certificate) = certificate {
            write(&data.join("server.crt"), certificate.chain);
            write(&data.join("server.key"), certificate.key);
            settings.push_str("ssl=on\n");
        }
        write(&data.join("postgresql.auto.conf"), &settings);
        let port = free_port();
        let process = as_nobody("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-k"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { port, directory, process }
    }

    pub(crate) fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs `sql` as the superuser, once the server is up.
    pub(crate) async fn run(&self, sql: &str) {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.directory.path()).port(self.port).user("postgres");
        let deadline = Instant::now() + Duration::from_secs(60);
        let (client, connection) = loop {
            match config.connect(tokio_postgres::NoTls).await {
                Ok(connected) => break connected,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                // Nothing tells when a server is up but a connection.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let connection = tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::QUIT));
        let _ = self.process.wait();
    }
}

fn as_nobody(program: &str) -> Command {
    let program = binary(program);
    if !getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command.current_dir("/");
    command
}

fn binary(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    give_away(path);
}

fn give_away(path: &Path) {
    if getuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A port below the ephemeral range that nobody listens on, and that no other test here was given.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 1_000).unwrap() * 14 + 15_000;
    loop {
        let port = first + GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_000, "no free port");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
