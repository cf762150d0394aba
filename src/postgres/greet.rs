//! The greeting of one client: its first words, its proof, its settings; ends by spawning the
//! session. A task of its own, so that its buffers and its size are gone when the session lives.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use prometheus::IntGauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::backend::{PgPool, settings_for};
use super::cancel::{CancelHandle, CancelRegistry, Full};
use super::console::{CLIENTS_MOST, Console, Desk};
use super::exchange::Status;
use super::greeting::{Greeting, Refusal, Startup, Step};
use super::message::{
    BackendKey, ErrorFields, authentication_ok, authentication_sasl, authentication_sasl_continue,
    authentication_sasl_final, backend_key_data, error_frame, next_frame, parameter_status,
    parse_sasl_initial, ready,
};
use super::replication::OwnConnection;
use super::routes::{NoRoute, Proof, Route, Routes};
use super::scram::{self, Exchange, Proved, ScramError, ScramKeys, Verifier};
use super::session::{Running, SessionParts};
use super::settings::Settings;
use crate::config::{Current, PostgresSettings};
use crate::lifecycle::Drain;
use crate::metrics::{Happening, PoolMetrics, Reason};
use crate::net::Stream;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 1024;
/// Longest time to deliver a refusal, and most bytes then read and thrown away.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_BYTES: usize = 64 * 1024;

/// What the greetings of one listener share.
pub(super) struct Reception {
    pub(super) routes: Arc<Routes>,
    pub(super) console: Arc<Console>,
    /// As they are now.
    pub(super) settings: Arc<Current<PostgresSettings>>,
    pub(super) cancels: Arc<CancelRegistry>,
    pub(super) drain: Drain,
    /// Counts greetings, as nobody knows yet which pool they are for.
    pub(super) metrics: Arc<PoolMetrics>,
    pub(super) mock_seed: [u8; 32],
}

impl Reception {
    fn login_timeout(&self) -> Duration {
        self.settings.get().login_timeout
    }
}

/// Why a greeting ends without a session.
enum End {
    /// The client has gone, or has asked for nothing that is answered.
    Quiet(&'static str),
    /// The client is told.
    Told(Box<ErrorFields>),
    /// With an error, for want of a server.
    NoServer(Box<ErrorFields>),
    /// To be told, and nobody's fault: we drain.
    Leaving(Box<ErrorFields>),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Quiet("the connection broke")
    }
}

impl From<ErrorFields> for End {
    fn from(fields: ErrorFields) -> Self {
        Self::Told(Box::new(fields))
    }
}

/// A gauge that counts this as long as it lives.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Greets one client. Every wait in it is bounded: the client's words by the login timeout, the
/// settings by the pool's wait.
pub(super) async fn greet(reception: Arc<Reception>, client: Stream, peer: SocketAddr) {
    let _counted = Counted::new(&reception.metrics.clients_greeting);
    let mut talk = Talk { client, received: BytesMut::new() };
    let draining = async {
        reception.drain.started().await;
        End::Leaving(Box::new(leaving()))
    };
    let welcomed = if reception.drain.is_draining() {
        Err(turn_away_late(&reception, &mut talk).await)
    } else {
        tokio::select! {
            biased;
            welcomed = welcome(&reception, &mut talk, peer) => welcomed,
            end = draining => Err(end),
        }
    };
    match welcomed {
        Ok(welcome) => {
            reception.metrics.logins.inc();
            reception.metrics.lines.tell(Happening::Connected, format_args!("{peer}"));
            let Welcome { seat, cancel } = welcome;
            let Talk { client, received } = talk;
            let leftover = received.to_vec();
            let drain = reception.drain.clone();
            match seat {
                Seat::Shared { pool, settings } => {
                    let ends = (peer, client.ends().map(|(_, local)| local));
                    cancel.card().introduce(ends, &settings, pool.connector().seats());
                    let drain = drain.guard();
                    let parts = SessionParts { client, pool, settings, cancel, drain, leftover };
                    tokio::spawn(Running::new(parts));
                }
                Seat::Own(own) => {
                    tokio::spawn(own.pass(client, leftover, cancel, drain));
                }
                Seat::Console(desk) => {
                    tokio::spawn(desk.pass(client, leftover, cancel, (peer, drain)));
                }
            }
        }
        Err(End::Quiet(why)) => tracing::debug!(%peer, why, "a greeting ended"),
        Err(End::Told(fields)) => {
            reception.metrics.login_failures.inc();
            let ErrorFields { code, message, .. } = fields.as_ref();
            let lines = &reception.metrics.lines;
            lines.tell(Happening::Refused, format_args!("{peer}: {message} ({code})"));
            talk.refuse(&fields).await;
        }
        Err(End::NoServer(fields) | End::Leaving(fields)) => {
            reception.metrics.login_failures.inc();
            let ErrorFields { code, message, .. } = fields.as_ref();
            tracing::debug!(%peer, code, message, "refused a client");
            talk.refuse(&fields).await;
        }
    }
}

