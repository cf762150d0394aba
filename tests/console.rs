//! The console: PgBouncer's columns, what its commands do to clients that work, and who may use it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::pg::{Connection, Login, Refusal, Reply, query};
use support::postgres::Postgres;
use support::process::Process;
use support::tidegate::{Setup, Tidegate};
use support::{eventually, ports};
use tempfile::{NamedTempFile, TempDir};

/// All that PgBouncer 1.18 shows, but `FDS`, which it has for handing its sockets to a successor.
const SHOWS: [&str; 16] = [
    "STATS",
    "STATS_TOTALS",
    "STATS_AVERAGES",
    "TOTALS",
    "POOLS",
    "DATABASES",
    "CLIENTS",
    "SERVERS",
    "LISTS",
    "CONFIG",
    "VERSION",
    "USERS",
    "MEM",
    "SOCKETS",
    "ACTIVE_SOCKETS",
    "DNS_HOSTS",
];

fn at(database: &str) -> Login {
    Login { database: database.into(), ..Login::app() }
}

fn console(gate: &Tidegate) -> Connection {
    gate.try_client(&at("pgbouncer")).unwrap_or_else(|refusal| panic!("{refusal:?}"))
}

/// The rows of one SHOW, by the names of their columns.
fn shown(console: &mut Connection, what: &str) -> Vec<BTreeMap<String, String>> {
    let reply = console.query(&format!("SHOW {what}"));
    let names = names(reply.expect_no_error());
    let value = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
    let row = |row: Vec<Option<String>>| names.iter().cloned().zip(row.into_iter().map(value));
    reply.rows().into_iter().map(|values| row(values).collect()).collect()
}

fn names(reply: &Reply) -> Vec<String> {
    let described = reply.frames.iter().find(|frame| frame.tag == b'T').expect("rows");
    let mut rest = &described.body[2..];
    let mut names = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == 0).expect("a name ends");
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        rest = &rest[end + 19..];
    }
    names
}

/// The row of the application's database.
fn of_app(console: &mut Connection, what: &str) -> BTreeMap<String, String> {
    let is_its = |row: &BTreeMap<String, String>| {
        row.get("database").or(row.get("name")).is_some_and(|name| name == "app")
    };
    shown(console, what).into_iter().find(is_its).expect("a row of app")
}

fn number(row: &BTreeMap<String, String>, name: &str) -> u64 {
    row[name].parse().unwrap_or_else(|_| panic!("{name}: {row:?}"))
}

fn code(reply: &Reply) -> String {
    reply.codes().join(" ")
}

/// Debian's PgBouncer before the same server.
struct PgBouncer {
    _home: TempDir,
    _process: Process,
    port: u16,
}

impl PgBouncer {
    fn before(server: &Postgres) -> Self {
        let home = tempfile::Builder::new().prefix("tidegate-pgb-").tempdir().unwrap();
        let (port, file) = (ports::free(), home.path().join("pgbouncer.ini"));
        let settings = format!(
            "[databases]\napp = host=127.0.0.1 port={} dbname=app user=app password=app-secret\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\nadmin_users = app\npool_mode = transaction\n",
            server.port()
        );
        std::fs::write(&file, settings).unwrap();
        let mut command = if rustix::process::geteuid().is_root() {
            let mode = Command::new("chmod").args(["-R", "a+rX"]).arg(home.path()).status();
            assert!(mode.unwrap().success());
            let mut command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "pgbouncer"]);
            command
        } else {
            Command::new("pgbouncer")
        };
        // Debian keeps it where only root's PATH leads.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin")).arg(&file);
        let process = Process::start(command, Signal::INT);
        let this = Self { _home: home, _process: process, port };
        eventually("pgbouncer answers", || Connection::try_open(port, &at("pgbouncer")).ok());
        this
    }

    fn client(&self, database: &str) -> Connection {
        Connection::open(self.port, &at(database))
    }
}

