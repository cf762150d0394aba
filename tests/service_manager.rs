//! A service manager's part, played: it hears what we tell it, passes sockets, and the wrapped command has nothing of either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use support::pg::{Connection, Login};
use support::postgres::Postgres;
use support::process::Process;
use support::redis::Redis;
use support::resp;
use support::tidegate::{Setup, clean_command};
use support::{DEADLINE, eventually, ports};

/// What hears us.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        Self::of(UnixDatagram::bind(path).unwrap())
    }

    fn of(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self { socket, heard: Vec::new() }
    }

    /// Takes what has come; all of it until now.
    fn heard(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    self.heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap())
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return &self.heard,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until a message begins so; its place.
    fn hears(&mut self, beginning: &str) -> usize {
        eventually(beginning, || self.heard().iter().position(|one| one.starts_with(beginning)))
    }

    fn count(&mut self, message: &str) -> usize {
        self.heard().iter().filter(|one| *one == message).count()
    }
}

fn microseconds() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[test]
fn it_hears_of_the_whole_life() {
    let home = tempfile::tempdir().unwrap();
    let (path, file) = (home.path().join("notify"), home.path().join("tidegate.toml"));
    std::fs::write(&file, "").unwrap();
    let mut manager = Manager::at(&path);
    let server = Postgres::start();
    let setup = Setup::new().postgres(&server).config(&file);
    let mut gate = setup.env("NOTIFY_SOCKET", path.to_str().unwrap()).launch();
    manager.hears("READY=1");
    // Ready means that nobody is refused.
    Connection::open(gate.postgres_port(), &Login::app());
    let line = manager.hears("STATUS=DATABASE_URL: ");
    assert!(manager.heard[line].contains("of 5 connections in use"), "{:?}", manager.heard);

    let before = microseconds();
    gate.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1\nMONOTONIC_USEC=");
    let at: i64 = manager.heard[reloading].rsplit_once('=').unwrap().1.parse().unwrap();
    assert!((before..=microseconds()).contains(&at), "{before} {at}");
    eventually("it is ready again", || (manager.count("READY=1") == 2).then_some(()));
    // Settings that can't be taken are no reason to stay in between.
    std::fs::write(&file, "workers = \"many\"\n").unwrap();
    gate.signal(Signal::HUP);
    eventually("it goes on", || (manager.count("READY=1") == 3).then_some(()));
    assert!(gate.output().contains("nothing has changed"));

    gate.signal(Signal::TERM);
    gate.wait(DEADLINE).expect("it ends");
    manager.hears("STOPPING=1");
}

/// A reload that is still reading when we are told to stop ends without a word: `READY=1` would take the stop back.
#[test]
fn the_end_is_the_last_that_it_hears() {
    let home = tempfile::tempdir().unwrap();
    let (path, file) = (home.path().join("notify"), home.path().join("tidegate.toml"));
    std::fs::write(&file, "reload_check_ms = 0\n").unwrap();
    let mut manager = Manager::at(&path);
    let server = Postgres::start();
    let setup = Setup::new().postgres(&server).config(&file);
    let mut gate = setup.env("NOTIFY_SOCKET", path.to_str().unwrap()).launch();
    manager.hears("READY=1");
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    // A file whose reading takes as long as we like.
    std::fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    gate.signal(Signal::HUP);
    manager.hears("RELOADING=1");
    gate.signal(Signal::TERM);
    let end = manager.hears("STOPPING=1");
    // It is empty, for who looks whether it has changed, and for who takes what it says.
    std::thread::spawn(move || while std::fs::File::options().write(true).open(&file).is_ok() {});
    let read = || gate.output().contains("the settings were read again").then_some(());
    eventually("it is read to its end", read);
    client.query("commit").expect_no_error();
    gate.wait(DEADLINE).expect("it ends");
    let after = &manager.heard()[end + 1..];
    let wrong = |one: &&String| one.contains("READY") || one.contains("RELOADING");
    assert_eq!(after.iter().find(wrong), None);
}

#[test]
fn it_hears_that_we_live_as_often_as_it_wants() {
    let name = format!("tidegate-test-{}", ports::free());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut manager = Manager::of(UnixDatagram::bind_addr(&address).unwrap());
    let setup = Setup::new().redis_url("redis://127.0.0.1:1");
    let setup = setup.env("NOTIFY_SOCKET", &format!("@{name}"));
    let _gate = setup.env("WATCHDOG_USEC", "400000").launch();
    manager.hears("READY=1");
    let began = Instant::now();
    eventually("five signs of life", || (manager.count("WATCHDOG=1") >= 5).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    let mut other = Manager::of(
        UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("{name}-other")).unwrap())
            .unwrap(),
    );
    let setup = Setup::new().redis_url("redis://127.0.0.1:1");
    let setup = setup.env("NOTIFY_SOCKET", &format!("@{name}-other")).env("WATCHDOG_USEC", "1000");
    // Another process is watched.
    let _gate = setup.env("WATCHDOG_PID", "1").launch();
    other.hears("STATUS=");
    assert_eq!(other.count("WATCHDOG=1"), 0);
}

