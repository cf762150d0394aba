//! Commands that wait for an element: many sessions share one connection, and a client can't tell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use support::redis::Redis;
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};
use support::{DEADLINE, eventually};

/// Conversations in which nothing comes from elsewhere.
const ALONE: &[&[&str]] = &[
    &["RPUSH a 1 2 3", "BLPOP a 0", "BRPOP a 0", "BLPOP b a 0", "EXISTS a"],
    &["RPUSH b 1 2", "RPUSH a x", "BLPOP b a 1", "BRPOP none a b 1", "LRANGE b 0 -1"],
    &["ZADD z 1 a 2.5 b 3e300 c -inf d 0.1 e", "BZPOPMIN z 0", "BZPOPMAX y z 1", "BZPOPMIN z 1"],
    &["ZADD z 1 a 2 b 3 c", "BZMPOP 0 2 y z MIN", "BZMPOP 1 1 z MAX COUNT 10", "EXISTS z"],
    &["RPUSH a 1 2 3 4", "BLMPOP 0 1 a LEFT", "BLMPOP 1 2 b a RIGHT COUNT 2", "LRANGE a 0 -1"],
    &["RPUSH a 1 2 3", "BLMOVE a b LEFT RIGHT 0", "BRPOPLPUSH a b 1", "LRANGE b 0 -1"],
    &["RPUSH a 1 2 3", "BLMOVE a a RIGHT LEFT 0", "LRANGE a 0 -1"],
    &["BLPOP a b 0.01", "BRPOP a 0.02", "PING", "BLMOVE a b LEFT LEFT 0.01", "GET x"],
    &["BRPOPLPUSH a b 0.01", "BLMPOP 0.01 1 a LEFT", "BZPOPMIN a 0.01", "BZPOPMAX a b 0.01"],
    &["BZMPOP 0.01 1 a MIN", "BLPOP a a 0.0000001", "BLPOP a .01", "BLPOP a 1e-2", "BLPOP a +0.01"],
    &["SET s 1", "BLPOP a s 0", "BLPOP s 0.01", "BZPOPMIN s 0", "BLMOVE s a LEFT LEFT 0", "GET s"],
    &[
        "RPUSH l 1",
        "SET s 1",
        "BLPOP l s 0",
        "BLMOVE a s LEFT LEFT 0.01",
        "BZPOPMIN l 0.01",
        "PING",
    ],
    &["RPUSH a 1", "SET s 1", "BLMOVE a s LEFT LEFT 0", "LRANGE a 0 -1", "BZMPOP 0 1 a MIN"],
    &["BLPOP", "BLPOP a", "BLPOP a x", "BLPOP a -1", "BLPOP a nan", "BLPOP a 1e400", "PING"],
    &["BLPOP a 0.01x", "BLMOVE a b LEFT UP 0", "BLMOVE a b LEFT LEFT", "BRPOPLPUSH a b x", "PING"],
    &["BLMPOP 0 0 a LEFT", "BLMPOP 0 1 a UP", "BLMPOP 0 1 a LEFT COUNT 0", "BLMPOP x 1 a LEFT"],
    &["BLMPOP 0.01 01 a LEFT", "BLMPOP 0 2 a LEFT", "BZMPOP 0 1 a LEFT", "BZMPOP 0 1 a MIN COUNT"],
    &["SET n 1", "RPUSH a 1", "INCR n", "BLPOP a 0", "INCR n", "BLPOP a 0.01", "INCR n", "GET n"],
    &["SELECT 3", "RPUSH a three", "SELECT 0", "BLPOP a 0.01", "SELECT 3", "BLPOP a 0.01", "PING"],
    &["MULTI", "RPUSH a 1", "BLPOP a 0", "BLPOP a 0", "BZPOPMIN a 0", "EXEC", "BLPOP a 0.01"],
    &["WATCH k", "RPUSH a 1", "BLPOP a 0", "BLPOP a 0.01", "MULTI", "BLPOP a 0", "EXEC", "PING"],
    &["CLIENT SETNAME me", "BLPOP a 0.01", "CLIENT GETNAME", "RPUSH a 1", "BRPOP a 0", "DEL a"],
    &["CLIENT UNBLOCK 999999", "CLIENT UNBLOCK 999999 ERROR", "client unblock -1 timeout", "PING"],
    &["CLIENT UNBLOCK", "CLIENT UNBLOCK x", "CLIENT UNBLOCK 1 FOO", "CLIENT UNBLOCK 1 ERROR 2"],
];