#[test]
fn every_show_has_the_columns_of_debians_pgbouncer() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let theirs = PgBouncer::before(&server);
    let (mut ours, mut theirs) = (console(&gate), theirs.client("pgbouncer"));
    for show in SHOWS.into_iter().chain(["DNS_ZONES"]) {
        let [ours, theirs] = [&mut ours, &mut theirs].map(|console| {
            let reply = console.query(&format!("show {show};"));
            let described = reply.expect_no_error().frames[0].clone();
            assert_eq!(described.tag, b'T', "{show}");
            assert_eq!(reply.tags(), ["SHOW"]);
            described
        });
        assert_eq!(ours, theirs, "{show}");
    }
    let [ours, theirs] = [&mut ours, &mut theirs].map(|console| {
        let mut rows = |what: &str, column: &str| {
            shown(console, what).into_iter().map(|row| row[column].clone()).collect::<Vec<_>>()
        };
        (rows("LISTS", "list"), rows("TOTALS", "name"))
    });
    assert_eq!(ours, theirs);
}

#[test]
fn the_same_work_counts_the_same() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let theirs = PgBouncer::before(&server);
    let consoles = [console(&gate), theirs.client("pgbouncer")];
    let clients = [gate.client(), theirs.client("app")];
    let counted = consoles.into_iter().zip(clients).map(|(mut console, mut client)| {
        client.query("select 1").expect_no_error();
        let before = of_app(&mut console, "STATS");
        for _ in 0..10 {
            for sql in ["begin", "select pg_sleep(0.01)", "commit", "select repeat('x', 1000)"] {
                client.query(sql).expect_no_error();
            }
        }
        thread::sleep(Duration::from_millis(20));
        let after = of_app(&mut console, "STATS");
        [
            "total_xact_count",
            "total_query_count",
            "total_sent",
            "total_xact_time",
            "total_query_time",
        ]
        .map(|name| number(&after, name) - number(&before, name))
    });
    let [ours, theirs]: [[u64; 5]; 2] = counted.collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(ours[..2], theirs[..2], "transactions and queries");
    assert!(ours[2].abs_diff(theirs[2]) < 200, "bytes: {ours:?}, {theirs:?}");
    for (ours, theirs) in [(ours[3], theirs[3]), (ours[4], theirs[4])] {
        assert!((90_000..1_000_000).contains(&ours), "microseconds: {ours}, {theirs}");
    }
}

#[test]
fn waits_in_vain_are_counted_and_told_to_the_microsecond() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(1).wait_ms(1_500).start();
    let (mut console, mut holder) = (console(&gate), gate.client());
    holder.query("begin").expect_no_error();
    let mut waiter = gate.client();
    waiter.send(&query("select 1"));
    let pool = eventually("it waits", || {
        let pool = of_app(&mut console, "POOLS");
        (number(&pool, "maxwait_us") > 50_000).then_some(pool)
    });
    assert_eq!(["cl_active", "cl_waiting", "sv_active"].map(|name| number(&pool, name)), [1, 1, 1]);
    let clients = shown(&mut console, "CLIENTS");
    let waiting = clients.iter().find(|row| row["state"] == "waiting").expect("one waits");
    assert!(number(waiting, "wait_us") > 10_000, "{waiting:?}");
    assert_eq!(waiter.reply().codes(), ["53300"]);
    let wait_us = number(&of_app(&mut console, "STATS"), "total_wait_time");
    assert!((1_500_000..3_000_000).contains(&wait_us), "{wait_us}");
    let holders = shown(&mut console, "HOLDERS");
    assert_eq!((holders.len(), holders[0]["phase"].as_str()), (1, "idle_in_transaction"));
}

