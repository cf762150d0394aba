//! The wrapped command comes in with a credential of its own, and never sees the servers' passwords.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use support::eventually;
use support::pg::Login;
use support::postgres::Postgres;
use support::redis::{PASSWORD as REDIS_PASSWORD, Redis};
use support::resp::Value;
use support::tidegate::{Setup, Tidegate};
use tempfile::TempDir;

const PASSWORD: &str = "app-secret";

/// A command that writes its environment down and stays.
struct Wrapped {
    gate: Tidegate,
    environment: BTreeMap<String, String>,
    _home: TempDir,
}

impl Wrapped {
    fn start(setup: Setup, before: &[&str]) -> Self {
        let home = TempDir::new().unwrap();
        let written = home.path().join("environment");
        // HUP is the command's, too.
        let script = "trap '' HUP; env -0 >\"$0.new\"; mv \"$0.new\" \"$0\"; \
            while kill -0 $PPID; do sleep 0.05; done";
        let command = ["sh", "-c", script, written.to_str().unwrap()];
        let words = [&["run", "--"], before, &command].concat();
        let gate = setup.arguments(&words).start();
        let text = eventually("the command has begun", || fs::read_to_string(&written).ok());
        let pairs = text.split_terminator('\0').filter_map(|pair| pair.split_once('='));
        let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { gate, environment, _home: home }
    }

    /// The user and the password of a URL that the command has.
    fn credential(&self, variable: &str) -> (String, String) {
        let url = &self.environment[variable];
        let (_, rest) = url.split_once("://").unwrap();
        let (user, rest) = rest.split_once(':').unwrap();
        (user.to_owned(), rest.split_once('@').unwrap().0.to_owned())
    }

    /// Where a URL that the command has leads.
    fn port(&self, variable: &str) -> u16 {
        let (_, place) = self.environment[variable].split_once('@').unwrap();
        let (_, port) = place.split_once(':').unwrap();
        port.split_once('/').unwrap().0.parse().unwrap()
    }

    /// In which variables a text is to be read.
    fn holding(&self, text: &str) -> Vec<&str> {
        let encoded = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let holds = |value: &str| value.contains(text) || value.contains(&encoded);
        let found = self.environment.iter().filter(|(_, value)| holds(value));
        found.map(|(name, _)| name.as_str()).collect()
    }
}

fn enters(gate: &Tidegate, user: &str, password: &str) -> bool {
    match gate.try_client(&Login::of(user, password, "app")) {
        Ok(mut client) => client.one("select 1") == "1",
        Err(refusal) => {
            assert_eq!(refusal.code, "28P01", "{refusal:?}");
            false
        }
    }
}

fn enters_redis(gate: &Tidegate, words: &[&str]) -> bool {
    let mut client = gate.redis_client();
    let answer = client.command(&[&["AUTH"], words].concat());
    assert_eq!(answer.text() == "OK", client.command(&["PING"]).text() == "PONG");
    answer.text() == "OK"
}

/// Written down for a process that begins with it.
fn setup() -> (Postgres, Redis, Setup) {
    let (postgres, redis) = (Postgres::start(), Redis::with_password());
    let setup = Setup::new().postgres(&postgres).redis(&redis);
    (postgres, redis, setup)
}

