//! The bad days of a Postgres pool, one test each: what a broken, rude or dying peer may do, and what
//! everybody else must not notice of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::pg::{
    Connection, Login, VERSION_3_0, bind, copy_data, execute, framed, parse, query, startup, sync,
};
use support::postgres::Postgres;
use support::script::{Script, farewell};
use support::tidegate::{Setup, Tidegate};
use support::{eventually, within};

/// The next session finds nothing of the one that was killed.
fn assert_clean(gate: &Tidegate) {
    let mut next = gate.client();
    let found = "select count(*) from pg_catalog.pg_class c where c.relpersistence = 't' \
                 and pg_catalog.pg_table_is_visible(c.oid)";
    let began = next.query("begin");
    assert_eq!((began.tags(), began.shape()), (vec!["BEGIN".to_owned()], "CZ".to_owned()));
    assert_eq!(next.one(found), "0", "a temp table was left");
    assert_eq!(next.one("show work_mem"), "4MB", "a setting was left");
    assert_eq!(
        next.one(
            "select count(*) from pg_catalog.pg_prepared_statements \
                         where not from_sql and name = 'leftover'"
        ),
        "0"
    );
    next.query("rollback").expect_no_error();
}

/// Cleaning up was a matter of words, not of waiting until the connection is given up.
fn assert_nothing_timed_out(gate: &Tidegate) {
    assert_eq!(closed_for(gate, "cleanup_timeout"), 0.0);
}

fn closed_for(gate: &Tidegate, reason: &str) -> f64 {
    gate.postgres_metric("tidegate_server_closed_total", &[("reason", reason)])
}

/// No session of ours is left in a transaction or busy.
fn assert_settled(server: &Postgres) {
    eventually("every backend is idle", || {
        let busy =
            "select count(*) from pg_stat_activity where usename = 'app' and state <> 'idle'";
        (server.superuser().one(busy) == "0").then_some(())
    });
}

#[test]
fn a_startup_packet_of_absurd_length_is_refused_at_once() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let before = gate.resident_kib();
    for length in [0_u32, 3, 7, 10_001, 0x7fff_ffff, 0xffff_ffff] {
        let mut rude = Connection::knock(gate.postgres_port()).unwrap();
        rude.send(&[length.to_be_bytes(), VERSION_3_0.to_be_bytes()].concat());
        let asked = Instant::now();
        // A word of refusal or none: but the connection ends, and long before the login deadline.
        rude.last_words();
        assert!(asked.elapsed() < Duration::from_secs(3), "length {length}: {:?}", asked.elapsed());
    }
    assert!(gate.resident_kib() < before + 10_000, "memory was reserved for an absurd length");
    gate.assert_alive();
    assert_eq!(gate.client().one("select 1"), "1");
}

#[test]
fn garbage_instead_of_a_greeting_is_refused() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let tail = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len() + 4).unwrap().to_be_bytes();
        [&length[..], bytes].concat()
    };
    let garbage = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x00\x05\x07\x00\x00\x01\x00".to_vec(),
        b"\x16GET / HTTP/1.1\r\n".to_vec(),
        tail(&[0, 3, 0, 0]),
        tail(b"\x00\x03\x00\x00user\x00app"),
        tail(b"\x00\x03\x00\x00\x00"),
        tail(b"\x00\x02\x00\x00user\x00app\x00\x00"),
        tail(b"\x00\x07\x00\x00user\x00app\x00\x00"),
        tail(b"\x00\x03\x00\x00user\x00\xff\xfe\x00database\x00app\x00\x00"),
        tail(&80_877_102_u32.to_be_bytes()),
    ];
    for bytes in garbage {
        let mut rude = Connection::knock(gate.postgres_port()).unwrap();
        rude.send(&bytes);
        let asked = Instant::now();
        rude.last_words();
        assert!(asked.elapsed() < Duration::from_secs(5), "{}", bytes.escape_ascii());
    }
    gate.assert_alive();
    assert_eq!(gate.client().one("select 1"), "1");
}

