//! Binding the listeners, and what the wrapped command is told about where they are.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::passed::{Keeper, Kind, Passed, PassedSocket};
use super::takeover;
use crate::config::{Auth, ChildCredentials, ConfigError, Loaded, PooledVariable, Protocol};
use crate::net::{self, Address, Listener, Opener, SocketError, SocketFile};

/// What to do when a place is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Try the ports after one that nobody asked for by number: the wrapped command is told which.
    Next,
    /// Say so: nobody would find the listener.
    Refuse,
    /// Wait a while: it may be the process before us, on its way out.
    Await,
}

impl Taken {
    /// Makes the attempt; where a place [`is_taken`] and it is worth waiting, again and again.
    pub(super) async fn bear<T, E>(
        self,
        is_taken: impl Fn(&E) -> bool,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let began = Instant::now();
        loop {
            match attempt().await {
                Err(error)
                    if self == Self::Await && is_taken(&error) && began.elapsed() < DEPARTURE =>
                {
                    tokio::time::sleep(DEPARTURE_LOOK).await;
                }
                done => return done,
            }
        }
    }
}

/// Longest time for a process that has given up its control socket to close its listeners, and how often to look.
const DEPARTURE: Duration = Duration::from_secs(2);
const DEPARTURE_LOOK: Duration = Duration::from_millis(5);

/// How many ports after a taken one are tried before any free one will do.
const NEXT_PORTS: u16 = 100;

/// Everything that listens, in the order of the settings.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) admin: Listener,
    pub(super) postgres: Vec<Listener>,
    pub(super) redis: Vec<Listener>,
}

/// Binds every listener that was not passed to us.
pub(super) async fn bind(
    loaded: &Loaded,
    taken: Taken,
    passed: &mut Passed,
) -> anyhow::Result<Bound> {
    let settings = &loaded.settings;
    let postgres: Vec<_> = settings.postgres.iter().flat_map(|side| &side.listeners).collect();
    let redis: Vec<_> = settings.redis.iter().flat_map(|side| &side.listeners).collect();
    passed.name_by_order(postgres.len(), redis.len())?;
    let admin = (settings.admin.listen, settings.admin.explicit);
    let mut bound = Bound {
        admin: bind_one("admin", admin, taken, passed).await?,
        postgres: Vec::new(),
        redis: Vec::new(),
    };
    for listener in postgres {
        let place = (listener.listen, listener.explicit);
        bound.postgres.push(bind_one("postgres", place, taken, passed).await?);
    }
    for listener in redis {
        let place = (listener.listen, listener.explicit);
        bound.redis.push(bind_one("redis", place, taken, passed).await?);
    }
    open_sockets(loaded, &mut bound, taken, passed).await?;
    passed.refuse_rest()?;
    check_reach(loaded, &bound)?;
    Ok(bound)
}

/// The unix sockets, beside the addresses that were bound.
async fn open_sockets(
    loaded: &Loaded,
    bound: &mut Bound,
    taken: Taken,
    passed: &mut Passed,
) -> anyhow::Result<()> {
    let sockets = &loaded.settings.sockets;
    for listener in &mut bound.postgres {
        let path = sockets.postgres(listener.local_addr()?.port());
        let place = (path, sockets.mode, taken);
        open_socket(("postgres", "postgres.socket_dir"), listener, place, passed).await?;
    }
    for (index, listener) in bound.redis.iter_mut().enumerate() {
        let place = (sockets.redis(index), sockets.mode, taken);
        open_socket(("redis", "redis.socket"), listener, place, passed).await?;
    }
    Ok(())
}

async fn open_socket(
    (section, setting): (&str, &str),
    listener: &mut Listener,
    (path, mode, taken): (Option<PathBuf>, u32, Taken),
    passed: &mut Passed,
) -> anyhow::Result<()> {
    if let Some(PassedSocket { socket: Kind::Unix(socket, path), keeper, .. }) =
        passed.take_unix(section, path.as_deref())
    {
        let file = match keeper {
            Keeper::PredecessorAndFile(inode) => Some(SocketFile::of_another(&path, inode)),
            Keeper::Manager | Keeper::PredecessorsManager | Keeper::Predecessor => None,
        };
        listener.take_socket(socket, &path, file)?;
        tracing::info!(listener = section, path = %path.display(), "listening on a socket that was passed");
        return Ok(());
    }
    let Some(path) = path else { return Ok(()) };
    let shown = path.display();
    let opened = taken.bear(is_listened_on, async || listener.open_socket(&path, mode)).await;
    opened.with_context(|| format!("cannot listen on the unix socket {shown} ({setting})"))?;
    tracing::info!(listener = section, path = %shown, mode = format!("{mode:04o}"), "listening");
    Ok(())
}

