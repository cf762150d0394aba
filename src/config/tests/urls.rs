//! URLs: what they mean, and what the wrapped command gets instead.

use super::*;
use crate::config::postgres_url::PostgresUrl;
use crate::config::redis_url::RedisUrl;
use crate::net::Identity;

const LISTEN: &str = "127.0.0.1:6432";

fn postgres(url: &str, variables: &[(&str, &str)]) -> Result<PostgresUrl, String> {
    PostgresUrl::parse("DATABASE_URL", url, &environment(variables))
}

fn redis(url: &str) -> Result<RedisUrl, String> {
    RedisUrl::parse("REDIS_URL", url, &RedisTls::On { verify: false, ca: None })
}

/// `host port user password database sslmode`
fn meaning(url: &PostgresUrl) -> String {
    let up = &url.upstream;
    let password = up.password.as_ref().map_or("-", |secret| secret.expose());
    format!("{} {} {} {password} {} {:?}", up.host, up.port, up.user, up.database, up.sslmode)
}

#[test]
fn a_postgres_url_means_what_libpq_takes_it_to_mean() {
    for (url, expected) in [
        ("postgres://u:p@h:1/d", "h 1 u p d Prefer"),
        ("postgresql://u:p@h/d", "h 5432 u p d Prefer"),
        ("POSTGRES://u:p@h/d", "h 5432 u p d Prefer"),
        ("postgresql+psycopg://u:p@h/d", "h 5432 u p d Prefer"),
        ("postgres://u@h", "h 5432 u - u Prefer"),
        ("postgres://h", "h 5432 me - me Prefer"),
        ("postgres://u:@h/d", "h 5432 u - d Prefer"),
        ("postgres:///d", "/var/run/postgresql 5432 me - d Prefer"),
        ("postgres://u:p%40%2F%3a@h/d%20e", "h 5432 u p@/: d e Prefer"),
        ("postgres://u:a:b@h/d", "h 5432 u a:b d Prefer"),
        ("postgres://u:a@b@h/d", "h 5432 u a@b d Prefer"),
        ("postgres://u:a#b@h/d", "h 5432 u a#b d Prefer"),
        ("postgres://u:p@[2001:db8::1]:7/d", "[2001:db8::1] 7 u p d Prefer"),
        ("postgres://u:p@[::1]/d", "[::1] 5432 u p d Prefer"),
        ("postgres://u@%2Ftmp%2Fpg:7/d", "/tmp/pg 7 u - d Prefer"),
        ("postgres:///d?host=/tmp&port=7&user=u&password=p", "/tmp 7 u p d Prefer"),
        ("postgres://u@h/d?dbname=e", "h 5432 u - e Prefer"),
        ("postgres://u@h/d?sslmode=disable", "h 5432 u - d Disable"),
        ("postgres://u@h/d?sslmode=allow", "h 5432 u - d Prefer"),
        ("postgres://u@h/d?sslmode=require", "h 5432 u - d Require"),
        ("postgres://u@h/d?sslmode=no-verify", "h 5432 u - d Require"),
        ("postgres://u@h/d?ssl=true", "h 5432 u - d Require"),
        ("postgres://u@h/d?sslmode=require&sslrootcert=/r.pem", "h 5432 u - d VerifyCa"),
        ("postgres://u@h/d?sslmode=verify-ca&sslrootcert=/r.pem", "h 5432 u - d VerifyCa"),
        ("postgres://u@h/d?sslrootcert=system", "h 5432 u - d VerifyFull"),
        ("postgres://u@h/d?sslmode=verify-full", "h 5432 u - d VerifyFull"),
    ] {
        assert_eq!(meaning(&postgres(url, &[]).unwrap()), expected, "{url}");
    }
    let pg = [
        ("PGHOST", "h2"),
        ("PGPORT", "8"),
        ("PGUSER", "u2"),
        ("PGPASSWORD", "p2"),
        ("PGDATABASE", "d2"),
        ("PGSSLMODE", "require"),
    ];
    assert_eq!(meaning(&postgres("postgres://", &pg).unwrap()), "h2 8 u2 p2 d2 Require");
    assert_eq!(meaning(&postgres("postgres://u:p@h/d", &pg).unwrap()), "h 8 u p d Require");
}