#[test]
fn a_frame_of_absurd_length_ends_its_own_session_only() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let mut bystander = gate.client();
    let backend = bystander.backend();
    let before = gate.resident_kib();
    let every = b"QPBDECSHFXdcfpz\0".iter();
    let every = every.flat_map(|tag| [3_u32, 0x7fff_ffff].map(|length| (*tag, length)));
    let every = every.chain([0, 0xffff_ffff].map(|length| (b'Q', length)));
    // What carries names alone, or nothing, is never long.
    let long = b"CDEf".map(|tag| (tag, 10_001)).into_iter().chain(b"SHc".map(|tag| (tag, 5)));
    for (tag, length) in every.chain(long) {
        let mut rude = gate.client();
        rude.send(&[&[tag][..], &length.to_be_bytes(), &[0; 64]].concat());
        let words = rude.last_words();
        let told = words.last().map(|frame| frame.refusal()).unwrap_or_default();
        let what = format!("{} {length}: {words:?}", tag.escape_ascii());
        assert_eq!((told.severity.as_str(), told.code.as_str()), ("FATAL", "08P01"), "{what}");
        assert_eq!(bystander.backend(), backend, "the server has heard nothing of it: {what}");
    }
    let grown = gate.resident_kib().saturating_sub(before);
    assert!(grown < 20_000, "{grown} KiB were reserved for absurd lengths");
    gate.assert_alive();
    assert_settled(&server);
    assert_clean(&gate);
}

#[test]
fn an_understood_frame_has_a_bound() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let mut rude = gate.client();
    rude.stream().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let before = gate.resident_kib();
    let length = 900_000_000_u32;
    let mut stream = rude.stream();
    let mut sent = stream.write_all(&[&b"P"[..], &length.to_be_bytes(), b"name\0"].concat());
    let chunk = vec![b'x'; 1_000_000];
    let began = Instant::now();
    for _ in 0..50 {
        assert!(began.elapsed() < Duration::from_secs(15), "more and more of one Parse is taken");
        sent = sent.and_then(|()| stream.write_all(&chunk));
    }
    let ended = sent.expect_err("50 MB of one Parse were taken").kind();
    let refused = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
    assert!(refused.contains(&ended), "not refused, but kept waiting: {ended}");
    let refusal = rude.last_words().iter().find(|frame| frame.kind() == 'E').map(|f| f.refusal());
    // The refusal may be lost with the bytes that were still on their way.
    if let Some(refusal) = refusal {
        assert!(["54000", "08P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    }
    assert!(gate.resident_kib() < before + 40_000);
    gate.assert_alive();
    assert_clean(&gate);
}

#[test]
fn half_a_greeting_and_silence_ends_at_the_login_deadline() {
    let server = Postgres::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[postgres]\nlogin_timeout_ms = 700\n").unwrap();
    let mut gate = Setup::new().postgres(&server).pool_size(1).config(file.path()).start();
    let hello = startup(VERSION_3_0, &Login::app());
    let ssl = [8_u32.to_be_bytes(), support::pg::SSL.to_be_bytes()].concat();
    // The last is the beginning of a TLS handshake that never goes on.
    let shaking = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for half in [&b""[..], &hello[..3], &hello[..20], &hello[..], &ssl[..], &shaking[..]] {
        let asked = Instant::now();
        let mut silent = Connection::knock(gate.postgres_port()).unwrap();
        silent.send(half);
        if half == &ssl[..] {
            let mut answer = [0];
            std::io::Read::read_exact(&mut silent.stream(), &mut answer).unwrap();
        }
        silent.last_words();
        let waited = asked.elapsed();
        assert!(waited >= Duration::from_millis(600), "ended after {waited:?}, before its time");
        assert!(waited < Duration::from_secs(6), "{waited:?}");
    }
    gate.assert_alive();
    assert_eq!(gate.client().one("select 1"), "1");
}

#[test]
fn a_client_killed_in_a_transaction_leaves_a_clean_backend() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let backend = gate.client().backend();
    for dying in [
        &["begin", "create temp table leftover (i int)", "set work_mem = '9MB'"][..],
        &["begin", "set local work_mem = '9MB'", "select 1/0"],
        &["begin", "declare leftover cursor for select 1"],
    ] {
        let mut victim = gate.client();
        for sql in dying {
            victim.query(sql);
        }
        victim.hang_up();
        assert_clean(&gate);
        assert_settled(&server);
        assert_eq!(gate.client().backend(), backend, "rolled back and kept, not closed");
    }
}

#[test]
fn a_client_killed_while_its_query_runs_frees_the_backend_soon() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut victim = gate.client();
    victim.send(&query("begin; create temp table leftover (i int); select pg_sleep(60)"));
    let running =
        "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'";
    eventually("it runs", || (server.superuser().one(running) == "1").then_some(()));
    let killed = Instant::now();
    victim.hang_up();
    assert_clean(&gate);
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    assert_settled(&server);
}

