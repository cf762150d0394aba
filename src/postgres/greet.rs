//! The greeting of one client: its first words, its proof, its settings; ends by spawning the
//! session. A task of its own, so that its buffers and its size are gone when the session lives.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use prometheus::IntGauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::backend::{PgPool, settings_for};
use super::cancel::{CancelHandle, CancelRegistry, Full};
use super::console::{CLIENTS_MOST, Console, Desk};
use super::exchange::Status;
use super::greeting::{Encryption, Greeting, Refusal, Startup, Step};
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
use crate::config::{ClientCertificate, Current, PostgresSettings, TlsMode};
use crate::lifecycle::Drain;
use crate::metrics::{Happening, PoolMetrics, Reason};
use crate::net::{
    Address, Agreed, ListenerTls, LoginFailures, Opening, PorchPlace, Stream, common_name,
};

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
    /// How clients may encrypt, if they may.
    pub(super) tls: Option<ListenerTls>,
    pub(super) tls_mode: TlsMode,
    pub(super) client_certificate: ClientCertificate,
    pub(super) cancels: Arc<CancelRegistry>,
    pub(super) failures: Arc<LoginFailures>,
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
    /// Encryption did not come about: TLS has told the client.
    Handshake(io::Error),
    /// The client is told.
    Told(Box<ErrorFields>),
    /// The client has not shown that it may come in, and is told.
    Unproved(Box<ErrorFields>),
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
pub(super) async fn greet(
    reception: Arc<Reception>,
    client: Stream,
    peer: Address,
    place: PorchPlace,
) {
    let mut place = Some(place);
    let _counted = Counted::new(&reception.metrics.clients_greeting);
    let mut talk = Talk { client: Some(client), received: BytesMut::new(), end_point: None };
    let draining = async {
        reception.drain.started().await;
        End::Leaving(Box::new(leaving()))
    };
    let welcomed = if reception.drain.is_draining() {
        Err(turn_away_late(&reception, &mut talk).await)
    } else {
        tokio::select! {
            biased;
            welcomed = welcome(&reception, &mut talk, &peer, &mut place) => welcomed,
            end = draining => Err(end),
        }
    };
    match welcomed {
        Ok(welcome) => begin(&reception, talk, peer, welcome),
        Err(end) => send_away(&reception, talk, &peer, (end, place)).await,
    }
}