#[test]
fn under_run_it_hears_us_and_the_command_has_nothing_of_it() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let mut manager = Manager::at(&path);
    let mut command = opener();
    let port = ports::free();
    command.arg(format!("tcp=redis@127.0.0.1:{port}")).arg("--");
    command.arg(env!("CARGO_BIN_EXE_tidegate")).args(["run", "--", "sh", "-c"]);
    command.arg(
        "env | grep -E '^(LISTEN_|NOTIFY_|WATCHDOG_)'; ls -l /proc/self/fd; echo up; read line",
    );
    command.env("NOTIFY_SOCKET", &path).env("REDIS_URL", "redis://127.0.0.1:1");
    command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{}", ports::free()));
    let mut gate = Process::start(command, Signal::KILL);
    gate.wait(DEADLINE).expect("the command ends: it has no standard input");
    let output = gate.output();
    assert!(output.contains("up"), "{output}");
    for word in ["LISTEN_", "NOTIFY_", "WATCHDOG_", "socket:["] {
        assert!(!output.contains(word), "the command has {word}: {output}");
    }
    assert_eq!(manager.count("READY=1"), 1);
    manager.hears("STOPPING=1");
}

/// What opens sockets and becomes a program; with nothing of tidegate's in its environment.
fn opener() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/service_manager.py");
    let mut command = Command::new("python3");
    command.arg(script);
    for (name, value) in clean_command().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// tidegate, to which the sockets of `words` are passed.
fn passed(words: &[&str], variables: &[(&str, &str)]) -> Process {
    let mut command = opener();
    command.args(words).args(["--", env!("CARGO_BIN_EXE_tidegate"), "serve"]);
    command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{}", ports::free()));
    command.envs(variables.iter().copied());
    Process::start(command, Signal::KILL)
}

#[test]
fn sockets_that_were_passed_are_listened_on() {
    let (server, redis) = (Postgres::start(), Redis::start());
    let home = tempfile::tempdir().unwrap();
    let (p, r, a) = (ports::free(), ports::free(), ports::free());
    let path = home.path().join("redis.sock");
    let urls = [("DATABASE_URL", server.url()), ("REDIS_URL", redis.url())];
    let urls = urls.each_ref().map(|(name, url)| (*name, url.as_str()));
    let tcp = |name: &str, port: u16| format!("tcp={name}127.0.0.1:{port}");
    let unix = |name: &str| format!("unix={name}{}", path.display());
    // By name, whatever the order; without names by order.
    let named = [tcp("admin@", a), unix("redis@"), tcp("redis@", r), tcp("postgres@", p)];
    let ordered = [tcp("", p), tcp("", r), tcp("", a), unix("")];
    // Without a name the first unix socket is Postgres'; there it answers, too.
    for (words, over_unix) in [(named, "redis"), (ordered, "postgres")] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut gate = passed(&words, &urls);
        eventually("the manager has opened them all", || {
            let open = |port| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            (open(p) && UnixStream::connect(&path).is_ok()).then_some(())
        });
        // From here on nobody is refused, however early.
        let mut client = Connection::open(p, &Login::app());
        assert_eq!(client.one("select 1"), "1", "{}", gate.output());
        assert_eq!(resp::Connection::open(r).command(&["PING"]).text(), "PONG");
        let page = support::metrics::get(a, "/healthz").expect("the admin port answers");
        assert_eq!(page.status, 200);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (said, answer) = match over_unix {
            "redis" => (&b"PING\r\n"[..], &b"+PONG\r\n"[..]),
            _ => (&b"\0\0\0\x08\x04\xd2\x16\x2f"[..], &b"N"[..]),
        };
        stream.write_all(said).unwrap();
        let mut heard = vec![0; answer.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, answer);
        gate.end(Signal::TERM, DEADLINE).expect("it ends");
        assert!(path.exists(), "the file is the manager's");
        std::fs::remove_file(&path).unwrap();
    }
}