#[test]
fn a_client_killed_in_a_copy_leaves_a_clean_backend() {
    let server = Postgres::start();
    server.direct().query("create table t (id int, v text)").expect_no_error();
    let gate = Tidegate::before(&server, 1);
    let half = copy_data(b"1\thalf a copy\n");
    for cut in [half.len(), half.len() - 3] {
        let backend = gate.client().backend();
        let mut victim = gate.client();
        victim.send(&query("copy t from stdin"));
        victim.frames_until('G');
        victim.send(&half[..cut]);
        victim.hang_up();
        assert_clean(&gate);
        assert_eq!(gate.client().one("select count(*) from t"), "0", "half a copy was kept");
        assert_eq!(gate.client().backend(), backend, "the copy was failed, not the connection");
    }
    let mut victim = gate.client();
    victim
        .send(&query("copy (select repeat('y', 1000) from generate_series(1, 500000)) to stdout"));
    victim.frames_until('d');
    victim.hang_up();
    assert_clean(&gate);
    assert_settled(&server);
    assert_eq!(closed_for(&gate, "client_gone_mid_frame"), 0.0);
    assert_nothing_timed_out(&gate);
}

#[test]
fn a_client_killed_in_a_pipeline_leaves_a_clean_backend() {
    let server = Postgres::start();
    server.direct().query("create table t (id int)").expect_no_error();
    let gate = Tidegate::before(&server, 1);
    let round =
        [parse("leftover", "insert into t values (1)"), bind("", "leftover", &[]), execute("", 0)]
            .concat();
    for tail in
        [&b""[..], &sync(), &sync()[..3], &query("begin; set work_mem = '9MB'"), &b"Q\0\0"[..]]
    {
        let mut victim = gate.client();
        victim.send(&[&round[..], tail].concat());
        victim.hang_up();
        assert_clean(&gate);
        assert_settled(&server);
    }
    let mut victim = gate.client();
    let many: Vec<u8> = (0..2_000).flat_map(|_| query("select repeat('z', 10000)")).collect();
    victim.send(&many[..many.len() / 2]);
    victim.hang_up();
    assert_clean(&gate);
    assert_settled(&server);
    assert_nothing_timed_out(&gate);
}

#[test]
fn clients_killed_by_the_dozen_leak_nothing() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 3);
    std::thread::scope(|scope| {
        for seed in 0..8_usize {
            let gate = &gate;
            scope.spawn(move || {
                for round in 0..15 {
                    let Ok(mut victim) = gate.try_client(&Login::app()) else { continue };
                    match (seed + round) % 4 {
                        0 => victim.send(&query("begin")),
                        1 => victim.send(&query("select pg_sleep(0.02)")),
                        2 => victim.send(&[parse("", "select 1"), sync()].concat()),
                        _ => victim.send(b"Q\0\0\0\x10sel"),
                    }
                    victim.hang_up();
                }
            });
        }
    });
    assert_settled(&server);
    for state in ["active", "waiting", "greeting", "idle"] {
        eventually("the killed clients are counted out", || {
            (gate.postgres_metric("tidegate_clients", &[("state", state)]) == 0.0).then_some(())
        });
    }
    assert!(server.sessions_of("app") <= 3);
    gate.assert_alive();
    assert_clean(&gate);
}