/// What a client waits with, and what another one does then.
const TOGETHER: &[(&str, &[&str])] = &[
    ("BLPOP a b 0", &["RPUSH b 1 2 3"]),
    ("BRPOP a b 5", &["RPUSH b 1 2 3"]),
    ("BLMPOP 0 2 a b LEFT", &["RPUSH b 1 2 3"]),
    ("BLMPOP 0 2 a b RIGHT COUNT 2", &["RPUSH a 1 2 3"]),
    ("BLMOVE a b LEFT RIGHT 0", &["RPUSH a 1 2 3"]),
    ("BRPOPLPUSH a b 0", &["RPUSH a 1 2 3"]),
    ("BZPOPMIN a b 0", &["ZADD b 1 x 0.1 y 1e300 z"]),
    ("BZPOPMAX a b 0", &["ZADD b 1 x 0.1 y 1e300 z"]),
    ("BZMPOP 0 2 a b MIN", &["ZADD b 1 x 0.1 y -inf z"]),
    ("BZMPOP 0 2 a b MAX COUNT 9", &["ZADD b 1 x 0.1 y inf z"]),
    ("BLPOP a b 0", &["MULTI", "RPUSH b 1", "RPUSH a 2", "EXEC"]),
    ("BLPOP a 0", &["SET a x", "DEL a", "RPUSH a 1"]),
    ("BLPOP a b 0", &["SET a x", "RPUSH b 1"]),
    ("BLPOP a 0", &["RPUSH c 7", "RENAME c a"]),
    ("BLMOVE a s LEFT RIGHT 0", &["SET s x", "RPUSH a 1"]),
];

const BEHIND_HELLO: &str = "behind-hello";

#[derive(Clone, Copy, Debug)]
enum Pieces {
    One,
    EachCommand,
    EachByte,
}

fn before(server: &Redis, pool_size: usize) -> Tidegate {
    Setup::new().redis(server).pool_size(pool_size).wait_ms(5_000).start()
}

