//! Binding the listeners, and what the wrapped command is told about where they are.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;

use crate::config::{ChildCredentials, ConfigError, Loaded, PooledVariable, Protocol};
use crate::net::{self, Listener};

/// What to do when a port that nobody asked for by number is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Try those after it: the wrapped command is told which.
    Next,
    /// Say so: nobody would find the listener.
    Refuse,
}

/// How many ports after a taken one are tried before any free one will do.
const NEXT_PORTS: u16 = 100;

/// Everything that listens, in the order of the settings.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) admin: Listener,
    pub(super) postgres: Vec<Listener>,
    pub(super) redis: Vec<Listener>,
}

/// Binds every listener.
pub(super) async fn bind(loaded: &Loaded, taken: Taken) -> anyhow::Result<Bound> {
    let settings = &loaded.settings;
    let mut bound = Bound {
        admin: bind_one("admin", settings.admin.listen, settings.admin.explicit, taken).await?,
        postgres: Vec::new(),
        redis: Vec::new(),
    };
    for listener in settings.postgres.iter().flat_map(|postgres| &postgres.listeners) {
        bound.postgres.push(bind_one("postgres", listener.listen, listener.explicit, taken).await?);
    }
    for listener in settings.redis.iter().flat_map(|redis| &redis.listeners) {
        bound.redis.push(bind_one("redis", listener.listen, listener.explicit, taken).await?);
    }
    Ok(bound)
}

async fn bind_one(
    section: &str,
    listen: SocketAddr,
    explicit: bool,
    taken: Taken,
) -> anyhow::Result<Listener> {
    let error = match net::bind(listen).await {
        Ok(listener) => return Ok(announce(section, listener)?),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::AddrInUse && taken == Taken::Next && !explicit {
        let after = (1..=NEXT_PORTS).filter_map(|step| listen.port().checked_add(step));
        for port in after.chain([0]) {
            if let Ok(listener) = net::bind(SocketAddr::new(listen.ip(), port)).await {
                tracing::info!(listener = section, %listen, "port is taken: using another");
                return Ok(announce(section, listener)?);
            }
        }
    }
    let variable = format!("TIDEGATE_{}_LISTEN", section.to_ascii_uppercase());
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        io::ErrorKind::PermissionDenied => "choose a port above 1023",
        _ => "choose an address of this machine",
    };
    Err(error)
        .with_context(|| format!("cannot listen on {listen} ({section}): {advice} ({variable})"))
}

fn announce(section: &str, listener: Listener) -> io::Result<Listener> {
    let address = listener.local_addr()?;
    tracing::info!(listener = section, %address, "listening");
    Ok(listener)
}

impl Bound {
    /// Where all of them listen.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let all = self.postgres.iter().chain(&self.redis).chain([&self.admin]);
        all.filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// The pooled variables with their values for the wrapped command.
    ///
    /// Fails when an upstream is one of our own listeners: every connection would call for another.
    pub(super) fn local_urls(
        &self,
        loaded: &Loaded,
        child: &ChildCredentials,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let mut urls = Vec::new();
        for variable in &loaded.variables {
            for listener in self.postgres.iter().chain(&self.redis).chain([&self.admin]) {
                refuse_loop(variable, listener.local_addr()?)?;
            }
            let side = match variable.protocol() {
                Protocol::Postgres => &self.postgres,
                Protocol::Redis => &self.redis,
            };
            if let Some(listener) = side.get(variable.listener) {
                let tls = loaded.tls_of(variable.protocol());
                let url = variable.local_url(listener.local_addr()?, tls, child);
                urls.push((variable.name.clone(), url));
            }
        }
        Ok(urls)
    }
}

/// The same check on the configured addresses, for `check`, which binds none.
pub(super) fn check_loops(loaded: &Loaded) -> Result<(), ConfigError> {
    for variable in &loaded.variables {
        for other in &loaded.variables {
            if let Some(listen) = loaded.listen_of(other) {
                refuse_loop(variable, listen)?;
            }
        }
    }
    Ok(())
}

pub(super) fn refuse_loop(
    variable: &PooledVariable,
    listen: SocketAddr,
) -> Result<(), ConfigError> {
    if !variable.leads_to(listen) {
        return Ok(());
    }
    let name = &variable.name;
    Err(ConfigError::new(
        name,
        format!(
            "leads to tidegate's own listener at {listen}; put the server's URL into \
             TIDEGATE_{name}"
        ),
    ))
}