#[test]
fn postgres_restarts_under_load_and_idle_clients_notice_nothing() {
    let mut server = Postgres::start();
    let mut gate = Setup::new().postgres(&server).pool_size(4).wait_ms(15_000).start();
    let mut idle: Vec<Connection> = (0..10).map(|_| gate.client()).collect();
    for client in &mut idle {
        assert_eq!(client.one("select 1"), "1");
    }
    let stop = AtomicBool::new(false);
    let errors = std::sync::Mutex::new(Vec::new());
    let after = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = gate.client();
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let fine = one_round(&mut client, &gate, &mut failures);
                    if fine && !failures.is_empty() {
                        after.fetch_add(1, Ordering::Relaxed);
                    }
                }
                errors.lock().unwrap().push(failures);
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        server.restart();
        std::thread::sleep(Duration::from_millis(1500));
        stop.store(true, Ordering::Relaxed);
    });
    for failures in errors.into_inner().unwrap() {
        assert!(failures.len() <= 1, "one honest error is enough: {failures:?}");
        for code in failures {
            let honest = ["57P01", "08006", "57P02", "57P03"].contains(&code.as_str());
            assert!(honest, "{code}\n{}", gate.output());
        }
    }
    for client in &mut idle {
        assert_eq!(client.one("select 1"), "1", "an idle client must not notice");
    }
    gate.assert_alive();
}

/// One transaction; a failure's code goes to `failures`, and a connection that was ended is replaced.
fn one_round(client: &mut Connection, gate: &Tidegate, failures: &mut Vec<String>) -> bool {
    client.send(&query("select pg_sleep(0.01)"));
    loop {
        match client.try_frame() {
            Ok(frame) if frame.kind() == 'E' => {
                let refusal = frame.refusal();
                failures.push(refusal.code);
                if refusal.severity == "FATAL" {
                    *client = gate.client();
                    return false;
                }
            }
            Ok(frame) if frame.kind() == 'Z' => return true,
            Ok(_) => {}
            Err(error) => {
                failures.push(format!("closed without a word: {error}"));
                *client = gate.client();
                return false;
            }
        }
    }
}

#[test]
fn postgres_restarts_in_a_transaction_and_its_client_is_told_once() {
    let mut server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).wait_ms(15_000).start();
    let mut client = gate.client();
    client.query("begin").expect_no_error();
    server.restart();
    client.stream().set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _told_already = client.stream().write_all(&query("select 1"));
    let mut codes = Vec::new();
    while let Ok(frame) = client.try_frame() {
        match frame.kind() {
            'E' => codes.push(frame.refusal().code),
            'Z' => break,
            _ => {}
        }
    }
    assert_eq!(codes.len(), 1, "{codes:?}");
    assert!(["57P01", "08006"].contains(&codes[0].as_str()), "{codes:?}");
    assert_eq!(gate.client().one("select 6"), "6");
}