#[test]
fn a_url_that_means_nothing_is_refused_without_showing_its_password() {
    for (url, part) in [
        ("postgres://u:hunter2@h:0/d", "1 to 65535"),
        ("postgres://u:hunter2@h:99999/d", "1 to 65535"),
        ("postgres://u:hunter2/x@h/d", "percent-coded"),
        ("postgres://u:hunter2?x@h/d", "1 to 65535"),
        ("postgres://u:%zzhunter2@h/d", "hexadecimal"),
        ("postgres://u:hunter2%@h/d", "hexadecimal"),
        ("postgres://u:hunter2%00@h/d", "%00"),
        ("postgres://u:hunter2%ff@h/d", "UTF-8"),
        ("postgres://u:hunter2@a,b/d", "several hosts"),
        ("postgres://u:hunter2@a:1,b:2/d", "several hosts"),
        ("postgres://u:hunter2@h/d?host=a,b", "several hosts"),
        ("postgres://u:hunter2@[::1/d", "without its ]"),
        ("postgres://u:hunter2@[x]/d", "IPv6"),
        ("postgres://u:hunter2@[::1]x/d", "after the ]|:port"),
        ("postgres://u:hunter2@h/d?sslmode=strict", "verify-full"),
        ("postgres://u:hunter2@h/d?sslmode=require&sslrootcert=system", "verify-full"),
        ("postgres://u:hunter2@h/d?sslcert=/c", "go together"),
        ("postgres://u:hunter2@h/d?sslcert=/c&sslkey=/k&sslpassword=hunter2", "sslpassword"),
        ("postgres://u:hunter2@h/d?sslnegotiation=direct", "sslmode=require"),
        ("postgres://u:hunter2@h/d?sslnegotiation=hun", "neither postgres nor direct"),
        ("postgres://u:hunter2@h/d?sslmode=disable&channel_binding=require", "needs TLS"),
        ("postgres://u:hunter2@h/d?channel_binding=hun", "disable, prefer, require"),
        ("postgres://u:hunter2@h/d?hostaddr=1.2.3.4", "hostaddr"),
        ("postgres://u:hunter2@h/d?port=x", "port"),
        ("mysql://u:hunter2@h/d", "postgres://"),
        ("jdbc:postgresql://u:hunter2@h/d", "JDBC"),
        ("u:hunter2@h/d", "://"),
        ("postgres://u:hun ter2@h/d", "%20"),
        ("", "empty"),
    ] {
        let error = postgres(url, &[]).unwrap_err();
        assert!(part.split('|').any(|part| error.contains(part)), "{url}: {error}");
        assert!(!error.contains("hun"), "{url}: {error}");
    }
}

#[test]
fn the_command_gets_its_url_with_our_address() {
    for (url, expected) in [
        ("postgres://u:p@h:1/d", "postgres://u:p@127.0.0.1:6432/d"),
        ("postgresql://u:p@h/d", "postgresql://u:p@127.0.0.1:6432/d"),
        ("postgres://u:p%40%3A@h/d", "postgres://u:p%40%3A@127.0.0.1:6432/d"),
        ("postgres://u:a#b@h/d", "postgres://u:a%23b@127.0.0.1:6432/d"),
        ("postgres://h", "postgres://me@127.0.0.1:6432/me"),
        (
            "postgres://u:p@h/d?sslmode=require&application_name=x%20y",
            "postgres://u:p@127.0.0.1:6432/d?application_name=x%20y&sslmode=disable",
        ),
        (
            "postgres://u:p@h/d?sslmode=verify-full&sslrootcert=%2Fr.pem",
            "postgres://u:p@127.0.0.1:6432/d?sslmode=disable",
        ),
        ("postgres://u:p@h/d?ssl=true", "postgres://u:p@127.0.0.1:6432/d?sslmode=disable"),
        (
            "postgres://u:p@h/d?options=-c%20search_path%3Dx&channel_binding=require&pgbouncer=true",
            "postgres://u:p@127.0.0.1:6432/d?options=-c%20search_path%3Dx&pgbouncer=true",
        ),
        ("postgres:///d?host=/tmp&user=u&password=p", "postgres://u:p@127.0.0.1:6432/d"),
    ] {
        let local = postgres(url, &[]).unwrap().local(LISTEN.parse().unwrap(), TlsMode::On, None);
        assert_eq!(local, expected, "{url}");
        // And it means the same to us: one round trip changes nothing more.
        let again = postgres(&local, &[]).unwrap();
        assert_eq!(again.upstream.user, postgres(url, &[]).unwrap().upstream.user);
        assert_eq!(again.upstream.password, postgres(url, &[]).unwrap().upstream.password);
        assert_eq!(again.upstream.options, postgres(url, &[]).unwrap().upstream.options);
    }
    let insists = postgres("postgres://u:p@h/d", &[("PGSSLMODE", "require")]).unwrap();
    let local = insists.local("[::]:7".parse().unwrap(), TlsMode::On, None);
    assert_eq!(local, "postgres://u:p@[::1]:7/d?sslmode=disable");
    let variables =
        [("PGSSLMODE", "require"), ("PGSSLNEGOTIATION", "direct"), ("PGCHANNELBINDING", "require")];
    let insists = postgres("postgres://u:p@h/d?application_name=x", &variables).unwrap();
    let local = |tls| insists.local(LISTEN.parse().unwrap(), tls, None);
    let base = "postgres://u:p@127.0.0.1:6432/d?application_name=x";
    let taken_back = "sslmode=disable&sslnegotiation=postgres&channel_binding=disable";
    assert_eq!(local(TlsMode::On), format!("{base}&{taken_back}"));
    assert_eq!(local(TlsMode::Require), format!("{base}&sslmode=require"));
}

