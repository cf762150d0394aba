//! The frames of greeting, login, errors and our own small exchanges: built with pgwire, read by
//! hand. Nothing here is called for relayed traffic.
//!
//! Reading is ours because pgwire decodes past the frame's end and panics on short bodies. The
//! formats are those of <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use bytes::{Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::response::{ErrorResponse, NoticeResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, Password,
    SASLInitialResponse, SASLResponse, SecretKey, SslRequest,
};
use pgwire::messages::terminate::Terminate;

use super::exchange::Status;

/// Protocol 3.0 as the startup packet writes it.
pub const VERSION_3_0: u32 = 0x0003_0000;
/// Protocol 3.2, the newest there is.
pub const VERSION_3_2: u32 = 0x0003_0002;

/// How bad an error or notice is (field `V`, never translated).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The command failed.
    Error,
    /// The session ends.
    Fatal,
    /// All sessions end.
    Panic,
    /// Notices, by their weight.
    Warning,
    /// See [`Severity::Warning`].
    Notice,
    /// See [`Severity::Warning`].
    Info,
    /// See [`Severity::Warning`].
    Log,
    /// See [`Severity::Warning`].
    Debug,
}

impl Severity {
    /// The word on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Panic => "PANIC",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
            Self::Info => "INFO",
            Self::Log => "LOG",
            Self::Debug => "DEBUG",
        }
    }

    /// The severity of a word; what is unknown counts as an error.
    fn of(word: &str) -> Self {
        match word {
            "FATAL" => Self::Fatal,
            "PANIC" => Self::Panic,
            "WARNING" => Self::Warning,
            "NOTICE" => Self::Notice,
            "INFO" => Self::Info,
            "LOG" => Self::Log,
            "DEBUG" => Self::Debug,
            _ => Self::Error,
        }
    }
}

/// The fields of an `ErrorResponse` or `NoticeResponse` that we write or look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFields {
    /// How bad it is.
    pub severity: Severity,
    /// The SQLSTATE, five characters.
    pub code: String,
    /// What happened.
    pub message: String,
    /// More of what happened.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl ErrorFields {
    /// An error that ends the session.
    #[must_use]
    pub fn fatal(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    /// An error that the session survives.
    #[must_use]
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    /// Without detail and hint.
    #[must_use]
    pub fn new(severity: Severity, code: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { severity, code: code.to_owned(), message, detail: None, hint: None }
    }

    /// Adds what happened in detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Reads the body of an `ErrorResponse` or `NoticeResponse`. Total: fields that are missing,
    /// cut short or not UTF-8 are made the best of, as only a person or a code table reads them.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        let mut fields = Self::new(Severity::Error, "XX000", "");
        let mut translated = None;
        let mut plain = None;
        let mut rest = body;
        while let Some((&field, after)) = rest.split_first() {
            if field == 0 {
                break;
            }
            let (value, after) = cstr(after).unwrap_or((after, &[]));
            let value = String::from_utf8_lossy(value).into_owned();
            match field {
                b'V' => plain = Some(Severity::of(&value)),
                b'S' => translated = Some(Severity::of(&value)),
                b'C' => fields.code = value,
                b'M' => fields.message = value,
                b'D' => fields.detail = Some(value),
                b'H' => fields.hint = Some(value),
                _ => {}
            }
            rest = after;
        }
        fields.severity = plain.or(translated).unwrap_or(Severity::Error);
        fields
    }

    fn wire(&self) -> Vec<(u8, String)> {
        let word = self.severity.word().to_owned();
        let mut fields = vec![
            (b'S', word.clone()),
            (b'V', word),
            (b'C', without_nul(&self.code)),
            (b'M', without_nul(&self.message)),
        ];
        fields.extend(self.detail.iter().map(|detail| (b'D', without_nul(detail))));
        fields.extend(self.hint.iter().map(|hint| (b'H', without_nul(hint))));
        fields
    }
}

/// What a cancel request needs to name a backend (`BackendKeyData`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// The backend's process id.
    pub pid: i32,
    /// 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendKey").field("pid", &self.pid).field("secret", &"***").finish()
    }
}

/// An `Authentication…` request of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthRequest {
    /// Logged in.
    Ok,
    /// Wants the password as it is.
    Cleartext,
    /// Wants the password hashed with this salt.
    Md5([u8; 4]),
    /// Offers these SASL mechanisms.
    Sasl(Vec<String>),
    /// SASL goes on.
    SaslContinue(Vec<u8>),
    /// SASL ends.
    SaslFinal(Vec<u8>),
    /// Something we have no words for (GSSAPI, SSPI, Kerberos).
    Other(u32),
}

/// A whole frame at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: &'a [u8],
    /// Bytes of the whole frame.
    pub bytes: usize,
}