#[test]
fn a_backend_that_dies_without_a_word_is_an_honest_error() {
    let server = Postgres::start();
    let mut gate = Setup::new().postgres(&server).pool_size(1).wait_ms(15_000).start();
    let mut client = gate.client();
    let backend = client.backend();
    client.send(&query("select pg_sleep(60)"));
    let running =
        "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'";
    eventually("it runs", || (server.superuser().one(running) == "1").then_some(()));
    let pid = rustix::process::Pid::from_raw(backend.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let told = client.reply();
    assert_eq!((told.codes(), told.status()), (vec!["08006".to_owned()], 'I'));
    assert!(told.errors()[0].message.contains("may or may not"), "{told:?}");
    assert_eq!(client.one("select 5"), "5", "and its session goes on");
    assert_eq!(gate.client().one("select 6"), "6");
    gate.assert_alive();
}

#[test]
fn a_server_that_goes_behind_its_answer_costs_nobody_an_error() {
    let mut server = Script::start();
    let gate = Setup::new().database_url(&server.url()).pool_size(1).start();
    let [mut asks, mut waits] = [gate.client(), gate.client()];
    asks.send(&query("select 1"));
    eventually("it is served", || {
        (gate.postgres_metric("tidegate_clients", &[("state", "active")]) == 1.0).then_some(())
    });
    waits.send(&query("select 2"));
    eventually("it waits", || {
        (gate.postgres_metric("tidegate_queue_length", &[]) == 1.0).then_some(())
    });
    server.says_at_last(&[framed(b'I', b""), framed(b'Z', b"I"), farewell("57P01")].concat());
    server.gets_well();
    assert_eq!(asks.reply().shape(), "IZ");
    assert_eq!(waits.reply().shape(), "IZ", "it got a connection that lives");
    assert_eq!(asks.query("select 3").shape(), "IZ", "and the other one did not notice");
}

#[test]
fn a_pooled_backend_killed_by_the_server_is_replaced_unseen() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut client = gate.client();
    let mut admin = server.superuser();
    for _ in 0..5 {
        let backend = client.backend();
        let killed = admin.one(&format!("select pg_terminate_backend({backend}, 5000)"));
        assert_eq!(killed, "t");
        assert_ne!(client.backend(), backend, "served by another backend, without an error");
    }
}

#[test]
fn upstream_down_at_start_clients_wait_and_then_go_on() {
    let mut server = Postgres::stopped();
    let gate = Setup::new().postgres(&server).pool_size(1).wait_ms(20_000).start();
    let ready = support::metrics::get(gate.admin_port(), "/readyz").unwrap();
    assert_eq!(ready.status, 200, "not tried yet is ready: {}", ready.body);
    std::thread::scope(|scope| {
        let early = scope.spawn(|| gate.client().one("select 'patience'"));
        std::thread::sleep(Duration::from_millis(700));
        server.resume();
        assert_eq!(early.join().unwrap(), "patience");
    });
}

#[test]
fn upstream_down_clients_get_an_honest_error_at_the_deadline() {
    let server = Postgres::stopped();
    let mut gate = Setup::new().postgres(&server).pool_size(1).wait_ms(800).start();
    let asked = Instant::now();
    let refusal = gate
        .try_client(&Login::app())
        .and_then(|mut client| {
            let reply = client.query("select 1");
            Err(reply.errors().into_iter().next().expect("nothing can have answered"))
        })
        .map(|_: Connection| ())
        .expect_err("no server");
    let waited = asked.elapsed();
    assert!(["08006", "08001", "57P03"].contains(&refusal.code.as_str()), "{refusal:?}");
    let text = format!("{} {} {}", refusal.message, refusal.detail, refusal.hint);
    assert!(text.contains("DATABASE_URL"), "{text}");
    assert!(waited >= Duration::from_millis(700), "gave up after {waited:?}");
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    gate.assert_alive();
    let ready = support::metrics::get(gate.admin_port(), "/readyz").unwrap();
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert!(gate.postgres_metric("tidegate_connect_errors_total", &[]) >= 1.0);
}

#[test]
fn upstream_down_at_start_the_command_still_runs() {
    let server = Postgres::stopped();
    let mut gate = Setup::new()
        .postgres(&server)
        .arguments(&["run", "--", "sh", "-c", "echo started anyway; exit 3"])
        .launch();
    let status = gate.wait(Duration::from_secs(10)).expect("the command ends at once");
    assert_eq!(status.code(), Some(3), "{}", gate.output());
    assert!(gate.output().contains("started anyway"), "{}", gate.output());
}

