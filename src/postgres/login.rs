//! Our login at a server: trust, cleartext, md5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, up to the first ReadyForQuery.

use postgres_protocol::authentication::md5_hash;

use super::message::{
    AuthRequest, BackendKey, ErrorFields, Frame, HasNul, next_frame, parse_auth_request,
    parse_backend_key, parse_parameter_status, parse_ready, password, sasl_initial, sasl_response,
};
use super::scram::{self, Bindable, ClientError, Knowledge, ScramClient, ScramKeys};

/// Longest frame of a server's login, in bytes: some way above libpq's 30,000.
pub const FRAME_MOST_BYTES: usize = 64 * 1024;
/// Most parameters a server may report while we log in; Postgres has about 15.
const PARAMETERS_MOST: usize = 500;

/// One login.
pub struct Login {
    user: String,
    /// `None`: the server must trust. With keys alone, it must ask for SCRAM.
    knowledge: Option<Knowledge>,
    /// Fresh random bytes.
    nonce: [u8; 18],
    binding: Binding,
    methods: Methods,
    state: State,
    parameters: Vec<(String, String)>,
    key: Option<BackendKey>,
    proved: Option<ScramKeys>,
}

/// Whether the login is bound to the encryption it runs over (RFC 5929, `tls-server-end-point`): then nobody in the middle
/// can pass it on. With the hash of the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// There is nothing to bind it to, or nobody wants to.
    Never,
    /// If the server offers it.
    May(Vec<u8>),
    /// Or there is no login. Without a hash there is none in any case.
    Must(Option<Vec<u8>>),
}

/// A way in which a server asks who we are, by libpq's words for `require_auth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Password,
    Md5,
    Scram,
    /// It does not ask.
    None,
    /// One that we can't anyway.
    Other,
}

/// Which of them will do; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Methods {
    /// `None`: all of them.
    allowed: Option<Vec<Method>>,
}

impl Methods {
    /// Reads libpq's list: words, or all words but those, with `!` in front of each.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(',').collect();
        let bare = |word: &str| word.strip_prefix('!').map(Method::of).unwrap_or(Method::of(word));
        let named = words.iter().map(|word| bare(word)).collect::<Option<Vec<_>>>()?;
        let denied = words.iter().filter(|word| word.starts_with('!')).count();
        let allowed = match denied {
            0 => named,
            all if all == words.len() => {
                let every = [Method::Password, Method::Md5, Method::Scram, Method::None];
                every.into_iter().filter(|method| !named.contains(method)).collect()
            }
            _some => return None,
        };
        Some(Self { allowed: Some(allowed) })
    }

    fn allow(&self, method: Method) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(&method))
    }
}

impl Method {
    fn of(word: &str) -> Option<Self> {
        match word {
            "password" => Some(Self::Password),
            "md5" => Some(Self::Md5),
            "scram-sha-256" => Some(Self::Scram),
            "none" => Some(Self::None),
            "gss" | "sspi" | "oauth" => Some(Self::Other),
            _ => None,
        }
    }
}

enum State {
    /// The startup packet is sent. Left by an authentication request.
    Greeted,
    /// A password is sent. Left by `AuthenticationOk`.
    PasswordSent,
    /// SASL's first message is sent. Left by `SASLContinue`.
    ScramBegun(Box<ScramClient>),
    /// The proof is sent. Left by `SASLFinal`, which must prove the server's knowledge.
    ScramProved(Box<ScramClient>),
    /// The server has proved itself. Left by `AuthenticationOk`.
    ScramDone,
    /// Logged in. Left by `ReadyForQuery`.
    Starting,
}

/// What came of the bytes; they are consumed as far as [`Login::step`] says.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read more.
    NeedMore,
    /// Send this, then go on.
    Send(Vec<u8>),
    /// Ready for queries.
    Done(LoggedIn),
}

