//! The TOML file: its names, its errors, and the one we ship.

use super::*;
use crate::config::keys::KEYS;

const SHIPPED: &str = include_str!("../../../config/tidegate.toml");

fn from_file(text: &str) -> Result<Loaded, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load(Some(file.path()), &environment(&[DB, REDIS]), &[])
}

#[test]
fn an_unknown_name_is_an_error_with_line_and_suggestion() {
    for (text, parts) in [
        ("\nworkrs = 1", &["line 2", "workrs", "did you mean workers?"][..]),
        ("[postgres]\npool_sise = 1", &["line 2", "did you mean postgres.pool_size?"]),
        ("[postgress]\npool_size = 1", &["line 1", "[postgress]", "did you mean postgres?"]),
        ("postgres.wait = 1", &["line 1", "postgres.wait"]),
        ("[log]\nlevel = 2026-01-01", &["line 2", "log.level", "must be"]),
        ("[log]\nlevel = \"loud\"", &["line 2, log.level", "\"loud\"", "off, error, warn"]),
        ("workers = [", &["not a TOML file", "line 1"]),
        ("workers = 1\nworkers = 2", &["not a TOML file", "duplicate"]),
        ("[redis.limits]\nx = 1", &["redis.limits"]),
    ] {
        let error = from_file(text).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{text:?}: {error:?} lacks {part:?}");
        }
    }
}

#[test]
fn lists_and_hexadecimal_numbers_are_understood() {
    let text = "workers = 0x2\n[postgres]\nurls = [\"DATABASE_URL\"]\nany = true\nauth = \"trust\"";
    let loaded = from_file(text).unwrap();
    assert_eq!(loaded.settings.workers, 2);
    assert!(loaded.settings.postgres.unwrap().any);
}

