//! Opening a server connection at one address: socket, TLS as `sslmode` says, startup, login. Which address: `hosts`.

use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::login::{Binding, LoggedIn, Login, LoginError, Step};
use super::message::{BackendKey, ErrorFields, cancel_request, ssl_request, startup};
use super::scram::{Knowledge, ScramKeys};
use crate::config::{
    Access, ChannelBinding, PostgresUpstream, Secret, ServerHost, SslMode, SslNegotiation,
    TargetSession,
};
use crate::net::{
    Host, Spot, Stream, Tls, TlsError, addresses, connect_to, is_impostor, server_end_point,
};
use crate::pool::{ConnectError, Fault};

/// URL options that are meant for the server, not for the client's library: they go into the
/// startup packet, some hosts find the database by them.
const SERVER_OPTIONS: [&str; 3] = ["application_name", "client_encoding", "options"];
/// Bytes asked of the socket at once while logging in.
const READ_BYTES: usize = 4096;

/// How to reach and enter one database as one user. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dial {
    upstream: Arc<PostgresUpstream>,
    encryption: Encryption,
    timeout: Duration,
    /// What a client has shown of the user's password, where we don't know it.
    keys: Option<ScramKeys>,
    /// What the password came to at the last login, where that was SCRAM: hashing it anew takes a millisecond.
    proved: Arc<Mutex<Option<ScramKeys>>>,
    /// Of the startup packet, beside user and database.
    parameters: Arc<Vec<(String, String)>>,
    /// Which host was reached last, by its place in the list.
    latest: Arc<AtomicUsize>,
}

/// What `sslmode` comes to.
#[derive(Clone, Debug)]
enum Encryption {
    /// `disable`, and every unix socket.
    Never,
    /// `prefer`: TLS if the server has it, else plain.
    IfOffered(Tls),
    /// `require`, `verify-ca`, `verify-full`.
    Always(Tls),
}

/// A connection that is ready for queries.
#[derive(Debug)]
pub struct Dialled {
    /// The stream; nothing is waiting to be read.
    pub stream: Stream,
    /// The parameters the server reported, in its order.
    pub parameters: Vec<(String, String)>,
    /// For [`send_cancel`]; the secret is empty if the server gave no key.
    pub key: BackendKey,
    /// Where the server is.
    pub reached: Arc<Reached>,
}

/// Where a connection was made to. Another one of the same [`Dial`] may lead elsewhere.
#[derive(Debug)]
pub struct Reached {
    dial: Dial,
    host: ServerHost,
    spot: Spot,
}

impl Dial {
    /// Prepares TLS, which may read `sslrootcert`: do it at start. `timeout` bounds, unless the URL says another,
    /// [`send_cancel`], and each of several hosts.
    ///
    /// # Errors
    /// When the root certificates cannot be had.
    pub fn new(upstream: Arc<PostgresUpstream>, timeout: Duration) -> Result<Self, TlsError> {
        let encryption = encryption(&upstream)?;
        let options = upstream.options.iter();
        let mut parameters: Vec<_> =
            options.filter(|(name, _)| SERVER_OPTIONS.contains(&name.as_str())).cloned().collect();
        if upstream.access == Access::Read {
            parameters.push(("default_transaction_read_only".to_owned(), "on".to_owned()));
        }
        let timeout = upstream.connect_timeout.unwrap_or(timeout);
        let parameters = Arc::new(parameters);
        let (proved, latest) = (Arc::default(), Arc::default());
        Ok(Self { upstream, encryption, timeout, keys: None, proved, parameters, latest })
    }

    /// The same server, entered with these parameters in the startup packet, too.
    #[must_use]
    pub fn saying(&self, parameters: Vec<(String, String)>) -> Self {
        let mut all = parameters;
        for (name, value) in self.parameters.iter() {
            if !all.iter().any(|(known, _)| known == name) {
                all.push((name.clone(), value.clone()));
            }
        }
        Self { parameters: Arc::new(all), ..self.clone() }
    }