#[test]
fn clients_and_servers_are_listed_with_their_links() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut console = console(&gate);
    let mut client =
        Connection::open(gate.postgres_port(), &Login::app().with("application_name", "shop"));
    client.query("begin").expect_no_error();
    let pid = client.backend();
    let servers = shown(&mut console, "SERVERS");
    let [row] = &servers[..] else { panic!("{servers:?}") };
    assert_eq!((&row["remote_pid"], row["state"].as_str()), (&pid, "active"));
    assert_eq!(row["port"], server.port().to_string());
    let clients = shown(&mut console, "CLIENTS");
    let shop = clients.iter().find(|row| row["application_name"] == "shop").expect("it is here");
    assert_eq!((&shop["link"], &shop["ptr"]), (&row["ptr"], &row["link"]));
    assert_eq!(shop["local_port"], gate.postgres_port().to_string());
    let port = client.stream().local_addr().unwrap().port();
    assert_eq!(shop["port"], port.to_string());
    client.query("select 'secret', 42").expect_no_error();
    let holders = shown(&mut console, "HOLDERS");
    assert!(!format!("{holders:?}").contains("secret"), "{holders:?}");
    client.query("commit").expect_no_error();
    assert_eq!(shown(&mut console, "SERVERS")[0]["state"], "idle");
    let config = shown(&mut console, "CONFIG");
    assert!(!format!("{config:?}").contains("app-secret"));
}

