//! URLs: what they mean, and what the wrapped command gets instead.

use std::collections::BTreeSet;

use super::*;
use crate::config::conninfo::OPTIONS;
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
    let hosts = up.hosts.list.iter().map(|one| format!("{} {}", one.host, one.port));
    let hosts = hosts.collect::<Vec<_>>().join(",");
    format!("{hosts} {} {password} {} {:?}", up.user, up.database, up.sslmode)
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
        ("postgres://u:a?b@h/d", "h 5432 u a?b d Prefer"),
        ("postgres://u:p@a,b:7,[::1]/d", "a 5432,b 7,[::1] 5432 u p d Prefer"),
        ("postgres://u:p@a,b/d?port=7", "a 7,b 7 u p d Prefer"),
        ("postgres://u@/d?host=a,%2Ftmp&port=7,8", "a 7,/tmp 8 u - d Prefer"),
        ("postgres://u@/d?hostaddr=10.0.0.1", "10.0.0.1 5432 u - d Prefer"),
        ("host=h user=u password='p q\\'r' dbname = d", "h 5432 u p q'r d Prefer"),
        ("user=u hostaddr=10.0.0.1,::1 host=a,b port=7", "a 7,b 7 u - u Prefer"),
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
        ("postgres://u:%zzhunter2@h/d", "hexadecimal"),
        ("postgres://u:hunter2%@h/d", "hexadecimal"),
        ("postgres://u:hunter2%00@h/d", "%00"),
        ("postgres://u:hunter2%ff@h/d", "UTF-8"),
        ("postgres://u:hun@ter2@h/d", "raw @"),
        ("postgres://u:hunter2@a:1,b:2,c:3/d?port=1,2", "one port for each"),
        ("postgres://u:hunter2@a,b/d?hostaddr=1.2.3.4", "one hostaddr for each"),
        ("postgres://u:hunter2@h/d?hostaddr=hun", "IP address"),
        ("postgres://u:hunter2@h/d?hunter2", "without its ="),
        ("postgres://u:hunter2@h/d?target_session_attrs=hun", "prefer-standby"),
        ("postgres://u:hunter2@h/d?load_balance_hosts=hun", "random"),
        ("postgres://u:hunter2@h/d?connect_timeout=hun", "number"),
        ("host=h user=u password=hun ter2", "without its ="),
        ("host=h user=u password='hunter2", "quote"),
        ("host=h user=u hunter=2", "does not know"),
        ("postgres://u:hunter2@[::1/d", "without its ]"),
        ("postgres://u:hunter2@[]/d", "IPv6"),
        ("postgres://u:hunter2@[::1]x/d", "after the ]|:port"),
        ("postgres://u:hunter2@h/d?sslmode=strict", "verify-full"),
        ("postgres://u:hunter2@h/d?sslmode=require&sslrootcert=system", "verify-full"),
        ("postgres://u:hunter2@h/d?sslcert=/c", "go together"),
        ("postgres://u:hunter2@h/d?sslcert=/c&sslkey=/k&sslpassword=hunter2", "sslpassword"),
        ("postgres://u:hunter2@h/d?sslnegotiation=direct", "sslmode=require"),
        ("postgres://u:hunter2@h/d?sslnegotiation=hun", "neither postgres nor direct"),
        ("postgres://u:hunter2@h/d?sslmode=disable&channel_binding=require", "needs TLS"),
        ("postgres://u:hunter2@h/d?channel_binding=hun", "disable, prefer, require"),
        ("postgres://u:hunter2@h/d?port=x", "port"),
        ("mysql://u:hunter2@h/d", "postgres://"),
        ("jdbc:postgresql://u:hunter2@h/d", "JDBC"),
        ("u:hunter2@h/d", "://"),
        ("u:hunter2@h/d?a=b", "without its =|does not know"),
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
fn only_a_unix_socket_goes_without_encryption() {
    for (hosts, encrypted) in [
        ("host=/tmp", false),
        ("host=/tmp,/run", false),
        ("host=/tmp,h", true),
        ("host=/tmp&hostaddr=10.0.0.1", true),
        ("hostaddr=10.0.0.1", true),
    ] {
        let url = postgres(&format!("postgres://u@/d?sslmode=require&{hosts}"), &[]).unwrap();
        assert_eq!(url.upstream.tls().is_some(), encrypted, "{hosts}");
    }
}

