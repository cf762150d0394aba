//! The client's first words, before any authentication: SSLRequest, GSSENCRequest, CancelRequest
//! and the startup packet of protocol 3.0 to 3.2.
//!
//! Rules and texts are those of `ProcessStartupPacket` in Postgres' `backend_startup.c`.

use super::message::{
    BackendKey, ErrorFields, VERSION_3_0, VERSION_3_2, cstr, negotiate_protocol_version,
};

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
/// Length, code, pid and the longest key.
const CANCEL_MOST_BYTES: usize = 12 + 256;

/// Reads a client's first words. Fed with what has been received and not yet consumed; it holds no
/// bytes itself.
#[derive(Debug)]
pub struct Greeting {
    startup_most_bytes: usize,
    encryption: Encryption,
    ssl: Asked,
    gss: Asked,
    pipelined: Option<&'static str>,
}

/// The first byte of a TLS handshake, where a startup packet has the highest of its length.
const TLS_HANDSHAKE: usize = 0x16;

/// What there is to be had of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Nothing: an SSLRequest is declined.
    Unavailable,
    /// An SSLRequest is granted.
    Offered,
    /// There is no session without.
    Required,
    /// It is there already: a request for more is refused.
    Done,
}

/// Encryption may be asked for once of each kind; asked again it is no version we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    NotYet,
    Answered,
}

/// What came of the bytes. `bytes` says how many of them are consumed.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet: read more.
    NeedMore,
    /// An encryption request: send the single byte `N`, then go on with [`Greeting::step`] before
    /// reading more.
    Decline {
        /// Bytes consumed.
        bytes: usize,
    },
    /// An SSLRequest that is granted: send the single byte `S`, then shake hands, and go on with a new greeting whose
    /// encryption is done. Nothing was received behind it.
    Encrypt {
        /// Bytes consumed.
        bytes: usize,
    },
    /// Cancel the query of the session with this key, then close without an answer.
    Cancel(BackendKey),
    /// The client wants a session.
    Startup {
        /// Bytes consumed.
        bytes: usize,
        /// What it asked for.
        startup: Startup,
    },
}

/// What a startup packet asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Startup {
    /// Whose session.
    pub user: String,
    /// In which database; the user's name if the client named none.
    pub database: String,
    /// Whether it can take a cancel key longer than 4 bytes.
    pub keys: CancelKeys,
    /// `NegotiateProtocolVersion`, to be sent once and before anything else.
    pub negotiation: Option<Vec<u8>>,
    /// The value of `replication`, unless it means no.
    pub replication: Option<String>,
    /// All parameters but user, database and replication, in the client's order.
    pub parameters: Vec<(String, String)>,
}

/// The form of a cancel key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelKeys {
    /// 4 bytes: protocol 3.0.
    Short,
    /// 32 bytes: protocol 3.2.
    Long,
}

/// Why there is no session.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Send this, then close.
    Fatal(Box<ErrorFields>),
    /// Close without a word; the text is for the log.
    Silent(&'static str),
}

impl Greeting {
    /// A greeting whose startup packet may have `startup_most_bytes`, its length field included.
    #[must_use]
    pub fn new(startup_most_bytes: usize, encryption: Encryption) -> Self {
        // As in Postgres: inside of TLS neither kind may be asked for.
        let asked = if encryption == Encryption::Done { Asked::Answered } else { Asked::NotYet };
        Self { startup_most_bytes, encryption, ssl: asked, gss: asked, pipelined: None }
    }

    /// Looks at all bytes that were received and not consumed.
    ///
    /// # Errors
    /// When the client can have no session.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        if let Some(request) = self.pipelined.take() {
            return Err(unencrypted_data(request));
        }
        let Some((length, _)) = bytes.split_first_chunk::<4>() else {
            return Ok(Step::NeedMore);
        };
        let length = self.checked_length(u32::from_be_bytes(*length))?;
        let Some(packet) = bytes.get(4..length) else {
            return Ok(Step::NeedMore);
        };
        let Some((code, body)) = packet.split_first_chunk::<4>() else {
            return Err(bad_length(length));
        };
        match u32::from_be_bytes(*code) {
            CANCEL_REQUEST => cancel(body),
            SSL_REQUEST if self.ssl == Asked::NotYet => {
                self.ssl = Asked::Answered;
                match self.encryption {
                    Encryption::Offered | Encryption::Required if bytes.len() > length => {
                        Err(unencrypted_data("SSL"))
                    }
                    Encryption::Offered | Encryption::Required => {
                        Ok(Step::Encrypt { bytes: length })
                    }
                    Encryption::Unavailable | Encryption::Done => {
                        Ok(self.decline("SSL", bytes, length))
                    }
                }
            }
            GSS_REQUEST if self.gss == Asked::NotYet => {
                self.gss = Asked::Answered;
                Ok(self.decline("GSSAPI encryption", bytes, length))
            }
            version => {
                let startup = startup(version, body)?;
                match self.encryption {
                    Encryption::Required => Err(unencrypted(&startup).into()),
                    _ => Ok(Step::Startup { bytes: length, startup }),
                }
            }
        }
    }

    fn checked_length(&self, length: u32) -> Result<usize, Refusal> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if (8..=self.startup_most_bytes).contains(&length) {
            return Ok(length);
        }
        Err(if length >> 24 == TLS_HANDSHAKE { direct_tls() } else { bad_length(length) })
    }

    fn decline(&mut self, request: &'static str, bytes: &[u8], length: usize) -> Step {
        if bytes.len() > length {
            self.pipelined = Some(request);
        }
        Step::Decline { bytes: length }
    }
}

