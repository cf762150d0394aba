//! The Redis service: one upstream per listener, its lanes and pools, and the loop that takes clients.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::backend::Way;
use super::census;
use super::greeting::Standing;
use super::plan;
use super::session::{Greeting, Session};
use super::upstream::{Realm, Upstream};
use super::view;
use crate::config::{ChildCredentials, Current, NamespaceSettings, RedisSettings, TlsMode};
use crate::lifecycle::Drain;
use crate::metrics::{Metrics, Protocol};
use crate::net::{
    Address, Listener, ListenerTls, LoginFailures, Opening, Porch, PorchPlace, Stream, TlsError,
};
use crate::pool::Reachability;
use crate::status::PoolStatus;

/// All that serves Redis clients. Opens no connection until a client needs one.
#[derive(Debug)]
pub struct Service {
    upstreams: Vec<Arc<Upstream>>,
    clients: Arc<AtomicUsize>,
    settings: Current<RedisSettings>,
    encryption: Encryption,
    porch: Arc<Porch>,
    drain: Drain,
}

/// Settings that can be taken: everything that could fail has been done.
pub struct Change {
    settings: RedisSettings,
    /// How the upstream of each listener is reached.
    ways: Vec<Way>,
}

/// How clients may encrypt.
#[derive(Clone, Debug)]
struct Encryption {
    tls: Option<ListenerTls>,
    mode: TlsMode,
}