#[test]
fn a_wrong_upstream_password_is_told_logged_and_not_hammered() {
    let server = Postgres::start();
    let url = server.url_with("app", "wrong-secret", "app");
    let mut gate = Setup::new().database_url(&url).pool_size(3).wait_ms(9_000).start();
    let login = Login { password: "wrong-secret".into(), ..Login::app() };
    let began = Instant::now();
    // As long as attempts would follow each other soon if nobody held back.
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        let refusal = gate
            .try_client(&login)
            .and_then(|mut client| Err(client.query("select 1").errors().remove(0)))
            .map(|_: Connection| ())
            .expect_err("the server refuses this password");
        assert_eq!(refusal.code, "28P01", "{refusal:?}");
        // Nobody waits for what waiting won't mend.
        assert!(asked.elapsed() < Duration::from_secs(5), "told after {:?}", asked.elapsed());
    }
    // The first pause is 3.75 s at least.
    let most = 1 + usize::try_from(began.elapsed().as_millis() / 3750).unwrap();
    let attempts = server.log().matches("FATAL:  password authentication failed").count();
    assert!((1..=most).contains(&attempts), "{attempts} attempts at the server:\n{}", server.log());
    let log = gate.output();
    let logged = log.lines().filter(|line| line.contains("cannot open a server")).count();
    assert!((1..=most).contains(&logged), "logged {logged} times:\n{log}");
    assert!(!log.contains("wrong-secret"), "the password is in the log:\n{log}");
    gate.assert_alive();
}

#[test]
fn a_listener_that_speaks_no_postgres_is_an_honest_error() {
    let quiet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = quiet.local_addr().unwrap().port();
    let url = format!("postgres://app:app-secret@127.0.0.1:{port}/app");
    let gate = Setup::new().database_url(&url).pool_size(1).wait_ms(800).start();
    let asked = Instant::now();
    let refusal = gate
        .try_client(&Login::app())
        .and_then(|mut client| Err(client.query("select 1").errors().remove(0)))
        .map(|_: Connection| ())
        .expect_err("nobody answers there");
    assert!(refusal.code.starts_with("08") || refusal.code == "53300", "{refusal:?}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[test]
fn a_stop_lets_transactions_finish_and_then_ends() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 2);
    let mut busy = gate.client();
    busy.query("begin").expect_no_error();
    busy.send(&query("select pg_sleep(0.7), 'finished'"));
    std::thread::sleep(Duration::from_millis(200));
    gate.signal(Signal::TERM);
    let rows = busy.reply().rows().concat();
    assert_eq!(rows.last().unwrap().as_deref(), Some("finished"));
    busy.query("commit").expect_no_error();
    drop(busy);
    let status = gate.wait(Duration::from_secs(20)).expect("it ends when nothing is owed");
    assert!(status.success(), "{status}\n{}", gate.output());
    within(Duration::from_secs(5), "its server connections are closed", || {
        (server.sessions_of("app") == 0).then_some(())
    });
}

#[test]
fn run_prints_both_answers_and_exits_as_the_command() {
    let server = Postgres::start();
    let redis = support::redis::Redis::start();
    let script = "psql \"$DATABASE_URL\" -Atc \"select 'from ' || current_database()\" \
                  && redis-cli -u \"$REDIS_URL\" ping; exit 7";
    let mut gate = Setup::new()
        .postgres(&server)
        .redis(&redis)
        .arguments(&["run", "--", "sh", "-c", script])
        .launch();
    let status = gate.wait(Duration::from_secs(20)).expect("the command ends");
    let output = gate.output();
    assert_eq!(status.code(), Some(7), "{output}");
    assert!(output.contains("from app") && output.contains("PONG"), "{output}");
}