fn leaving() -> ErrorFields {
    ErrorFields::fatal("57P01", "tidegate is shutting down; connect again")
}

/// Hears a client out that comes while we drain: what it says first may be a cancel request for work that is being finished.
async fn turn_away_late(reception: &Reception, talk: &mut Talk) -> End {
    let words = talk.first_words(reception.settings.get().limits.startup_bytes);
    match tokio::time::timeout(reception.login_timeout(), words).await {
        Err(_elapsed) => End::Quiet("it said nothing"),
        Ok(Err(end)) => end,
        Ok(Ok(First::Cancel(key))) => {
            reception.cancels.request(&key);
            End::Quiet("was a cancel request")
        }
        Ok(Ok(First::Startup(_))) => End::Leaving(Box::new(leaving())),
    }
}

/// What a session needs besides its client.
struct Welcome {
    seat: Seat,
    cancel: CancelHandle,
}

/// How a client is served.
enum Seat {
    /// By the pool's connections.
    Shared { pool: Arc<PgPool>, settings: Arc<Settings> },
    /// By one of its own: it replicates.
    Own(Box<OwnConnection>),
    /// By ourselves.
    Console(Box<Desk>),
}

impl Seat {
    fn reported(&self) -> &[(String, String)] {
        match self {
            Self::Shared { settings, .. } => &settings.reported,
            Self::Own(own) => own.reported(),
            Self::Console(desk) => desk.reported(),
        }
    }
}

async fn welcome(reception: &Reception, talk: &mut Talk, peer: SocketAddr) -> Result<Welcome, End> {
    let words = admit(reception, talk);
    let (startup, keys) = match tokio::time::timeout(reception.login_timeout(), words).await {
        Ok(admitted) => admitted?,
        Err(_elapsed) => {
            return Err(ErrorFields::fatal("57014", "canceling authentication due to timeout")
                .hint(
                    "Send the startup packet and the password at once, or raise the login timeout.",
                )
                .into());
        }
    };
    let random = random()?;
    if let Some(desk) = reception.console.desk(&reception.routes, &startup, peer.ip())? {
        let registered = reception.cancels.register_beyond(CLIENTS_MOST, startup.keys, &random);
        let (key, cancel) = registered.map_err(|full| turned_away(reception, full))?;
        return enter(
            reception,
            talk,
            Welcome { seat: Seat::Console(Box::new(desk)), cancel },
            &key,
        )
        .await;
    }
    let registered = reception.cancels.register(startup.keys, &random);
    let (key, cancel) = registered.map_err(|full| turned_away(reception, full))?;
    let Route { pool, visit } = find(reception, &startup, keys)?;
    let cancel = cancel.holding(visit);
    let seat = tokio::select! {
        // What keeps the pool from its server is logged there, once for all clients.
        seat = seat(reception, pool, startup) => seat.map_err(|fields| End::NoServer(Box::new(fields)))?,
        () = poll_fn(|cx| talk.client.poll_hangup(cx)) => {
            return Err(End::Quiet("the client left before there was a server"));
        }
    };
    enter(reception, talk, Welcome { seat, cancel }, &key).await
}

/// The last of the greeting: what the client must know, and that it may begin.
async fn enter(
    reception: &Reception,
    talk: &mut Talk,
    welcome: Welcome,
    key: &BackendKey,
) -> Result<Welcome, End> {
    let mut bytes = Vec::new();
    for (name, value) in welcome.seat.reported() {
        bytes.extend(parameter_status(name, value));
    }
    bytes.extend(backend_key_data(key));
    bytes.extend(ready(Status::Idle));
    let sent = tokio::time::timeout(reception.login_timeout(), talk.send(&bytes));
    sent.await.map_err(|_elapsed| End::Quiet("the client does not read"))??;
    Ok(welcome)
}