/// A process that ends may be about to remove it.
pub(super) const fn is_listened_on(error: &SocketError) -> bool {
    matches!(error, SocketError::Taken)
}

/// The settings were checked with the addresses that are written there; a socket that was passed may listen elsewhere.
fn check_reach(loaded: &Loaded, bound: &Bound) -> anyhow::Result<()> {
    let settings = &loaded.settings;
    let open = |listener: &Listener| {
        let address = listener.local_addr().ok()?;
        (!address.ip().to_canonical().is_loopback()).then_some(address)
    };
    if let Some(side) = &settings.postgres {
        for (known, listener) in side.listeners.iter().zip(&bound.postgres) {
            let passwords = known.upstreams.iter().all(|upstream| {
                upstream.password.is_some() || side.users.get(&upstream.user).is_some()
            });
            refuse_strangers("postgres", open(listener), side.auth, passwords)?;
        }
    }
    if let Some(side) = &settings.redis {
        for (known, listener) in side.listeners.iter().zip(&bound.redis) {
            let password = known.upstream.password.is_some();
            refuse_strangers("redis", open(listener), side.auth, password)?;
        }
    }
    Ok(())
}

fn refuse_strangers(
    section: &str,
    open: Option<SocketAddr>,
    auth: Auth,
    passwords: bool,
) -> Result<(), ConfigError> {
    match open {
        Some(address) if auth == Auth::Trust || !passwords => Err(ConfigError::new(
            format!("{section}.listen"),
            format!(
                "{address} is no loopback address, and whoever reaches it could use the server: ask for passwords \
                 (in the URL, and not auth = \"trust\"), or listen on 127.0.0.1"
            ),
        )),
        _ => Ok(()),
    }
}

async fn bind_one(
    section: &str,
    (listen, explicit): (SocketAddr, bool),
    taken: Taken,
    passed: &mut Passed,
) -> anyhow::Result<Listener> {
    if let Some((socket, opener)) = passed.take_tcp(section, listen) {
        return Ok(announce(section, Listener::of(socket, opener)?)?);
    }
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let error = match taken.bear(in_use, async || net::bind(listen).await).await {
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
    pub(super) fn addresses(&self) -> Vec<Address> {
        let tcp = self.all().filter_map(|listener| listener.local_addr().ok()).map(Address::Tcp);
        let paths = self.all().filter_map(Listener::socket_path);
        tcp.chain(paths.map(|path| Address::Unix(path.into()))).collect()
    }

    /// The files of the unix sockets, as long as anybody listens there.
    pub(super) fn socket_files(&self) -> Vec<Weak<SocketFile>> {
        self.all().filter_map(Listener::socket_file).map(Arc::downgrade).collect()
    }

    /// Copies of all sockets, as a successor knows them: see [`super::takeover`].
    pub(super) fn duplicates(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut all = Vec::new();
        let admin = std::slice::from_ref(&self.admin);
        for (name, side) in
            [("postgres", &*self.postgres), ("redis", &self.redis), ("admin", admin)]
        {
            for listener in side {
                let (tcp, unix) = listener.duplicates()?;
                let keeper = match listener.opener() {
                    Opener::Manager => Keeper::PredecessorsManager,
                    Opener::Tidegate => Keeper::Predecessor,
                };
                all.push((takeover::line("tcp", keeper, name), tcp));
                let inode = listener.socket_file().and_then(|file| file.inode());
                let keeper = inode.map_or(Keeper::PredecessorsManager, Keeper::PredecessorAndFile);
                all.extend(unix.map(|unix| (takeover::line("unix", keeper, name), unix)));
            }
        }
        Ok(all)
    }

    fn all(&self) -> impl Iterator<Item = &Listener> {
        self.postgres.iter().chain(&self.redis).chain([&self.admin])
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
        let addresses = self.addresses();
        for variable in &loaded.variables {
            for address in &addresses {
                refuse_loop(variable, address)?;
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
                refuse_loop(variable, &Address::Tcp(listen))?;
            }
        }
    }
    Ok(())
}

pub(super) fn refuse_loop(variable: &PooledVariable, listen: &Address) -> Result<(), ConfigError> {
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