/// Clients that each count in a row of their own until they are told to stop; how often they did.
fn counting(gate: &Tidegate, clients: usize, work: impl FnOnce(&AtomicU32)) -> u32 {
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let clients: Vec<_> = (0..clients).map(|_| gate.client()).collect();
    thread::scope(|scope| {
        let (stop, done) = (&stop, &done);
        for (number, mut client) in clients.into_iter().enumerate() {
            scope.spawn(move || {
                let update = format!("update counter set n = n + 1 where client = {number}");
                while !stop.load(SeqCst) {
                    for sql in ["begin", &update, "commit"] {
                        client.query(sql).expect_no_error();
                    }
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        work(done);
        stop.store(true, SeqCst);
    });
    done.load(SeqCst)
}

fn counter(server: &Postgres) {
    let mut direct = server.direct();
    let sql = "create table counter as select client, 0 as n from generate_series(0, 11) client";
    direct.query(sql).expect_no_error();
}

#[test]
fn a_pause_under_load_loses_nothing() {
    let mut server = Postgres::start();
    counter(&server);
    // Longer than anybody may wait, if the wait counted.
    let gate = Setup::new().postgres(&server).pool_size(3).wait_ms(2_000).start();
    let mut console = console(&gate);
    let done = counting(&gate, 12, |done| {
        let until_more = |than: u32| {
            eventually("they work", || (done.load(SeqCst) > than).then_some(()));
        };
        until_more(20);
        assert_eq!(console.query("PAUSE app").expect_no_error().tags(), ["PAUSE"]);
        let paused = done.load(SeqCst);
        assert_eq!(server.sessions_of("app"), 0, "all is idle, and closed");
        assert_eq!(number(&of_app(&mut console, "DATABASES"), "paused"), 1);
        server.restart();
        thread::sleep(Duration::from_millis(2_300));
        assert!(done.load(SeqCst) <= paused + 12, "nobody works");
        eventually("all wait", || {
            (number(&of_app(&mut console, "POOLS"), "cl_waiting") == 12).then_some(())
        });
        assert_eq!(console.query("RESUME app").expect_no_error().tags(), ["RESUME"]);
        until_more(paused + 40);
        console.query("PAUSE; RESUME").expect_no_error();
        until_more(paused + 80);
    });
    assert_eq!(server.direct().one("select sum(n) from counter"), done.to_string());
    assert_eq!(code(&console.query("RESUME")), "55000");
    assert_eq!(code(&console.query("RESUME app")), "55000");
    assert_eq!(code(&console.query("PAUSE nowhere")), "3D000");
}

#[test]
fn a_pause_that_its_client_gives_up_is_undone() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let (mut patient, mut holder) = (console(&gate), gate.client());
    holder.query("begin").expect_no_error();
    let is_paused = |console: &mut Connection, paused: u64| {
        eventually("it is so", || {
            (number(&of_app(console, "DATABASES"), "paused") == paused).then_some(())
        });
    };
    // By Ctrl-C.
    let mut first = console(&gate);
    first.send(&query("PAUSE"));
    is_paused(&mut patient, 1);
    let told = Instant::now();
    first.cancel();
    assert_eq!(first.reply().codes(), ["57014"]);
    assert!(told.elapsed() < Duration::from_secs(1));
    is_paused(&mut patient, 0);
    // By leaving.
    first.send(&query("PAUSE app"));
    is_paused(&mut patient, 1);
    first.hang_up();
    is_paused(&mut patient, 0);
    gate.client().query("select 1").expect_no_error();
    // By somebody else.
    let mut late = console(&gate);
    late.send(&query("PAUSE app"));
    is_paused(&mut patient, 1);
    patient.query("RESUME app").expect_no_error();
    assert_eq!(late.reply().codes(), ["55000"]);
    // One that was answered stays.
    holder.query("commit").expect_no_error();
    let mut last = console(&gate);
    last.query("PAUSE").expect_no_error();
    last.hang_up();
    is_paused(&mut patient, 1);
    patient.query("RESUME").expect_no_error();
    gate.client().query("select 1").expect_no_error();
}

#[test]
fn who_comes_to_replicate_during_a_pause_is_let_in_behind_it() {
    let server = Postgres::start();
    let gate = Setup::new().database_url(&server.url_with("postgres", "", "app")).start();
    let login = |database: &str| {
        let (user, database) = ("postgres".to_owned(), database.to_owned());
        Login { user, password: String::new(), database, ..Login::app() }
    };
    let mut console = gate.try_client(&login("tidegate")).unwrap();
    console.query("PAUSE").expect_no_error();
    thread::scope(|scope| {
        let standby = scope.spawn(|| {
            let login = login("app").with("replication", "database");
            let mut standby = gate.try_client(&login).unwrap();
            standby.query("IDENTIFY_SYSTEM").expect_no_error();
        });
        eventually("it is here", || {
            (gate.postgres_metric("tidegate_clients", &[("state", "greeting")]) == 1.0)
                .then_some(())
        });
        console.query("RESUME").expect_no_error();
        standby.join().unwrap();
    });
}

#[test]
fn reconnect_replaces_connections_as_they_come_back() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let (mut console, mut client, mut other) = (console(&gate), gate.client(), gate.client());
    let mut listener = gate.client();
    listener.query("listen news").expect_no_error();
    listener.query("select 1").expect_no_error();
    client.query("begin").expect_no_error();
    let before = client.backend();
    console.query("RECONNECT app").expect_no_error();
    assert_eq!(client.backend(), before, "a transaction is finished where it began");
    let mut waiting = self::console(&gate);
    waiting.send(&query("WAIT_CLOSE app"));
    assert!(waiting.frame_within(Duration::from_millis(300)).is_none(), "one is still there");
    client.query("commit").expect_no_error();
    assert_eq!(waiting.reply().expect_no_error().tags(), ["WAIT_CLOSE"]);
    assert_ne!(client.backend(), before);
    console.query("WAIT_CLOSE").expect_no_error();
    // Who listens hears that something may be missing, and then hears again.
    let notice = eventually("a notice", || {
        let frame = listener.frame_within(Duration::from_millis(100))?;
        (frame.tag == b'N').then_some(frame)
    });
    assert!(notice.refusal().message.contains("may have been missed"));
    other.query("notify news, 'hello'").expect_no_error();
    assert_eq!(listener.frame().tag, b'A');
}

#[test]
fn kill_sends_the_clients_of_a_database_away() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 3);
    let (mut console, mut idle, mut open, mut busy) =
        (console(&gate), gate.client(), gate.client(), gate.client());
    idle.query("select 1").expect_no_error();
    open.query("begin").expect_no_error();
    busy.send(&query("select pg_sleep(60)"));
    eventually("it runs", || {
        (number(&of_app(&mut console, "POOLS"), "sv_active") == 2).then_some(())
    });
    // Clients that come back at once are not killed again and again.
    let (over, came) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                gate.client().hang_up();
                came.fetch_add(1, SeqCst);
            }
        });
        eventually("somebody came", || (came.load(SeqCst) > 3).then_some(()));
        assert_eq!(console.query("KILL app").expect_no_error().tags(), ["KILL"]);
        over.store(true, SeqCst);
    });
    for mut killed in [idle, open, busy] {
        let words = killed.last_words();
        let last = words.last().expect("it is told").refusal();
        assert_eq!((last.severity.as_str(), last.code.as_str()), ("FATAL", "57P01"));
    }
    assert_eq!(server.sessions_of("app"), 0);
    assert_eq!(shown(&mut console, "SERVERS").len(), 0);
    // Who comes now waits until the database is resumed.
    let mut late = gate.client();
    late.send(&query("select 1"));
    assert!(late.frame_within(Duration::from_millis(300)).is_none());
    console.query("RESUME app").expect_no_error();
    late.reply().expect_no_error();
}

