//! Connection strings, read by us, by libpq itself (`PQconninfoParse`, through psycopg) and by Python's `urlparse`: a table
//! of hand-picked ones, and drawn ones. Where we differ from libpq it is said here by name, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use tidegate::config::{
    ChildCredentials, Environment, Host, Loaded, PostgresUpstream, SslMode, TlsMode, load,
};

use support::postgres::{PASSWORD, Postgres};
use support::programs;
use support::tidegate::Setup;

const LISTEN: &str = "127.0.0.1:6432";
/// Who we are where a string says nothing of it.
const ME: &str = "me";

/// How our reading of a string stands to libpq's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Against {
    /// The same.
    Same,
    /// Both refuse it.
    Neither,
    /// libpq refuses it, and we don't: because.
    Laxer(&'static str),
    /// We refuse it at once, where libpq fails when it connects, or does what can't be meant: because.
    Stricter(&'static str),
}

use Against::{Laxer, Neither, Same, Stricter};

const OTHERS: &str = "clients of other libraries have options of their own";
const CASE: &str = "schemes have no case (RFC 3986)";
const DRIVER: &str = "SQLAlchemy and GeoDjango name their driver in the scheme";
const SIGNS: &str = "every other parser takes what follows the first = for the value";
const BROKEN_OFF: &str = "a raw @ or slash in a password is not meant to name a host or a database";
const AT_CONNECT: &str = "libpq says so only when it connects";
const UNSPEAKABLE: &str = "tidegate can't do what it asks for";

const TABLE: &[(&str, Against)] = &[
    // Plain ones.
    ("postgres://", Same),
    ("postgresql://", Same),
    ("postgres://h", Same),
    ("postgres://h/", Same),
    ("postgres://h/d", Same),
    ("postgres://u@h/d", Same),
    ("postgres://u:p@h/d", Same),
    ("postgres://u:p@h:1/d", Same),
    ("postgres://u:p@h:/d", Same),
    ("postgres://:p@h/d", Same),
    ("postgres://u:@h/d", Same),
    ("postgres://@h/d", Same),
    ("postgres://u@/d", Same),
    ("postgres:///d", Same),
    ("postgres://h?dbname=d", Same),
    // Signs in the user's part.
    ("postgres://u:a:b@h/d", Same),
    ("postgres://u:a%40b@h/d", Same),
    ("postgres://u:a#b@h/d", Same),
    ("postgres://u:a?b@h/d", Same),
    ("postgres://u:a&b=c@h/d", Same),
    ("postgres://u:p%3A%2f%25@h/d%20e%2Ff", Same),
    ("postgres://u%C3%A9:p%E2%82%AC@h/d", Same),
    ("postgres://ué:p€@h/d", Same),
    ("postgres://h?user=a@b", Same),
    ("postgres://u:a@b@h/d", Stricter(BROKEN_OFF)),
    ("postgres://u:a/b@h/d", Stricter(BROKEN_OFF)),
    ("postgres://u:1/b@h/d", Stricter(BROKEN_OFF)),
    // Hosts and ports.
    ("postgres://[::1]/d", Same),
    ("postgres://u:p@[2001:db8::1]:7/d", Same),
    ("postgres://a,b/d", Same),
    ("postgres://a:1,b:2,c/d", Same),
    ("postgres://a,b:2/d", Same),
    ("postgres://a:1,[::1]:2,10.0.0.1/d", Same),
    ("postgres://[::1],[::2]:3?dbname=d", Same),
    ("postgres://,b/d", Same),
    ("postgres://%2Frun%2Fpg:7/d", Same),
    ("postgres://%2Frun%2Fpg,h:8/d", Same),
    ("postgres:///d?host=/tmp&port=7", Same),
    ("postgres:///d?host=/tmp,h&port=7,8", Same),
    ("postgres://h:1/d?host=i&port=2", Same),
    ("postgres://a,b/d?port=7", Same),
    ("postgres://h/d?hostaddr=10.0.0.1", Same),
    ("postgres://a,b/d?hostaddr=10.0.0.1,::1", Same),
    ("postgres://u@/d?hostaddr=10.0.0.1,10.0.0.2&port=1,2", Same),
    ("postgres:///d?host=@abstract", Same),
    ("postgres://u@h:1,i:2/d?target_session_attrs=read-write&load_balance_hosts=random", Same),
    ("postgres://[::1/d", Neither),
    ("postgres://[]/d", Neither),
    ("postgres://[::1]x/d", Neither),
    ("postgres://h:x/d", Stricter(AT_CONNECT)),
    ("postgres://h:0/d", Stricter(AT_CONNECT)),
    ("postgres://h:65536/d", Stricter(AT_CONNECT)),
    ("postgres://a,b/d?port=1,2,3", Stricter(AT_CONNECT)),
    ("postgres://a,b/d?hostaddr=10.0.0.1", Stricter(AT_CONNECT)),
    ("postgres://h/d?hostaddr=name", Stricter(AT_CONNECT)),
    // Options.
    ("postgres://h/d?application_name=x&application_name=y", Same),
    ("postgres://h/d?application_name=x&", Same),
    ("postgres://h/d?", Same),
    ("postgres://h/d?application_name=", Same),
    ("postgres://h/d?options=-c%20search_path%3Dx&client_encoding=UTF8", Same),
    ("postgres://h/d?application%5Fname=x%26y", Same),
    ("postgres://u:p@h/d?user=v&password=q&dbname=e", Same),
    ("postgres://h/d?sslmode=require", Same),
    ("postgres://h/d?ssl=true", Same),
    ("postgres://h/d?sslmode=disable&ssl=true", Same),
    ("postgres://h/d?requiressl=1", Same),
    ("postgres://h/d?connect_timeout=10&keepalives_idle=7&tcp_user_timeout=100", Same),
    ("postgres://h/d?application_name", Neither),
    ("postgres://h/d?&application_name=x", Neither),
    ("postgres://h/d?application_name=x&&sslmode=require", Neither),
    ("postgres://h/d?pgbouncer=true", Laxer(OTHERS)),
    ("postgres://h/d?ssl=1", Laxer(OTHERS)),
    ("postgres://h/d?schema=a&pool_timeout=3", Laxer(OTHERS)),
    ("postgres://h/d?options=-csearch_path=x", Laxer(SIGNS)),
    ("postgres://h/d?sslmode=strict", Stricter(AT_CONNECT)),
    ("postgres://h/d?connect_timeout=soon", Stricter(AT_CONNECT)),
    ("postgres://h/d?target_session_attrs=master", Stricter(AT_CONNECT)),
    ("postgres://h/d?load_balance_hosts=yes", Stricter(AT_CONNECT)),
    ("postgres://h/d?gssencmode=require", Stricter(UNSPEAKABLE)),
    ("postgres://h/d?sslcrl=/crl", Stricter(UNSPEAKABLE)),
    ("postgres://h/d?oauth_issuer=x", Stricter(UNSPEAKABLE)),
    // Codes and spaces.
    ("postgres://u:p%@h/d", Neither),
    ("postgres://u:p%4@h/d", Neither),
    ("postgres://u:p%zz@h/d", Neither),
    ("postgres://u:p%00@h/d", Neither),
    ("postgres://u:p%ff@h/d", Stricter("what is not UTF-8 no server takes for a password here")),
    ("postgres://u:p q@h/d", Neither),
    ("postgres://u: p @h/d?application_name= x ", Same),
    ("postgres://u:p%20q@h/d", Same),
    ("postgres://u:p\tq@h/d", Stricter("a control character got there by mistake")),
    // Schemes.
    ("POSTGRES://u:p@h/d", Laxer(CASE)),
    ("postgresql+psycopg://u:p@h/d", Laxer(DRIVER)),
    ("postgis://u:p@h/d", Laxer(DRIVER)),
    ("mysql://u:p@h/d", Neither),
    ("jdbc:postgresql://h/d", Neither),
    ("h/d", Neither),
    // Keywords and values.
    ("host=h", Same),
    ("host=h port=1 user=u password=p dbname=d", Same),
    ("  host = h\tuser= u\ndbname =d ", Same),
    ("host='h' password='p q' user=u", Same),
    ("user=u password='a\\'b\\\\c'", Same),
    ("user=u password=a\\ b\\'c", Same),
    ("user=u password=''", Same),
    ("user=u password= host=h", Same),
    ("user=u password=a'b", Same),
    ("user=u password='a'host=h", Same),
    ("host=a,b port=1,2 target_session_attrs=primary", Same),
    ("host=/tmp,h hostaddr=,10.0.0.1", Same),
    ("user=u user=v", Same),
    ("user=u password=postgres://x", Same),
    ("password=a=b user=u", Same),
    ("host=h ssl=true", Neither),
    ("host=h pgbouncer=true", Neither),
    ("host h", Neither),
    ("host=h user", Neither),
    ("password='a", Neither),
    ("=h", Neither),
];

/// What a string says, by whoever has read it.
#[derive(Debug, PartialEq)]
struct Reading {
    /// Name or directory, address, port.
    hosts: Vec<(String, String, u16)>,
    user: String,
    password: String,
    database: String,
    sslmode: String,
    target: String,
    /// What the wrapped command gets, too.
    options: BTreeMap<String, String>,
}

/// Options that don't go into [`Reading::options`]: the way to the server is told in other fields, or in the unit tests.
fn is_of_the_way(key: &str) -> bool {
    let others = ["hostaddr", "load_balance_hosts", "target_session_attrs", "tcp_user_timeout"];
    ["host", "port", "user", "password", "dbname"].contains(&key)
        || others.contains(&key)
        || key.starts_with("ssl")
        || key.starts_with("keepalives")
}

fn loaded(text: &str) -> Result<Loaded, String> {
    let variables = [("DATABASE_URL", text), ("USER", ME), ("HOME", "/nonexistent")];
    let variables = variables.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    load(None, &Environment::from(variables), &[]).map_err(|error| error.to_string())
}

fn upstream(loaded: &Loaded) -> &PostgresUpstream {
    &loaded.settings.postgres.as_ref().unwrap().listeners[0].upstreams[0]
}

fn by_us(text: &str) -> Result<Reading, String> {
    let loaded = loaded(text)?;
    let upstream = upstream(&loaded);
    let hosts = upstream.hosts.list.iter().map(|one| {
        let name = match &one.host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        let address = one.address.map(|address| address.to_string()).unwrap_or_default();
        (name, address, one.port)
    });
    let sslmode = match upstream.sslmode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    let options = upstream.options.iter().filter(|(_, value)| !value.is_empty());
    Ok(Reading {
        hosts: hosts.collect(),
        user: upstream.user.clone(),
        password: upstream.password.as_ref().map_or("", |it| it.expose()).to_owned(),
        database: upstream.database.clone(),
        sslmode: sslmode.to_owned(),
        target: format!("{:?}", upstream.hosts.target).to_ascii_lowercase(),
        options: options.cloned().collect(),
    })
}

/// libpq's options as libpq's own connecting function goes on to take them (`pqConnectOptions2`).
fn by_libpq(read: &Value) -> Result<Reading, String> {
    let options: BTreeMap<String, String> = match &read["libpq"]["options"] {
        Value::Object(options) => options
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
            .collect(),
        _ => return Err(read["libpq"]["refusal"].to_string()),
    };
    let text = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let or = |key: &str, other: &str| match text(key) {
        "" => other.to_owned(),
        value => value.to_owned(),
    };
    let list = |key: &str| text(key).split(',').map(str::to_owned).collect::<Vec<_>>();
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = if text("hostaddr").is_empty() { names.len() } else { addresses.len() };
    let hosts = (0..count).map(|index| {
        let at = |list: &[String]| list.get(index).cloned().unwrap_or_default();
        let port = if ports.len() == 1 { ports[0].clone() } else { at(&ports) };
        let port = if port.is_empty() { 5432 } else { port.parse().unwrap() };
        let name = match (at(&names).as_str(), at(&addresses).as_str()) {
            ("", "") => "/var/run/postgresql".to_owned(),
            ("", address) => address.to_owned(),
            (name, _) => name.to_owned(),
        };
        (name, at(&addresses), port)
    });
    let user = or("user", ME);
    let passed = options.iter().filter(|(key, value)| !is_of_the_way(key) && !value.is_empty());
    Ok(Reading {
        hosts: hosts.collect(),
        database: or("dbname", &user),
        user,
        password: text("password").to_owned(),
        sslmode: or("sslmode", "prefer"),
        target: or("target_session_attrs", "any").replace('-', ""),
        options: passed.map(|(key, value)| (key.clone(), value.clone())).collect(),
    })
}

/// What others read in each of these.
fn ask_others(texts: &[String]) -> Vec<Value> {
    let mut python = programs::interpreter("url_reader.py");
    python.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("bin/setup has installed it");
    let mut input = python.stdin.take().unwrap();
    let lines: String =
        texts.iter().map(|text| format!("{}\n", serde_json::to_string(text).unwrap())).collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    let read: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read.len(), texts.len());
    read
}