fn words(line: &str) -> Vec<u8> {
    encode(&line.split(' ').collect::<Vec<_>>())
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// All that the peer answers to a conversation, up to its end; without what comes before the marker.
fn transcript(port: u16, conversation: &[&str], pieces: Pieces) -> String {
    let mut stream = connect(port);
    let mut commands: Vec<Vec<u8>> =
        conversation.iter().chain(&["QUIT"]).map(|line| words(line)).collect();
    if matches!(pieces, Pieces::One) {
        commands = vec![commands.concat()];
    }
    for command in &commands {
        let bytes = if matches!(pieces, Pieces::EachByte) { 1 } else { command.len() };
        for piece in command.chunks(bytes) {
            stream.write_all(piece).unwrap();
        }
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        panic!("{conversation:?}, {pieces:?}: {error} behind {}", answer.escape_ascii());
    }
    let text = answer.escape_ascii().to_string();
    // What HELLO tells of the server is not compared here.
    match text.split_once(BEHIND_HELLO) {
        Some((_hello, behind)) => behind.to_owned(),
        None => text,
    }
}

/// Waits until so many clients of the gate wait for something.
fn waiting(gate: &Tidegate, clients: u32) {
    eventually("they wait", || {
        let active = gate.redis_metric("tidegate_clients", &[("state", "active")]);
        (active >= f64::from(clients)).then_some(())
    });
}

fn blocked_on_server(direct: &mut Connection, clients: usize) {
    let wanted = format!("blocked_clients:{clients}\r\n");
    eventually("the server has them wait", || {
        direct.command(&["INFO", "clients"]).text().contains(&wanted).then_some(())
    });
}

fn connected(direct: &mut Connection) -> usize {
    let info = direct.command(&["INFO", "clients"]).text();
    let line = info.lines().find_map(|line| line.strip_prefix("connected_clients:")).unwrap();
    line.parse::<usize>().unwrap() - 1
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[test]
fn a_client_alone_gets_the_same_bytes_as_directly() {
    for server in Redis::each() {
        alone_on(&server);
    }
}

fn alone_on(server: &Redis) {
    // How often it looks whether somebody's time is over.
    server.direct().command(&["CONFIG", "SET", "hz", "500"]);
    let gate = before(server, 3);
    for conversation in ALONE {
        for hello in [&[][..], &["HELLO 3", "ECHO behind-hello"]] {
            let conversation = [hello, conversation].concat();
            for pieces in [Pieces::One, Pieces::EachCommand, Pieces::EachByte] {
                let [direct, pooled] = [server.port(), gate.redis_port()].map(|port| {
                    server.direct().command(&["FLUSHALL"]);
                    transcript(port, &conversation, pieces)
                });
                assert_eq!(pooled, direct, "{conversation:?}, {pieces:?}");
            }
        }
    }
}

#[test]
fn who_waits_gets_the_same_bytes_as_directly() {
    for server in Redis::each() {
        together_on(&server);
    }
}

fn together_on(server: &Redis) {
    let gate = before(server, 3);
    let mut direct = server.direct();
    for (command, others) in TOGETHER {
        for proto in ["2", "3"] {
            let [alone, pooled] = [server.port(), gate.redis_port()].map(|port| {
                direct.command(&["FLUSHALL"]);
                let mut waiter = connect(port);
                waiter
                    .write_all(&[words(&format!("HELLO {proto}")), words("ECHO go")].concat())
                    .unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"$2\r\ngo\r\n") {
                    let mut piece = [0; 512];
                    let n = waiter.read(&mut piece).unwrap();
                    answer.extend_from_slice(&piece[..n]);
                }
                // What is sent behind it waits, too.
                let asked = [words(command), words("ECHO behind"), words("QUIT")].concat();
                waiter.write_all(&asked).unwrap();
                blocked_on_server(&mut direct, 1);
                for other in *others {
                    direct.command(&other.split(' ').collect::<Vec<_>>());
                }
                let mut answer = Vec::new();
                waiter.read_to_end(&mut answer).unwrap();
                let left = ["a", "b"].map(|key| {
                    let kind = direct.command(&["TYPE", key]).text();
                    let list = direct.command(&["LRANGE", key, "0", "-1"]);
                    let set = direct.command(&["ZRANGE", key, "0", "-1", "WITHSCORES"]);
                    format!("{kind} {list:?} {set:?}")
                });
                (answer.escape_ascii().to_string(), left)
            });
            // A newer server looks at all keys again when one has something, and tells of another one's type then.
            let strict = *command == "BLPOP a b 0" && alone.0.starts_with("-WRONGTYPE");
            if strict {
                assert!(pooled.0.starts_with(r"*2\r\n$1\r\nb\r\n$1\r\n1\r\n"), "{pooled:?}");
                continue;
            }
            assert_eq!(pooled, alone, "{command}, RESP{proto}");
        }
    }
}

#[test]
fn fifty_workers_share_one_connection_and_get_each_job_once() {
    for server in Redis::each() {
        fifty_workers_on(&server);
    }
}

fn fifty_workers_on(server: &Redis) {
    const JOBS: usize = 10_000;
    let gate = before(server, 8);
    let port = gate.redis_port();
    let (tell, told) = mpsc::channel();
    let workers: Vec<_> = (0..50)
        .map(|_| {
            let tell = tell.clone();
            std::thread::spawn(move || {
                let mut worker = Connection::open(port);
                loop {
                    let reply = worker.command(&["BRPOP", "jobs", "more", "0"]);
                    let [key, job] = &reply.words()[..] else { panic!("{reply:?}") };
                    if job == "end" {
                        return;
                    }
                    tell.send((key.clone(), job.parse::<usize>().unwrap())).unwrap();
                }
            })
        })
        .collect();
    waiting(&gate, 50);
    let mut direct = server.direct();
    blocked_on_server(&mut direct, 1);
    assert!(connected(&mut direct) <= 2, "a lane and one that waits: {}", connected(&mut direct));
    let began = Instant::now();
    let mut pusher = gate.redis_client();
    for n in (0..JOBS).step_by(100) {
        let pushes: Vec<Vec<String>> = (n..n + 100)
            .map(|n| vec!["LPUSH".into(), ["jobs", "more"][n % 2].into(), n.to_string()])
            .collect();
        let bytes: Vec<u8> = pushes
            .iter()
            .flat_map(|push| encode(&push.iter().map(String::as_str).collect::<Vec<_>>()))
            .collect();
        pusher.send(&bytes);
        for _ in 0..100 {
            pusher.reply();
        }
        assert!(connected(&mut direct) <= 2, "{}", connected(&mut direct));
    }
    let mut seen = BTreeSet::new();
    for _ in 0..JOBS {
        let (key, job) = told.recv_timeout(DEADLINE).unwrap();
        assert_eq!(key, ["jobs", "more"][job % 2]);
        assert!(seen.insert(job), "{job} came twice");
    }
    println!("{JOBS} jobs in {:?}", began.elapsed());
    for _ in 0..50 {
        pusher.command(&["LPUSH", "jobs", "end"]);
    }
    for worker in workers {
        worker.join().unwrap();
    }
    eventually("the connection is given back", || {
        (gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]) == 0.0)
            .then_some(())
    });
}

#[test]
fn whoever_waited_longest_gets_the_first_element() {
    let server = Redis::start();
    let gate = before(&server, 3);
    served_in_order(&mut server.direct(), &gate);
}

/// All have come before the server says to the first one that there is nothing.
#[test]
fn whoever_came_first_to_a_slow_server_gets_the_first_element() {
    let server = Redis::with(&["--enable-debug-command", "yes"]);
    let gate = before(&server, 3);
    assert_eq!(gate.redis_client().command(&["PING"]), Value::simple("PONG"));
    let mut sleeper = server.direct();
    sleeper.send(&words("DEBUG SLEEP 1"));
    served_in_order(&mut server.direct(), &gate);
}