#[test]
fn a_disabled_database_lets_nobody_new_in() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let (mut console, mut here) = (console(&gate), gate.client());
    console.query("DISABLE app").expect_no_error();
    assert_eq!(number(&of_app(&mut console, "DATABASES"), "disabled"), 1);
    here.query("select 1").expect_no_error();
    let refused = gate.try_client(&Login::app()).err().expect("it is disabled");
    assert_eq!(refused.code, "57P03");
    console.query("ENABLE app").expect_no_error();
    gate.client().query("select 1").expect_no_error();
}

#[test]
fn who_may_not_use_it_learns_nothing() {
    let server = Postgres::start();
    let users = NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "\"reader\" \"reader-secret\"\n\"watch\" \"watch-secret\"\n")
        .unwrap();
    let gate = |console: &str| {
        let setup = Setup::new().postgres(&server).pool_size(2);
        let setup = setup.env("TIDEGATE_POSTGRES_USERS_FILE", users.path().to_str().unwrap());
        setup
            .env("TIDEGATE_POSTGRES_ANY", "1")
            .env("TIDEGATE_POSTGRES_CONSOLE_USERS", console)
            .start()
    };
    let try_as = |gate: &Tidegate, user: &str, password: &str, database: &str| {
        let login = Login {
            user: user.into(),
            password: password.into(),
            database: database.into(),
            parameters: Vec::new(),
        };
        gate.try_client(&login).map(|_| ()).map_err(|Refusal { code, message, .. }| (code, message))
    };
    let usual = gate("*");
    assert_eq!(try_as(&usual, "app", "app-secret", "tidegate"), Ok(()));
    for database in ["tidegate", "pgbouncer"] {
        let wrong = try_as(&usual, "app", "wrong-secret", database).unwrap_err();
        assert_eq!(wrong.0, "28P01");
        let unknown = try_as(&usual, "nobody", "wrong-secret", database).unwrap_err();
        assert_eq!(unknown.1, wrong.1.replace("app", "nobody"));
        // As of any database that the server has not.
        let missing = try_as(&usual, "reader", "reader-secret", "nowhere").unwrap_err();
        assert_eq!(missing.0, "3D000");
        let told = try_as(&usual, "reader", "reader-secret", database).unwrap_err();
        assert_eq!(told, (missing.0, missing.1.replace("nowhere", database)));
    }
    let named = gate("watch");
    assert_eq!(try_as(&named, "watch", "watch-secret", "pgbouncer"), Ok(()));
    assert_eq!(try_as(&named, "watch", "wrong-secret", "pgbouncer").unwrap_err().0, "28P01");
    assert_eq!(try_as(&named, "app", "app-secret", "pgbouncer").unwrap_err().0, "3D000");
}