/// The variable of older clients.
#[test]
fn who_requires_encryption_in_the_old_way_gets_it() {
    let mode = |options: &str, variables: &[(&str, &str)]| {
        let url = postgres(&format!("postgres://u:p@h/d?{options}"), variables).unwrap();
        (url.upstream.sslmode, url.local(LISTEN.parse().unwrap(), TlsMode::On, None))
    };
    let base = "postgres://u:p@127.0.0.1:6432/d";
    let disabled = format!("{base}?sslmode=disable");
    // Only what begins with a 1 counts, and only where nothing else says so.
    assert_eq!(mode("", &[("PGREQUIRESSL", "1")]), (SslMode::Require, disabled.clone()));
    assert_eq!(mode("", &[("PGREQUIRESSL", "12")]), (SslMode::Require, disabled.clone()));
    for other in ["0", "on", "true", ""] {
        assert_eq!(mode("", &[("PGREQUIRESSL", other)]), (SslMode::Prefer, base.to_owned()));
    }
    let both = [("PGREQUIRESSL", "1"), ("PGSSLMODE", "verify-full")];
    assert_eq!(mode("", &both).0, SslMode::VerifyFull);
    let none = [("PGREQUIRESSL", "1"), ("PGSSLMODE", "")];
    assert_eq!(mode("", &none).0, SslMode::Prefer);
    assert_eq!(mode("sslmode=disable", &both[..1]), (SslMode::Disable, disabled));
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

/// What becomes of an option.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Tidegate does what it says.
    Applied,
    /// The wrapped command gets it.
    PassedOn,
    /// Both.
    Shared,
    /// The error says what to do instead.
    Refused,
    /// The log has a word about it.
    Warned,
    /// It says nothing any more, in libpq either.
    Void,
}

use Fate::{Applied, PassedOn, Refused, Shared, Void, Warned};

const FATES: &[(&str, Fate)] = &[
    ("application_name=x", PassedOn),
    ("channel_binding=disable", Applied),
    ("client_encoding=UTF8", PassedOn),
    ("connect_timeout=7", Shared),
    ("dbname=e", Applied),
    ("fallback_application_name=x", PassedOn),
    ("gssdelegation=1", Warned),
    ("gssencmode=disable", Void),
    ("gssencmode=prefer", Void),
    ("gssencmode=require", Refused),
    ("gsslib=gssapi", Warned),
    ("host=i", Applied),
    ("hostaddr=10.0.0.1", Applied),
    ("keepalives=0", Applied),
    ("keepalives_count=7", Applied),
    ("keepalives_idle=7", Applied),
    ("keepalives_interval=7", Applied),
    ("krbsrvname=x", Warned),
    ("load_balance_hosts=random", Applied),
    ("max_protocol_version=3.2", PassedOn),
    ("min_protocol_version=3.0", PassedOn),
    ("oauth_client_id=x", Refused),
    ("oauth_client_secret=x", Refused),
    ("oauth_issuer=x", Refused),
    ("oauth_scope=x", Refused),
    ("options=-ca%3Db", PassedOn),
    // Of no use beside a password, in libpq either.
    ("passfile=x", Void),
    ("password=q", Applied),
    ("port=7", Applied),
    ("replication=database", PassedOn),
    ("require_auth=scram-sha-256", Applied),
    ("require_auth=kerberos", Refused),
    ("requirepeer=root", Applied),
    ("requirepeer=nobody-at-all", Refused),
    ("scram_client_key=x", Refused),
    ("scram_server_key=x", Refused),
    ("service=x", Refused),
    // Of no use without a service.
    ("servicefile=x", Void),
    ("ssl_max_protocol_version=TLSv1.2", Applied),
    ("ssl_max_protocol_version=TLSv1.1", Refused),
    ("ssl_min_protocol_version=TLSv1.3", Applied),
    ("ssl_min_protocol_version=TLSv1.2", Void),
    ("sslcert=x&sslkey=y", Applied),
    ("sslcertmode=require", Refused),
    ("sslcompression=1", Void),
    ("sslcrl=x", Refused),
    ("sslcrldir=x", Refused),
    ("sslkeylogfile=x", Refused),
    ("sslmode=require", Applied),
    ("sslmode=require&sslnegotiation=direct", Applied),
    ("sslcert=x&sslkey=y&sslpassword=z", Refused),
    // Of no use without a key.
    ("sslpassword=x", Void),
    ("sslrootcert=x", Applied),
    ("sslsni=0", Applied),
    ("target_session_attrs=primary", Applied),
    ("tcp_user_timeout=7", Applied),
    ("user=v", Applied),
    // Of other libraries: theirs to read.
    ("pgbouncer=true", PassedOn),
];