/// A frame whose length field cannot be right, or is above the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame {:?} says it has {length} bytes; the limit here is {limit}", char::from(*.tag))]
pub struct BadLength {
    /// The type byte.
    pub tag: u8,
    /// The length field.
    pub length: u32,
    /// The limit in bytes.
    pub limit: usize,
}

/// The frame at the front of `bytes`, once it is there whole. The length is judged as soon as the
/// header is there, so no more than `limit` + 1 bytes need ever be buffered.
///
/// # Errors
/// When the length is below 4 or above `limit`.
pub fn next_frame(bytes: &[u8], limit: usize) -> Result<Option<Frame<'_>>, BadLength> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    let whole = usize::try_from(length).ok().filter(|whole| (4..=limit).contains(whole));
    let Some(whole) = whole else {
        return Err(BadLength { tag, length, limit });
    };
    let body = bytes.get(5..whole + 1);
    Ok(body.map(|body| Frame { tag, body, bytes: whole + 1 }))
}

/// Splits a NUL-terminated string from what follows its NUL.
#[must_use]
pub fn cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Reads the body of an `Authentication…` frame; `None` if it is malformed.
#[must_use]
pub fn parse_auth_request(body: &[u8]) -> Option<AuthRequest> {
    let (code, rest) = body.split_first_chunk::<4>()?;
    Some(match u32::from_be_bytes(*code) {
        0 => AuthRequest::Ok,
        3 => AuthRequest::Cleartext,
        5 => AuthRequest::Md5(rest.try_into().ok()?),
        10 => AuthRequest::Sasl(parse_mechanisms(rest)?),
        11 => AuthRequest::SaslContinue(rest.to_vec()),
        12 => AuthRequest::SaslFinal(rest.to_vec()),
        other => AuthRequest::Other(other),
    })
}

fn parse_mechanisms(mut rest: &[u8]) -> Option<Vec<String>> {
    let mut mechanisms = Vec::new();
    loop {
        let (name, after) = cstr(rest)?;
        if name.is_empty() {
            return Some(mechanisms);
        }
        mechanisms.push(String::from_utf8_lossy(name).into_owned());
        rest = after;
    }
}

/// Reads the body of a `ParameterStatus` frame: name and value. Bytes that are not UTF-8 are
/// replaced; `None` if it is malformed.
#[must_use]
pub fn parse_parameter_status(body: &[u8]) -> Option<(String, String)> {
    let (name, rest) = cstr(body)?;
    let (value, []) = cstr(rest)? else {
        return None;
    };
    Some((String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned()))
}

/// Reads the body of a `BackendKeyData` frame; `None` unless the key has 4 to 256 bytes.
#[must_use]
pub fn parse_backend_key(body: &[u8]) -> Option<BackendKey> {
    let (pid, secret) = body.split_first_chunk::<4>()?;
    (4..=256)
        .contains(&secret.len())
        .then(|| BackendKey { pid: i32::from_be_bytes(*pid), secret: secret.to_vec() })
}

/// Reads the body of a `ReadyForQuery` frame: the status byte `I`, `T` or `E`.
#[must_use]
pub fn parse_ready(body: &[u8]) -> Option<u8> {
    match body {
        [status @ (b'I' | b'T' | b'E')] => Some(*status),
        _ => None,
    }
}

/// Reads a client's `PasswordMessage` body as a `SASLInitialResponse`: the mechanism and its first
/// data. `None` if it is malformed.
#[must_use]
pub fn parse_sasl_initial(body: &[u8]) -> Option<(&str, &[u8])> {
    let (mechanism, rest) = cstr(body)?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    let length = i32::from_be_bytes(*length);
    if length != -1 && usize::try_from(length).ok()? != data.len() {
        return None;
    }
    Some((std::str::from_utf8(mechanism).ok()?, data))
}

/// Why a frame cannot be built: text of ours would end early on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} contains a NUL byte, which Postgres cannot take; remove it")]
pub struct HasNul {
    /// Which text.
    pub what: &'static str,
}

/// `ErrorResponse`.
#[must_use]
pub fn error_frame(fields: &ErrorFields) -> Vec<u8> {
    frame(&ErrorResponse::new(fields.wire()))
}

/// `NoticeResponse`.
#[must_use]
pub fn notice_frame(fields: &ErrorFields) -> Vec<u8> {
    frame(&NoticeResponse::new(fields.wire()))
}

/// `AuthenticationOk`.
#[must_use]
pub fn authentication_ok() -> Vec<u8> {
    frame(&Authentication::Ok)
}

/// `AuthenticationSASL` offering `mechanisms`.
#[must_use]
pub fn authentication_sasl(mechanisms: &[&str]) -> Vec<u8> {
    frame(&Authentication::SASL(mechanisms.iter().map(|name| (*name).to_owned()).collect()))
}