#[test]
fn how_to_encrypt_is_read_as_libpq_reads_it() {
    let read = |options: &str, variables: &[(&str, &str)]| {
        let url = postgres(&format!("postgres://u:p@h/d?{options}"), variables).unwrap();
        let up = url.upstream;
        (up.sslnegotiation, up.channel_binding, up.identity)
    };
    let identity = Identity { certificate: "/c".into(), key: "/k".into() };
    let plain = (SslNegotiation::Postgres, ChannelBinding::Prefer, None);
    let all = (SslNegotiation::Direct, ChannelBinding::Require, Some(identity));
    assert_eq!(read("", &[]), plain);
    let said =
        "sslmode=require&sslnegotiation=direct&channel_binding=require&sslcert=%2Fc&sslkey=%2Fk";
    assert_eq!(read(said, &[]), all);
    let variables = [
        ("PGSSLMODE", "verify-full"),
        ("PGSSLNEGOTIATION", "direct"),
        ("PGCHANNELBINDING", "require"),
        ("PGSSLCERT", "/c"),
        ("PGSSLKEY", "/k"),
    ];
    assert_eq!(read("", &variables), all);
    let said = "sslmode=disable&sslnegotiation=postgres&channel_binding=prefer&sslcertmode=disable";
    assert_eq!(read(said, &variables), plain, "the URL wins");
    assert_eq!(read("channel_binding=disable", &[]).1, ChannelBinding::Disable);
}

#[test]
fn a_redis_url_means_what_clients_take_it_to_mean() {
    let off = RedisTls::Off;
    let on = |verify| RedisTls::On { verify, ca: None };
    for (url, host, user, password, database, tls) in [
        ("redis://", "127.0.0.1:6379", "-", "-", 0, off.clone()),
        ("redis://h", "h:6379", "-", "-", 0, off.clone()),
        ("redis://:p@h:1/2", "h:1", "-", "p", 2, off.clone()),
        ("redis://u:p%40@h/", "h:6379", "u", "p@", 0, off.clone()),
        ("redis://h/1?db=3", "h:6379", "-", "-", 3, off.clone()),
        ("redis://[::1]:7", "[::1]:7", "-", "-", 0, off.clone()),
        ("rediss://:p@h", "h:6379", "-", "p", 0, on(false)),
        ("rediss://:p@h?ssl_cert_reqs=none", "h:6379", "-", "p", 0, on(false)),
        ("rediss://:p@h?ssl_cert_reqs=required", "h:6379", "-", "p", 0, on(true)),
        ("redis://h?password=p%40&username=u&database=4", "h:6379", "u", "p@", 4, off.clone()),
        ("redis://:own@h?password=other&db=", "h:6379", "-", "own", 0, off.clone()),
        ("redis://?host=h&port=7&user=u&pass=p", "h:7", "u", "p", 0, off.clone()),
        ("unix:///s?user=u&pass=p", "/s:6379", "u", "p", 0, off.clone()),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock:6379", "-", "-", 2, off.clone()),
        ("unix://:p@/run/redis.sock", "/run/redis.sock:6379", "-", "p", 0, off),
    ] {
        let up = redis(url).unwrap().upstream;
        assert_eq!(format!("{}:{}", up.host, up.port), host, "{url}");
        assert_eq!(up.user.as_deref().unwrap_or("-"), user, "{url}");
        assert_eq!(up.password.as_ref().map_or("-", |p| p.expose()), password, "{url}");
        assert_eq!((up.database, up.tls), (database, tls), "{url}");
    }
    for (url, part) in [
        ("redis://h/zero", "number"),
        ("redis://h/-1", "number"),
        ("redis://h?db=x", "number"),
        ("redis://?port=0", "option port"),
        ("redis://h?ssl=true", "write rediss://"),
        ("rediss://h?ssl_keyfile=/k", "go together"),
        ("rediss://h?ssl_password=hunter2", "ssl_password, which tidegate cannot honour"),
        ("rediss://h?ssl_ca_data=x", "redis.tls_ca"),
        ("unix://h/x", "socket"),
        ("unix://", "socket"),
        ("redis://a,b", "several hosts"),
        ("postgres://h", "redis://"),
    ] {
        let error = redis(url).unwrap_err();
        assert!(error.contains(part), "{url}: {error}");
    }
}

