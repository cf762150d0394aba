//! Redis: each limit is hit, says so, and touches nobody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use support::eventually;
use support::metrics;
use support::redis::{PASSWORD, Redis};
use support::resp::{Value, encode};
use support::tidegate::{Setup, Tidegate};

/// Tidegate with these lines in the `[redis]` section of its file.
fn with_settings(server: &Redis, lines: &str) -> Tidegate {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[redis]\n{lines}\n")).unwrap();
    Setup::new().redis(server).pool_size(2).wait_ms(5_000).config(file.path()).start()
}

#[test]
fn a_stranger_sends_no_longer_command_than_login_frame_bytes() {
    let server = Redis::with_password();
    let mut gate = with_settings(&server, "login_frame_bytes = 2000");
    // No single word is too long: the command is.
    let (user, password) = ("u".repeat(1_000), "p".repeat(990));
    for words in [&["AUTH", &user, &password][..], &["AUTH", &"p".repeat(2_500)]] {
        let mut rude = gate.redis_client();
        let told = rude.command(words);
        assert!(told.error().contains("redis.login_frame_bytes"), "{told:?}");
        assert!(told.error().contains("2000 bytes"), "{told:?}");
        assert!(rude.closed());
    }
    let mut client = gate.redis_client();
    let shorter = client.command(&["AUTH", &"u".repeat(1_000), &"p".repeat(900)]);
    assert!(shorter.error().starts_with("WRONGPASS"), "{shorter:?}");
    assert_eq!(client.command(&["AUTH", PASSWORD]), Value::simple("OK"));
    assert_eq!(client.command(&["SET", "k", &"v".repeat(5_000)]), Value::simple("OK"));
    gate.assert_alive();
}

#[test]
fn a_value_longer_than_frame_bytes_is_refused_wherever_it_goes() {
    let server = Redis::start();
    let mut gate = with_settings(&server, "frame_bytes = 100000");
    let long = "v".repeat(100_001);
    for opening in [&["PING"][..], &["MULTI"]] {
        let mut client = gate.redis_client();
        client.command(opening);
        let told = client.command(&["SET", "k", &long]);
        assert!(told.error().contains("redis.frame_bytes"), "{opening:?}: {told:?}");
        assert!(client.closed());
    }
    let mut client = gate.redis_client();
    assert_eq!(client.command(&["GET", "k"]), Value::Null, "nothing was stored");
    assert_eq!(client.command(&["SET", "k", &long[1..]]), Value::simple("OK"));
    assert_eq!(client.command(&["STRLEN", "k"]), Value::Integer(100_000));
    gate.assert_alive();
}

#[test]
fn a_client_that_closed_its_side_waits_no_longer_than_cleanup_timeout() {
    let server = Redis::start();
    let gate = with_settings(&server, "cleanup_timeout_ms = 400");
    let mut client = gate.redis_client();
    assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
    assert_eq!(server.direct().command(&["CLIENT", "PAUSE", "2500", "ALL"]), Value::simple("OK"));
    client.send(&encode(&["GET", "k"]));
    let asked = Instant::now();
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.try_reply(), None, "the reply comes too late");
    let waited = asked.elapsed();
    assert!(waited > Duration::from_millis(300) && waited < Duration::from_secs(2), "{waited:?}");
}

/// `pipeline_depth` commands are on their way at most: while the server pauses, the client's further ones wait here.
#[test]
fn no_more_commands_of_one_client_travel_than_pipeline_depth() {
    let server = Redis::start();
    let gate = with_settings(&server, "pipeline_depth = 20");
    let mut client = gate.redis_client();
    client.send(&encode(&["INCR", "n"]).repeat(500));
    for n in 1..=500 {
        assert_eq!(client.reply(), Value::Integer(n));
    }
    // Its window is wide open by now.
    let requests = || gate.redis_metric("tidegate_requests_total", &[]);
    let before = requests();
    assert_eq!(server.direct().command(&["CLIENT", "PAUSE", "1000", "ALL"]), Value::simple("OK"));
    client.send(&encode(&["INCR", "n"]).repeat(300));
    eventually("some are on their way", || (requests() > before).then_some(()));
    let most = (0..20).map(|_| requests() - before).fold(0.0, f64::max);
    assert!(most <= 20.0, "{most} at once");
    for n in 501..=800 {
        assert_eq!(client.reply(), Value::Integer(n));
    }
    assert_eq!(requests() - before, 300.0);
}