/// `AuthenticationSASLContinue`.
#[must_use]
pub fn authentication_sasl_continue(data: &[u8]) -> Vec<u8> {
    frame(&Authentication::SASLContinue(Bytes::copy_from_slice(data)))
}

/// `AuthenticationSASLFinal`.
#[must_use]
pub fn authentication_sasl_final(data: &[u8]) -> Vec<u8> {
    frame(&Authentication::SASLFinal(Bytes::copy_from_slice(data)))
}

/// `ParameterStatus`.
#[must_use]
pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    frame(&ParameterStatus::new(without_nul(name), without_nul(value)))
}

/// `BackendKeyData`; nothing for a key outside 4 to 256 bytes, which the protocol has no form for.
#[must_use]
pub fn backend_key_data(key: &BackendKey) -> Vec<u8> {
    frame(&BackendKeyData::new(key.pid, secret_key(key)))
}

/// `ReadyForQuery` with this status.
#[must_use]
pub fn ready(status: Status) -> Vec<u8> {
    let status = match status {
        Status::Idle => TransactionStatus::Idle,
        Status::Transaction => TransactionStatus::Transaction,
        Status::Failed => TransactionStatus::Error,
    };
    frame(&ReadyForQuery::new(status))
}

/// `NegotiateProtocolVersion`: the version that is spoken from now on (the full number, as Postgres
/// sends it) and the protocol options that are not known here.
#[must_use]
pub fn negotiate_protocol_version(version: u32, unknown_options: &[String]) -> Vec<u8> {
    let version = i32::try_from(version).unwrap_or(i32::MAX);
    frame(&NegotiateProtocolVersion::new(version, unknown_options.to_vec()))
}

/// `StartupMessage` of protocol 3.0 with `parameters` in order.
///
/// # Errors
/// When a name or value contains NUL: it would end the value and smuggle in parameters.
pub fn startup(parameters: &[(&str, &str)]) -> Result<Vec<u8>, HasNul> {
    // By hand: pgwire keeps the parameters in a map, and their order can matter.
    let mut body = VERSION_3_0.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            if text.contains('\0') {
                return Err(HasNul { what: "startup parameter" });
            }
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    Ok(with_length(None, &body))
}

/// `SSLRequest`.
#[must_use]
pub fn ssl_request() -> Vec<u8> {
    frame(&SslRequest::new())
}

/// `CancelRequest`; nothing for a key outside 4 to 256 bytes.
#[must_use]
pub fn cancel_request(key: &BackendKey) -> Vec<u8> {
    frame(&CancelRequest::new(key.pid, secret_key(key)))
}

/// `PasswordMessage` with a cleartext password or an md5 hash.
///
/// # Errors
/// When the password contains NUL.
pub fn password(password: &str) -> Result<Vec<u8>, HasNul> {
    if password.contains('\0') {
        return Err(HasNul { what: "password" });
    }
    Ok(frame(&Password::new(password.to_owned())))
}

/// `SASLInitialResponse`.
#[must_use]
pub fn sasl_initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let data = Bytes::copy_from_slice(data);
    frame(&SASLInitialResponse::new(without_nul(mechanism), Some(data)))
}

/// `SASLResponse`.
#[must_use]
pub fn sasl_response(data: &[u8]) -> Vec<u8> {
    frame(&SASLResponse::new(Bytes::copy_from_slice(data)))
}

/// `Query`. What follows a NUL in `sql` is not sent.
#[must_use]
pub fn query(sql: &str) -> Vec<u8> {
    let sql = sql.split('\0').next().unwrap_or_default();
    frame(&Query::new(sql.to_owned()))
}

/// `Terminate`.
#[must_use]
pub fn terminate() -> Vec<u8> {
    frame(&Terminate::new())
}

fn secret_key(key: &BackendKey) -> SecretKey {
    SecretKey::Bytes(Bytes::copy_from_slice(&key.secret))
}

/// pgwire's body with a length of our own counting, so that no limit of pgwire's can leave half a
/// frame. The one thing pgwire refuses to encode is a cancel key of a wrong length: nothing then.
fn frame<M: Message>(message: &M) -> Vec<u8> {
    let mut body = BytesMut::new();
    if message.encode_body(&mut body).is_err() {
        return Vec::new();
    }
    with_length(M::message_type(), &body)
}

fn with_length(tag: Option<u8>, body: &[u8]) -> Vec<u8> {
    // Bodies here are far below 4 GiB; a length that lies would be worse than a frame unsent.
    let Ok(length) = u32::try_from(body.len() + 4) else {
        return Vec::new();
    };
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.extend(tag);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

#[cfg(test)]
mod tests;
