//! Settings as a whole: what is written, what it means, and what is said when it means nothing.

mod files;
mod layout;
mod urls;

use super::*;

/// Loads from variables alone.
fn from_environment(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load(None, &environment(variables), &[])
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter().chain(&[("USER", "me")]);
    variables.map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect()
}

const DB: (&str, &str) = ("DATABASE_URL", "postgres://u:hunter2@db.example.com/app");
const REDIS: (&str, &str) = ("REDIS_URL", "rediss://:hunter2@redis.example.com:6390/1");

#[test]
fn the_system_s_roots_are_for_the_server() {
    assert!(misleads("PGSERVICE", Some("s")) && misleads("PGSSLROOTCERT", Some("system")));
    assert!(!misleads("PGSSLROOTCERT", Some("/roots.pem")) && !misleads("PGSSLROOTCERT", None));
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "workers = 2\n[postgres]\npool_size = 2\nwait_ms = 2\n").unwrap();
    let variables = environment(&[
        DB,
        ("TIDEGATE_CONFIG", file.path().to_str().unwrap()),
        ("TIDEGATE_POSTGRES_POOL_SIZE", "3"),
        ("TIDEGATE_POSTGRES_WAIT_MS", "3"),
    ]);
    let flags = [("postgres.wait_ms", "4".to_owned())];
    let loaded = load(None, &variables, &flags).unwrap();
    let postgres = loaded.settings.postgres.unwrap();
    assert_eq!(loaded.settings.workers, 2);
    assert_eq!(postgres.pool_size, 3);
    assert_eq!(postgres.wait.as_millis(), 4);
    assert_eq!(postgres.queue_limit, PostgresSettings::default().queue_limit);
    assert_eq!(loaded.file.as_deref(), Some(file.path()));
}

#[test]
fn without_upstreams_nothing_is_served() {
    let loaded = from_environment(&[]).unwrap();
    assert_eq!(loaded.settings, Settings::default());
    assert_eq!((loaded.variables.len(), loaded.warnings.len()), (0, 0));
    let only_redis = from_environment(&[REDIS]).unwrap().settings;
    assert!(only_redis.postgres.is_none() && only_redis.redis.is_some());
}

#[test]
fn an_error_names_the_setting_the_value_and_what_is_allowed() {
    for (name, value, parts) in [
        ("TIDEGATE_WORKERS", "many", &["\"many\"", "from 1 to 64", "default 1"][..]),
        ("TIDEGATE_WORKERS", "0", &["\"0\"", "from 1 to 64"]),
        ("TIDEGATE_WORKERS", "", &["empty", "unset"]),
        ("TIDEGATE_WORKERS", "99999999999999999999", &["from 1 to 64"]),
        ("TIDEGATE_POSTGRES_POOL_SIZE", "-1", &["\"-1\"", "from 1 to"]),
        ("TIDEGATE_REDIS_POOL_SIZE", "1.5", &["\"1.5\"", "whole number"]),
        ("TIDEGATE_POSTGRES_WAIT_MS", "10s", &["\"10s\"", "milliseconds", "default 10000"]),
        ("TIDEGATE_REDIS_WAIT_MS", "0", &["milliseconds"]),
        ("TIDEGATE_POSTGRES_LISTEN", "6432", &["\"6432\"", "127.0.0.1:6432"]),
        ("TIDEGATE_REDIS_LISTEN", "host:1", &["127.0.0.1:6380"]),
        ("TIDEGATE_ADMIN_LISTEN", "::1:9127x", &["127.0.0.1:9127"]),
        ("TIDEGATE_POSTGRES_AUTH", "passwrd", &["password, trust", "did you mean password?"]),
        ("TIDEGATE_REDIS_AUTH", "none", &["password, trust"]),
        ("TIDEGATE_POSTGRES_ANY", "maybe", &["1, true"]),
        ("TIDEGATE_POSTGRES_ANY", "1", &["TIDEGATE_POSTGRES_AUTH=trust"]),
        ("TIDEGATE_LOG", "inf", &["did you mean info?"]),
        ("TIDEGATE_LOG_FORMAT", "xml", &["logfmt, json"]),
        ("TIDEGATE_POSTGRES_URLS", "DATABASE_URL OTHER_URL", &["OTHER_URL, which is not set"]),
        ("TIDEGATE_POSTGRES_READ_ONLY_URLS", "X_URL", &["X_URL, which is not set"]),
        ("TIDEGATE_POSTGRES_READ_ONLY_URLS", "DATABASE_URL", &["DATABASE_URL", "one of them"]),
        ("TIDEGATE_REDIS_URLS", "redis://:hunter2@h", &["names of variables"]),
        ("TIDEGATE_CONFIG", "/nonexistent.toml", &["/nonexistent.toml", "cannot be read"]),
        ("DATABASE_URL", "", &["empty", "unset"]),
        ("REDIS_URL", "http://h", &["redis://"]),
    ] {
        let mut variables = vec![DB, REDIS];
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
        let error = from_environment(&variables).unwrap_err().to_string();
        for part in [name].iter().chain(parts) {
            assert!(error.contains(part), "{name}={value}: {error:?} lacks {part:?}");
        }
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn trust_and_missing_passwords_stay_on_this_machine() {
    let bare = ("DATABASE_URL", "postgres://u@db.example.com/app");
    let everywhere = ("TIDEGATE_POSTGRES_LISTEN", "0.0.0.0:6432");
    let trust = ("TIDEGATE_POSTGRES_AUTH", "trust");
    let v6 = ("TIDEGATE_POSTGRES_LISTEN", "[::1]:6432");
    for (variables, fine) in [
        (&[DB, trust][..], true),
        (&[DB, trust, v6], true),
        (&[DB, everywhere], true),
        (&[bare], true),
        (&[bare, trust], true),
        (&[DB, everywhere, trust], false),
        (&[bare, everywhere], false),
    ] {
        let outcome = from_environment(variables);
        assert_eq!(outcome.is_ok(), fine, "{variables:?}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(error.to_string().contains("0.0.0.0:6432"), "{error}");
        }
    }
    let redis = [REDIS, ("TIDEGATE_REDIS_AUTH", "trust"), ("TIDEGATE_REDIS_LISTEN", "0.0.0.0:1")];
    assert!(from_environment(&redis).is_err());
}

#[test]
fn a_variable_that_nothing_reads_is_warned_about() {
    let loaded = from_environment(&[
        DB,
        ("TIDEGATE_POSTGRES_POOLSIZE", "3"),
        ("TIDEGATE_DATABASE_URL", "postgres://u@h/d"),
        ("TIDEGATE_ELEPHANT", "1"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
    assert!(
        loaded.warnings.iter().any(|w| w.contains("did you mean TIDEGATE_POSTGRES_POOL_SIZE?"))
    );
    assert!(loaded.warnings.iter().any(|w| w.starts_with("TIDEGATE_ELEPHANT is not a setting")));
}

#[test]
fn nothing_that_is_shown_holds_a_secret() {
    let loaded = from_environment(&[DB, REDIS]).unwrap();
    let shown = format!("{}\n{:?}", describe(&loaded), loaded.settings);
    assert!(!shown.contains("hunter2"), "{shown}");
    let debugged = format!("{loaded:?}");
    assert!(!debugged.contains("hunter2"), "{debugged}");
    assert!(describe(&loaded).contains("postgres://u:***@db.example.com/app"));
}