#[test]
fn large_replies_that_nobody_reads_hold_up_nobody_else() {
    let server = Redis::start();
    let mut gate = with_settings(&server, "reply_stall_ms = 50");
    let mut quick = gate.redis_client();
    quick.command(&["SETRANGE", "big", "999999", "x"]);
    quick.command(&["SET", "small", "s"]);
    let mut slow = gate.redis_client();
    // It is known as one with small replies.
    for _ in 0..100 {
        assert_eq!(slow.command(&["GET", "small"]), Value::bulk("s"));
    }
    slow.stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let _maybe_cut = slow.stream().write_all(&encode(&["GET", "big"]).repeat(400));
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while began.elapsed() < Duration::from_millis(1_500) {
        let asked = Instant::now();
        assert_eq!(quick.command(&["GET", "small"]), Value::bulk("s"));
        longest = longest.max(asked.elapsed());
    }
    // Before, it was 0.6 s and more: as long as 400 MB take.
    assert!(longest < Duration::from_millis(300), "held up for {longest:?}");
    eventually("it is sent away", || {
        gate.output().contains("does not read its replies").then_some(())
    });
    let resident = gate.resident_kib();
    assert!(resident < 100_000, "{resident} KiB are kept for one slow reader");
    gate.assert_alive();
}

/// A client of which the kernel, too, takes little unread.
fn narrow(port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(65_536).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    socket
}

/// Their times run from where each took nothing more, so side by side and not one behind the other.
#[test]
fn many_who_take_nothing_hold_up_others_no_longer_than_one() {
    let server = Redis::start();
    let gate = with_settings(&server, "");
    let mut quick = gate.redis_client();
    quick.command(&["SETRANGE", "big", "999999", "x"]);
    quick.command(&["SETRANGE", "large", "199999", "x"]);
    quick.command(&["SET", "small", "s"]);
    let slow: Vec<_> = (0..40).map(|_| narrow(gate.redis_port())).collect();
    for (mut client, key) in slow.iter().zip(["large", "big"].iter().cycle()) {
        client.write_all(&encode(&["GET", key]).repeat(100)).unwrap();
    }
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        assert_eq!(quick.command(&["GET", "small"]), Value::bulk("s"));
        longest = longest.max(asked.elapsed());
    }
    println!("held up for {longest:?}");
    // Before, it was as many seconds as there were slow ones in a row, six here.
    assert!(longest < Duration::from_millis(2_500), "held up for {longest:?}");
}

/// Whose replies were large gets the next ones over a connection of their own: nobody waits for it, so it may take its time.
#[test]
fn large_replies_travel_apart() {
    let server = Redis::start();
    let mut gate = with_settings(&server, "reply_stall_ms = 100");
    let mut quick = gate.redis_client();
    quick.command(&["SETRANGE", "big", "29999999", "x"]);
    let mut slow = gate.redis_client();
    // The first tells; then a connection is opened for it.
    eventually("it has a lane of its own", || {
        assert_eq!(slow.command(&["GET", "big"]).text().len(), 30_000_000);
        (server.connections() == 2).then_some(())
    });
    assert_eq!(slow.command(&["GET", "big"]).text().len(), 30_000_000);
    slow.send(&encode(&["GET", "big"]));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        assert_eq!(quick.command(&["ECHO", "x"]), Value::bulk("x"));
    }
    assert_eq!(slow.reply().text().len(), 30_000_000, "it was not cut");
    let resident = gate.resident_kib();
    assert!(resident < 64_000, "{resident} KiB");
    // When it is not needed any more the connection is closed for whoever needs it.
    for _ in 0..1_000 {
        slow.command(&["PING"]);
    }
    let mut other = gate.redis_client();
    assert_eq!(other.command(&["WATCH", "x"]), Value::simple("OK"));
    assert_eq!(slow.command(&["GET", "big"]).text().len(), 30_000_000);
    gate.assert_alive();
}

/// Sessions with large replies go on where all do when somebody else needs their connection, or it is lost.
#[test]
fn the_lane_of_large_replies_is_given_up_in_order() {
    let server = Redis::start();
    let mut gate = with_settings(&server, "");
    let mut client = gate.redis_client();
    client.command(&["SETRANGE", "big", "999999", "x"]);
    let mut other = gate.redis_client();
    let mut apart = 0;
    for round in 1..=30 {
        if round % 3 == 1 {
            server.direct().command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        }
        client.send(&encode(&["GET", "big"]).repeat(3));
        client.send(&encode(&["INCR", "n"]));
        if round % 3 == 0 {
            // There is no other connection for it than the large replies'.
            apart += server.connections() - 1;
            assert_eq!(other.command(&["WATCH", "w"]), Value::simple("OK"));
        }
        (0..3).for_each(|_| assert_eq!(client.reply().text().len(), 1_000_000));
        assert_eq!(client.reply(), Value::Integer(round));
        if round % 3 == 0 {
            assert_eq!(other.command(&["UNWATCH"]), Value::simple("OK"));
        }
    }
    assert!(apart > 0, "the replies never travelled apart");
    gate.assert_alive();
}

/// 300 MB are asked for and not read: next to nothing of it lies here, and all of it comes in the end.
#[test]
fn an_unread_pipeline_of_large_values_is_kept_at_the_server() {
    let server = Redis::start();
    let gate = with_settings(&server, "");
    let mut client = gate.redis_client();
    client.command(&["SETRANGE", "big", "999999", "x"]);
    client.send(&encode(&["GET", "big"]).repeat(300));
    let mut most = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        most = gate.resident_kib().max(most);
    }
    assert!(most < 64_000, "{most} KiB");
    (0..300).for_each(|_| assert_eq!(client.reply().text().len(), 1_000_000));
    assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
}