#[test]
fn no_option_of_libpq_is_dropped_without_a_word() {
    let fate = |option: &str| {
        let plain = postgres("postgres://u:p@h/d", &[]).unwrap();
        let Ok(url) = postgres(&format!("postgres://u:p@h/d?{option}"), &[]) else {
            return Fate::Refused;
        };
        let passed = url.local(LISTEN.parse().unwrap(), TlsMode::On, None).contains(option);
        let options = plain.upstream.options.clone();
        let applied = PostgresUpstream { options, ..url.upstream.clone() } != plain.upstream;
        match (applied, passed) {
            (true, true) => Fate::Shared,
            (true, false) => Fate::Applied,
            (false, true) => Fate::PassedOn,
            (false, false) if !url.warnings.is_empty() => Fate::Warned,
            (false, false) => Fate::Void,
        }
    };
    let written = FATES.iter().flat_map(|(option, _)| option.split('&'));
    let judged: BTreeSet<&str> = written.filter_map(|it| Some(it.split_once('=')?.0)).collect();
    let forgotten: Vec<_> = OPTIONS.iter().filter(|(name, _)| !judged.contains(name)).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
    for (option, expected) in FATES {
        assert_eq!(fate(option), *expected, "{option}");
    }
}

#[test]
fn a_service_and_a_password_file_count_where_the_url_says_nothing() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let home = home.path().to_str().unwrap();
    let write = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write(
        ".pg_service.conf",
        "[s]\nhost=a,b\nuser=v\nsslmode=require\napplication_name=n\n",
        0o644,
    );
    write(".pgpass", "a:5432:d:v:q\nb:5432:d:v:q\n*:*:*:other:r\n", 0o600);
    let environment = [("HOME", home)];
    let url = postgres("postgres:///d?service=s", &environment).unwrap();
    assert_eq!(meaning(&url), "a 5432,b 5432 v q d Require");
    let local = url.local(LISTEN.parse().unwrap(), TlsMode::On, None);
    assert_eq!(local, "postgres://v:q@127.0.0.1:6432/d?application_name=n&sslmode=disable");
    assert_eq!(url.files, [at(".pg_service.conf"), at(".pgpass")]);
    let with_variable = [("HOME", home), ("PGSERVICE", "s")];
    let url = postgres("postgres://other@h/d?sslmode=disable", &with_variable).unwrap();
    assert_eq!(meaning(&url), "h 5432 other r d Disable");
    assert_eq!(
        meaning(&postgres("user=u:p host=h dbname=d", &environment).unwrap()),
        "h 5432 u:p - d Prefer"
    );
    let unknown = postgres("service=t", &environment).unwrap_err();
    assert!(unknown.contains("no service file has"), "{unknown}");
    write(".pgpass", "*:*:*:*:q\n", 0o640);
    let open = postgres("host=h user=u", &environment).unwrap();
    assert_eq!(open.upstream.password, None);
    assert!(open.warnings[0].contains("chmod 0600"), "{:?}", open.warnings);
    let several = format!("host=a,b user=u passfile={}", at("other").display());
    // A host for which there is none must not hear another's.
    for differing in ["a:*:*:*:q\nb:*:*:*:r\n", "b:*:*:*:r\n", "a:*:*:*:r\n"] {
        write("other", differing, 0o600);
        let error = postgres(&several, &environment).unwrap_err();
        assert!(error.contains("differ"), "{differing}: {error}");
    }
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
        ("redis+unix:///s?db=2&pass=p&user=u", "/s:6379", "u", "p", 2, off.clone()),
        ("redis+socket://:p@/s?virtual_host=2", "/s:6379", "-", "p", 2, off.clone()),
        ("redis-socket://u:p@/s?database=2", "/s:6379", "u", "p", 2, off.clone()),
        ("socket:///s", "/s:6379", "-", "-", 0, off.clone()),
        ("unix://u@/s", "/s:6379", "u", "-", 0, off.clone()),
        ("/run/a%20b?c.sock", "/run/a%20b?c.sock:6379", "-", "-", 0, off.clone()),
        ("redis://u@h/0", "h:6379", "u", "-", 0, off.clone()),
        ("redis://u:@h", "h:6379", "u", "-", 0, off.clone()),
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
        ("redis+socket:///s?virtual_host=2&timeout=5", "redis://127.0.0.1:6432/2?timeout=5"),
        ("/run/redis.sock", "redis://127.0.0.1:6432/0"),
        ("redis://u@h", "redis://u@127.0.0.1:6432/0"),
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