impl Service {
    /// Builds the service: one upstream for each of the settings' listeners.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new(
        settings: &RedisSettings,
        metrics: &Arc<Metrics>,
        drain: Drain,
        child: &ChildCredentials,
        failures: &Arc<LoginFailures>,
    ) -> Result<Self, anyhow::Error> {
        let upstreams = settings.listeners.iter().map(|listener| {
            let name = &listener.upstream.name;
            let realm = |one: &NamespaceSettings| {
                Realm::new(one, metrics.namespace(name, &one.namespace.name))
            };
            let realms = listener.namespaces.iter().map(realm).collect();
            let metrics = metrics.pool(Protocol::Redis, name);
            let ties = (child, Arc::clone(failures));
            Upstream::new(settings, listener, metrics, realms, ties).map(Arc::new)
        });
        Ok(Self {
            upstreams: upstreams.collect::<Result<_, _>>()?,
            clients: Arc::default(),
            settings: Current::new(settings.clone()),
            encryption: Encryption {
                tls: settings.encryption.tls(None)?,
                mode: settings.encryption.mode,
            },
            porch: Porch::new(settings.limits.login_limit),
            drain,
        })
    }

    /// Gets ready to take other settings; nothing changes yet. What a running process can't change stays as it is: see
    /// [`crate::config::needs_restart`].
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn prepare(&self, wanted: &RedisSettings) -> Result<Change, anyhow::Error> {
        let ways = wanted.listeners.iter().map(|one| Way::new(Arc::clone(&one.upstream)));
        Ok(Change { settings: wanted.clone(), ways: ways.collect::<Result<_, _>>()? })
    }

    /// Takes them. Clients stay. What deserves a word in the log.
    pub fn apply(&self, change: Change) -> Vec<String> {
        let Change { settings, ways } = change;
        let mut words = Vec::new();
        for way in ways {
            // By name: another order of URLs waits for a restart.
            let named = |upstream: &&Arc<Upstream>| upstream.name() == way.upstream().name;
            if let Some(upstream) = self.upstreams.iter().find(named) {
                words.extend(upstream.change(&settings, way));
            }
        }
        self.porch.set_limit(settings.limits.login_limit);
        self.settings.set(settings);
        words.dedup();
        words
    }

    /// Takes the clients of one listener until the drain starts, refuses those who come later if they are to be told, and
    /// waits until the sessions have ended.
    pub async fn serve(&self, listener_index: usize, listener: Listener) {
        let Some(upstream) = self.upstreams.get(listener_index) else { return };
        let mut tasks = tokio::task::JoinSet::new();
        for lane in upstream.lanes() {
            tasks.spawn(Arc::clone(lane).run());
        }
        if let Some(spare) = upstream.spare() {
            tasks.spawn(Arc::clone(spare).run_spare());
        }
        tasks.spawn(upstream.holds().run_reaper());
        let period = upstream.limits.namespace_census;
        tasks.spawn(census::run(Arc::clone(upstream), period));
        tasks.spawn(plan::run(Arc::clone(upstream), upstream.limits.plan_every));
        if let Some(lane) = upstream.lanes().first()
            && !Arc::ptr_eq(lane.pool(), upstream.holds())
        {
            tasks.spawn(lane.pool().run_reaper());
        }
        let drain = self.drain.clone();
        let doors = async {
            tokio::select! {
                () = self.accept(upstream, &listener) => {}
                () = drain.listeners_close() => {}
            }
            drop(listener);
        };
        let house = async {
            drain.noticed().await;
            upstream.leave();
            // Sessions finish what is owed; the lanes must live until then. Whoever is left at the deadline is cut off.
            drain.deadline().await;
            tasks.abort_all();
        };
        tokio::join!(doors, house);
    }

    async fn accept(&self, upstream: &Arc<Upstream>, listener: &Listener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(client) => client,
                Err(error) => {
                    tracing::error!(%error, "the Redis listener is of no use any more");
                    return;
                }
            };
            let settings = self.settings.get();
            let client_limit = settings.limits.client_limit;
            let nth = self.clients.fetch_add(1, Ordering::Relaxed);
            let place = Place(Arc::clone(&self.clients));
            if self.drain.is_draining() && nth < client_limit {
                let words = "-ERR tidegate: shutting down; connect again\r\n".to_owned();
                tokio::spawn(async move {
                    refuse(stream, words).await;
                    drop(place);
                });
                continue;
            }
            if nth >= client_limit {
                drop(place);
                let words = format!(
                    "-ERR max number of clients reached (tidegate: {client_limit}; raise redis.client_limit or use fewer clients)\r\n"
                );
                tokio::spawn(refuse(stream, words));
                continue;
            }
            // Where nobody needs to prove anything there are no strangers.
            let stranger = match upstream.entrance().access().main.standing() {
                Standing::Stranger => Some(self.porch.enter().await),
                Standing::Known => None,
            };
            let visitor = Visitor {
                stream,
                peer,
                place,
                stranger,
                upstream: Arc::clone(upstream),
                deadline: Instant::now() + settings.login_timeout,
                drain: self.drain.clone(),
            };
            match &self.encryption.tls {
                Some(tls) => {
                    let (tls, mode) = (tls.clone(), self.encryption.mode);
                    tokio::spawn(async move { visitor.encrypt(&tls, mode).await });
                }
                None => visitor.enter(),
            }
        }
    }

    /// Reads the files about TLS again, the listeners' and those of the way to the servers; blocking. What is no good is not
    /// taken, and what was read before stays; so do all connections.
    ///
    /// # Errors
    /// The first thing that is wrong with them; the others are read all the same.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        let servers = self.upstreams.iter().map(|upstream| upstream.reload_tls());
        let listener = self.encryption.tls.iter().map(ListenerTls::reload);
        listener.chain(servers).fold(Ok(()), Result::and)
    }

    /// Another process has closed its connections to the servers.
    pub fn room_made(&self) {
        for upstream in &self.upstreams {
            upstream.holds().room_made();
            upstream.lanes().iter().for_each(|lane| lane.pool().room_made());
        }
    }

    /// The upstreams at this moment.
    #[must_use]
    pub fn status(&self) -> Vec<PoolStatus> {
        self.upstreams.iter().map(view::upstream).collect()
    }

    /// For each upstream, whether its server was reached.
    #[must_use]
    pub fn readiness(&self) -> Vec<(String, Reachability)> {
        let pool = |upstream: &Arc<Upstream>| {
            let lanes = upstream.lanes().first().map(|lane| lane.pool().state());
            let holds = upstream.holds().state();
            let state = match lanes {
                None | Some(Reachability::NotTried) => holds,
                Some(state) => state,
            };
            (upstream.name().to_owned(), state)
        };
        self.upstreams.iter().map(pool).collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for upstream in &self.upstreams {
            for lane in upstream.lanes() {
                lane.close();
                lane.pool().close();
            }
            if let Some(spare) = upstream.spare() {
                spare.close();
            }
            upstream.holds().close();
        }
    }
}