fn served_in_order(direct: &mut Connection, gate: &Tidegate) {
    let mut waiters = Vec::new();
    for n in 0..30 {
        let mut waiter = gate.redis_client();
        waiter.send(&words(["BLPOP q 0", "BLMPOP 0 2 p q LEFT", "BLPOP q p 9"][n % 3]));
        waiters.push(waiter);
        waiting(gate, u32::try_from(n + 1).unwrap());
    }
    eventually("all wait", || {
        (gate.redis_metric("tidegate_parked_clients", &[]) == 30.0).then_some(())
    });
    let jobs: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let mut push = vec!["RPUSH", "q"];
    push.extend(jobs.iter().map(String::as_str));
    direct.command(&push);
    for (n, waiter) in waiters.iter_mut().enumerate().skip(20) {
        direct.command(&["RPUSH", "q", &n.to_string()]);
        assert!(
            format!("{:?}", waiter.reply()).contains(&format!("{:?}", Value::bulk(&n.to_string())))
        );
    }
    for (n, waiter) in waiters.iter_mut().enumerate().take(20) {
        let reply = format!("{:?}", waiter.reply());
        assert!(reply.contains(&format!("{:?}", Value::bulk(&n.to_string()))), "{n}: {reply}");
    }
}

#[test]
fn the_time_to_wait_is_kept_while_others_wait_on() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut others: Vec<_> = (0..20).map(|_| gate.redis_client()).collect();
    for other in &mut others {
        other.send(&words("BLPOP a b 0"));
    }
    waiting(&gate, 20);
    let mut client = gate.redis_client();
    let mut worst = 0.0_f64;
    for round in 0..6 {
        for (time, command) in [
            (0.02, "BLPOP a 0.02"),
            (0.15, "BRPOP a 0.15"),
            (0.4, "BLPOP b c 0.4"),
            (0.1, "BZPOPMIN z 0.1"),
            (0.1, "BLMOVE a c LEFT LEFT 0.1"),
        ] {
            let asked = Instant::now();
            client.send(&words(command));
            assert_eq!(client.reply(), Value::Null, "{command}");
            let late = millis(asked.elapsed()) - time * 1e3;
            assert!((0.0..50.0).contains(&late), "{command} came {late} ms late in round {round}");
            worst = worst.max(late);
        }
    }
    println!("worst: {worst:.1} ms late");
    let mut direct = server.direct();
    direct.command(&[&["RPUSH", "a"][..], &["x"; 20]].concat());
    for other in &mut others {
        assert_eq!(other.reply().words(), ["a", "x"]);
    }
}

/// Clients join a running wait with keys of their own: how long, in milliseconds, until each gets what is pushed.
fn delays_of_new_keys(server: &Redis, gate: &Tidegate) -> Vec<f64> {
    let mut direct = server.direct();
    let mut first = gate.redis_client();
    first.send(&words("BLPOP first 0"));
    blocked_on_server(&mut direct, 1);
    let mut clients = Vec::new();
    let mut delays: Vec<f64> = (0..30)
        .map(|n| {
            let key = format!("key{n}");
            let mut client = gate.redis_client();
            client.send(&encode(&["BLPOP", "none", &key, "0"]));
            waiting(gate, n + 2);
            let pushed = Instant::now();
            direct.command(&["RPUSH", &key, "x"]);
            assert_eq!(client.reply().words(), [key, "x".to_owned()]);
            let delay = millis(pushed.elapsed());
            // It waits on, for another key.
            client.send(&encode(&["BLPOP", &format!("other{n}"), "0"]));
            clients.push(client);
            delay
        })
        .collect();
    delays.sort_by(f64::total_cmp);
    direct.command(&["RPUSH", "first", "x"]);
    assert_eq!(first.reply().words(), ["first", "x"]);
    for (n, client) in clients.iter_mut().enumerate() {
        direct.command(&["RPUSH", &format!("other{n}"), "x"]);
        assert_eq!(client.reply().words(), [format!("other{n}"), "x".to_owned()]);
    }
    delays
}

/// Two of three are as short as that; a busy machine may hold up some, but none until a call ends by itself.
fn assert_short(sorted: &[f64], usual: f64) {
    println!("delays in ms: {sorted:.1?}");
    assert!(sorted[sorted.len() * 2 / 3] < usual, "{sorted:?}");
    assert!(sorted[sorted.len() - 1] < 2000.0, "{sorted:?}");
}

#[test]
fn a_new_key_joins_a_running_wait_at_once() {
    let server = Redis::start();
    let gate = before(&server, 3);
    assert_short(&delays_of_new_keys(&server, &gate), 15.0);
}

#[test]
fn a_new_key_joins_soon_where_the_server_has_no_client_command() {
    let server = Redis::with(&["--rename-command", "CLIENT", ""]);
    let gate = before(&server, 3);
    assert_short(&delays_of_new_keys(&server, &gate), 45.0);
}

#[test]
fn where_the_server_has_not_all_commands_each_waits_alone() {
    for command in ["LMPOP", "BLMPOP"] {
        let server = Redis::with(&["--rename-command", command, ""]);
        let gate = before(&server, 6);
        let mut direct = server.direct();
        let mut clients = [gate.redis_client(), gate.redis_client()];
        for round in 0..2 {
            for client in &mut clients {
                client.send(&words("BLPOP a 0"));
            }
            blocked_on_server(&mut direct, 2);
            direct.command(&["RPUSH", "a", "1", "2"]);
            for client in &mut clients {
                assert_eq!(client.reply().words()[0], "a", "{command} in round {round}");
            }
        }
    }
}

