//! No password, token or key is to be found in anything that tidegate shows: log, pages, console, errors, command lines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use support::authority::{Authority, Issued};
use support::eventually;
use support::metrics::get;
use support::pg::Login;
use support::postgres::Postgres;
use support::redis::{PASSWORD as REDIS_PASSWORD, Redis};
use support::resp::Value;
use support::tidegate::{Setup, Tidegate, clean_command};
use tempfile::TempDir;

/// Where a URL needs it percent-encoded.
const FIRST: &str = "first/pass:word@1";
const SECOND: &str = "second-pass+word";
const READER: &str = "reader-pass-word";
const NAMESPACE: &str = "namespace-pass-word";
const TOKEN: &str = "push-token-word";
/// What somebody says who has mistyped a password, or taken another's.
const MISTYPED: &str = "mistyped-pass-word";

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// All ways to write what must not be seen; `own` are the command's credentials, and `key` is the listener's.
fn secrets(own: &[String], key: &str, verifiers: &[String]) -> Vec<String> {
    let words = [FIRST, SECOND, READER, NAMESPACE, TOKEN, MISTYPED, REDIS_PASSWORD];
    let words = words.iter().copied().chain(own.iter().map(String::as_str));
    let forms = words.flat_map(|word| {
        [word.to_owned(), encoded(word), BASE64_STANDARD.encode(word), hexadecimal(word)]
    });
    // RFC 5803: SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>
    let keys = verifiers.iter().flat_map(|verifier| {
        let keys = verifier.rsplit('$').next().unwrap();
        keys.split(':').map(str::to_owned).collect::<Vec<_>>()
    });
    let lines = key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned);
    forms.chain(keys).chain(lines).collect()
}

/// Takes remote write, after it has hung up once, and once shown what it was sent, as some pages of errors do.
fn taker() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 4_096];
            let read = stream.read(&mut request).unwrap_or(0);
            let head = String::from_utf8_lossy(&request[..read]).into_owned();
            let (status, body) = match number {
                0 => continue,
                1 => ("400 Bad Request", head.split("\r\n\r\n").next().unwrap_or_default()),
                _ => ("204 No Content", ""),
            };
            let length = body.len();
            let _gone =
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            // What is left unread would reset the connection before the answer is heard.
            let _rest = io::copy(&mut stream, &mut io::sink());
        }
    });
    port
}

fn hexadecimal(word: &str) -> String {
    word.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn found<'a>(seen: &str, secrets: &'a [String]) -> Vec<&'a str> {
    secrets.iter().map(String::as_str).filter(|secret| seen.contains(secret)).collect()
}

/// Files that hold what is secret, and servers that want it.
struct Stage {
    directory: TempDir,
    postgres: Postgres,
    redis: Redis,
    verifiers: Vec<String>,
    listener: Issued,
}