    /// The same server, entered by somebody else.
    #[must_use]
    pub fn entered_as(&self, user: &str, database: &str, password: Option<Secret>) -> Self {
        let upstream = PostgresUpstream {
            user: user.to_owned(),
            database: database.to_owned(),
            password,
            ..PostgresUpstream::clone(&self.upstream)
        };
        let proved = Arc::default();
        Self { upstream: Arc::new(upstream), keys: None, proved, ..self.clone() }
    }

    /// The same, entered with these keys where no password is known.
    #[must_use]
    pub fn with_keys(self, keys: Option<ScramKeys>) -> Self {
        Self { keys: keys.filter(|_| self.upstream.password.is_none()), ..self }
    }

    /// What a client has shown of the user's password.
    #[must_use]
    pub fn keys(&self) -> Option<&ScramKeys> {
        self.keys.as_ref()
    }

    /// Reads the files about TLS again; blocking. The next connections are made with what they say.
    ///
    /// # Errors
    /// What is wrong with them; what was read before stays.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        match &self.encryption {
            Encryption::Never => Ok(()),
            Encryption::IfOffered(tls) | Encryption::Always(tls) => tls.reload(),
        }
    }

    /// How long one of several hosts may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.timeout
    }

    /// Which of the hosts was reached last.
    pub(super) fn latest(&self) -> &AtomicUsize {
        &self.latest
    }

    /// What is dialled.
    #[must_use]
    pub fn upstream(&self) -> &PostgresUpstream {
        &self.upstream
    }

    fn knowledge(&self) -> Option<Knowledge> {
        let Some(password) = &self.upstream.password else {
            return self.keys.clone().map(Knowledge::Keys);
        };
        let before = self.proved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(Knowledge::Password(password.expose().to_owned(), before))
    }

    fn remember(&self, keys: Option<ScramKeys>) {
        if keys.is_some() && self.upstream.password.is_some() {
            *self.proved.lock().unwrap_or_else(PoisonError::into_inner) = keys;
        }
    }

    fn startup(&self) -> Result<Vec<u8>, ConnectError> {
        let upstream = &self.upstream;
        let mut parameters =
            vec![("user", upstream.user.as_str()), ("database", upstream.database.as_str())];
        let more = self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        parameters.extend(more);
        startup(&parameters).map_err(|error| failure(Fault::Rejected, "22021", &error))
    }
}

fn encryption(upstream: &PostgresUpstream) -> Result<Encryption, TlsError> {
    let Some(settings) = upstream.tls() else { return Ok(Encryption::Never) };
    let tls = Tls::new(&settings)?;
    // Who names a server's key does not mean to speak to whoever has none.
    let may_be_plain = upstream.sslmode == SslMode::Prefer && upstream.pins.is_empty();
    Ok(if may_be_plain { Encryption::IfOffered(tls) } else { Encryption::Always(tls) })
}

impl Reached {
    /// The URL's host.
    #[must_use]
    pub fn host(&self) -> &ServerHost {
        &self.host
    }

    /// What was asked of the server.
    #[must_use]
    pub fn target(&self) -> TargetSession {
        self.upstream().hosts.target
    }

    fn upstream(&self) -> &PostgresUpstream {
        &self.dial.upstream
    }

    /// As libpq: over a unix socket nothing is encrypted, whatever is asked.
    fn encryption(&self) -> &Encryption {
        match self.spot {
            Spot::Unix(_) => &Encryption::Never,
            Spot::Tcp(_) => &self.dial.encryption,
        }
    }
}

/// Where a host may be connected to: all addresses that its name has.
///
/// # Errors
/// [`Fault::Unreachable`] with code `dns`.
pub async fn spots(host: &ServerHost) -> Result<Vec<Spot>, ConnectError> {
    if let Some(address) = host.address {
        return Ok(vec![Spot::Tcp((address, host.port).into())]);
    }
    match &host.host {
        Host::Unix(directory) => {
            Ok(vec![Spot::Unix(directory.join(format!(".s.PGSQL.{}", host.port)))])
        }
        Host::Tcp(name) => {
            let found = addresses(name, host.port).await;
            let found = found.map_err(|error| broken("dns", &error))?;
            Ok(found.into_iter().map(Spot::Tcp).collect())
        }
    }
}