/// Workers come and go while jobs are pushed: what was pushed was delivered once or is still there, in order. Each worker takes in
/// one of these ways.
fn come_and_go(takes: &'static [&'static str], push: [&'static str; 2], left: [&'static str; 4]) {
    for server in Redis::each() {
        come_and_go_on(&server, takes, push, left);
    }
}

fn come_and_go_on(
    server: &Redis,
    takes: &'static [&'static str],
    push: [&'static str; 2],
    left: [&'static str; 4],
) {
    const JOBS: usize = 3_000;
    let gate = before(server, 3);
    let port = gate.redis_port();
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0_u64..12)
        .map(|n| {
            let over = Arc::clone(&over);
            let take = takes[usize::try_from(n).unwrap() % takes.len()];
            std::thread::spawn(move || {
                let (mut got, mut rounds) = (Vec::new(), 0_u64);
                while !over.load(Ordering::Relaxed) {
                    rounds += 1;
                    let stream = connect(port);
                    let mut writer = stream.try_clone().unwrap();
                    writer.write_all(&words(take).repeat(4)).unwrap();
                    // Where each who leaves may be followed by one who takes otherwise, they stay somewhat longer.
                    let pause = (n * 7 + rounds * 13) % (11 * takes.len() as u64);
                    std::thread::sleep(Duration::from_millis(pause));
                    // A server gives nothing more to who has shut its side; what it gave before is read.
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut answer = String::new();
                    (&stream).read_to_string(&mut answer).unwrap();
                    let jobs = answer.lines().filter_map(|line| line.strip_prefix("job:"));
                    got.extend(jobs.map(|job| job.parse::<usize>().unwrap()));
                }
                (got, rounds)
            })
        })
        .collect();
    let mut pusher = server.direct();
    for n in 0..JOBS {
        let job = format!("job:{n}");
        let score = n.to_string();
        match push {
            ["ZADD", key] => pusher.command(&["ZADD", key, &score, &job]),
            [command, key] => pusher.command(&[command, key, &job]),
        };
        if n % 10 == 9 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    over.store(true, Ordering::Relaxed);
    let (mut all, mut rounds) = (Vec::new(), 0);
    for worker in workers {
        let (got, n) = worker.join().unwrap();
        all.extend(got);
        rounds += n;
    }
    eventually("nothing is on its way", || {
        (gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]) == 0.0)
            .then_some(())
    });
    let rest: Vec<usize> = pusher
        .command(&left)
        .words()
        .iter()
        .map(|job| job.strip_prefix("job:").unwrap().parse().unwrap())
        .collect();
    println!("{takes:?}: {} delivered, {} left, {rounds} clients", all.len(), rest.len());
    // What goes back to the end where others come in may find some there.
    assert!(rest.is_sorted() || takes.len() > 1, "{rest:?}");
    assert!(all.len() > JOBS / 10, "hardly any were delivered: {}", all.len());
    all.extend(rest);
    all.sort_unstable();
    assert_eq!(all, (0..JOBS).collect::<Vec<_>>(), "each once");
}

#[test]
fn no_job_is_lost_when_workers_come_and_go() {
    come_and_go(&["BLPOP q 0"], ["RPUSH", "q"], ["LRANGE", "q", "0", "-1"]);
    come_and_go(&["BZPOPMIN z 0"], ["ZADD", "z"], ["ZRANGE", "z", "0", "-1"]);
    come_and_go(&["BLMPOP 0 2 p q LEFT COUNT 3"], ["RPUSH", "q"], ["LRANGE", "q", "0", "-1"]);
}

#[test]
fn no_job_is_lost_when_workers_that_take_in_several_ways_come_and_go() {
    come_and_go(
        &["BLPOP q 0", "BRPOP q 0", "BLMPOP 0 2 p q RIGHT COUNT 3", "BRPOP p q 0"],
        ["RPUSH", "q"],
        ["LRANGE", "q", "0", "-1"],
    );
    come_and_go(
        &["BZPOPMIN z 0", "BZPOPMAX z 0", "BZMPOP 0 1 z MIN COUNT 2"],
        ["ZADD", "z"],
        ["ZRANGE", "z", "0", "-1"],
    );
}