#[test]
fn a_database_of_that_name_wins() {
    let server = Postgres::start();
    server.superuser().query("create database pgbouncer owner app").expect_no_error();
    let url = server.url_with("app", "app-secret", "pgbouncer");
    let gate = Setup::new().database_url(&url).pool_size(2).start();
    let mut client = gate.try_client(&at("pgbouncer")).unwrap();
    assert_eq!(client.one("select current_database()"), "pgbouncer");
    let mut console = gate.try_client(&at("tidegate")).unwrap();
    assert_eq!(shown(&mut console, "STATE").len(), 3);
}

#[test]
fn a_full_house_can_be_looked_at() {
    let server = Postgres::start();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[postgres]\nclient_limit = 1\n").unwrap();
    let gate = Setup::new().postgres(&server).pool_size(2).config(file.path()).start();
    let _only = gate.client();
    assert_eq!(gate.try_client(&Login::app()).err().unwrap().code, "53300");
    let mut console = console(&gate);
    let lists = shown(&mut console, "LISTS");
    let free = lists.iter().find(|row| row["list"] == "free_clients").unwrap();
    assert_eq!(free["items"], "0");
    // Of consoles there are not too many, either.
    let mut more = Vec::new();
    let refused = loop {
        match gate.try_client(&at("tidegate")) {
            Ok(client) => more.push(client),
            Err(refusal) => break refusal,
        }
        assert!(more.len() < 100, "there is no limit");
    };
    assert_eq!((refused.code.as_str(), more.len()), ("53300", 31));
}

#[test]
fn databases_of_one_name_on_two_servers_are_told_apart() {
    let servers = [Postgres::start(), Postgres::start()];
    let setup = Setup::new().postgres(&servers[0]);
    // The second listener takes the port behind the first.
    let _its = ports::free();
    let gate = setup
        .env("FOLLOWER_URL", &servers[1].url())
        .env("TIDEGATE_POSTGRES_URLS", "DATABASE_URL FOLLOWER_URL")
        .pool_size(2)
        .start();
    let mut console = console(&gate);
    let rows = shown(&mut console, "DATABASES");
    let names: Vec<_> = rows.iter().map(|row| (&*row["name"], &*row["database"])).collect();
    assert_eq!(names, [("app", "app"), ("FOLLOWER_URL", "app"), ("pgbouncer", "pgbouncer")]);
    console.query("PAUSE FOLLOWER_URL").expect_no_error();
    let paused = shown(&mut console, "DATABASES").into_iter().map(|row| row["paused"].clone());
    assert_eq!(paused.collect::<Vec<_>>(), ["0", "1", "0"]);
    gate.client().query("select 1").expect_no_error();
    assert_eq!(code(&console.query("RESUME DATABASE_URL")), "55000", "the variable is a name, too");
    console.query("RESUME").expect_no_error();
}

#[test]
fn orders_hold_for_pools_that_are_made_later() {
    let server = Postgres::start();
    let users = NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "\"reader\" \"reader-secret\"\n").unwrap();
    let gate = Setup::new()
        .postgres(&server)
        .pool_size(2)
        .env("TIDEGATE_POSTGRES_USERS_FILE", users.path().to_str().unwrap())
        .env("TIDEGATE_POSTGRES_ANY", "1")
        .start();
    let mut console = console(&gate);
    console.query("PAUSE").expect_no_error();
    let login = Login { user: "reader".into(), password: "reader-secret".into(), ..Login::app() };
    thread::scope(|scope| {
        let late = scope.spawn(|| gate.try_client(&login).map(|mut client| client.backend()));
        eventually("its pool is there", || {
            let pools = shown(&mut console, "POOLS");
            pools.iter().any(|pool| pool["user"] == "reader").then_some(())
        });
        thread::sleep(Duration::from_millis(300));
        assert!(!late.is_finished(), "it waits");
        console.query("RESUME").expect_no_error();
        assert!(late.join().unwrap().is_ok());
    });
    // Of a database with several users there is no one user.
    assert_eq!(of_app(&mut console, "DATABASES")["force_user"], "NULL");
}