impl From<ErrorFields> for Refusal {
    fn from(fields: ErrorFields) -> Self {
        Self::Fatal(Box::new(fields))
    }
}

fn fatal(code: &str, message: impl Into<String>) -> ErrorFields {
    ErrorFields::fatal(code, message)
}

/// What came before our answer could have been put there by somebody in the middle, to be taken for the client's own words
/// (CVE-2021-23214).
fn unencrypted_data(request: &str) -> Refusal {
    fatal("08P01", format!("received unencrypted data after {request} request"))
        .detail(
            "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
        )
        .into()
}

/// Postgres' words where `pg_hba.conf` has `hostssl` alone.
fn unencrypted(startup: &Startup) -> ErrorFields {
    let Startup { user, database, .. } = startup;
    let message = format!("user \"{user}\" may not use database \"{database}\" without encryption");
    fatal("28000", message).hint("This listener takes TLS only: set sslmode=require.")
}

/// A TLS handshake where there is no TLS, or inside of TLS.
fn direct_tls() -> Refusal {
    fatal("08P01", "received direct SSL connection request where there is no TLS to be had")
        .hint("Over a unix socket, and with tls.postgres off, there is none: set sslmode=disable.")
        .into()
}

fn bad_length(length: usize) -> Refusal {
    fatal("08P01", format!("invalid length of startup packet: {length} bytes"))
        .hint("This port speaks the Postgres protocol: check the client's address, sslmode and sslnegotiation.")
        .into()
}

fn cancel(body: &[u8]) -> Result<Step, Refusal> {
    let malformed = Refusal::Silent("malformed cancel request");
    if body.len() + 8 > CANCEL_MOST_BYTES {
        return Err(malformed);
    }
    match body.split_first_chunk::<4>() {
        Some((pid, secret)) if !secret.is_empty() => {
            Ok(Step::Cancel(BackendKey { pid: i32::from_be_bytes(*pid), secret: secret.to_vec() }))
        }
        _ => Err(malformed),
    }
}

fn startup(version: u32, body: &[u8]) -> Result<Startup, Refusal> {
    let (major, minor) = (version >> 16, version & 0xffff);
    if major != 3 {
        return Err(fatal(
            "0A000",
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"),
        )
        .into());
    }
    let asked = Asks::read(body)?;
    let user = asked.user.filter(|user| !user.is_empty()).ok_or_else(|| {
        Refusal::from(fatal("28000", "no PostgreSQL user name specified in startup packet"))
    })?;
    let database = asked.database.filter(|name| !name.is_empty());
    // 3.1 was never published: whoever asks for it gets what 3.0 has.
    let spoken = if minor >= 2 { VERSION_3_2 } else { VERSION_3_0 };
    let must_negotiate = version > VERSION_3_2 || !asked.protocol_options.is_empty();
    Ok(Startup {
        database: database.unwrap_or_else(|| user.clone()),
        user,
        keys: if spoken == VERSION_3_2 { CancelKeys::Long } else { CancelKeys::Short },
        negotiation: must_negotiate
            .then(|| negotiate_protocol_version(spoken, &asked.protocol_options)),
        replication: asked.replication.filter(|value| !means_off(value)),
        parameters: asked.parameters,
    })
}

/// The packet's pairs, sorted by who cares for them.
#[derive(Default)]
struct Asks {
    user: Option<String>,
    database: Option<String>,
    replication: Option<String>,
    /// `_pq_.…`: of these we know none.
    protocol_options: Vec<String>,
    parameters: Vec<(String, String)>,
}

impl Asks {
    fn read(mut rest: &[u8]) -> Result<Self, Refusal> {
        let layout = || {
            let message = "invalid startup packet layout: expected terminator as last byte";
            Refusal::from(fatal("08P01", message))
        };
        let mut asks = Self::default();
        loop {
            let (name, after) = cstr(rest).ok_or_else(layout)?;
            if name.is_empty() {
                return if after.is_empty() { Ok(asks) } else { Err(layout()) };
            }
            let (value, after) = cstr(after).ok_or_else(layout)?;
            asks.sort(text(name)?, text(value)?);
            rest = after;
        }
    }

    fn sort(&mut self, name: String, value: String) {
        match name.as_str() {
            "user" => self.user = Some(value),
            "database" => self.database = Some(value),
            "replication" => self.replication = Some(value),
            _ if name.starts_with("_pq_.") => self.protocol_options.push(name),
            _ => self.parameters.push((name, value)),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, Refusal> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        fatal("22021", "the startup packet contains bytes that are not UTF-8")
            .hint("Use UTF-8 for the names of user and database and for parameters.")
            .into()
    })
}

/// Postgres' `parse_bool`: any unambiguous beginning of these words.
fn means_off(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str| !value.is_empty() && word.starts_with(&value);
    begins("false") || begins("no") || value == "of" || value == "off" || value == "0"
}

#[cfg(test)]
mod tests;
