//! Our login at the server: HELLO 2 with AUTH and a name, or AUTH alone at a server older than HELLO; then PING, which a server
//! that can't serve yet refuses.
//!
//! These few frames are redis-protocol's: it builds them and reads the answers, which our own scanner has delimited
//! and bounded before (it recurses and knows no limits).

use redis_protocol::resp2;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

use super::greeting::{Proto, ServerFacts};

/// Longest answer during a login, bytes: bounds redis-protocol's recursion too.
pub const LOGIN_REPLY_LIMIT: usize = 4096;
/// The name our connections bear in the server's CLIENT LIST.
const CLIENT_NAME: &str = "tidegate";

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes and come back with the whole reply.
    Send(Vec<u8>),
    /// Logged in, speaking RESP2 in database 0.
    Done(ServerFacts),
    /// The server will not have us.
    Failed(Refusal),
}

/// Why the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The first word of the error: `WRONGPASS`, `NOAUTH`, `ERR`, `LOADING` …
    pub code: String,
    /// The whole error.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Hello,
    Auth,
    Ping(ServerFacts),
}

/// One login, from the first byte to the last.
#[derive(Debug, Clone)]
pub struct Login<'a> {
    user: Option<&'a str>,
    password: Option<&'a str>,
    state: State,
}

impl<'a> Login<'a> {
    /// Begins a login with what the URL has: the first bytes to send.
    #[must_use]
    pub fn begin(user: Option<&'a str>, password: Option<&'a str>) -> (Self, Vec<u8>) {
        let mut words = vec!["HELLO", "2"];
        if let Some(password) = password {
            words.extend(["AUTH", user.unwrap_or("default"), password]);
        }
        words.extend(["SETNAME", CLIENT_NAME]);
        (Self { user, password, state: State::Hello }, command(&words))
    }

    /// Takes one whole reply.
    pub fn take(&mut self, reply: &[u8]) -> Step {
        let frame = match resp2::decode::decode(reply) {
            Ok(Some((frame, _length))) if reply.len() <= LOGIN_REPLY_LIMIT => frame,
            _ => {
                return refuse("ERR the server answered the login with something that is not RESP");
            }
        };
        match (&self.state, frame) {
            (State::Hello, OwnedFrame::Array(items)) => self.ping(facts(&items)),
            (State::Hello, OwnedFrame::Error(error)) if is_too_old(&error) => self.fall_back(),
            (State::Auth, OwnedFrame::SimpleString(_)) => self.ping(old_facts()),
            (State::Ping(facts), OwnedFrame::SimpleString(_)) => Step::Done(facts.clone()),
            // A user who may not PING may do other things; and who is told of a script that runs may end it.
            (State::Ping(facts), OwnedFrame::Error(error))
                if error.starts_with("NOPERM") || error.starts_with("BUSY ") =>
            {
                Step::Done(facts.clone())
            }
            (_, OwnedFrame::Error(error)) => refuse(&error),
            _ => refuse("ERR the server answered the login with something unexpected"),
        }
    }

    fn fall_back(&mut self) -> Step {
        let Some(password) = self.password else { return self.ping(old_facts()) };
        self.state = State::Auth;
        Step::Send(match self.user {
            // ACL users came with HELLO: an older server takes the password alone.
            Some("default") | None => command(&["AUTH", password]),
            Some(user) => command(&["AUTH", user, password]),
        })
    }

    fn ping(&mut self, facts: ServerFacts) -> Step {
        self.state = State::Ping(facts);
        Step::Send(command(&["PING"]))
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let frames = words.iter().map(|word| OwnedFrame::BulkString(word.as_bytes().to_vec()));
    let frame = OwnedFrame::Array(frames.collect());
    let mut bytes = vec![0; frame.encode_len(false)];
    // The buffer has the length that the encoder asked for, so it can't be too short.
    let written = resp2::encode::encode(&mut bytes, &frame, false).unwrap_or(0);
    bytes.truncate(written);
    bytes
}

fn is_too_old(error: &str) -> bool {
    error.to_ascii_lowercase().contains("unknown command") || error.starts_with("NOPROTO")
}

fn refuse(message: &str) -> Step {
    let code = message.split(' ').next().unwrap_or("ERR").to_owned();
    Step::Failed(Refusal { code, message: message.to_owned() })
}

fn old_facts() -> ServerFacts {
    ServerFacts {
        server: "redis".into(),
        version: "5.0.0".into(),
        mode: "standalone".into(),
        role: "master".into(),
        proto: Proto::Resp2,
        known_db: 0,
    }
}

fn facts(items: &[OwnedFrame]) -> ServerFacts {
    let mut facts = ServerFacts { proto: Proto::Resp3, ..old_facts() };
    for pair in items.chunks_exact(2) {
        let (Some(key), Some(value)) = (text(&pair[0]), text(&pair[1])) else { continue };
        match key.as_str() {
            "server" => facts.server = value,
            "version" => facts.version = value,
            "mode" => facts.mode = value,
            "role" => facts.role = value,
            _ => {}
        }
    }
    facts
}

fn text(frame: &OwnedFrame) -> Option<String> {
    match frame {
        OwnedFrame::BulkString(bytes) | OwnedFrame::SimpleString(bytes) => {
            Some(String::from_utf8_lossy(bytes).into_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_tells_the_facts() {
        let (mut login, first) = Login::begin(None, Some("pw"));
        assert_eq!(
            first,
            b"*7\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$2\r\npw\r\n$7\r\nSETNAME\r\n$8\r\ntidegate\r\n"
        );
        let reply = b"*6\r\n$6\r\nserver\r\n$6\r\nvalkey\r\n$7\r\nversion\r\n$5\r\n8.0.1\r\n$5\r\nproto\r\n:2\r\n";
        assert_eq!(login.take(reply), Step::Send(b"*1\r\n$4\r\nPING\r\n".to_vec()));
        let Step::Done(facts) = login.clone().take(b"+PONG\r\n") else { panic!("not done") };
        assert_eq!((facts.server.as_str(), facts.version.as_str()), ("valkey", "8.0.1"));
        assert_eq!(facts.proto, Proto::Resp3);
        let no_ping = b"-NOPERM this user has no permissions to run the 'ping' command\r\n";
        assert_eq!(login.clone().take(no_ping), Step::Done(facts));
        let loading = login.take(b"-LOADING Redis is loading the dataset in memory\r\n");
        assert!(matches!(loading, Step::Failed(refusal) if refusal.code == "LOADING"));
    }

    #[test]
    fn an_old_server_is_asked_with_auth() {
        let (mut login, _) = Login::begin(None, Some("pw"));
        let auth = login.take(b"-ERR unknown command `HELLO`, with args beginning with: \r\n");
        assert_eq!(auth, Step::Send(b"*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n".to_vec()));
        assert_eq!(login.take(b"+OK\r\n"), Step::Send(b"*1\r\n$4\r\nPING\r\n".to_vec()));
        assert!(
            matches!(login.take(b"+PONG\r\n"), Step::Done(facts) if facts.proto == Proto::Resp2)
        );
    }

    #[test]
    fn a_wrong_password_has_its_code() {
        let (mut login, _) = Login::begin(Some("me"), Some("no"));
        let Step::Failed(refusal) = login.take(b"-WRONGPASS invalid username-password pair\r\n")
        else {
            panic!("not refused")
        };
        assert_eq!(refusal.code, "WRONGPASS");
    }
}