#[test]
fn a_redis_url_leads_to_us_without_tls() {
    for (url, expected) in [
        ("redis://", "redis://127.0.0.1:6432/0"),
        ("rediss://:p@h:1/2", "redis://:p@127.0.0.1:6432/2"),
        (
            "rediss://u:p%2F@h?ssl_cert_reqs=none&timeout=5",
            "redis://u:p%2F@127.0.0.1:6432/0?timeout=5",
        ),
        ("unix://:p@/run/redis.sock?db=2", "redis://:p@127.0.0.1:6432/2"),
        (
            "rediss://h?password=p&username=u&db=1&ssl_ca_certs=/ca.pem&protocol=3",
            "redis://u:p@127.0.0.1:6432/1?protocol=3",
        ),
    ] {
        assert_eq!(
            redis(url).unwrap().local(LISTEN.parse().unwrap(), TlsMode::On, None),
            expected,
            "{url}"
        );
    }
    let url = "rediss://u:p@h/3?ssl_cert_reqs=none&ssl_certfile=/c&ssl_keyfile=/k&timeout=1";
    let url = redis(url).unwrap();
    let identity = Identity { certificate: "/c".into(), key: "/k".into() };
    assert_eq!(url.upstream.identity, Some(identity));
    let local = url.local(LISTEN.parse().unwrap(), TlsMode::Require, None);
    assert_eq!(local, "rediss://u:p@127.0.0.1:6432/3?ssl_cert_reqs=none&timeout=1");
}

#[test]
fn a_masked_url_shows_everything_but_secrets() {
    let url = postgres("postgres://u:hunter2@h/d?sslpassword=hunter2&a=b", &[]).unwrap();
    assert_eq!(url.masked(), "postgres://u:***@h/d?sslpassword=***&a=b");
    assert_eq!(redis("rediss://:hunter2@h").unwrap().masked(), "rediss://:***@h");
    assert_eq!(redis("rediss://h?password=hunter2").unwrap().masked(), "rediss://:***@h");
}

#[test]
fn a_redis_url_that_says_a_thing_twice_is_worth_a_word() {
    let url = redis("redis://:hunter2@h?password=hunter3").unwrap();
    assert_eq!(url.warnings.len(), 1);
    assert!(url.warnings[0].contains("two passwords"), "{:?}", url.warnings);
    assert!(!url.warnings[0].contains("hunter"), "{:?}", url.warnings);
    assert!(redis("redis://:p@h?password=p").unwrap().warnings.is_empty());
}

#[test]
fn the_roots_of_a_redis_url_count_before_the_setting() {
    let setting = RedisTls::On { verify: false, ca: Some("/setting.pem".into()) };
    let tls = |url| RedisUrl::parse("REDIS_URL", url, &setting).unwrap().upstream.tls;
    let on = |verify, ca: &str| RedisTls::On { verify, ca: Some(ca.into()) };
    assert_eq!(tls("rediss://h"), on(false, "/setting.pem"));
    let url = "rediss://h?ssl_cert_reqs=required&ssl_ca_certs=/url.pem";
    assert_eq!(tls(url), on(true, "/url.pem"));
}