impl Stage {
    fn new() -> Self {
        let (postgres, redis) = (Postgres::start(), Redis::with_password());
        let mut owner = postgres.superuser();
        let verifiers = [("vault", FIRST), ("reader", READER)].map(|(role, word)| {
            owner.query("set password_encryption = 'scram-sha-256'").expect_no_error();
            let exists = format!("select count(*) from pg_roles where rolname = '{role}'");
            let verb = if owner.one(&exists) == "0" { "create" } else { "alter" };
            owner.query(&format!("{verb} role {role} login password '{word}'")).expect_no_error();
            owner.one(&format!("select rolpassword from pg_authid where rolname = '{role}'"))
        });
        let stage = Self {
            directory: TempDir::new().unwrap(),
            postgres,
            redis,
            verifiers: verifiers.into(),
            listener: Authority::new().server(),
        };
        stage.url(FIRST);
        stage.write("tidegate.toml", &settings(""));
        stage.write("cert", &stage.listener.certificate);
        stage.write("key", &stage.listener.key);
        stage.write("users", &format!("\"reader\" \"{READER}\"\n"));
        stage
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn url(&self, password: &str) {
        self.write("url", &self.postgres.url_with("vault", &encoded(password), "app"));
    }

    /// Around a command that writes down what it comes in with, and stays.
    fn setup(&self) -> Setup {
        let script = "echo \"$DATABASE_URL $REDIS_URL\" >\"$0.new\"; mv \"$0.new\" \"$0\"; \
            while kill -0 $PPID; do sleep 0.05; done";
        Setup::new()
            .arguments(&["run", "--", "sh", "-c", script, &self.path("given")])
            .database_url_file(Path::new(&self.path("url")))
            .redis(&self.redis)
            .wait_ms(500)
            .config(Path::new(&self.path("tidegate.toml")))
            .env("TIDEGATE_LOG", "trace")
            .env("TIDEGATE_POSTGRES_ANY", "1")
            .env("TIDEGATE_POSTGRES_USERS_FILE", &self.path("users"))
            .env("TIDEGATE_POSTGRES_CONSOLE_USERS", "reader")
            .env("TIDEGATE_PUSH_REMOTE_WRITE_URL", &format!("http://127.0.0.1:{}/w", taker()))
            .env("TIDEGATE_TLS_CERT", &self.path("cert"))
            .env("TIDEGATE_TLS_KEY", &self.path("key"))
            .env("TIDEGATE_PUSH_REMOTE_WRITE_TOKEN", TOKEN)
            .env("TIDEGATE_PUSH_REMOTE_WRITE_EVERY_MS", "1000")
    }
}

/// The credentials that the command was given.
fn own_credentials(stage: &Stage) -> Vec<String> {
    let given = eventually("the command runs", || fs::read_to_string(stage.path("given")).ok());
    let urls = given.split_whitespace().map(|url| url.rsplit_once('@').unwrap().0);
    urls.map(|info| info.rsplit_once(':').unwrap().1.to_owned()).collect()
}

fn settings(more: &str) -> String {
    format!(
        "reload_check_ms = 0\n{more}\n[[redis.namespaces]]\nname = \"jobs\"\nmode = \"prefix\"\npassword = \"{NAMESPACE}\"\n"
    )
}

/// All of a reply as text.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) | Value::Push(items) => items.iter().map(shown).collect(),
        Value::Map(pairs) => {
            pairs.iter().map(|(key, value)| shown(key) + ": " + &shown(value) + "\n").collect()
        }
        scalar => scalar.text() + "\n",
    }
}

/// Comes in, or tells why not, and what a wrong query brings.
fn visit(gate: &Tidegate, login: &Login) -> String {
    match gate.try_client(login) {
        Ok(mut client) => format!("{:?}", client.query("select current_user; select 1/0")),
        Err(refusal) => format!("{refusal:?}"),
    }
}

fn visits(gate: &Tidegate, own: &[String], seen: &mut String) {
    for (user, password) in [
        ("vault", &*own[0]),
        ("vault", &own[1]),
        ("vault", FIRST),
        ("vault", SECOND),
        ("vault", MISTYPED),
        ("reader", READER),
        ("reader", FIRST),
        ("nobody", MISTYPED),
    ] {
        writeln!(seen, "{}", visit(gate, &Login::of(user, password, "app"))).unwrap();
    }
    for words in [
        &["AUTH", REDIS_PASSWORD][..],
        &["AUTH", &own[1]],
        &["AUTH", &own[0]],
        &["AUTH", MISTYPED],
        &["AUTH", "jobs", NAMESPACE],
        &["AUTH", "jobs", MISTYPED],
        &["HELLO", "3", "AUTH", "jobs", NAMESPACE],
        &["HELLO", "3", "AUTH", "default", MISTYPED],
        &["HELLO", "9", "AUTH", "jobs", NAMESPACE],
    ] {
        let mut client = gate.redis_client();
        for command in [words, &["CLIENT", "LIST"], &["INFO"], &["NOSUCH", "x"], &["SET", "k", "v"]]
        {
            let reply = client.try_command(command);
            seen.push_str(&reply.map(|value| shown(&value)).unwrap_or_default());
        }
    }
}

/// All pages, and all that the console shows.
fn look(gate: &Tidegate, seen: &mut String) {
    for path in ["/", "/metrics", "/status.json", "/healthz", "/readyz", "/nothing"] {
        seen.push_str(&get(gate.admin_port(), path).map(|answer| answer.body).unwrap_or_default());
    }
    let mut console = gate.try_client(&Login::of("reader", READER, "tidegate")).unwrap();
    let shows =
        "STATS POOLS DATABASES CLIENTS SERVERS LISTS CONFIG USERS HOLDERS SOCKETS HELP VERSION";
    for what in shows.split(' ').chain(["NOTHING"]) {
        writeln!(seen, "{:?}", console.query(&format!("SHOW {what}"))).unwrap();
    }
    seen.push_str(&fs::read_to_string(format!("/proc/{}/cmdline", gate.pid())).unwrap());
}