/// What the wrapped command gets must be read by libpq and by Python, and say what the URL has said.
fn assert_readable_by_others(texts: &[String]) {
    let listen: SocketAddr = LISTEN.parse().unwrap();
    let loaded: Vec<Loaded> = texts.iter().map(|text| loaded(text).unwrap()).collect();
    let local = |loaded: &Loaded| {
        loaded.variables[0].local_url(listen, TlsMode::On, &ChildCredentials::default())
    };
    let rewritten: Vec<String> = loaded.iter().map(local).collect();
    // Options of other libraries are theirs, and libpq refuses them in any case.
    let foreign = |loaded: &Loaded| {
        let known = ["application_name", "client_encoding", "connect_timeout", "options"];
        upstream(loaded).options.iter().any(|(key, _)| !known.contains(&key.as_str()))
    };
    for ((text, loaded), read) in texts.iter().zip(&loaded).zip(ask_others(&rewritten)) {
        let upstream = upstream(loaded);
        let password = upstream.password.as_ref().map_or("", |it| it.expose());
        let python = &read["python"];
        assert_eq!(python["user"], *upstream.user, "{text}");
        assert_eq!(python["password"], *password, "{text}");
        assert_eq!(python["database"], *upstream.database, "{text}");
        assert_eq!(
            (&python["host"], &python["port"]),
            (&"127.0.0.1".into(), &6432.into()),
            "{text}"
        );
        let scheme_is_libpqs = ["postgres:", "postgresql:"].iter().any(|it| text.starts_with(it));
        if foreign(loaded) || (text.contains("://") && !scheme_is_libpqs) {
            continue;
        }
        let libpq = by_libpq(&read).unwrap();
        let ours = by_us(text).unwrap();
        assert_eq!(libpq.hosts, [("127.0.0.1".to_owned(), String::new(), 6432)], "{text}");
        assert_eq!((libpq.user, libpq.password), (ours.user, ours.password), "{text}");
        assert_eq!((libpq.database, libpq.options), (ours.database, ours.options), "{text}");
    }
}