/// The shipped file with every setting's line uncommented.
fn uncommented() -> String {
    let is_setting = |line: &str| {
        let Some((name, _)) = line.split_once(" = ") else { return false };
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let lines = SHIPPED.lines().map(|line| match line.strip_prefix("# ") {
        Some(setting) if is_setting(setting) => setting,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_changes_nothing() {
    let default = from_environment(&[DB, REDIS]).unwrap().settings;
    assert_eq!(from_file(SHIPPED).unwrap().settings, default);
}

#[test]
fn the_shipped_file_shows_every_setting_with_its_default() {
    let text = uncommented();
    let mut written = Written::default();
    written.take_file("tidegate.toml", &text).unwrap();
    for key in KEYS {
        assert!(written.entry(key.path).is_some(), "{} is not shown", key.path);
        if let Some(variable) = key.variable {
            assert!(SHIPPED.contains(variable), "{variable} is not named");
        }
    }
    // Nobody has this file, which is read at once.
    let text = text.replace("\nusers_file = ", "\n# users_file = ");
    // Nobody but the users of URLs is served.
    let text = text.replace("\nauth_query = ", "\n# auth_query = ");
    // Nobody takes what this would send.
    let text = text.replace("\nremote_write_url = ", "\n# remote_write_url = ");
    // Nor are there these certificates; and who pins a key has one.
    let text = ["cert", "key", "client_ca", "tls_cert", "tls_key", "pin", "pin_file"]
        .iter()
        .fold(text, |text, key| text.replace(&format!("\n{key} = "), &format!("\n# {key} = ")));
    // There are no unix sockets unless somebody wants them.
    let text = ["control_socket", "socket_dir", "socket"]
        .iter()
        .fold(text, |text, key| text.replace(&format!("\n{key} = "), &format!("\n# {key} = ")));
    // And there is no namespace of this name.
    let text = text.replace("\nnamespace = ", "\n# namespace = ");
    let mut settings = from_file(&text).unwrap().settings;
    let default = from_environment(&[DB, REDIS]).unwrap().settings;
    // Written down, the ports are somebody's wish, and the certificates' file has no default.
    settings.admin.explicit = false;
    for listener in &mut settings.postgres.as_mut().unwrap().listeners {
        listener.explicit = false;
    }
    for listener in &mut settings.redis.as_mut().unwrap().listeners {
        listener.explicit = false;
        let mut upstream = (*listener.upstream).clone();
        assert_eq!(
            upstream.tls,
            RedisTls::On { verify: false, ca: Some(PathBuf::from("/path/to/roots.pem")) }
        );
        upstream.tls = RedisTls::On { verify: false, ca: None };
        listener.upstream = std::sync::Arc::new(upstream);
    }
    assert_eq!(settings, default);
}

#[test]
fn the_shipped_files_namespace_is_one() {
    let lines = SHIPPED.lines().map(|line| match line.strip_prefix("#  ") {
        Some(setting) if !setting.starts_with("password_env") => setting,
        _ if line == "# [[redis.namespaces]]" => "[[redis.namespaces]]",
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let redis = from_file(&text).unwrap().settings.redis.unwrap();
    let [namespace] = &redis.listeners[0].namespaces[..] else { panic!("one is shown") };
    assert_eq!((&*namespace.namespace.name, namespace.password.expose()), ("cache", "..."));
    for key in crate::config::keys::NAMESPACE_KEYS {
        assert!(SHIPPED.contains(&format!("\n#  {key} = ")), "{key} is not shown");
    }
}

#[test]
fn a_wrong_namespace_is_told_of() {
    let told = |table: &str| {
        from_file(&format!("[[redis.namespaces]]\n{table}\n")).unwrap_err().to_string()
    };
    for (table, words) in [
        ("mode = \"prefix\"", "needs a name"),
        ("name = \"default\"", "not default"),
        ("name = \"a b\"", "must be letters"),
        ("name = \"a\"\nprefix = \"\"", "is empty"),
        ("name = \"a\"\nprefix = \"a*\"", "take the * out"),
        ("name = \"a\"\nreadable = [\"b:\", \"*\"]", "take the * out"),
        ("name = \"a\"\nmode = \"both\"", "must be one of enforce, prefix"),
        ("name = \"a\"\nmode = \"prefix\"\nreadable = [\"b:\"]", "nothing else is readable"),
        ("name = \"a\"\nscripts = \"maybe\"", "must be sandbox, deny, trust"),
        ("name = \"a\"\npassword_env = \"NOT_THERE\"", "is set and not empty"),
        ("name = \"a\"\nvalue_bytes = 0", "must be a whole number"),
        ("name = \"a\"\nurl = \"OTHER_URL\"", "one of the variables in redis.urls"),
        ("name = \"a\"\nvariable = \"REDIS_URL\"", "is another's"),
        ("name = \"a\"\nprefex = \"b\"", "prefix"),
        ("name = \"a\"\n[[redis.namespaces]]\nname = \"a\"", "two namespaces"),
    ] {
        let told = told(table);
        assert!(told.contains(words), "{table}: {told}");
    }
    let told = from_file("[redis]\nnamespace = \"cach\"\n[[redis.namespaces]]\nname = \"cache\"\n");
    assert!(told.unwrap_err().to_string().contains("cache"));
}

#[test]
fn a_namespace_without_a_redis_is_no_mistake() {
    let mut written = Written::default();
    let text = "[redis]\nnamespace = \"cache\"\n[[redis.namespaces]]\nname = \"cache\"\n";
    written.take_file("tidegate.toml", text).unwrap();
    let resolved = crate::config::resolve::resolve(&written, &Environment::new(), &[]).unwrap();
    assert_eq!(resolved.settings.redis, None);
}

#[test]
fn every_file_that_is_read_is_watched() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let made = rcgen::generate_simple_self_signed(["db".to_owned()]).unwrap();
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let (roots, ca) = (path("roots.pem", &pem), path("ca.pem", &pem));
    let (shown, shown_key) = (path("shown.pem", &pem), path("shown.key", &key));
    let (own, own_key) = (path("own.pem", &pem), path("own.key", &key));
    let users = path("users", "\"ann\" \"secret\"");
    let url = format!("postgres://u:p@db/app?sslmode=verify-full&sslrootcert={}", roots.display());
    let url = path("url", &url);
    let file = path(
        "tidegate.toml",
        &format!(
            "[postgres]\nany = true\nusers_file = {users:?}\n\
             [redis]\ntls_verify = true\ntls_ca = {ca:?}\ntls_cert = {own:?}\ntls_key = {own_key:?}\n\
             [tls]\ncert = {shown:?}\nkey = {shown_key:?}"
        ),
    );
    let environment = environment(&[
        ("DATABASE_URL_FILE", url.to_str().unwrap()),
        ("REDIS_URL", "rediss://:pw@cache"),
    ]);
    let loaded = load(Some(&file), &environment, &[]).unwrap();
    let mut all = vec![file, users.clone(), url, roots, ca, shown, shown_key, own, own_key];
    all.sort_unstable();
    assert_eq!(loaded.watched, all);
    assert_eq!(loaded.read_again().unwrap(), loaded);
    std::fs::remove_file(users).unwrap();
    assert!(loaded.read_again().unwrap_err().to_string().contains("users_file"));
}

#[test]
fn what_is_said_of_tls_must_fit_together() {
    let told = |text: &str| from_file(text).unwrap_err().to_string();
    for (text, words) in [
        ("[tls]\ncert = \"/c\"", "go together"),
        ("[tls]\ncert = \"/c\"\nkey = \"/k\"", "cannot take certificates from /c"),
        ("[tls]\npostgres = \"maybe\"", "must be one of off, on, require"),
        ("[tls]\npostgres = \"on\"\nclient_ca = \"/r\"", "use require, or off"),
        ("[tls]\nclient_ca = \"/r\"", "cannot take certificates from /r"),
        ("[tls]\nclient_cert = \"cert\"", "name their root in tls.client_ca"),
        ("[postgres]\npin = \"xyz\"", "SHA-256 hashes"),
        ("[redis]\ntls_cert = \"/c\"", "go together"),
    ] {
        let told = told(text);
        assert!(told.contains(words), "{text}: {told}");
    }
    let text = "[tls]\nredis = \"require\"\n[postgres]\npin_file = \"/pins\"\n[redis]\npin_file = \"/pins\"";
    let loaded = from_file(text).unwrap();
    assert_eq!(loaded.tls_of(Protocol::Postgres), TlsMode::On);
    assert_eq!(loaded.tls_of(Protocol::Redis), TlsMode::Require);
    let upstream = &loaded.settings.postgres.as_ref().unwrap().listeners[0].upstreams[0];
    assert_eq!(upstream.pins.file, Some(PathBuf::from("/pins")));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let plain =
        [("DATABASE_URL", "postgres://u:p@h/d?sslmode=disable"), ("REDIS_URL", "redis://h")];
    let loaded = load(Some(file.path()), &environment(&plain), &[]).unwrap();
    let told = loaded.warnings.join("\n");
    assert!(told.contains("sslmode=require") && told.contains("rediss://"), "{told}");
}