#[test]
fn without_file_descriptors_it_waits_and_goes_on() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let pid = gate.pid().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--nofile=40:40"]).status().unwrap();
    assert!(limited.success());
    let knocks: Vec<_> = (0..60).map(|_| Connection::knock(gate.postgres_port())).collect();
    std::thread::sleep(Duration::from_millis(500));
    drop(knocks);
    assert_eq!(gate.client().one("select 1"), "1");
    gate.assert_alive();
}

#[test]
fn a_frame_of_no_known_type_is_answered_as_the_server_would() {
    let server = Postgres::start();
    let mut gate = Tidegate::before(&server, 1);
    let codes = |mut client: Connection| {
        client.send(&framed(b'y', b"what?"));
        let words = client.last_words();
        words.iter().filter(|f| f.kind() == 'E').map(|f| f.refusal().code).collect::<Vec<_>>()
    };
    assert_eq!(codes(gate.client()), codes(server.direct()));
    gate.assert_alive();
    assert_clean(&gate);
}

#[test]
fn half_of_a_long_parse_holds_nobody_up() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let mut slow = gate.client();
    let text = format!("select length('{}')", "x".repeat(300_000));
    let request = [parse("", &text), bind("", "", &[]), execute("", 0), sync()].concat();
    let (first, second) = request.split_at(100_000);
    slow.send(first);
    for _ in 0..3 {
        assert_eq!(gate.client().one("select 1"), "1", "the others are served meanwhile");
    }
    slow.send(second);
    assert_eq!(slow.reply().rows(), [[Some("300000".to_owned())]]);
}

#[test]
fn a_client_that_stops_inside_a_message_gives_its_connection_up() {
    let server = Postgres::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[postgres]\nslow_reader_ms = 700\n").unwrap();
    let gate =
        Setup::new().postgres(&server).pool_size(1).wait_ms(9_000).config(file.path()).start();
    let mut stopped = gate.client();
    stopped.send(&query(&format!("select length('{}')", "x".repeat(300_000)))[..100_000]);
    let mut busy = gate.client();
    let asked = Instant::now();
    assert_eq!(busy.one("select 1"), "1", "the connection comes free");
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert!(stopped.try_frame().is_err(), "the other is sent away");
    assert!(gate.output().contains("stopped inside a message"));
    // Whoever works on between two messages is let alone.
    busy.query("begin").expect_no_error();
    std::thread::sleep(Duration::from_millis(1_000));
    busy.query("commit").expect_no_error();
}

#[test]
fn discard_all_of_one_session_takes_nothing_from_the_next() {
    let server = Postgres::start();
    let gate = Tidegate::before(&server, 1);
    let login = Login::app().with("options", "-c search_path=elsewhere");
    let open = || gate.try_client(&login).expect("welcome");
    let mut one = open();
    one.query("discard all").expect_no_error();
    assert_eq!(one.one("show search_path"), "elsewhere", "its own next transaction has it again");
    // Gone while it runs: nobody sees its end.
    one.send(&[query("select pg_sleep(0.2)"), query("discard all")].concat());
    one.hang_up();
    assert_eq!(open().one("show search_path"), "elsewhere");
    let mut two = open();
    two.query("reset all").expect_no_error();
    assert_eq!(open().one("show search_path"), "elsewhere");
}

#[test]
fn too_many_statements_are_an_honest_error() {
    let server = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    std::fs::write(&file, "[postgres]\nstatements_per_client = 3\n").unwrap();
    let gate = Setup::new().postgres(&server).pool_size(1).config(&file).start();
    let mut client = gate.client();
    for n in 0..3 {
        let reply = client.exchange(&[parse(&format!("s{n}"), "select 1"), sync()]);
        reply.expect_no_error();
    }
    client.send(&[parse("s3", "select 1"), sync()].concat());
    let refusal = client.frame().refusal();
    assert_eq!((refusal.severity.as_str(), refusal.code.as_str()), ("FATAL", "53400"));
    assert!(refusal.hint.contains("statements_per_client"), "{refusal:?}");
    assert_eq!(gate.client().one("select 1"), "1");
}
