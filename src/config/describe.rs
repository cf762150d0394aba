//! What the settings mean, in words: the text of `tidegate check`. Holds no secret.

use std::fmt::Write as _;

use super::variable::Origin;
use super::{
    Access, Auth, ChildCredentials, Host, ListenerEncryption, Loaded, PoolMode, Protocol,
    PushSettings, RedisTls, SslMode, TargetSession, TlsMode,
};
use crate::redis::namespace::Mode;

/// Describes everything that was loaded, for a person.
#[must_use]
pub fn describe(loaded: &Loaded) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _unfailing = write_all(&mut text, loaded);
    text
}

fn write_all(text: &mut String, loaded: &Loaded) -> std::fmt::Result {
    let settings = &loaded.settings;
    match &loaded.file {
        Some(path) => writeln!(text, "file      {}", path.display())?,
        None => writeln!(text, "file      none (environment and defaults)")?,
    }
    writeln!(text, "workers   {}", settings.workers)?;
    writeln!(text, "admin     http://{}/metrics", settings.admin.listen)?;
    write_push(text, &settings.push)?;
    write_postgres(text, loaded)?;
    write_redis(text, loaded)?;
    write_sockets(text, loaded)?;
    for variable in &loaded.variables {
        if let Some(listen) = loaded.listen_of(variable) {
            let tls = loaded.tls_of(variable.protocol());
            let masked =
                mask_password(&variable.local_url(listen, tls, &ChildCredentials::default()));
            writeln!(text, "rewrite   {}={masked}", variable.name)?;
        }
    }
    for warning in &loaded.warnings {
        writeln!(text, "warning   {warning}")?;
    }
    Ok(())
}

/// Of the URL only what cannot be a key.
fn write_push(text: &mut String, push: &PushSettings) -> std::fmt::Result {
    let source = &push.source;
    if !push.log_every.is_zero() {
        let every = push.log_every.as_millis();
        writeln!(text, "push      a log line for each pool every {every} ms, source {source}")?;
    }
    if let Some(target) = &push.remote_write {
        let scheme = if target.tls.is_some() { "https" } else { "http" };
        let host = Host::Tcp(target.host.clone());
        let credentials = if target.authorization.is_some() { ", with credentials" } else { "" };
        writeln!(
            text,
            "push      remote write to {scheme}://{host}:{} every {} ms, instance {source}{credentials}",
            target.port,
            push.remote_write_every.as_millis()
        )?;
    }
    Ok(())
}

fn write_sockets(text: &mut String, loaded: &Loaded) -> std::fmt::Result {
    let settings = &loaded.settings;
    let postgres = settings.postgres.iter().flat_map(|postgres| &postgres.listeners);
    let postgres = postgres.filter_map(|one| settings.sockets.postgres(one.listen.port()));
    let redis = settings.redis.iter().flat_map(|redis| &redis.listeners).enumerate();
    let redis = redis.filter_map(|(index, _)| settings.sockets.redis(index));
    for path in postgres.chain(redis) {
        writeln!(text, "socket    {}, mode {:04o}", path.display(), settings.sockets.mode)?;
    }
    if let Some(path) = &settings.sockets.control {
        writeln!(text, "control   {} (serve)", path.display())?;
    }
    Ok(())
}

fn write_postgres(text: &mut String, loaded: &Loaded) -> std::fmt::Result {
    let Some(postgres) = &loaded.settings.postgres else {
        return writeln!(text, "postgres  off (DATABASE_URL is not set)");
    };
    writeln!(
        text,
        "postgres  at most {} connections to each server, waits of up to {} ms, auth {}{}{}",
        postgres.pool_size,
        postgres.wait.as_millis(),
        auth_word(postgres.auth),
        encryption_words(&postgres.encryption),
        if postgres.any { ", any user and database" } else { "" }
    )?;
    if !postgres.users.is_empty() {
        writeln!(text, "          users file: {} users", postgres.users.iter().count())?;
    }
    for listener in &postgres.listeners {
        for upstream in &listener.upstreams {
            writeln!(
                text,
                "          {} -> {} {}, user {}, database {}, sslmode {}{}{}{}",
                listener.listen,
                upstream.name,
                upstream.hosts,
                upstream.user,
                upstream.database,
                sslmode_word(upstream.sslmode),
                target_words(upstream.hosts.target),
                if upstream.access == Access::Read { ", only read" } else { "" },
                mode_words(postgres.pool_modes.of(&upstream.user, &upstream.database))
            )?;
        }
    }
    write_urls(text, loaded, Protocol::Postgres)
}