#[test]
fn every_string_is_read_as_libpq_reads_it() {
    let texts: Vec<String> = TABLE.iter().map(|(text, _)| (*text).to_owned()).collect();
    assert!(texts.iter().collect::<BTreeSet<_>>().len() >= 60);
    let mut wrong = Vec::new();
    for ((text, against), read) in TABLE.iter().zip(ask_others(&texts)) {
        let (ours, libpqs) = (by_us(text), libpqs_reading(&read, *against));
        let as_said = match against {
            Same => ours.is_ok() && ours == libpqs,
            Neither => ours.is_err() && libpqs.is_err(),
            Laxer(_) => ours.is_ok() && libpqs.is_err(),
            Stricter(_) => ours.is_err() && libpqs.is_ok(),
        };
        if !as_said {
            wrong.push(format!("{text:?} {against:?}\n  ours  {ours:?}\n  libpq {libpqs:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where libpq will only say later what is wrong, there is no reading to be had beside that it took the string.
fn libpqs_reading(read: &Value, against: Against) -> Result<Reading, String> {
    match against {
        Stricter(_) if read["libpq"]["options"].is_object() => Ok(Reading {
            hosts: Vec::new(),
            user: String::new(),
            password: String::new(),
            database: String::new(),
            sslmode: String::new(),
            target: String::new(),
            options: BTreeMap::new(),
        }),
        _ => by_libpq(read),
    }
}

#[test]
fn what_the_command_gets_is_read_by_others() {
    let served = TABLE.iter().filter(|(_, against)| matches!(against, Same | Laxer(_)));
    let texts: Vec<String> = served.map(|(text, _)| (*text).to_owned()).collect();
    assert_readable_by_others(&texts);
}

/// Parts of a connection string.
#[derive(Clone, Debug)]
struct Parts {
    user: String,
    password: String,
    hosts: Vec<(String, Option<u16>)>,
    database: String,
    application: String,
    options: String,
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z0-9]{1,8}", "[ -~]{1,12}", "[:@/?#&=%+,'\\\\\\[\\] ]{1,8}", "\\PC{1,6}",]
}

fn parts() -> impl Strategy<Value = Parts> {
    let name = prop_oneof![
        "[a-z][a-z0-9.-]{0,10}",
        "/[ -+\\--9;-~]{1,10}",
        Just("2001:db8::7".to_owned())
    ];
    let port = prop::option::of(1..=u16::MAX);
    let hosts = prop::collection::vec((name, port), 1..4);
    (text(), text(), hosts, text(), text(), text()).prop_map(
        |(user, password, hosts, database, application, options)| Parts {
            user,
            password,
            hosts,
            database,
            application,
            options,
        },
    )
}

/// Percent-coded as little as may be, or all of it.
fn coded(text: &str, raw: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || raw.contains(c);
    let code = |c: char| match plain(c) {
        true => c.to_string(),
        false => c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect(),
    };
    text.chars().map(code).collect()
}

impl Parts {
    fn as_url(&self, raw: &str) -> String {
        let hosts = self.hosts.iter().map(|(name, port)| {
            let host = if name.contains(':') { format!("[{name}]") } else { coded(name, "-.") };
            port.map_or(host.clone(), |port| format!("{host}:{port}"))
        });
        let hosts: Vec<_> = hosts.collect();
        let (user, password) = (coded(&self.user, raw), coded(&self.password, raw));
        let (application, options) = (coded(&self.application, raw), coded(&self.options, raw));
        let (hosts, database) = (hosts.join(","), coded(&self.database, raw));
        format!(
            "postgres://{user}:{password}@{hosts}/{database}?application_name={application}&options={options}"
        )
    }

    fn as_pairs(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let names: Vec<_> = self.hosts.iter().map(|(name, _)| name.clone()).collect();
        let port = |port: &Option<u16>| port.map(|port| port.to_string()).unwrap_or_default();
        let ports: Vec<_> = self.hosts.iter().map(|(_, own)| port(own)).collect();
        format!(
            "user={} password={} host={} port={} dbname={} application_name={} options={}",
            quoted(&self.user),
            quoted(&self.password),
            quoted(&names.join(",")),
            quoted(&ports.join(",")),
            quoted(&self.database),
            quoted(&self.application),
            quoted(&self.options)
        )
    }

    fn reading(&self) -> Reading {
        let hosts = self.hosts.iter();
        let options = [("application_name", &self.application), ("options", &self.options)];
        Reading {
            hosts: hosts
                .map(|(name, port)| (name.clone(), String::new(), port.unwrap_or(5432)))
                .collect(),
            user: self.user.clone(),
            password: self.password.clone(),
            database: self.database.clone(),
            sslmode: "prefer".to_owned(),
            target: "any".to_owned(),
            options: options.map(|(key, value)| (key.to_owned(), value.clone())).into(),
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 500, failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_is_put_into_a_string_comes_out_of_it(parts in parts()) {
        for text in [parts.as_url(""), parts.as_url("-._~!$'()*+;#"), parts.as_pairs()] {
            prop_assert_eq!(by_us(&text), Ok(parts.reading()));
            // And again out of what the command gets.
            let loaded = loaded(&text).unwrap();
            let local = loaded.variables[0].local_url(LISTEN.parse().unwrap(), TlsMode::On, &ChildCredentials::default());
            let hosts = vec![("127.0.0.1".to_owned(), String::new(), 6432)];
            prop_assert_eq!(by_us(&local), Ok(Reading { hosts, ..parts.reading() }));
        }
    }

    #[test]
    fn what_is_put_into_a_redis_url_comes_out_of_it(
        (user, password) in (prop::option::of(text()), prop::option::of(text())),
        host in prop_oneof!["[a-z][a-z0-9.-]{0,10}", Just("2001:db8::7".to_owned()), "/[a-z%]{1,9}"],
        (port, database, place) in (1..=u16::MAX, 0..100_u32, 0..3),
    ) {
        let user_info = match (&user, &password) {
            (None, None) => String::new(),
            (user, None) => format!("{}@", coded(user.as_deref().unwrap_or_default(), "-._~!$'()*+;#")),
            (user, Some(password)) => {
                let user = coded(user.as_deref().unwrap_or_default(), "");
                format!("{user}:{}@", coded(password, "-._~!$'()*+;#:"))
            }
        };
        let url = match (host.strip_prefix('/'), place) {
            (Some(path), _) => format!("redis+unix://{user_info}/{}?db={database}", coded(path, "")),
            (None, 0) if host.contains(':') => format!("redis://{user_info}[{host}]:{port}/{database}"),
            (None, _) if host.contains(':') => format!("redis://{user_info}[{host}]:{port}?db={database}"),
            (None, 0) => format!("redis://{user_info}{host}:{port}/{database}"),
            (None, _) => format!("redis://{user_info}{host}:{port}?db={database}"),
        };
        let variables = |url: &str| Environment::from([("REDIS_URL".to_owned(), Some(url.to_owned()))]);
        let loaded = load(None, &variables(&url), &[]).unwrap();
        let read = |loaded: &Loaded| {
            let upstream = &loaded.settings.redis.as_ref().unwrap().listeners[0].upstream;
            let password = upstream.password.as_ref().map(|it| it.expose().to_owned());
            (upstream.user.clone(), password, upstream.database)
        };
        prop_assert_eq!(read(&loaded), (user.clone(), password.clone(), database), "{}", url);
        let upstream = &loaded.settings.redis.as_ref().unwrap().listeners[0].upstream;
        let expected = match host.starts_with('/') {
            true => Host::Unix(host.clone().into()),
            false => Host::Tcp(host.clone()),
        };
        prop_assert_eq!(&upstream.host, &expected);
        prop_assert!(host.starts_with('/') || upstream.port == port);
        let local = loaded.variables[0].local_url(LISTEN.parse().unwrap(), TlsMode::On, &ChildCredentials::default());
        prop_assert!(local.ends_with(&format!("{LISTEN}/{database}")), "{}", local);
        let again = load(None, &variables(&local), &[]).unwrap();
        prop_assert_eq!(read(&again), (user, password, database), "{}", local);
    }

    #[test]
    fn no_refusal_repeats_a_password((before, behind) in (text(), text()), form in 0..3) {
        let password = format!("{before}hunter2{behind}");
        let text = match form {
            0 => format!("postgres://u:{password}@h/d"),
            1 => format!("postgres://h/d?password={password}"),
            _ => format!("host=h password={password} user=u"),
        };
        match loaded(&text) {
            Err(refusal) => prop_assert!(!refusal.contains("hunter2"), "{}: {}", text, refusal),
            Ok(loaded) if upstream(&loaded).password.as_ref().is_some_and(|it| it.expose().contains("hunter2")) => {
                let told = format!("{} {loaded:?}", tidegate::config::describe(&loaded));
                prop_assert!(!told.contains("hunter2"), "{}: {}", text, told);
            }
            // What stands behind a sign that ends a password is none any more, to libpq either.
            Ok(_) => {}
        }
    }

    #[test]
    fn no_string_makes_it_panic(text in "\\PC{0,40}", scheme in "(postgres://|redis://|host=|)") {
        let _read_or_refused = by_us(&format!("{scheme}{text}"));
    }
}

#[test]
fn drawn_strings_are_read_as_libpq_reads_them() {
    let mut runner = TestRunner::new(Config::default());
    let draw = |_| parts().new_tree(&mut runner).unwrap().current();
    let drawn: Vec<Parts> = (0..150).map(draw).collect();
    let both = drawn.iter().flat_map(|parts| [parts.as_url("-._~!$'()*+;#"), parts.as_pairs()]);
    let texts: Vec<String> = both.collect();
    for (text, read) in texts.iter().zip(ask_others(&texts)) {
        assert_eq!(by_us(text), by_libpq(&read), "{text}");
    }
    assert_readable_by_others(&texts);
}

#[test]
fn a_server_is_reached_over_its_unix_socket() {
    let server = Postgres::start();
    let (directory, port) = (server.socket_directory(), server.port());
    let coded = coded(&directory, "");
    let runs_as = if rustix::process::geteuid().is_root() { "nobody" } else { "" };
    for url in [
        format!("postgres://app:{PASSWORD}@{coded}:{port}/app"),
        format!(
            "postgres://app:{PASSWORD}@/app?host={directory}&port={port}&requirepeer={runs_as}"
        ),
        format!("host={directory} port={port} user=app password={PASSWORD} dbname=app"),
        format!("host=nowhere.invalid,{directory} port={port} user=app password={PASSWORD}"),
    ] {
        let gate = Setup::new().database_url(&url).start();
        let mut session = gate.client();
        let address = "select pg_catalog.inet_server_addr() is null";
        assert_eq!(session.one(address), "t", "{url}");
        session.send(&support::pg::query("select pg_sleep(60)"));
        support::eventually("it sleeps", || {
            let count = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
            (server.superuser().one(count) == "1").then_some(())
        });
        session.cancel();
        assert_eq!(session.reply().codes(), ["57014"], "{url}");
    }
    let stranger = format!(
        "host={directory} port={port} user=app password={PASSWORD} dbname=app requirepeer=daemon"
    );
    let gate = Setup::new().database_url(&stranger).wait_ms(300).start();
    let refused = gate.try_client(&support::pg::Login::app()).map(drop).unwrap_err();
    assert!(refused.message.contains("requirepeer"), "{refused:?}");
}