/// The manager keeps its sockets open: who takes over from the process that it started answers there, whatever its own settings say.
#[test]
fn a_successor_answers_on_the_manager_s_sockets() {
    let (server, redis) = (Postgres::start(), Redis::start());
    let home = tempfile::tempdir().unwrap();
    let (p, r) = (ports::free(), ports::free());
    let (path, control) = (home.path().join("redis.sock"), home.path().join("control"));
    let control = control.to_str().unwrap();
    let (database, cache) = (server.url(), redis.url());
    let variables = [
        ("DATABASE_URL", &*database),
        ("REDIS_URL", &cache),
        ("TIDEGATE_CONTROL_SOCKET", control),
        ("TIDEGATE_HANDOVER_MS", "0"),
    ];
    let words = [
        format!("tcp=postgres@127.0.0.1:{p}"),
        format!("tcp=redis@127.0.0.1:{r}"),
        format!("unix=redis@{}", path.display()),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut first = passed(&words, &variables);
    eventually("successors can ask", || UnixStream::connect(control).ok());
    // Without Redis it has no use for two of them, and says so before anything changes.
    let setup = Setup::new().database_url(&database).env("TIDEGATE_CONTROL_SOCKET", control);
    let mut next = setup.launch();
    assert_eq!(next.wait(DEADLINE).and_then(|status| status.code()), Some(1));
    let said = next.output();
    assert!(
        said.contains("service manager's, called redis") && said.contains("set its URL"),
        "{said}"
    );
    let setup = || Setup::new().postgres(&server).redis(&redis).env("TIDEGATE_HANDOVER_MS", "0");
    let second = setup().env("TIDEGATE_CONTROL_SOCKET", control).launch();
    first.wait(DEADLINE).expect("it has handed over");
    let answers = || {
        assert_eq!(Connection::open(p, &Login::app()).one("select 1"), "1");
        assert_eq!(resp::Connection::open(r).command(&["PING"]).text(), "PONG");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"PING\r\n").unwrap();
        let mut heard = [0; 7];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"+PONG\r\n");
    };
    answers();
    // And it goes on so.
    let mut second = second;
    let third = setup().env("TIDEGATE_CONTROL_SOCKET", control).launch();
    second.wait(DEADLINE).expect("it has handed over");
    answers();
    // But if the manager has sockets for the new one, those count.
    let mut third = third;
    let other = ports::free();
    let listen = format!("127.0.0.1:{}", ports::free());
    let variables = [&variables[..], &[("TIDEGATE_POSTGRES_LISTEN", &*listen)]].concat();
    let mut fourth = passed(&[&format!("tcp=redis@127.0.0.1:{other}")], &variables);
    third.wait(DEADLINE).expect("it has handed over");
    assert_eq!(resp::Connection::open(other).command(&["PING"]).text(), "PONG");
    fourth.end(Signal::TERM, DEADLINE).expect("it ends");
    assert!(path.exists(), "the file is the manager's");
}

#[test]
fn what_is_no_listener_of_ours_is_said() {
    let home = tempfile::tempdir().unwrap();
    let plain = home.path().join("file");
    std::fs::write(&plain, "").unwrap();
    let file = format!("file=redis@{}", plain.display());
    for (words, variables, parts) in [
        (&["udp=redis@127.0.0.1:0"][..], &[][..], &["socket 1", "ListenStream="][..]),
        (&["tcp=redis@127.0.0.1:0", &file], &[], &["socket 2", "\"redis\"", "no stream socket"]),
        (&["idle=redis@127.0.0.1:0"], &[], &["does not listen"]),
        (
            &["tcp=web@127.0.0.1:0", "tcp=redis@127.0.0.1:0"],
            &[],
            &["\"web\"", "postgres, redis or admin"],
        ),
        (&["tcp=postgres@127.0.0.1:0"], &[], &["called postgres", "no listener"]),
        (&["tcp=127.0.0.1:0", "tcp=127.0.0.1:0", "tcp=127.0.0.1:0"], &[], &["more than there are"]),
        // Where the settings would have been refused had they said so.
        (&["tcp=redis@0.0.0.0:0"], &[], &["redis.listen", "no loopback"]),
        (
            &["tcp=redis@0.0.0.0:0"],
            &[("REDIS_URL", "redis://:p@127.0.0.1:1"), ("TIDEGATE_REDIS_AUTH", "trust")],
            &["no loopback"],
        ),
    ] {
        let variables = [&[("REDIS_URL", "redis://127.0.0.1:1")], variables].concat();
        let mut gate = passed(words, &variables);
        let status = gate.wait(DEADLINE).expect("it ends");
        assert!(!status.success(), "{words:?}");
        for part in parts {
            assert!(gate.output().contains(part), "{words:?} lacks {part:?}: {}", gate.output());
        }
    }
}

/// Sockets for another process are none of ours.
#[test]
fn sockets_of_another_process_are_left_alone() {
    let mut command = clean_command();
    command.args(["serve"]).env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    command.env("REDIS_URL", "redis://127.0.0.1:1");
    let port = ports::free();
    command.env("TIDEGATE_REDIS_LISTEN", format!("127.0.0.1:{port}"));
    command.env("TIDEGATE_ADMIN_LISTEN", format!("127.0.0.1:{}", ports::free()));
    let _gate = Process::start(command, Signal::KILL);
    eventually("it listens where it was told", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
}

/// The unit files of the page are such that systemd takes them.
#[test]
fn the_units_of_the_page_are_sound() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/systemd.md"));
    let page = page.unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for block in page.split("```ini\n# ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let unit = rest.split("```").next().unwrap();
        let path = home.path().join(Path::new(name).file_name().unwrap());
        // The program is where the tests have it.
        let program = env!("CARGO_BIN_EXE_tidegate");
        std::fs::write(&path, unit.replace("/usr/local/bin/tidegate", program)).unwrap();
        units.push(path);
    }
    assert!(units.len() >= 2, "{units:?}");
    let verified = Command::new("systemd-analyze").arg("verify").args(&units).output();
    let Ok(verified) = verified else {
        eprintln!("systemd-analyze is not installed: the units are not checked");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // Before systemd 253 that is no type.
    let odd = |line: &&str| line.contains("tidegate") && !line.contains("notify-reload");
    let ours: Vec<&str> = said.lines().filter(odd).collect();
    assert!(ours.is_empty(), "{said}");
}