/// What is moved for a client that has gone is in one of the two lists.
#[test]
fn no_job_is_lost_on_its_way_from_list_to_list() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    for n in 0..200 {
        let gone = connect(gate.redis_port());
        (&gone).write_all(&words("BLMOVE from to LEFT RIGHT 0")).unwrap();
        blocked_on_server(&mut direct, 1);
        if n % 2 == 0 {
            drop(gone);
            direct.command(&["RPUSH", "from", &n.to_string()]);
        } else {
            direct.command(&["RPUSH", "from", &n.to_string()]);
            drop(gone);
        }
        blocked_on_server(&mut direct, 0);
        let lengths = "return redis.call('LLEN', 'from') + redis.call('LLEN', 'to')";
        assert_eq!(direct.command(&["EVAL", lengths, "0"]), Value::Integer(1), "round {n}");
        // Also what is on its way back has arrived.
        eventually("the connection is given back", || {
            (gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]) == 0.0)
                .then_some(())
        });
        direct.command(&["DEL", "from", "to"]);
    }
}

#[test]
fn a_client_ends_anothers_waiting() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let mut other = gate.redis_client();
    for (how, proto, wanted) in [
        (&[][..], "2", "*-1\r\n"),
        (&["TIMEOUT"], "3", "_\r\n"),
        (&["error"], "2", "-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
    ] {
        let mut waiter = gate.redis_client();
        waiter.command(&["HELLO", proto]);
        let id = waiter.command(&["CLIENT", "ID"]).text();
        let unblock = [&["CLIENT", "UNBLOCK", &id], how].concat();
        assert_eq!(other.command(&unblock), Value::Integer(0), "it does not wait yet");
        waiter.send(&words("BLPOP a 0"));
        blocked_on_server(&mut direct, 1);
        assert_eq!(other.command(&unblock), Value::Integer(1));
        let mut answer = vec![0; wanted.len()];
        waiter.stream().read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), wanted);
        assert_eq!(other.command(&unblock), Value::Integer(0), "it waits no more");
        blocked_on_server(&mut direct, 0);
        assert_eq!(waiter.command(&["PING"]), Value::simple("PONG"));
    }
}

#[test]
fn those_who_wait_do_not_notice_that_the_connection_is_lost() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let mut waiters: Vec<_> = (0..10).map(|_| gate.redis_client()).collect();
    for (waiter, n) in waiters.iter_mut().zip(1..) {
        waiter.send(&words("BLPOP a 0"));
        waiting(&gate, n);
    }
    for waiter in &mut waiters {
        blocked_on_server(&mut direct, 1);
        direct.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        direct.command(&["RPUSH", "a", "x"]);
        assert_eq!(waiter.reply().words(), ["a", "x"]);
    }
}

/// Somebody else's key of another type disturbs nobody who waits.
#[test]
fn a_value_of_another_type_disturbs_nobody() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let mut waiters: Vec<_> = (0..3).map(|_| gate.redis_client()).collect();
    waiters[0].send(&words("BLPOP a 0"));
    waiting(&gate, 1);
    waiters[1].send(&words("BLPOP b 0"));
    waiting(&gate, 2);
    blocked_on_server(&mut direct, 1);
    direct.command(&["SET", "a", "text"]);
    waiters[2].send(&words("BLPOP c 0"));
    waiting(&gate, 3);
    for (n, key) in [(1, "b"), (2, "c")] {
        direct.command(&["RPUSH", key, "x"]);
        assert_eq!(waiters[n].reply().words(), [key, "x"]);
    }
    direct.command(&["DEL", "a"]);
    direct.command(&["RPUSH", "a", "x"]);
    assert_eq!(waiters[0].reply().words(), ["a", "x"]);
}

/// Who comes to a key of another type is told so, though others wait for it since before it was.
#[test]
fn who_comes_to_a_value_of_another_type_is_refused() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let [mut waiter, mut client] = [gate.redis_client(), gate.redis_client()];
    waiter.send(&words("BLPOP a 0"));
    blocked_on_server(&mut direct, 1);
    direct.command(&["SET", "a", "text"]);
    for line in ["BLPOP a 0", "BLPOP b a 0", "BRPOP a 0", "BLMPOP 0 2 b a LEFT", "BLPOP a b 1"] {
        let asked = Instant::now();
        client.send(&words(line));
        let told = client.reply();
        assert!(told.error().starts_with("WRONGTYPE "), "{line}: {told:?}");
        assert!(millis(asked.elapsed()) < 500.0, "{line}: {:?}", asked.elapsed());
        assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
    }
    direct.command(&["DEL", "a"]);
    direct.command(&["RPUSH", "a", "x"]);
    assert_eq!(waiter.reply().words(), ["a", "x"]);
}

/// Who waits already does not learn that the server takes no writes for a while.
#[test]
fn a_server_that_takes_no_writes_for_a_while_is_waited_for() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let mut waiters = [gate.redis_client(), gate.redis_client()];
    waiters[0].send(&words("BLPOP a 0"));
    blocked_on_server(&mut direct, 1);
    waiters[1].send(&words("BLPOP b 1"));
    // Both must wait before writes are refused: the call for one key has ended, the one for two has begun.
    eventually("the call for one key ends", || {
        direct.command(&["INFO", "commandstats"]).text().contains("unblock:calls=2,").then_some(())
    });
    blocked_on_server(&mut direct, 1);
    direct.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    // The call is made anew without its key.
    assert_eq!(waiters[1].reply(), Value::Null);
    eventually("the call is refused", || {
        let stats = direct.command(&["INFO", "commandstats"]).text();
        let calls = stats.lines().find(|line| line.starts_with("cmdstat_blmpop:"))?;
        (!calls.contains("rejected_calls=0,")).then_some(())
    });
    direct.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    direct.command(&["RPUSH", "a", "x"]);
    assert_eq!(waiters[0].reply().words(), ["a", "x"]);
}