/// Opens a connection to a socket of a host and logs in; so many `more` may be tried after it. Without a deadline of its
/// own. Cancel safe: a dropped attempt leaves nothing behind but, at worst, a login that the server gives up.
///
/// # Errors
/// [`Fault::Unreachable`] with code `io` or `tls`, or the SQLSTATE of a server that is
/// starting or stopping; [`Fault::Refused`] when the server is full; [`Fault::Rejected`] when it
/// does not want this user, password or database.
pub async fn dial_at(
    dial: &Dial,
    host: &ServerHost,
    spot: Spot,
    more: usize,
) -> Result<Dialled, ConnectError> {
    let greeting = dial.startup()?;
    let reached = Arc::new(Reached { dial: dial.clone(), host: host.clone(), spot });
    let (stream, privacy) = open(&reached, more).await?;
    let refused = match enter(&reached, stream, &greeting).await {
        Err(error) => error,
        entered => return entered,
    };
    // As libpq: `prefer` tries without TLS what pg_hba.conf does not allow with it (hostnossl).
    // Only for that one code, so that a wrong password is tried once.
    let plain_may_do = matches!(reached.encryption(), Encryption::IfOffered(_))
        && privacy == Privacy::Encrypted
        && refused.code == "28000";
    if !plain_may_do {
        return Err(refused);
    }
    let stream = open_socket(&reached, more).await?;
    enter(&reached, stream, &greeting).await.map_err(|_also_refused| refused)
}