fn reload(gate: &Tidegate, seen: &mut String) {
    let mut console = gate.try_client(&Login::of("reader", READER, "tidegate")).unwrap();
    writeln!(seen, "{:?}", console.query("RELOAD")).unwrap();
}

/// What `check` says, and what it says when something is wrong.
fn checks(stage: &Stage, seen: &mut String) {
    let good = stage.postgres.url_with("vault", &encoded(FIRST), "app");
    let redis = stage.redis.url();
    for (database, redis) in [
        (good.clone(), redis.clone()),
        (good.replace("/app", "/app?sslmode=absurd"), redis.clone()),
        (good.replace("postgres:", "mysql:"), redis.clone()),
        (good.replace("127.0.0.1", "[half"), redis.clone()),
        (format!("vault:{SECOND}@localhost"), redis.clone()),
        (good.clone(), redis.replace("/0", "/none")),
        (good, redis.replace("redis:", "reddis:")),
    ] {
        let mut check = clean_command();
        check.arg("check").env("DATABASE_URL", database).env("REDIS_URL", redis);
        check.env("TIDEGATE_CONFIG", stage.path("tidegate.toml"));
        check.env("TIDEGATE_POSTGRES_USERS_FILE", stage.path("users"));
        let output = check.env("TIDEGATE_PUSH_REMOTE_WRITE_TOKEN", TOKEN).output().unwrap();
        seen.push_str(&String::from_utf8_lossy(&output.stdout));
        seen.push_str(&String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let mut stage = Stage::new();
    let mut seen = String::new();
    let gate = stage.setup().start();
    let own = own_credentials(&stage);
    assert!(own.len() == 2 && own[0] != FIRST && own[1] != REDIS_PASSWORD);
    visits(&gate, &own, &mut seen);
    look(&gate, &mut seen);
    // The password changes here first, and then at the server.
    stage.url(SECOND);
    reload(&gate, &mut seen);
    visits(&gate, &own, &mut seen);
    let alter = format!("alter role vault password '{SECOND}'");
    stage.postgres.superuser().query(&alter).expect_no_error();
    // What is wrong changes nothing, and is told.
    stage.write("tidegate.toml", &settings(&format!("pasword = \"{MISTYPED}\"")));
    reload(&gate, &mut seen);
    stage.write("tidegate.toml", &settings(""));
    stage.write("url", &format!("postgres://vault:{SECOND}@[half/app"));
    reload(&gate, &mut seen);
    stage.write("users", &format!("\"reader\" {READER}\n"));
    reload(&gate, &mut seen);
    stage.write("users", &format!("\"reader\" \"{READER}\"\n"));
    stage.url(SECOND);
    for half in [2, 3] {
        let (key, length) = (&stage.listener.key, stage.listener.key.len());
        stage.write("key", &key[..length * (half - 1) / half]);
        reload(&gate, &mut seen);
    }
    eventually("a push has failed", || gate.output().contains("could not be sent").then_some(()));
    for outcome in ["refused", "taken"] {
        eventually(outcome, || {
            let count = gate.page().sum("tidegate_push_total", &[("outcome", outcome)]);
            (count > 0.0).then_some(())
        });
    }
    stage.postgres.stop();
    stage.redis.stop();
    visits(&gate, &own, &mut seen);
    look(&gate, &mut seen);
    checks(&stage, &mut seen);
    seen.push_str(&gate.output());

    // What the secrets belong to is there: it is the right place to look.
    for known in [
        "vault",
        "reader",
        "jobs",
        "remote write",
        "28P01",
        "WRONGPASS",
        "division by zero",
        "cannot take the private key",
    ] {
        assert!(seen.contains(known), "{known}");
    }
    let secrets = secrets(&own, &stage.listener.key, &stage.verifiers);
    assert_eq!(found(&seen, &secrets), [""; 0]);
    seen.push_str(&encoded(FIRST));
    assert_eq!(found(&seen, &secrets), [encoded(FIRST)], "this would have been seen");
}