/// A server that becomes a replica ends all waiting; the next one is asked.
#[test]
fn those_who_wait_learn_that_the_server_is_a_replica() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let mut waiter = gate.redis_client();
    waiter.send(&words("BLPOP a 0"));
    blocked_on_server(&mut direct, 1);
    direct.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let told = waiter.reply();
    assert!(told.error().starts_with("READONLY "), "{told:?}");
    direct.command(&["REPLICAOF", "NO", "ONE"]);
    waiter.send(&words("BLPOP a 0"));
    blocked_on_server(&mut direct, 1);
    direct.command(&["RPUSH", "a", "x"]);
    assert_eq!(waiter.reply().words(), ["a", "x"]);
}

#[test]
fn what_becomes_of_elements_is_counted() {
    let server = Redis::with(&["--enable-debug-command", "yes"]);
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let parked = || gate.redis_metric("tidegate_parked_clients", &[]);
    let elements =
        |what: &str| gate.redis_metric("tidegate_parked_elements_total", &[("outcome", what)]);
    let mut waiter = gate.redis_client();
    waiter.send(&words("BLPOP a 0"));
    eventually("it waits", || (parked() == 1.0).then_some(()));
    blocked_on_server(&mut direct, 1);
    direct.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    eventually("the loss is counted", || {
        (gate.redis_metric("tidegate_parked_losses_total", &[]) == 1.0).then_some(())
    });
    direct.command(&["RPUSH", "a", "x"]);
    assert_eq!(waiter.reply().words(), ["a", "x"]);
    eventually("it waits no more", || (parked() == 0.0).then_some(()));
    assert_eq!((elements("handed"), elements("returned")), (1.0, 0.0));
    for round in 0..20 {
        let gone = connect(gate.redis_port());
        (&gone).write_all(&words("BLPOP a 0")).unwrap();
        blocked_on_server(&mut direct, 1);
        // The element comes before the server can hear that nobody waits for it.
        direct.send(&[words("DEBUG SLEEP 0.3"), words("RPUSH a x")].concat());
        drop(gone);
        for _ in 0..2 {
            direct.reply();
        }
        eventually("the connection is given back", || {
            (gate.redis_metric("tidegate_server_connections", &[("state", "pinned")]) == 0.0)
                .then_some(())
        });
        assert_eq!(direct.command(&["LRANGE", "a", "0", "-1"]).words(), ["x"], "round {round}");
        direct.command(&["DEL", "a"]);
        if elements("returned") > 0.0 {
            break;
        }
    }
    assert_eq!((elements("handed"), elements("returned")), (1.0, 1.0));
    assert_eq!((elements("lost"), parked()), (0.0, 0.0));
}

/// More kinds of waiting than connections: those that wait take turns, and let others through.
#[test]
fn who_waits_for_ever_keeps_nobody_from_a_connection() {
    for arguments in [&[][..], &["--rename-command", "CLIENT", ""]] {
        let server = Redis::with(arguments);
        let gate = before(&server, 3);
        let mut lines = vec!["BLPOP a 0".to_owned(), "BRPOP b 0".into(), "BZPOPMIN z 0".into()];
        lines.extend((0..8).map(|n| format!("BLMOVE from{n} to{n} LEFT RIGHT 0")));
        let mut clients: Vec<Connection> = lines.iter().map(|_| gate.redis_client()).collect();
        for (client, line) in clients.iter_mut().zip(&lines) {
            client.send(&words(line));
        }
        waiting(&gate, 11);
        let mut other = gate.redis_client();
        assert_eq!(other.command(&["WATCH", "a"]), Value::simple("OK"));
        assert_eq!(other.command(&["UNWATCH"]), Value::simple("OK"));
        let mut direct = server.direct();
        for (client, line) in clients.iter_mut().zip(&lines).rev() {
            let key = line.split(' ').nth(1).unwrap();
            let push =
                if key == "z" { vec!["ZADD", key, "1", "x"] } else { vec!["RPUSH", key, "x"] };
            direct.command(&push);
            let pushed = Instant::now();
            let reply = client.reply();
            println!("{line}: {:.1} ms", millis(pushed.elapsed()));
            assert!(matches!(reply, Value::Bulk(_) | Value::Array(_)), "{line}: {reply:?}");
        }
    }
}