#[test]
fn the_command_has_a_credential_of_its_own_and_not_the_password() {
    let (_postgres, _redis, setup) = setup();
    let wrapped = Wrapped::start(setup, &[]);
    for secret in [PASSWORD, REDIS_PASSWORD] {
        assert_eq!(wrapped.holding(secret), [""; 0]);
    }
    let gate = &wrapped.gate;
    let (user, own) = wrapped.credential("DATABASE_URL");
    assert!(own.len() >= 32 && own.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{own}");
    assert_eq!(user, "app");
    assert!(enters(gate, "app", &own) && enters(gate, "app", PASSWORD));
    assert!(!enters(gate, "app", "mistyped") && !enters(gate, "postgres", &own));
    let (_, of_redis) = wrapped.credential("REDIS_URL");
    assert_ne!(own, of_redis, "one opens one");
    assert!(!enters(gate, "app", &of_redis) && !enters_redis(gate, &[&own]));
    for word in [&*of_redis, REDIS_PASSWORD] {
        assert!(enters_redis(gate, &[word]) && enters_redis(gate, &["default", word]));
        assert!(!enters_redis(gate, &["somebody", word]));
    }
    assert!(!gate.output().contains(&own) && !gate.output().contains(&of_redis));
}

#[test]
fn each_start_makes_another() {
    let server = Postgres::start();
    let own = || Wrapped::start(Setup::new().postgres(&server), &[]).credential("DATABASE_URL").1;
    assert_ne!(own(), own());
}

#[test]
fn who_needs_the_password_gets_it() {
    let (_postgres, _redis, setup) = setup();
    let wrapped = Wrapped::start(setup.env("TIDEGATE_CHILD_CREDENTIALS", "url"), &[]);
    assert_eq!(wrapped.credential("DATABASE_URL").1, PASSWORD);
    assert_eq!(wrapped.credential("REDIS_URL").1, REDIS_PASSWORD);
    assert_eq!(wrapped.holding(PASSWORD), ["DATABASE_URL"]);
}

/// As at the server: who has a user's password may say another database with it.
#[test]
fn a_user_s_credentials_open_all_that_its_password_opens() {
    let server = Postgres::start();
    server.superuser().query("create database shop owner app").expect_no_error();
    server.superuser().query("create role ann login password 'ann-secret'").expect_no_error();
    let shop = server.url_with("app", PASSWORD, "shop");
    let setup = Setup::new().postgres(&server).env("SHOP_URL", &shop);
    let setup = setup.env("ANN_URL", &server.url_with("ann", "ann-secret", "app"));
    let setup = setup.env("TIDEGATE_POSTGRES_URLS", "DATABASE_URL SHOP_URL ANN_URL");
    let wrapped = Wrapped::start(setup, &[]);
    let [app, shop, ann] =
        ["DATABASE_URL", "SHOP_URL", "ANN_URL"].map(|url| wrapped.credential(url).1);
    assert!(app != shop && shop != ann);
    let enters = |user: &str, own: &str, database: &str| {
        let login = Login::of(user, own, database);
        wrapped.gate.try_client(&login).map(|_| ()).map_err(|refusal| refusal.code)
    };
    for database in ["app", "shop"] {
        for own in [&*app, &shop, PASSWORD] {
            assert_eq!(enters("app", own, database), Ok(()), "{database}");
        }
        assert_eq!(enters("app", &ann, database), Err("28P01".to_owned()), "{database}");
    }
    assert_eq!(enters("ann", &ann, "app"), Ok(()));
    assert_eq!(enters("ann", &app, "app"), Err("28P01".to_owned()));
    assert_eq!(enters("app", &shop, "nowhere"), Err("3D000".to_owned()), "known, and told");
}

/// What leads nowhere else is not taken away, but told.
#[test]
fn other_variables_with_the_password_are_named() {
    let server = Postgres::start();
    let setup = Setup::new().postgres(&server).env("HEROKU_POSTGRESQL_JADE_URL", &server.url());
    let wrapped = Wrapped::start(setup.env("PGPASSWORD", PASSWORD), &[]);
    assert_eq!(wrapped.holding(PASSWORD), ["HEROKU_POSTGRESQL_JADE_URL", "PGPASSWORD"]);
    for variable in wrapped.holding(PASSWORD) {
        let named = wrapped.gate.output().contains(&format!("variable={variable}"));
        assert!(named, "{}", wrapped.gate.output());
    }
}

#[test]
fn without_a_password_there_is_nothing_to_hide() {
    let server = Postgres::start();
    let url = server.url_with("trusted", "", "app").replace("trusted:@", "trusted@");
    server.superuser().query("create role trusted login").expect_no_error();
    let wrapped = Wrapped::start(Setup::new().database_url(&url), &[]);
    assert!(wrapped.environment["DATABASE_URL"].starts_with("postgres://trusted@127.0.0.1:"));
}

#[test]
fn one_run_inside_another_has_the_outer_ones_credential() {
    let server = Postgres::start();
    // The inner one takes other ports than the outer one was given.
    let free = ["env", "-u", "TIDEGATE_POSTGRES_LISTEN", "-u", "TIDEGATE_ADMIN_LISTEN"];
    let inner = [&free[..], &[env!("CARGO_BIN_EXE_tidegate"), "run", "--"]].concat();
    let wrapped = Wrapped::start(Setup::new().postgres(&server), &inner);
    assert_eq!(wrapped.holding(PASSWORD), [""; 0]);
    let (user, own) = wrapped.credential("DATABASE_URL");
    let port = wrapped.port("DATABASE_URL");
    let mut client = support::pg::Connection::open(port, &Login::of(&user, &own, "app"));
    assert_eq!(client.one("select current_user"), "app");
    assert_ne!(port, wrapped.gate.postgres_port());
    assert!(!enters(&wrapped.gate, "app", &own), "each door has its own");
}

/// The outer one has bound the command to a namespace: the inner one must not bind it again.
#[test]
fn one_run_inside_another_adds_a_prefix_once() {
    let (redis, home) = (Redis::with_password(), TempDir::new().unwrap());
    let file = home.path().join("tidegate.toml");
    fs::write(&file, "[[redis.namespaces]]\nname = \"cache\"\nmode = \"prefix\"").unwrap();
    let setup = Setup::new().redis(&redis).config(&file).env("TIDEGATE_REDIS_NAMESPACE", "cache");
    let free = ["env", "-u", "TIDEGATE_REDIS_LISTEN", "-u", "TIDEGATE_ADMIN_LISTEN"];
    let inner = [&free[..], &[env!("CARGO_BIN_EXE_tidegate"), "run", "--"]].concat();
    let wrapped = Wrapped::start(setup, &inner);
    let port = wrapped.port("REDIS_URL");
    assert_ne!(port, wrapped.gate.redis_port());
    let mut client = support::resp::Connection::open(port);
    assert_eq!(client.command(&["AUTH", &wrapped.credential("REDIS_URL").1]).text(), "OK");
    assert_eq!(client.command(&["SET", "k", "v"]).text(), "OK");
    assert_eq!(redis.direct().command(&["KEYS", "*"]).words(), ["cache:k"]);
}

/// What opens is ours to say, wherever it is said.
#[test]
fn the_own_credential_is_right_inside_a_transaction() {
    let (_postgres, redis, setup) = setup();
    let wrapped = Wrapped::start(setup.env("TIDEGATE_LOGIN_FAILURES_PER_MINUTE", "3"), &[]);
    let own = wrapped.credential("REDIS_URL").1;
    let mut client = wrapped.gate.redis_client();
    assert_eq!(client.command(&["AUTH", &own]).text(), "OK");
    let said = client.pipeline(&[
        &["MULTI"],
        &["AUTH", &own],
        &["AUTH", "default", REDIS_PASSWORD],
        &["SET", "k", "v"],
        &["AUTH", "mistyped"],
        &["AUTH", "a", "b", "c"],
        &["EXEC"],
    ]);
    let [.., answer] = &said[..] else { panic!("{said:?}") };
    let wrong = "WRONGPASS invalid username-password pair or user is disabled.";
    assert_eq!(answer.words(), ["OK", "OK", "OK", wrong, "ERR syntax error"]);
    assert_eq!(said[..6].iter().map(Value::text).collect::<Vec<_>>()[1..], ["QUEUED"; 5]);
    // The server has heard of none of them: no failed login, no other user.
    let log = redis.direct().command(&["ACL", "LOG"]);
    assert_eq!(log, Value::Array(Vec::new()));
    // Without a word it is no command, as on the server.
    let said = client.pipeline(&[&["MULTI"], &["AUTH"], &["EXEC"]]);
    assert!(said[1].error().contains("wrong number"), "{said:?}");
    assert!(said[2].error().starts_with("EXECABORT"), "{said:?}");
    // Guesses are counted there, too.
    let failures = || wrapped.gate.redis_metric("tidegate_login_failures_total", &[]);
    assert_eq!(failures(), 1.0);
}

/// The password changes, and then the user; the command goes on with what it was given.
#[test]
fn what_the_command_has_outlives_every_rotation() {
    let (server, redis, home) =
        (Postgres::start(), Redis::with_password(), TempDir::new().unwrap());
    let file = |name: &str| -> PathBuf { home.path().join(name) };
    fs::write(file("url"), server.url()).unwrap();
    fs::write(file("redis"), redis.url()).unwrap();
    fs::write(file("tidegate.toml"), "reload_check_ms = 0\npassword_overlap_ms = 0").unwrap();
    let setup = Setup::new().database_url_file(&file("url")).redis_url_file(&file("redis"));
    let wrapped = Wrapped::start(setup.config(&file("tidegate.toml")), &[]);
    let gate = &wrapped.gate;
    assert_eq!(wrapped.holding(PASSWORD), [""; 0]);
    let (own, of_redis) = (wrapped.credential("DATABASE_URL").1, wrapped.credential("REDIS_URL").1);
    let reloaded = |count: f64| {
        gate.signal(Signal::HUP);
        eventually("it is taken", || {
            let taken = gate.page().sum("tidegate_reloads_total", &[("outcome", "taken")]);
            (taken == count).then_some(())
        });
    };
    let (mut superuser, mut owner) = (server.superuser(), redis.direct());
    for (number, word) in (1..).zip(["second-secret", "third-secret"]) {
        superuser.query(&format!("alter role app password '{word}'")).expect_no_error();
        fs::write(file("url"), server.url_with("app", word, "app")).unwrap();
        owner.command(&["CONFIG", "SET", "requirepass", word]);
        fs::write(file("redis"), redis.url().replace(REDIS_PASSWORD, word)).unwrap();
        reloaded(f64::from(number));
        assert!(enters(gate, "app", &own) && enters(gate, "app", word));
        assert!(enters_redis(gate, &[&of_redis]) && enters_redis(gate, &[word]));
    }
    assert!(!enters(gate, "app", "second-secret") && !enters_redis(gate, &["second-secret"]));
    superuser
        .query("create role app2 login password 'fourth-secret' in role app")
        .expect_no_error();
    fs::write(file("url"), server.url_with("app2", "fourth-secret", "app")).unwrap();
    reloaded(3.0);
    assert!(enters(gate, "app", &own) && enters(gate, "app2", "fourth-secret"));
    assert!(!enters(gate, "app2", &own) && !enters(gate, "app", "third-secret"));
    // And back again.
    fs::write(file("url"), server.url_with("app", "third-secret", "app")).unwrap();
    reloaded(4.0);
    assert!(enters(gate, "app", &own) && enters(gate, "app", "third-secret"));
    assert!(!enters(gate, "app2", &own) && !enters(gate, "app2", "fourth-secret"));
}

fn reloaded(gate: &Tidegate, count: f64) {
    gate.signal(Signal::HUP);
    eventually("it is taken", || {
        let taken = gate.page().sum("tidegate_reloads_total", &[("outcome", "taken")]);
        (taken == count).then_some(())
    });
}

/// `true` for a client that says nothing before its first command.
fn is_let_in(gate: &Tidegate) -> bool {
    gate.redis_client().command(&["PING"]).text() == "PONG"
}

/// The command can't learn that its URL has a password by now, or none any more.
#[test]
fn a_password_that_comes_or_goes_keeps_the_command_in() {
    let (server, redis, home) = (Postgres::start(), Redis::start(), TempDir::new().unwrap());
    let file = |name: &str| -> PathBuf { home.path().join(name) };
    // Whom the server asks for nothing.
    let bare = server.url_with("postgres", "x", "app").replace(":x@", "@");
    fs::write(file("tidegate.toml"), "reload_check_ms = 0\npassword_overlap_ms = 0").unwrap();
    let with_password = |on: bool| {
        let word = if on { "new-secret" } else { "" };
        redis.direct().command(&["CONFIG", "SET", "requirepass", word]);
        let user = if on { "@".to_owned() + "127" } else { "127".to_owned() };
        let url = redis.url().replace("127", &user.replace('@', ":new-secret@"));
        fs::write(file("redis"), url).unwrap();
        let url = if on { bare.replace("postgres@", "postgres:new-secret@") } else { bare.clone() };
        fs::write(file("url"), url).unwrap();
    };
    let setup = || {
        let setup = Setup::new().database_url_file(&file("url")).redis_url_file(&file("redis"));
        setup.config(&file("tidegate.toml"))
    };
    with_password(false);
    let wrapped = Wrapped::start(setup(), &[]);
    let without = setup().start();
    for gate in [&wrapped.gate, &without] {
        assert!(enters(gate, "postgres", "") && is_let_in(gate));
    }
    with_password(true);
    for gate in [&wrapped.gate, &without] {
        reloaded(gate, 1.0);
        assert!(enters(gate, "postgres", "new-secret") && enters_redis_with(gate, "new-secret"));
    }
    assert!(enters(&wrapped.gate, "postgres", "") && is_let_in(&wrapped.gate));
    assert!(wrapped.gate.output().contains("the command was started without"));
    // Others can be told.
    assert!(!enters(&without, "postgres", "") && !is_let_in(&without));
    // And one that was started with it.
    let later = Wrapped::start(setup(), &[]);
    let own = ["DATABASE_URL", "REDIS_URL"].map(|name| later.credential(name).1);
    assert!(!is_let_in(&later.gate));
    let comes_in = || {
        let [database, cache] = &own;
        enters(&later.gate, "postgres", database) && enters_redis_with(&later.gate, cache)
    };
    assert!(comes_in());
    with_password(false);
    reloaded(&later.gate, 1.0);
    assert!(comes_in() && is_let_in(&later.gate));
    with_password(true);
    reloaded(&later.gate, 2.0);
    assert!(comes_in() && !is_let_in(&later.gate) && !enters(&later.gate, "postgres", ""));
}

fn enters_redis_with(gate: &Tidegate, word: &str) -> bool {
    let mut client = gate.redis_client();
    let answer = client.command(&["AUTH", word]).text();
    answer == "OK" && client.command(&["PING"]).text() == "PONG"
}

/// One variable comes to name the server of another: whoever was sent to either place is served there.
#[test]
fn a_url_that_becomes_another_s_equal_is_served_as_before() {
    let (server, second, home) = (Postgres::start(), Postgres::start(), TempDir::new().unwrap());
    let (redis, other_redis) = (Redis::with_password(), Redis::with_password());
    let file = |name: &str| -> PathBuf { home.path().join(name) };
    let settings = "reload_check_ms = 0\npassword_overlap_ms = 0\n\
        postgres.urls = [\"DATABASE_URL\", \"OTHER_URL\", \"APART_URL\"]\n\
        redis.urls = [\"REDIS_URL\", \"OTHER_REDIS_URL\"]\n";
    fs::write(file("tidegate.toml"), settings).unwrap();
    fs::write(file("other"), server.url_with("app", PASSWORD, "other")).unwrap();
    // On a listener of its own, as its user and database have the same names.
    fs::write(file("apart"), second.url()).unwrap();
    fs::write(file("redis"), other_redis.url()).unwrap();
    // Each side's second listener takes the port behind its first.
    let setup = Setup::new().postgres(&server);
    let _room = support::ports::free();
    let setup = setup.redis(&redis).config(&file("tidegate.toml"));
    let _room = support::ports::free();
    let path = |name: &str| file(name).to_str().unwrap().to_owned();
    let setup = setup.env("OTHER_URL_FILE", &path("other")).env("APART_URL_FILE", &path("apart"));
    let wrapped = Wrapped::start(setup.env("OTHER_REDIS_URL_FILE", &path("redis")), &[]);
    let databases = || {
        ["DATABASE_URL", "OTHER_URL", "APART_URL"].map(|variable| {
            let database = wrapped.environment[variable].rsplit_once('/').unwrap().1;
            let database = database.split('?').next().unwrap();
            let (user, own) = wrapped.credential(variable);
            let login = Login::of(&user, &own, database);
            let client = support::pg::Connection::try_open(wrapped.port(variable), &login);
            let sql = "select current_database() || current_setting('port')";
            client.unwrap_or_else(|refusal| panic!("{variable}: {refusal:?}")).one(sql)
        })
    };
    let caches = || {
        ["REDIS_URL", "OTHER_REDIS_URL"].map(|variable| {
            let mut client = support::resp::Connection::open(wrapped.port(variable));
            client.command(&["AUTH", &wrapped.credential(variable).1]);
            client.command(&["GET", "place"]).text()
        })
    };
    redis.direct().command(&["SET", "place", "one"]);
    other_redis.direct().command(&["SET", "place", "other"]);
    let at = |name: &str, server: &Postgres| format!("{name}{}", server.port());
    assert_eq!(databases(), [at("app", &server), at("other", &server), at("app", &second)]);
    assert_eq!(caches(), ["one", "other"]);
    for name in ["other", "apart"] {
        fs::write(file(name), server.url()).unwrap();
    }
    fs::write(file("redis"), redis.url()).unwrap();
    reloaded(&wrapped.gate, 1.0);
    assert_eq!(databases(), [at("app", &server), at("app", &server), at("app", &server)]);
    // A lane goes on with the connection that it has until another is there.
    eventually("commands go to the other one", || (caches() == ["one", "one"]).then_some(()));
    // And apart again.
    fs::write(file("apart"), second.url()).unwrap();
    fs::write(file("redis"), other_redis.url()).unwrap();
    reloaded(&wrapped.gate, 2.0);
    assert_eq!(databases(), [at("app", &server), at("app", &server), at("app", &second)]);
    eventually("and apart", || (caches() == ["one", "other"]).then_some(()));
}
