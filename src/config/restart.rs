//! Which settings wait for a restart: what a running process began with and can't change.

use super::{
    Loaded, NamespaceSettings, PasswordOrigin, PostgresListener, PostgresSettings, RedisLimits,
    RedisListener, RedisSettings, Settings,
};

/// The settings that differ between what runs and what is wanted, and that a running process can't take, by their names.
#[must_use]
pub fn needs_restart(running: &Loaded, wanted: &Loaded) -> Vec<&'static str> {
    let mut names = whole(&running.settings, &wanted.settings);
    match (&running.settings.postgres, &wanted.settings.postgres) {
        (Some(running), Some(wanted)) => names.extend(postgres(running, wanted)),
        (None, None) => {}
        _ => names.push("postgres.urls"),
    }
    match (&running.settings.redis, &wanted.settings.redis) {
        (Some(running), Some(wanted)) => names.extend(redis(running, wanted)),
        (None, None) => {}
        _ => names.push("redis.urls"),
    }
    names.dedup();
    names
}

/// What is wanted, but for what waits for a restart.
#[must_use]
pub fn postgres_without_restart(
    running: &PostgresSettings,
    wanted: &PostgresSettings,
) -> PostgresSettings {
    let listeners = running.listeners.iter().enumerate().map(|(index, listener)| {
        let wanted = wanted.listeners.get(index);
        let upstreams = wanted.map(|wanted| wanted.upstreams.clone()).unwrap_or_default();
        PostgresListener { upstreams, ..listener.clone() }
    });
    PostgresSettings {
        listeners: listeners.collect(),
        any: running.any,
        auth: running.auth,
        encryption: running.encryption.clone(),
        client_certificate: running.client_certificate,
        ..wanted.clone()
    }
}

fn whole(running: &Settings, wanted: &Settings) -> Vec<&'static str> {
    let (admin, new_admin) = (&running.admin, &wanted.admin);
    let (push, new_push) = (&running.push, &wanted.push);
    let compared = [
        ("workers", running.workers == wanted.workers),
        ("drain_ms", running.drain == wanted.drain),
        ("child_grace_ms", running.child_grace == wanted.child_grace),
        ("child_credentials", running.child_password == wanted.child_password),
        ("handover_ms", running.handover == wanted.handover),
        ("control_socket", running.sockets.control == wanted.sockets.control),
        ("socket_mode", running.sockets.mode == wanted.sockets.mode),
        ("postgres.socket_dir", running.sockets.postgres_dir == wanted.sockets.postgres_dir),
        ("redis.socket", running.sockets.redis == wanted.sockets.redis),
        ("log.format", running.log.format == wanted.log.format),
        ("admin.listen", admin.listen == new_admin.listen),
        ("admin.client_limit", admin.client_limit == new_admin.client_limit),
        ("admin.header_timeout_ms", admin.header_timeout == new_admin.header_timeout),
        ("admin.header_limit", admin.header_limit == new_admin.header_limit),
        ("admin.header_bytes", admin.header_bytes == new_admin.header_bytes),
        ("push.source", push.source == new_push.source),
        ("push.log_every_ms", push.log_every == new_push.log_every),
        ("push.remote_write_url", push.remote_write == new_push.remote_write),
        ("push.remote_write_every_ms", push.remote_write_every == new_push.remote_write_every),
        (
            "push.remote_write_timeout_ms",
            push.remote_write_timeout == new_push.remote_write_timeout,
        ),
    ];
    different(&compared)
}

fn postgres(running: &PostgresSettings, wanted: &PostgresSettings) -> Vec<&'static str> {
    let mut pairs = running.listeners.iter().zip(&wanted.listeners);
    different(&[
        ("postgres.listen", pairs.all(|(old, new)| old.listen == new.listen)),
        ("postgres.urls", running.listeners.len() >= wanted.listeners.len()),
        ("postgres.any", running.any == wanted.any),
        ("postgres.auth", running.auth == wanted.auth),
        ("tls.postgres", running.encryption == wanted.encryption),
        ("tls.client_cert", running.client_certificate == wanted.client_certificate),
    ])
}

fn redis(running: &RedisSettings, wanted: &RedisSettings) -> Vec<&'static str> {
    let mut pairs = running.listeners.iter().zip(&wanted.listeners);
    let mut again = pairs.clone();
    let mut names = different(&[
        ("redis.listen", pairs.all(|(old, new)| old.listen == new.listen)),
        (
            "redis.urls",
            running.listeners.len() == wanted.listeners.len()
                && again.clone().all(|(old, new)| old.upstream.name == new.upstream.name),
        ),
        ("redis.namespaces", again.all(|(old, new)| same_namespaces(old, new))),
        ("redis.auth", running.auth == wanted.auth),
        ("tls.redis", running.encryption == wanted.encryption),
    ]);
    names.extend(redis_limits(&running.limits, &wanted.limits));
    names
}

fn redis_limits(old: &RedisLimits, new: &RedisLimits) -> Vec<&'static str> {
    different(&[
        ("redis.login_frame_bytes", old.login_frame_bytes == new.login_frame_bytes),
        ("redis.understood_frame_bytes", old.understood_frame_bytes == new.understood_frame_bytes),
        ("redis.frame_bytes", old.frame_bytes == new.frame_bytes),
        ("redis.reply_bytes_per_client", old.reply_bytes_per_client == new.reply_bytes_per_client),
        ("redis.reply_bytes_total", old.reply_bytes_total == new.reply_bytes_total),
        ("redis.reply_stall_ms", old.reply_stall == new.reply_stall),
        ("redis.subscription_limit", old.subscription_limit == new.subscription_limit),
        ("redis.pipeline_depth", old.pipeline_depth == new.pipeline_depth),
        ("redis.cleanup_timeout_ms", old.cleanup_timeout == new.cleanup_timeout),
        ("redis.slow_reader_ms", old.slow_reader == new.slow_reader),
        ("redis.namespace_census_ms", old.namespace_census == new.namespace_census),
        ("redis.plan_every_ms", old.plan_every == new.plan_every),
    ])
}

/// A password that was made is made anew each time the settings are read.
fn same_namespaces(old: &RedisListener, new: &RedisListener) -> bool {
    let same = |old: &NamespaceSettings, new: &NamespaceSettings| {
        let made = new.origin == PasswordOrigin::Made;
        let password = if made { &old.password } else { &new.password };
        *old == NamespaceSettings { password: password.clone(), ..new.clone() }
    };
    old.first_namespace == new.first_namespace
        && old.namespaces.len() == new.namespaces.len()
        && old.namespaces.iter().zip(&new.namespaces).all(|(old, new)| same(old, new))
}

fn different(compared: &[(&'static str, bool)]) -> Vec<&'static str> {
    compared.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect()
}