/// Counts a client that finds a full house; what it is told.
fn turned_away(reception: &Reception, full: Full) -> ErrorFields {
    reception.metrics.reject(Reason::ClientLimit);
    reception.metrics.note(
        "client_limit",
        format!("a client was turned away: {full}"),
        "Close idle clients, make the applications' own pools smaller, or raise postgres.client_limit.".to_owned(),
    );
    ErrorFields::fatal("53300", "sorry, too many clients already").detail(full.to_string()).hint(
        "Close idle clients, make the applications' own pools smaller, or raise the client limit.",
    )
}

/// What will serve this client, once a server has accepted what it asks for.
async fn seat(
    reception: &Reception,
    pool: Arc<PgPool>,
    startup: Startup,
) -> Result<Seat, ErrorFields> {
    let Startup { replication, mut parameters, .. } = startup;
    let Some(replication) = replication else {
        let settings = settings_for(&pool, parameters).await?;
        return Ok(Seat::Shared { pool, settings });
    };
    parameters.push(("replication".to_owned(), replication));
    pool.until_open().await;
    let apart = reception.routes.apart(&pool, parameters);
    match OwnConnection::open(&apart).await {
        Ok(own) => Ok(Seat::Own(Box::new(own))),
        Err(fields) => {
            apart.close();
            Err(fields)
        }
    }
}

/// From the first byte to `AuthenticationOk`.
async fn admit(
    reception: &Reception,
    talk: &mut Talk,
) -> Result<(Startup, Option<ScramKeys>), End> {
    let startup = match talk.first_words(reception.settings.get().limits.startup_bytes).await? {
        First::Startup(startup) => startup,
        First::Cancel(key) => {
            reception.cancels.request(&key);
            return Err(End::Quiet("was a cancel request"));
        }
    };
    if let Some(negotiation) = &startup.negotiation {
        talk.send(negotiation).await?;
    }
    let user = &startup.user;
    let proof = match reception.routes.proof(user, &startup.database) {
        None => reception.routes.looked_up(user).await?,
        known => known,
    };
    let verifier = match proof {
        Some(Proof::Nothing) => {
            talk.send(&authentication_ok()).await?;
            return Ok((startup, None));
        }
        Some(Proof::Password(verifier)) => verifier,
        None => Verifier::mock(user, &reception.mock_seed),
    };
    let keys = prove(reception, talk, user, &verifier).await?;
    Ok((startup, Some(keys)))
}

/// SCRAM-SHA-256, then `AuthenticationOk`.
async fn prove(
    reception: &Reception,
    talk: &mut Talk,
    user: &str,
    verifier: &Verifier,
) -> Result<ScramKeys, End> {
    let limit = reception.settings.get().limits.login_frame_bytes;
    talk.send(&authentication_sasl(&[scram::MECHANISM])).await?;
    let initial = talk.password_frame(limit).await?;
    let (mechanism, first) = parse_sasl_initial(&initial).ok_or_else(|| {
        ErrorFields::fatal("08P01", "malformed SASL message: it is no SASLInitialResponse")
    })?;
    if mechanism != scram::MECHANISM {
        let message = "client selected an invalid SASL authentication mechanism";
        return Err(ErrorFields::fatal("08P01", message).into());
    }
    let mut nonce = [0; 18];
    nonce.copy_from_slice(&random()?[..18]);
    let failed = |error| scram_failure(&error, user);
    let (exchange, answer) = Exchange::begin(verifier, first, &nonce).map_err(failed)?;
    talk.send(&authentication_sasl_continue(answer.as_bytes())).await?;
    let last = talk.password_frame(limit).await?;
    let Proved { answer, keys } = exchange.finish(&last).map_err(|error| {
        reception.routes.doubt(user);
        failed(error)
    })?;
    let done = [authentication_sasl_final(answer.as_bytes()), authentication_ok()].concat();
    talk.send(&done).await?;
    Ok(keys)
}