fn write_redis(text: &mut String, loaded: &Loaded) -> std::fmt::Result {
    let Some(redis) = &loaded.settings.redis else {
        return writeln!(text, "redis     off (REDIS_URL is not set)");
    };
    writeln!(
        text,
        "redis     at most {} connections to each server, waits of up to {} ms, auth {}{}",
        redis.pool_size,
        redis.wait.as_millis(),
        auth_word(redis.auth),
        encryption_words(&redis.encryption)
    )?;
    for listener in &redis.listeners {
        let upstream = &listener.upstream;
        let tls = match &upstream.tls {
            RedisTls::Off => "no TLS",
            RedisTls::On { verify: false, .. } => "TLS, any certificate",
            RedisTls::On { verify: true, .. } => "TLS, verified",
        };
        writeln!(
            text,
            "          {} -> {} {}:{}, database {}, {tls}",
            listener.listen, upstream.name, upstream.host, upstream.port, upstream.database
        )?;
        for (at, settings) in listener.namespaces.iter().enumerate() {
            let namespace = &settings.namespace;
            let mode = match namespace.mode {
                Mode::Enforce => "said by clients",
                Mode::Prefix => "added and taken away",
            };
            let plain = if listener.first_namespace == Some(at) { ", plain clients" } else { "" };
            let prefixes: Vec<_> =
                namespace.prefixes.iter().map(|prefix| String::from_utf8_lossy(prefix)).collect();
            let prefixes = prefixes.join(" ");
            writeln!(text, "          namespace {}: {prefixes} {mode}{plain}", namespace.name)?;
        }
    }
    write_urls(text, loaded, Protocol::Redis)
}

fn write_urls(text: &mut String, loaded: &Loaded, protocol: Protocol) -> std::fmt::Result {
    let named = |variable: &&super::PooledVariable| {
        variable.protocol() == protocol && variable.origin == Origin::Environment
    };
    for variable in loaded.variables.iter().filter(named) {
        writeln!(text, "upstream  {}={}", variable.name, variable.masked_url())?;
    }
    Ok(())
}

/// Our own URLs have one form: everything between the user's colon and the at sign is the password. The query is the
/// user's own, and an option of it may hold another.
fn mask_password(url: &str) -> String {
    let (url, query) = url.split_once('?').unwrap_or((url, ""));
    let options = query.split('&').map(|option| match option.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("pass") => format!("{name}=***"),
        _ => option.to_owned(),
    });
    let masked = mask_user_info(url);
    if query.is_empty() {
        return masked;
    }
    format!("{masked}?{}", options.collect::<Vec<_>>().join("&"))
}

fn mask_user_info(url: &str) -> String {
    let Some((before, after)) = url.split_once('@') else { return url.to_owned() };
    match before.split_once("://").and_then(|(scheme, info)| Some((scheme, info.split_once(':')?)))
    {
        Some((scheme, (user, _))) => format!("{scheme}://{user}:***@{after}"),
        None => url.to_owned(),
    }
}

fn mode_words(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "",
        PoolMode::Session => ", a connection for each session",
        PoolMode::Statement => ", a connection for each statement",
    }
}

fn target_words(target: TargetSession) -> &'static str {
    match target {
        TargetSession::Any => "",
        TargetSession::ReadWrite => ", the host that writes",
        TargetSession::ReadOnly => ", a host that only reads",
        TargetSession::Primary => ", the primary",
        TargetSession::Standby => ", a standby",
        TargetSession::PreferStandby => ", a standby if there is one",
    }
}

fn encryption_words(encryption: &ListenerEncryption) -> &'static str {
    match (encryption.mode, &encryption.client_ca) {
        (TlsMode::Off, _) => ", no TLS for clients",
        (TlsMode::On, _) => "",
        (TlsMode::Require, None) => ", clients must use TLS",
        (TlsMode::Require, Some(_)) => ", clients must use TLS and show a certificate",
    }
}

fn auth_word(auth: Auth) -> &'static str {
    match auth {
        Auth::Password => "password",
        Auth::Trust => "trust",
    }
}

fn sslmode_word(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}