#[test]
fn words_that_are_no_command_and_settings() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let mut console = console(&gate);
    for (sql, wanted) in [
        ("select 1", "42601"),
        ("SHOW NOTHING", "42601"),
        ("show version; select 1", "42601"),
        ("SHOW FDS", "0A000"),
        ("SET max_client_conn = 5", "0A000"),
        ("SUSPEND", "0A000"),
    ] {
        assert_eq!(code(&console.query(sql)), wanted, "{sql}");
    }
    for (sql, tags) in [
        ("SET client_encoding TO 'UTF8'", &["SET"][..]),
        ("set application_name = 'x'; show client_encoding", &["SET", "SHOW"]),
        ("", &[]),
        (" ; ", &[]),
        ("DISCARD ALL", &["DISCARD ALL"]),
        ("begin; show version; commit", &["BEGIN", "SHOW", "COMMIT"]),
    ] {
        assert_eq!(console.query(sql).expect_no_error().tags(), tags, "{sql}");
    }
    // As lib/pq greets.
    let login = at("pgbouncer").with("extra_float_digits", "2").with("datestyle", "ISO, MDY");
    let mut agent = gate.try_client(&login.with("options", "-c geqo=off")).unwrap();
    assert!(agent.parameters.contains(&("server_version".into(), "1.18.0/bouncer".into())));
    assert_eq!(agent.query(";").shape(), "IZ");
    let help = console.query("show help");
    assert_eq!(help.shape(), "NCZ");
    assert!(help.frames[0].refusal().detail.contains("WAIT_CLOSE [<db>]"));
    assert_eq!(console.query("begin").status(), 'T');
    assert_eq!(console.query("nonsense").status(), 'E');
    assert_eq!(code(&console.query("show version")), "25P02");
    assert_eq!(console.query("commit").tags(), ["ROLLBACK"]);
    assert_eq!(console.query("show version").status(), 'I');
}

#[test]
fn psql_talks_to_it() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 2);
    let url = format!("postgres://app:app-secret@127.0.0.1:{}/tidegate", gate.postgres_port());
    let psql = |arguments: &[&str]| {
        let mut command = Command::new("psql");
        command.arg(&url).args(["-X", "-A", "-t"]).args(arguments).env("LC_ALL", "C");
        let output = command.output().expect("psql is here");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said =
        psql(&["-c", "\\conninfo", "-c", "show databases", "-c", "PAUSE app", "-c", "RESUME"]);
    assert!(said.contains("connected to database \"tidegate\" as user \"app\""), "{said}");
    assert!(said.contains("app|127.0.0.1|") && said.contains("PAUSE\nRESUME\n"), "{said}");
}

#[test]
fn shutdown_stops_what_serves_and_not_what_runs_a_command() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 2);
    let (mut console, mut client) = (console(&gate), gate.client());
    client.query("begin").expect_no_error();
    assert_eq!(console.query("SHUTDOWN").expect_no_error().tags(), ["SHUTDOWN"]);
    let last = console.last_words();
    assert_eq!(last[0].refusal().code, "57P01");
    client.query("commit").expect_no_error();
    assert_eq!(gate.wait(Duration::from_secs(10)).expect("it ends").code(), Some(0));

    let run = Setup::new().postgres(&server).arguments(&["run", "--", "sleep", "60"]).start();
    let reply = self::console(&run).query("SHUTDOWN");
    assert_eq!(code(&reply), "0A000");
    assert!(reply.errors()[0].hint.contains("the command that it runs"));
}