fn scram_failure(error: &ScramError, user: &str) -> ErrorFields {
    match error {
        ScramError::WrongPassword => {
            let message = format!("password authentication failed for user \"{user}\"");
            ErrorFields::fatal("28P01", message)
        }
        ScramError::Malformed(_) | ScramError::Unsupported(_) => {
            ErrorFields::fatal("08P01", error.to_string())
        }
    }
}

fn find(
    reception: &Reception,
    startup: &Startup,
    keys: Option<ScramKeys>,
) -> Result<Route, ErrorFields> {
    let Startup { user, database, .. } = startup;
    reception.routes.find(user, database, keys).map_err(|none| match none {
        NoRoute::Database => {
            ErrorFields::fatal("3D000", format!("database \"{database}\" does not exist"))
        }
        NoRoute::User => ErrorFields::fatal("28000", format!("role \"{user}\" does not exist")),
        NoRoute::Disabled => {
            ErrorFields::fatal("57P03", format!("database \"{database}\" is disabled"))
                .hint("ENABLE it in the console.")
        }
        NoRoute::TooMany(limit) => ErrorFields::fatal(
            "53300",
            format!(
                "no pool for user \"{user}\" and database \"{database}\": {limit} pools are in use"
            ),
        )
        .hint("Close clients of other databases, or raise the limit on pools made on demand."),
    })
}

fn random() -> Result<[u8; 32], ErrorFields> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        ErrorFields::fatal("58030", format!("the system has no random numbers: {error}"))
    })?;
    Ok(bytes)
}

/// The conversation with a client that has no session yet.
struct Talk {
    client: Stream,
    /// Received and not consumed: at most one frame within its limit, and [`READ_BYTES`].
    received: BytesMut,
}

enum First {
    Startup(Startup),
    Cancel(BackendKey),
}

impl Talk {
    async fn first_words(&mut self, most_bytes: usize) -> Result<First, End> {
        let mut greeting = Greeting::new(most_bytes);
        loop {
            match greeting.step(&self.received).map_err(refusal)? {
                Step::NeedMore => self.read().await?,
                Step::Decline { bytes } => {
                    let _request = self.received.split_to(bytes);
                    self.send(b"N").await?;
                }
                Step::Cancel(key) => return Ok(First::Cancel(key)),
                Step::Startup { bytes, startup } => {
                    let _packet = self.received.split_to(bytes);
                    return Ok(First::Startup(startup));
                }
            }
        }
    }

    /// The body of the client's next frame, which must be of the password family.
    async fn password_frame(&mut self, most_bytes: usize) -> Result<Vec<u8>, End> {
        loop {
            // The type is judged before the length: a wrong frame is not waited for.
            match self.received.first() {
                None | Some(b'p') => {}
                Some(b'X') => return Err(End::Quiet("the client said goodbye")),
                Some(other) => {
                    let message = format!("expected SASL response, got message type {other}");
                    return Err(ErrorFields::fatal("08P01", message).into());
                }
            }
            let frame = next_frame(&self.received, most_bytes)
                .map_err(|error| ErrorFields::fatal("08P01", error.to_string()))?;
            if let Some(frame) = frame {
                let (body, bytes) = (frame.body.to_vec(), frame.bytes);
                let _frame = self.received.split_to(bytes);
                return Ok(body);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), End> {
        self.received.reserve(READ_BYTES);
        if self.client.read_buf(&mut self.received).await? == 0 {
            return Err(End::Quiet("the client left"));
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.client.write_all(bytes).await?;
        self.client.flush().await
    }

    /// Says why and closes. Reads on until the client closes too: closing over unread bytes would
    /// reset the connection, and the client might never see the words.
    async fn refuse(&mut self, fields: &ErrorFields) {
        let said = tokio::time::timeout(LAST_WORDS, async {
            self.send(&error_frame(fields)).await?;
            self.client.shutdown().await?;
            let mut read = 0;
            let mut discarded = [0; 1024];
            while read < LAST_BYTES {
                match self.client.read(&mut discarded).await? {
                    0 => break,
                    bytes => read += bytes,
                }
            }
            io::Result::Ok(())
        });
        // Gone or too slow: there is nobody to tell.
        let _unheard = said.await;
    }
}

fn refusal(refusal: Refusal) -> End {
    match refusal {
        Refusal::Fatal(fields) => End::Told(fields),
        Refusal::Silent(why) => End::Quiet(why),
    }
}