/// The server takes nothing for a while: what comes for it stays with the clients, some of whom leave, and goes out in the end.
#[test]
fn what_a_lane_has_no_room_for_is_not_read_before_it_has() {
    const CLIENTS: usize = 400;
    let server = Redis::start();
    let gate = with_settings(&server, "client_limit = 1000");
    let value = "v".repeat(60_000);
    let set = |number: usize| encode(&["SET", &format!("k{number}"), &value]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gate.redis_client()).collect();
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.command(&["PING"]), Value::simple("PONG")));
    let before = gate.resident_kib();
    server.signal(Signal::STOP);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&set(number));
    }
    let mut most = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        most = gate.resident_kib().max(most);
    }
    let left = clients.split_off(CLIENTS / 2);
    left.into_iter().for_each(support::resp::Connection::hang_up);
    server.signal(Signal::CONT);
    clients.iter_mut().for_each(|client| assert_eq!(client.reply(), Value::simple("OK")));
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.command(&["STRLEN", &format!("k{number}")]), Value::Integer(60_000));
    }
    // 24 MB were sent. What the server's socket takes lies here, too, as it is not answered.
    let grown = most.saturating_sub(before);
    assert!(grown < 16_000, "{grown} KiB");
}

/// Alone on its lane, a client has all the time it needs, and gets every byte.
#[test]
fn a_slow_reader_that_nobody_waits_for_is_waited_for() {
    let server = Redis::start();
    let gate = with_settings(&server, "reply_bytes_per_client = 2000000");
    let mut client = gate.redis_client();
    client.command(&["SETRANGE", "big", "29999999", "x"]);
    client.send(&encode(&["GET", "big"]));
    // Longer than any patience, and far more bytes than may lie here.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(client.reply().text().len(), 30_000_000);
    assert_eq!(client.command(&["PING"]), Value::simple("PONG"));
}

/// It would wait for us to take its commands, and we for it to take its replies.
#[test]
fn a_client_that_asks_on_and_reads_nothing_is_sent_away_in_the_end() {
    let server = Redis::start();
    let gate = with_settings(&server, "slow_reader_ms = 700");
    let mut client = gate.redis_client();
    client.command(&["SETRANGE", "big", "9999", "x"]);
    client.stream().set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let began = Instant::now();
    let sent = client.stream().write_all(&encode(&["GET", "big"]).repeat(500_000));
    assert!(sent.is_err(), "all of it was taken");
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_secs(8), "{waited:?}");
    eventually("it is logged", || {
        gate.output().contains("does not read the replies").then_some(())
    });
    // Whoever reads may ask as much.
    let mut reader = gate.redis_client();
    reader.send(&encode(&["GET", "big"]).repeat(1_000));
    (0..1_000).for_each(|_| assert_eq!(reader.reply().text().len(), 10_000));
}

#[test]
fn the_admin_ports_limits_are_those_of_the_file() {
    let server = Redis::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[admin]\nheader_limit = 8\n").unwrap();
    let gate = Setup::new().redis(&server).config(file.path()).start();
    let with_headers = |count: usize| {
        let headers: String = (0..count).map(|n| format!("x-{n}: y\r\n")).collect();
        metrics::get_with(gate.admin_port(), "/healthz", &headers).unwrap().status
    };
    assert_eq!(with_headers(2), 200);
    assert_eq!(with_headers(20), 431);
}

/// The ids under which the server knows tidegate's connections.
fn server_ids(server: &Redis) -> Vec<String> {
    let list = server.direct().command(&["CLIENT", "LIST"]).text();
    let ours = list.lines().filter(|line| line.contains("name=tidegate"));
    ours.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn a_busy_lane_changes_its_connection_at_the_end_of_its_life() {
    let server = Redis::start();
    let gate = with_settings(&server, "server_lifetime_ms = 1500");
    let mut client = gate.redis_client();
    let mut seen = std::collections::BTreeSet::new();
    let mut n = 0;
    eventually("three connections, one after another", || {
        for _ in 0..20 {
            n += 1;
            assert_eq!(client.command(&["INCR", "n"]), Value::Integer(n));
        }
        let ids = server_ids(&server);
        assert!(ids.len() <= 2, "{ids:?}");
        seen.extend(ids);
        (seen.len() >= 3).then_some(())
    });
    let closed = |reason| gate.redis_metric("tidegate_server_closed_total", &[("reason", reason)]);
    assert!(closed("lifetime") >= 2.0, "{}", gate.page().0);
}

#[test]
fn an_idle_lane_gives_its_connection_up() {
    let server = Redis::start();
    let gate = with_settings(&server, "server_idle_ms = 1000");
    let mut client = gate.redis_client();
    for n in 1..=2 {
        assert_eq!(client.command(&["INCR", "n"]), Value::Integer(n));
        assert_eq!(server_ids(&server).len(), 1);
        eventually("it is closed", || server_ids(&server).is_empty().then_some(()));
    }
}