/// A client that has connected, and has no session yet.
struct Visitor {
    stream: Stream,
    peer: Address,
    place: Place,
    /// Its place among those who are not logged in.
    stranger: Option<PorchPlace>,
    upstream: Arc<Upstream>,
    /// Until when it must have shown the password.
    deadline: Instant,
    drain: Drain,
}

impl Visitor {
    /// Waits for the client's first byte, which says whether it wants TLS, and shakes hands. A task of its own: what a
    /// handshake takes is gone when the session lives.
    async fn encrypt(mut self, tls: &ListenerTls, mode: TlsMode) {
        let first = tokio::select! {
            first = self.stream.opening() => first,
            // Whoever says nothing is as it is: the session knows how long it may.
            () = tokio::time::sleep_until(self.deadline) => Ok(Opening::Plain),
            () = PorchPlace::crowded_out(&mut self.stranger) => Ok(Opening::Plain),
            () = self.drain.started() => Ok(Opening::Plain),
        };
        match (first, mode) {
            (Ok(Opening::Tls), _) if matches!(self.stream, Stream::Unix(_)) => {
                self.upstream.note_no_tls(&self.peer, &"it wants TLS over a unix socket");
                return refuse(self.stream, NO_TLS_HERE.to_owned()).await;
            }
            (Ok(Opening::Tls), _) => {
                let shaken = tokio::select! {
                    shaken = tls.accept(self.stream) => shaken.map_err(|error| error.to_string()),
                    () = tokio::time::sleep_until(self.deadline) => Err("it takes too long".to_owned()),
                    () = PorchPlace::crowded_out(&mut self.stranger) => {
                        self.upstream.metrics.logins_crowded_out.inc();
                        Err("others need the room".to_owned())
                    }
                };
                match shaken {
                    Ok(encrypted) => self.stream = encrypted.stream,
                    Err(error) => return self.upstream.note_no_tls(&self.peer, &error),
                }
            }
            (Ok(Opening::Plain), TlsMode::Require) if matches!(self.stream, Stream::Tcp(_)) => {
                self.upstream.note_no_tls(&self.peer, &"it speaks without");
                return refuse(self.stream, TLS_ONLY.to_owned()).await;
            }
            (Ok(Opening::Plain), _) => {}
            (Ok(Opening::None) | Err(_), _) => return,
        }
        self.enter();
    }

    fn enter(self) {
        let Self { stream, place, stranger, upstream, deadline, drain, .. } = self;
        let greeting = Greeting { deadline: tokio::time::sleep_until(deadline), place: stranger };
        let session = Session::new(stream, upstream, drain.guard(), greeting);
        tokio::spawn(async move {
            session.await;
            drop(place);
        });
    }
}

/// A client's place among the clients allowed.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is told to a client without TLS where it must have it.
const TLS_ONLY: &str = "-ERR tidegate: this listener takes TLS only: use rediss://\r\n";

/// What is told to a client that begins with TLS over a unix socket.
const NO_TLS_HERE: &str = "-ERR tidegate: a unix socket has no TLS: use unix://\r\n";

/// Longest time to tell a client that it can't come in.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Most bytes of a refused client's that are read.
const REFUSAL_BYTES: usize = 64 * 1024;

/// Says why and closes. Reads on until the client closes too: closing over unread bytes would reset the connection, and the
/// client might never see the words.
async fn refuse(mut stream: Stream, words: String) {
    let told = tokio::time::timeout(REFUSAL_TIME, async {
        stream.write_all(words.as_bytes()).await?;
        stream.shutdown().await?;
        let (mut read, mut discarded) = (0, [0; 1024]);
        while read < REFUSAL_BYTES {
            match stream.read(&mut discarded).await? {
                0 => break,
                bytes => read += bytes,
            }
        }
        io::Result::Ok(())
    });
    // The client may be gone already; then there is nobody to tell.
    let _gone = told.await;
}