/// What a server says of a new session.
#[derive(Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// The reported parameters, in the server's order.
    pub parameters: Vec<(String, String)>,
    /// The key for cancel requests; `None` if the server gave none.
    pub key: Option<BackendKey>,
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The server refused, with its own words.
    #[error("{} ({})", .0.message, .0.code)]
    Server(Box<ErrorFields>),
    /// The server wants a password and there is none.
    #[error(
        "the server asks for a password, and none is known; add one to the URL or the users file"
    )]
    NoPassword,
    /// The server has another verifier than the one that the client was known by.
    #[error("the password has changed at the server; connect again with the new one")]
    OldVerifier,
    /// The server wants what we can't do.
    #[error("the server asks for {0}; allow scram-sha-256 or md5 for this user in pg_hba.conf")]
    Unsupported(String),
    /// The server asks for more hashing than is good for those who are served meanwhile.
    #[error("the server asks for {0}; lower its scram_iterations, and set the password anew")]
    TooManyIterations(ClientError),
    /// The server could not prove that it knows the password: it is not who it says.
    #[error("the server failed to prove that it knows the password ({0}); check the URL's host")]
    Impostor(String),
    /// The login must be bound to the encryption, and can't.
    #[error(
        "channel_binding=require, but {0}; set the server's password_encryption to scram-sha-256 and the password anew, \
        or use channel_binding=prefer"
    )]
    Unbound(&'static str),
    /// The server asks in a way that `require_auth` rules out.
    #[error("the server {0}, which require_auth rules out; allow it there, or change pg_hba.conf")]
    Unwanted(&'static str),
    /// The server breaks the protocol.
    #[error("the server breaks the protocol: {0}; is this a Postgres server?")]
    Protocol(String),
    /// The password cannot be sent.
    #[error(transparent)]
    HasNul(#[from] HasNul),
}

impl Login {
    /// A login whose startup packet has been sent; `nonce` is fresh random bytes.
    #[must_use]
    pub fn new(
        user: &str,
        knowledge: Option<Knowledge>,
        nonce: [u8; 18],
        binding: Binding,
    ) -> Self {
        Self {
            user: user.to_owned(),
            knowledge,
            nonce,
            binding,
            methods: Methods::default(),
            state: State::Greeted,
            parameters: Vec::new(),
            key: None,
            proved: None,
        }
    }

    /// The same, if the server asks in one of these ways.
    #[must_use]
    pub fn by(self, methods: Methods) -> Self {
        Self { methods, ..self }
    }

    /// What the password comes to, once, when the server has proved that it knows it: for the next login, though this one may still
    /// fail.
    pub fn take_proved(&mut self) -> Option<ScramKeys> {
        self.proved.take()
    }

    /// Takes whole frames off `bytes` until there is something to send, the login is done or the
    /// bytes end. The number is how many bytes were consumed.
    ///
    /// # Errors
    /// When there will be no session.
    pub fn step(&mut self, bytes: &[u8]) -> Result<(usize, Step), LoginError> {
        let mut consumed = 0;
        loop {
            let next = next_frame(&bytes[consumed..], FRAME_MOST_BYTES);
            let Some(frame) = next.map_err(|error| LoginError::Protocol(error.to_string()))? else {
                return Ok((consumed, Step::NeedMore));
            };
            consumed += frame.bytes;
            if let Some(step) = self.take(frame)? {
                return Ok((consumed, step));
            }
        }
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<Option<Step>, LoginError> {
        let broken = || LoginError::Protocol(describe(frame));
        match (frame.tag, &self.state) {
            (b'E', _) => Err(LoginError::Server(Box::new(ErrorFields::parse(frame.body)))),
            (b'N', _) => Ok(None),
            (b'R', State::Starting) => Err(broken()),
            (b'R', _) => self.authenticate(parse_auth_request(frame.body).ok_or_else(broken)?),
            (b'S', State::Starting) if self.parameters.len() < PARAMETERS_MOST => {
                self.parameters.push(parse_parameter_status(frame.body).ok_or_else(broken)?);
                Ok(None)
            }
            (b'K', State::Starting) => {
                self.key = Some(parse_backend_key(frame.body).ok_or_else(broken)?);
                Ok(None)
            }
            (b'Z', State::Starting) if parse_ready(frame.body) == Some(b'I') => {
                let parameters = std::mem::take(&mut self.parameters);
                Ok(Some(Step::Done(LoggedIn { parameters, key: self.key.take() })))
            }
            _ => Err(broken()),
        }
    }

    fn authenticate(&mut self, request: AuthRequest) -> Result<Option<Step>, LoginError> {
        let state = std::mem::replace(&mut self.state, State::Starting);
        self.check_method(&request, &state)?;
        self.check_binding(&request, &state)?;
        let (state, step) = match (request, state) {
            // Once SCRAM has begun, only its own end counts: an early Ok would come from somebody
            // who does not know the password.
            (AuthRequest::Ok, State::Greeted | State::PasswordSent | State::ScramDone) => {
                (State::Starting, None)
            }
            (AuthRequest::Cleartext, State::Greeted) => {
                (State::PasswordSent, Some(Step::Send(password(self.secret()?)?)))
            }
            (AuthRequest::Md5(salt), State::Greeted) => {
                let hash = md5_hash(self.user.as_bytes(), self.secret()?.as_bytes(), salt);
                (State::PasswordSent, Some(Step::Send(password(&hash)?)))
            }
            (AuthRequest::Sasl(mechanisms), State::Greeted) => self.begin_scram(&mechanisms)?,
            (AuthRequest::SaslContinue(data), State::ScramBegun(mut scram)) => {
                scram.update(&data).map_err(LoginError::of)?;
                let proof = sasl_response(scram.message());
                (State::ScramProved(scram), Some(Step::Send(proof)))
            }
            (AuthRequest::SaslFinal(data), State::ScramProved(scram)) => {
                let keys = scram.finish(&data);
                self.proved = Some(keys.map_err(|error| LoginError::Impostor(error.to_string()))?);
                (State::ScramDone, None)
            }
            (AuthRequest::Other(code), _) => {
                return Err(LoginError::Unsupported(format!(
                    "an authentication method we do not speak (number {code})"
                )));
            }
            (request, _) => {
                let what = format!("{} out of turn", request_name(&request));
                return Err(LoginError::Protocol(what));
            }
        };
        self.state = state;
        Ok(step)
    }

    /// Whoever asks in another way than is allowed may be somebody in the middle, who wants the password in a weaker form.
    fn check_method(&self, request: &AuthRequest, state: &State) -> Result<(), LoginError> {
        let (method, what) = match (request, state) {
            (AuthRequest::Ok, State::Greeted) => (Method::None, "asks for nothing"),
            (AuthRequest::Cleartext, _) => (Method::Password, "asks for the password in the clear"),
            (AuthRequest::Md5(_), _) => (Method::Md5, "asks for md5"),
            (AuthRequest::Sasl(_), _) => (Method::Scram, "asks for scram-sha-256"),
            _ => return Ok(()),
        };
        if self.methods.allow(method) { Ok(()) } else { Err(LoginError::Unwanted(what)) }
    }

    /// Where the login must be bound, only SCRAM's own end counts.
    fn check_binding(&self, request: &AuthRequest, state: &State) -> Result<(), LoginError> {
        let unbound = match (&self.binding, request, state) {
            (Binding::Must(None), ..) => {
                "the connection is not encrypted, or its certificate has no hash for it"
            }
            (Binding::Must(_), AuthRequest::Ok, State::ScramDone) => return Ok(()),
            (Binding::Must(_), AuthRequest::Ok, _) => "the server asks for no proof",
            (Binding::Must(_), AuthRequest::Cleartext | AuthRequest::Md5(_), _) => {
                "the server asks for a password without SCRAM"
            }
            _ => return Ok(()),
        };
        Err(LoginError::Unbound(unbound))
    }

    fn begin_scram(&self, mechanisms: &[String]) -> Result<(State, Option<Step>), LoginError> {
        let offers = |mechanism: &str| mechanisms.iter().any(|name| name == mechanism);
        let (mechanism, bindable) = match &self.binding {
            Binding::May(hash) | Binding::Must(Some(hash)) if offers(scram::MECHANISM_PLUS) => {
                (scram::MECHANISM_PLUS, Bindable::Bound(hash.clone()))
            }
            Binding::Must(_) => {
                return Err(LoginError::Unbound("the server does not offer SCRAM-SHA-256-PLUS"));
            }
            // We could: a server that could, too, then knows that somebody took its offer away.
            Binding::May(_) => (scram::MECHANISM, Bindable::NotOffered),
            Binding::Never => (scram::MECHANISM, Bindable::No),
        };
        if !offers(mechanism) {
            return Err(LoginError::Unsupported(mechanisms.join(", ")));
        }
        let knowledge = self.knowledge.clone().ok_or(LoginError::NoPassword)?;
        let scram = ScramClient::new(knowledge, &bindable, &self.nonce);
        let first = sasl_initial(mechanism, scram.message());
        Ok((State::ScramBegun(Box::new(scram)), Some(Step::Send(first))))
    }

    fn secret(&self) -> Result<&str, LoginError> {
        match &self.knowledge {
            Some(Knowledge::Password(password, _)) => Ok(password),
            None => Err(LoginError::NoPassword),
            Some(Knowledge::Keys(_)) => Err(LoginError::Unsupported(
                "a password, where only a SCRAM-SHA-256 verifier is known".to_owned(),
            )),
        }
    }
}

impl LoginError {
    fn of(error: ClientError) -> Self {
        match error {
            ClientError::OtherVerifier => Self::OldVerifier,
            ClientError::TooManyIterations(_) => Self::TooManyIterations(error),
            error => Self::Protocol(error.to_string()),
        }
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

fn describe(frame: Frame<'_>) -> String {
    format!("unexpected or malformed frame {:?}", char::from(frame.tag))
}

fn request_name(request: &AuthRequest) -> &'static str {
    match request {
        AuthRequest::Ok => "AuthenticationOk",
        AuthRequest::Cleartext => "AuthenticationCleartextPassword",
        AuthRequest::Md5(_) => "AuthenticationMD5Password",
        AuthRequest::Sasl(_) => "AuthenticationSASL",
        AuthRequest::SaslContinue(_) => "AuthenticationSASLContinue",
        AuthRequest::SaslFinal(_) => "AuthenticationSASLFinal",
        AuthRequest::Other(_) => "an unknown authentication request",
    }
}

#[cfg(test)]
mod tests;
