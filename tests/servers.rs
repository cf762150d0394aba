//! The support itself: throwaway servers start, answer, restart and end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::postgres::Postgres;
use support::redis::Redis;
use support::resp::Value;

#[test]
fn a_throwaway_postgres_answers_and_restarts() {
    let mut server = Postgres::start();
    let mut client = server.direct();
    assert_eq!(client.one("select 1"), "1");
    server.restart();
    let words = client.last_words();
    assert_eq!(words.iter().map(|frame| frame.refusal().code).collect::<Vec<_>>(), ["57P01"]);
    assert_eq!(server.direct().one("select current_user"), "app");
    assert_eq!(server.sessions_of("nobody_at_all"), 0);
}

#[test]
fn a_throwaway_redis_answers_and_restarts() {
    let mut server = Redis::with_password();
    assert_eq!(server.direct().command(&["SET", "k", "v"]), Value::simple("OK"));
    server.restart();
    assert_eq!(server.direct().command(&["GET", "k"]), Value::Null);
    assert_eq!(server.connections(), 0);
}