/// The client's session, in a task of its own.
fn begin(reception: &Reception, talk: Talk, peer: Address, welcome: Welcome) {
    reception.metrics.logins.inc();
    reception.metrics.lines.tell(Happening::Connected, format_args!("{peer}"));
    let Welcome { seat, cancel } = welcome;
    let Talk { client: Some(client), received, .. } = talk else { return };
    let leftover = received.to_vec();
    let drain = reception.drain.clone();
    match seat {
        Seat::Shared { pool, settings } => {
            let ends = (peer, client.local());
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

/// Counts a client that doesn't come in, and tells it why.
async fn send_away(
    reception: &Reception,
    mut talk: Talk,
    peer: &Address,
    (end, mut place): (End, Option<PorchPlace>),
) {
    match end {
        End::Quiet(why) => tracing::debug!(%peer, why, "a greeting ended"),
        End::Handshake(error) => {
            reception.metrics.login_failures.inc();
            let lines = &reception.metrics.lines;
            lines.tell(Happening::Refused, format_args!("{peer}: no TLS: {error}"));
        }
        End::Told(fields) => {
            note_refused(reception, peer, &fields);
            talk.refuse(&fields).await;
        }
        End::Unproved(fields) => {
            note_refused(reception, peer, &fields);
            if let Some(delay) = reception.failures.note(peer.ip()) {
                reception.metrics.logins_delayed.inc();
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = talk.until_gone() => {}
                    () = PorchPlace::crowded_out(&mut place) => {}
                    () = reception.drain.started() => {}
                }
            }
            talk.refuse(&fields).await;
        }
        End::NoServer(fields) | End::Leaving(fields) => {
            reception.metrics.login_failures.inc();
            let ErrorFields { code, message, .. } = fields.as_ref();
            tracing::debug!(%peer, code, message, "refused a client");
            talk.refuse(&fields).await;
        }
    }
}

fn note_refused(reception: &Reception, peer: &Address, fields: &ErrorFields) {
    reception.metrics.login_failures.inc();
    let ErrorFields { code, message, .. } = fields;
    let lines = &reception.metrics.lines;
    lines.tell(Happening::Refused, format_args!("{peer}: {message} ({code})"));
}

/// Too many logins from there have failed: nobody looks at this one.
fn look_away(reception: &Reception, peer: &Address) -> Result<(), ErrorFields> {
    let Some(left) = reception.failures.barred(peer.ip()) else { return Ok(()) };
    reception.metrics.logins_refused.inc();
    let message = format!("too many failed logins from {}", peer.ip());
    Err(ErrorFields::fatal("28000", message)
        .detail(format!("The next one is looked at in {} s.", left.as_secs() + 1))
        .hint("Correct the password that is wrong, or raise login_failures_per_minute."))
}

fn leaving() -> ErrorFields {
    ErrorFields::fatal("57P01", "tidegate is shutting down; connect again")
}

/// Hears a client out that comes while we drain: what it says first may be a cancel request for work that is being finished.
async fn turn_away_late(reception: &Reception, talk: &mut Talk) -> End {
    let words = talk.first_words(reception);
    match tokio::time::timeout(reception.login_timeout(), words).await {
        Err(_elapsed) => End::Quiet("it said nothing"),
        Ok(Err(end)) => end,
        Ok(Ok(First::Cancel(key))) => {
            reception.cancels.request(&key).await;
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

/// [`admit`], as long as there is time and room for it.
async fn let_in(
    reception: &Reception,
    talk: &mut Talk,
    peer: &Address,
    place: &mut Option<PorchPlace>,
) -> Result<(Startup, Option<ScramKeys>), End> {
    tokio::select! {
        biased;
        admitted = admit(reception, talk, peer) => admitted,
        () = PorchPlace::crowded_out(place) => {
            reception.metrics.logins_crowded_out.inc();
            Err(ErrorFields::fatal("53300", "too many clients that have not logged in")
                .hint("Send the startup packet and the password at once, or raise postgres.login_limit.")
                .into())
        }
        () = tokio::time::sleep(reception.login_timeout()) => {
            Err(ErrorFields::fatal("57014", "canceling authentication due to timeout")
                .hint("Send the startup packet and the password at once, or raise the login timeout.")
                .into())
        }
    }
}

async fn welcome(
    reception: &Reception,
    talk: &mut Talk,
    peer: &Address,
    place: &mut Option<PorchPlace>,
) -> Result<Welcome, End> {
    let (startup, keys) = let_in(reception, talk, peer, place).await?;
    // It is a stranger no more.
    place.take();
    let random = random()?;
    if let Some(desk) = reception.console.desk(&reception.routes, &startup, peer)? {
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
        () = talk.until_gone() => {
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
    peer: &Address,
) -> Result<(Startup, Option<ScramKeys>), End> {
    let startup = match talk.first_words(reception).await? {
        First::Startup(startup) => startup,
        First::Cancel(key) => {
            reception.cancels.request(&key).await;
            // As Postgres: libpq takes an end without TLS's own goodbye for an error.
            talk.hang_up().await;
            return Err(End::Quiet("was a cancel request"));
        }
    };
    if let Some(negotiation) = &startup.negotiation {
        talk.send(negotiation).await?;
    }
    let user = &startup.user;
    look_away(reception, peer)?;
    if vouched(reception, talk, user)? == Vouched::Yes {
        talk.send(&authentication_ok()).await?;
        return Ok((startup, None));
    }
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
    let keys = prove(reception, talk, (user, peer), &verifier).await?;
    Ok((startup, Some(keys)))
}

/// Whether the client's certificate stands for a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vouched {
    Yes,
    No,
}

/// Looks at whose certificate the client has shown. That it leads to the root, TLS has seen to.
fn vouched(reception: &Reception, talk: &Talk, user: &str) -> Result<Vouched, End> {
    let wanted = reception.client_certificate;
    let Some(certificate) = talk.client.as_ref().and_then(Stream::peer_certificate) else {
        return Ok(Vouched::No);
    };
    if wanted != ClientCertificate::Any && common_name(certificate).as_deref() != Some(user) {
        let message = format!("certificate authentication failed for user \"{user}\"");
        let fields = ErrorFields::fatal("28000", message)
            .hint("The common name (CN) of the client's certificate must be the user's name.");
        return Err(End::Unproved(Box::new(fields)));
    }
    let instead = wanted == ClientCertificate::InsteadOfPassword;
    Ok(if instead { Vouched::Yes } else { Vouched::No })
}

/// SCRAM-SHA-256, or SCRAM-SHA-256-PLUS over TLS, then `AuthenticationOk`.
async fn prove(
    reception: &Reception,
    talk: &mut Talk,
    (user, peer): (&str, &Address),
    verifier: &Verifier,
) -> Result<ScramKeys, End> {
    let limit = reception.settings.get().limits.login_frame_bytes;
    let end_point = talk.end_point.clone();
    let offered: &[&str] = match &end_point {
        Some(_) => &[scram::MECHANISM_PLUS, scram::MECHANISM],
        None => &[scram::MECHANISM],
    };
    talk.send(&authentication_sasl(offered)).await?;
    let initial = talk.password_frame(limit).await?;
    let (mechanism, first) = parse_sasl_initial(&initial).ok_or_else(|| {
        ErrorFields::fatal("08P01", "malformed SASL message: it is no SASLInitialResponse")
    })?;
    let binding = match (mechanism, &end_point) {
        (scram::MECHANISM, None) => scram::Binding::Unavailable,
        (scram::MECHANISM, Some(_)) => scram::Binding::Declined,
        (scram::MECHANISM_PLUS, Some(hash)) => scram::Binding::Bound(hash),
        _ => {
            let message = "client selected an invalid SASL authentication mechanism";
            return Err(ErrorFields::fatal("08P01", message).into());
        }
    };
    let mut nonce = [0; 18];
    nonce.copy_from_slice(&random()?[..18]);
    let failed = |error| scram_failure(&error, user);
    let (exchange, answer) = Exchange::begin(verifier, first, &nonce, binding).map_err(failed)?;
    talk.send(&authentication_sasl_continue(answer.as_bytes())).await?;
    let last = talk.password_frame(limit).await?;
    // Many may have begun before the first of them failed.
    look_away(reception, peer)?;
    let Proved { answer, keys } = exchange.finish(&last).map_err(|error| {
        reception.routes.doubt(user);
        failed(error)
    })?;
    let done = [authentication_sasl_final(answer.as_bytes()), authentication_ok()].concat();
    talk.send(&done).await?;
    Ok(keys)
}

fn scram_failure(error: &ScramError, user: &str) -> End {
    match error {
        ScramError::WrongPassword => {
            let message = format!("password authentication failed for user \"{user}\"");
            End::Unproved(Box::new(ErrorFields::fatal("28P01", message)))
        }
        ScramError::Malformed(_) | ScramError::Unsupported(_) => {
            ErrorFields::fatal("08P01", error.to_string()).into()
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
    /// None while, and if, a handshake has it.
    client: Option<Stream>,
    /// Received and not consumed: at most one frame within its limit, and [`READ_BYTES`].
    received: BytesMut,
    /// What a login can be bound to.
    end_point: Option<Arc<[u8]>>,
}

enum First {
    Startup(Startup),
    Cancel(BackendKey),
}

impl Talk {
    async fn first_words(&mut self, reception: &Reception) -> Result<First, End> {
        let most_bytes = reception.settings.get().limits.startup_bytes;
        let mut greeting = Greeting::new(most_bytes, self.encryption(reception).await?);
        loop {
            match greeting.step(&self.received).map_err(refusal)? {
                Step::NeedMore => self.read().await?,
                Step::Decline { bytes } => {
                    let _request = self.received.split_to(bytes);
                    self.send(b"N").await?;
                }
                Step::Encrypt { bytes } => {
                    let _request = self.received.split_to(bytes);
                    self.send(b"S").await?;
                    let _agreed = self.encrypt(reception).await?;
                    greeting = Greeting::new(most_bytes, Encryption::Done);
                }
                Step::Cancel(key) => return Ok(First::Cancel(key)),
                Step::Startup { bytes, startup } => {
                    let _packet = self.received.split_to(bytes);
                    return Ok(First::Startup(startup));
                }
            }
        }
    }

    /// What there is to be had of TLS; a client that begins with it at once (`sslnegotiation=direct`) has it already.
    async fn encryption(&mut self, reception: &Reception) -> Result<Encryption, End> {
        let client = self.client()?;
        if reception.tls.is_none() || !matches!(client, Stream::Tcp(_)) {
            return Ok(Encryption::Unavailable);
        }
        if client.opening().await? == Opening::Tls {
            // As Postgres: who has not been asked for its protocol might speak any.
            if self.encrypt(reception).await? == Agreed::No {
                let message = "received direct SSL connection request without ALPN protocol negotiation extension";
                return Err(ErrorFields::fatal("08P01", message)
                    .hint("Name the protocol postgresql in the handshake.")
                    .into());
            }
            return Ok(Encryption::Done);
        }
        Ok(match reception.tls_mode {
            TlsMode::Off => Encryption::Unavailable,
            TlsMode::On => Encryption::Offered,
            TlsMode::Require => Encryption::Required,
        })
    }

    /// Shakes hands. Nothing has been received that is not TLS.
    async fn encrypt(&mut self, reception: &Reception) -> Result<Agreed, End> {
        let (Some(tls), Some(client)) = (&reception.tls, self.client.take()) else {
            return Err(End::Quiet("the connection broke"));
        };
        let encrypted = tls.accept(client).await.map_err(End::Handshake)?;
        self.client = Some(encrypted.stream);
        self.end_point = encrypted.end_point;
        Ok(encrypted.agreed)
    }

    fn client(&mut self) -> io::Result<&mut Stream> {
        self.client.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Ends the stream, in TLS's own words if it is one.
    async fn hang_up(&mut self) {
        if let Some(mut client) = self.client.take() {
            let _gone = client.shutdown().await;
        }
    }

    /// Ends when the client has gone.
    async fn until_gone(&mut self) {
        if let Some(client) = &mut self.client {
            poll_fn(|cx| client.poll_hangup(cx)).await;
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
        let client = self.client.as_mut().ok_or(End::Quiet("the connection broke"))?;
        if client.read_buf(&mut self.received).await? == 0 {
            return Err(End::Quiet("the client left"));
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let client = self.client()?;
        client.write_all(bytes).await?;
        client.flush().await
    }

    /// Says why and closes. Reads on until the client closes too: closing over unread bytes would
    /// reset the connection, and the client might never see the words.
    async fn refuse(&mut self, fields: &ErrorFields) {
        let said = tokio::time::timeout(LAST_WORDS, async {
            self.send(&error_frame(fields)).await?;
            let client = self.client()?;
            client.shutdown().await?;
            let mut read = 0;
            let mut discarded = [0; 1024];
            while read < LAST_BYTES {
                match client.read(&mut discarded).await? {
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