/// Asks the server to cancel what the backend with `key` does now; ends when the server has taken
/// note, or after the dial's timeout. Whether anything was cancelled cannot be known.
///
/// # Errors
/// As [`dial_at`]; code `timeout` after the deadline.
pub async fn send_cancel(reached: &Reached, key: &BackendKey) -> Result<(), ConnectError> {
    let request = cancel_request(key);
    if request.is_empty() {
        return Ok(());
    }
    let sent = tokio::time::timeout(reached.dial.timeout, async {
        let (mut stream, _) = open(reached, 0).await?;
        stream.write_all(&request).await.map_err(|error| broken("io", &error))?;
        stream.flush().await.map_err(|error| broken("io", &error))?;
        // The server closes when it has sent the signal; it never answers.
        let mut nothing = [0; 64];
        while stream.read(&mut nothing).await.is_ok_and(|bytes| bytes > 0) {}
        Ok(())
    });
    sent.await.unwrap_or_else(|_elapsed| {
        let message = "the server did not take the cancel request in time";
        Err(ConnectError {
            fault: Fault::Unreachable,
            code: "timeout".to_owned(),
            message: message.to_owned(),
        })
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privacy {
    Plain,
    Encrypted,
}

async fn open(reached: &Reached, more: usize) -> Result<(Stream, Privacy), ConnectError> {
    let stream = open_socket(reached, more).await?;
    let encryption = reached.encryption();
    if let (SslNegotiation::Direct, Encryption::Always(tls)) =
        (reached.upstream().sslnegotiation, encryption)
    {
        let shaken = shake(tls, stream, reached).await;
        return Ok((shaken.map_err(|error| broken("tls", &error))?, Privacy::Encrypted));
    }
    match encryption {
        Encryption::Never => Ok((stream, Privacy::Plain)),
        Encryption::Always(tls) => match ask_for_tls(stream).await? {
            Offer::Yes(stream) => {
                let shaken = shake(tls, stream, reached).await;
                Ok((shaken.map_err(|error| broken("tls", &error))?, Privacy::Encrypted))
            }
            Offer::No(_) | Offer::Error => {
                let message = "the server does not support TLS, but sslmode requires it; \
                               use sslmode=prefer or disable if the network is trusted";
                Err(failure(Fault::Unreachable, "tls", &message))
            }
        },
        Encryption::IfOffered(tls) => match ask_for_tls(stream).await? {
            Offer::No(stream) => Ok((stream, Privacy::Plain)),
            Offer::Error => Ok((open_socket(reached, more).await?, Privacy::Plain)),
            Offer::Yes(stream) => match shake(tls, stream, reached).await {
                Ok(stream) => Ok((stream, Privacy::Encrypted)),
                // Not a server without TLS, but somebody who is not that server.
                Err(error) if is_impostor(&error) => Err(broken("tls", &error)),
                Err(_handshake) => Ok((open_socket(reached, more).await?, Privacy::Plain)),
            },
        },
    }
}

async fn open_socket(reached: &Reached, more: usize) -> Result<Stream, ConnectError> {
    let upstream = reached.upstream();
    let connected = connect_to(&reached.spot, more, &upstream.vigilance).await;
    let stream = connected.map_err(|error| broken("io", &error))?;
    let peer = upstream.required_peer.filter(|_| matches!(reached.spot, Spot::Unix(_)));
    match peer {
        Some(wanted) if stream.peer_user() != Some(wanted) => {
            let message = format!(
                "the server at {} does not run as the user that requirepeer names; correct one of them",
                reached.spot
            );
            Err(failure(Fault::Unreachable, "io", &message))
        }
        _ => Ok(stream),
    }
}

/// The server's answer to an SSLRequest.
enum Offer {
    Yes(Stream),
    No(Stream),
    /// An error, which nobody has vouched for: not shown (CVE-2024-10977 class).
    Error,
}

async fn ask_for_tls(mut stream: Stream) -> Result<Offer, ConnectError> {
    stream.write_all(&ssl_request()).await.map_err(|error| broken("io", &error))?;
    // One byte is read and no more: what somebody in the middle may have put behind it goes to the
    // handshake, which it breaks (CVE-2021-23222 class).
    match stream.read_u8().await.map_err(|error| broken("io", &error))? {
        b'S' => Ok(Offer::Yes(stream)),
        b'N' => Ok(Offer::No(stream)),
        b'E' => Ok(Offer::Error),
        other => {
            let message = format!(
                "the server answered byte {other:#04x} to an SSLRequest; is this a Postgres server?"
            );
            Err(failure(Fault::Unreachable, "08P01", &message))
        }
    }
}

async fn shake(tls: &Tls, stream: Stream, reached: &Reached) -> io::Result<Stream> {
    let name = match &reached.host.host {
        Host::Tcp(name) => name.as_str(),
        Host::Unix(_) => "localhost",
    };
    tls.connect(stream, name).await
}

async fn enter(
    reached: &Arc<Reached>,
    mut stream: Stream,
    greeting: &[u8],
) -> Result<Dialled, ConnectError> {
    let (dial, upstream) = (&reached.dial, reached.upstream());
    let binding = binding(upstream, &stream);
    let login = Login::new(&upstream.user, dial.knowledge(), nonce()?, binding);
    let mut login = login.by(upstream.methods.clone());
    let mut received = BytesMut::new();
    send(&mut stream, greeting).await?;
    loop {
        let stepped = login.step(&received);
        dial.remember(login.take_proved());
        let (consumed, step) = stepped.map_err(|error| refusal(&error))?;
        let _taken = received.split_to(consumed);
        match step {
            Step::Send(answer) => send(&mut stream, &answer).await?,
            Step::Done(logged_in) if received.is_empty() => {
                return Ok(dialled(stream, logged_in, reached));
            }
            Step::Done(_) => {
                let message = "the server went on speaking after its login; is it shutting down?";
                return Err(failure(Fault::Unreachable, "08P01", &message));
            }
            Step::NeedMore => {
                received.reserve(READ_BYTES);
                let read = stream.read_buf(&mut received).await;
                if read.map_err(|error| broken("io", &error))? == 0 {
                    return Err(failure(
                        Fault::Unreachable,
                        "io",
                        &"the server closed the connection during login",
                    ));
                }
            }
        }
    }
}

fn nonce() -> Result<[u8; 18], ConnectError> {
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce).map_err(|error| {
        failure(Fault::Unreachable, "io", &format!("the system has no random numbers: {error}"))
    })?;
    Ok(nonce)
}

/// What a login over `stream` can be bound to, and whether it must be.
fn binding(upstream: &PostgresUpstream, stream: &Stream) -> Binding {
    let end_point = || stream.peer_certificate().and_then(server_end_point);
    match (upstream.channel_binding, end_point) {
        (ChannelBinding::Disable, _) => Binding::Never,
        (ChannelBinding::Prefer, end_point) => end_point().map_or(Binding::Never, Binding::May),
        (ChannelBinding::Require, end_point) => Binding::Must(end_point()),
    }
}

async fn send(stream: &mut Stream, bytes: &[u8]) -> Result<(), ConnectError> {
    stream.write_all(bytes).await.map_err(|error| broken("io", &error))?;
    stream.flush().await.map_err(|error| broken("io", &error))
}

fn dialled(stream: Stream, logged_in: LoggedIn, reached: &Arc<Reached>) -> Dialled {
    let key = logged_in.key.unwrap_or(BackendKey { pid: 0, secret: Vec::new() });
    Dialled { stream, parameters: logged_in.parameters, key, reached: Arc::clone(reached) }
}

fn broken(code: &str, error: &io::Error) -> ConnectError {
    failure(Fault::Unreachable, code, error)
}

fn failure(fault: Fault, code: &str, message: &dyn std::fmt::Display) -> ConnectError {
    ConnectError { fault, code: code.to_owned(), message: message.to_string() }
}

fn refusal(error: &LoginError) -> ConnectError {
    match error {
        LoginError::Server(fields) => {
            let ErrorFields { code, message, .. } = fields.as_ref();
            failure(fault_of(code), code, message)
        }
        LoginError::NoPassword
        | LoginError::Unsupported(_)
        | LoginError::TooManyIterations(_)
        | LoginError::Unwanted(_)
        | LoginError::Unbound(_) => failure(Fault::Rejected, "28000", error),
        LoginError::HasNul(_) => failure(Fault::Rejected, "22021", error),
        LoginError::Impostor(_) | LoginError::OldVerifier => {
            failure(Fault::Rejected, "28P01", error)
        }
        LoginError::Protocol(_) => failure(Fault::Unreachable, "08P01", error),
    }
}

/// What a login error of the server means for the pool. Whatever the URL must be changed for is
/// `Rejected`; what passes by itself is not.
fn fault_of(code: &str) -> Fault {
    match code.get(..2) {
        Some("53") if code == "53300" => Fault::Refused,
        Some("0A" | "22" | "28" | "3D" | "42" | "55") => Fault::Rejected,
        _ => Fault::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const URL: &str = "postgres://a:secret@127.0.0.1:5/d";

    /// What a login would begin with.
    fn known(dial: &Dial) -> Option<ScramKeys> {
        match dial.knowledge() {
            Some(Knowledge::Password(_, keys)) => keys,
            Some(Knowledge::Keys(_)) | None => panic!("a password is known"),
        }
    }

    #[test]
    fn what_a_password_came_to_is_known_to_all_who_enter_with_it_and_to_nobody_else() {
        let url = BTreeMap::from([("DATABASE_URL".to_owned(), Some(URL.to_owned()))]);
        let loaded = crate::config::load(None, &url, &[]).unwrap();
        let upstream = &loaded.settings.postgres.unwrap().listeners[0].upstreams[0];
        let dial = Dial::new(Arc::clone(upstream), Duration::from_secs(1)).unwrap();
        let before = dial.saying(vec![("application_name".to_owned(), "x".to_owned())]);
        assert_eq!(known(&dial), None);
        let keys = ScramKeys::of("secret", b"salt", 2);
        dial.remember(Some(keys.clone()));
        // A server that did not ask for SCRAM this time.
        before.remember(None);
        assert_eq!(known(&before), Some(keys));
        let another = dial.entered_as("b", "d", Some(Secret::new("other")));
        assert_eq!(known(&another), None);
        // Whoever has keys and no password has no more to remember.
        let keyed = ScramKeys::of("secret", b"salt", 2);
        let shown = dial.entered_as("b", "d", None).with_keys(Some(keyed.clone()));
        shown.remember(Some(ScramKeys::of("secret", b"another", 2)));
        assert!(matches!(shown.knowledge(), Some(Knowledge::Keys(keys)) if keys == keyed));
    }

    #[test]
    fn a_login_error_means_what_it_says() {
        for code in ["28P01", "28000", "3D000", "42501", "42704", "22023", "55000"] {
            assert_eq!(fault_of(code), Fault::Rejected, "{code}");
        }
        assert_eq!(fault_of("53300"), Fault::Refused);
        for code in ["57P03", "57P01", "53200", "XX000", "", "é"] {
            assert_eq!(fault_of(code), Fault::Unreachable, "{code}");
        }
    }
}