/// Those who would keep a connection for themselves don't get the one that many wait with.
#[test]
fn who_waits_together_keeps_the_connection_from_who_waits_alone() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let mut worker = gate.redis_client();
    worker.send(&words("BRPOP jobs 0"));
    blocked_on_server(&mut direct, 1);
    let mut readers: Vec<_> = (0..4).map(|_| gate.redis_client()).collect();
    for reader in &mut readers {
        reader.send(&words("XREAD BLOCK 0 STREAMS s $"));
    }
    waiting(&gate, 2);
    eventually("the others wait for a connection", || {
        (gate.redis_metric("tidegate_clients", &[("state", "waiting")]) == 3.0).then_some(())
    });
    for _ in 0..20 {
        let pushed = Instant::now();
        direct.command(&["RPUSH", "jobs", "x"]);
        assert_eq!(worker.reply().words(), ["jobs", "x"]);
        assert!(millis(pushed.elapsed()) < 1000.0, "{:?}", pushed.elapsed());
        worker.send(&words("BRPOP jobs 0"));
        blocked_on_server(&mut direct, 2);
    }
}

/// Its time runs while it waits for a connection of its own, too.
#[test]
fn who_reads_streams_waits_no_longer_than_it_wanted() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut direct = server.direct();
    direct.command(&["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"]);
    let mut holder = gate.redis_client();
    holder.send(&words("XREAD BLOCK 0 STREAMS other $"));
    blocked_on_server(&mut direct, 1);
    for hello in ["2", "3"] {
        let mut client = gate.redis_client();
        client.command(&["HELLO", hello]);
        for line in
            ["XREAD BLOCK 200 STREAMS s $", "XREADGROUP GROUP g block BLOCK 200 STREAMS s >"]
        {
            let asked = Instant::now();
            client.send(&[words(line), words("PING")].concat());
            assert_eq!(client.reply(), Value::Null, "{line}");
            let time = millis(asked.elapsed());
            assert!((200.0..1000.0).contains(&time), "{line}: {time} ms");
            assert_eq!(client.reply(), Value::simple("PONG"));
        }
        direct.command(&["XADD", "s", "1-1", "f", "v"]);
        client.send(&words("XREAD COUNT 1 BLOCK 200 STREAMS s 0"));
        assert_ne!(client.reply(), Value::Null, "what is there is given");
        direct.command(&["DEL", "s"]);
        direct.command(&["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"]);
    }
}

/// The time in which it waited for a connection counts.
#[test]
fn who_reads_streams_waits_for_what_is_left_of_its_time() {
    let server = Redis::start();
    let gate = before(&server, 2);
    let mut direct = server.direct();
    let [mut holder, mut client] = [gate.redis_client(), gate.redis_client()];
    holder.send(&words("XREAD BLOCK 400 STREAMS other $"));
    blocked_on_server(&mut direct, 1);
    let asked = Instant::now();
    client.send(&words("XREAD BLOCK 700 STREAMS s $"));
    assert_eq!(holder.reply(), Value::Null);
    blocked_on_server(&mut direct, 1);
    assert_eq!(client.reply(), Value::Null);
    let time = millis(asked.elapsed());
    assert!((690.0..1000.0).contains(&time), "{time} ms");
}

#[test]
fn too_many_keys_for_one_call_wait_alone() {
    let server = Redis::start();
    let gate = before(&server, 6);
    let mut direct = server.direct();
    let long = "x".repeat(150_000);
    let [few, many] = [1, 900].map(|count| {
        ["key", "more"].map(|name| -> Vec<String> {
            let rest = if count == 1 { long.as_str() } else { "" };
            (0..count).map(|n| format!("{name}{n}{rest}")).collect()
        })
    });
    for both in [many, few] {
        let mut waiters = Vec::new();
        for keys in &both {
            let mut command = vec!["BLPOP"];
            command.extend(keys.iter().map(String::as_str));
            command.push("0");
            let mut waiter = gate.redis_client();
            waiter.send(&encode(&command));
            waiters.push(waiter);
            blocked_on_server(&mut direct, waiters.len());
        }
        for (waiter, keys) in waiters.iter_mut().zip(&both) {
            let key = keys.last().unwrap();
            direct.command(&["RPUSH", key, "x"]);
            assert_eq!(waiter.reply().words(), [key, "x"]);
        }
    }
}

/// A large element comes through, be it there already or not.
#[test]
fn a_large_element_comes_whole() {
    let server = Redis::start();
    let gate = before(&server, 3);
    let mut direct = server.direct();
    let large = "x".repeat(20_000_000);
    let mut client = gate.redis_client();
    direct.command(&["RPUSH", "a", &large]);
    assert_eq!(client.command(&["BLPOP", "a", "0"]).words(), ["a", &large]);
    client.send(&words("BLPOP a 0"));
    blocked_on_server(&mut direct, 1);
    direct.command(&["RPUSH", "a", &large]);
    assert_eq!(client.reply().words(), ["a", &large]);
    assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
}
