//! Our login at the server: HELLO 2 with AUTH and a name, or AUTH alone at a server older than HELLO; then PING, which a server
//! that can't serve yet refuses.
//!
//! These few frames are redis-protocol's: it builds them and reads the answers, which our own scanner has delimited
//! and bounded before (it recurses and knows no limits).

use redis_protocol::resp2;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

use super::greeting::{Proto, ServerFacts};

/// Longest answer during a login, bytes: a server with many modules says much of them.
pub const LOGIN_REPLY_LIMIT: usize = 16 * 1024;
/// Most arrays in it: bounds redis-protocol's recursion.
const ARRAY_LIMIT: usize = 256;
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
    id: Option<u64>,
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
        (Self { user, password, state: State::Hello, id: None }, command(&words))
    }

    /// The connection's number at the server, if that has told it.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// Takes one whole reply.
    pub fn take(&mut self, reply: &[u8]) -> Step {
        if reply.len() > LOGIN_REPLY_LIMIT || arrays(reply) > ARRAY_LIMIT {
            return refuse("ERR the server's answer to the login is too long");
        }
        let frame = match resp2::decode::decode(reply) {
            Ok(Some((frame, _length))) => frame,
            _ => {
                return refuse("ERR the server answered the login with something that is not RESP");
            }
        };
        match (&self.state, frame) {
            (State::Hello, OwnedFrame::Array(items)) => {
                self.id = number(&items);
                self.ping(facts(&items))
            }
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
        modules: ServerFacts::NO_MODULES.map(Box::from),
    }
}

/// How many arrays begin in a reply, at most.
fn arrays(reply: &[u8]) -> usize {
    reply.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"*")).count()
}

fn number(items: &[OwnedFrame]) -> Option<u64> {
    let is_id = |pair: &&[OwnedFrame]| text(&pair[0]).is_some_and(|key| key == "id");
    match items.chunks_exact(2).find(is_id) {
        Some([_, OwnedFrame::Integer(id)]) => u64::try_from(*id).ok(),
        _ => None,
    }
}

fn facts(items: &[OwnedFrame]) -> ServerFacts {
    let mut facts = ServerFacts { proto: Proto::Resp3, ..old_facts() };
    for pair in items.chunks_exact(2) {
        if text(&pair[0]).is_some_and(|key| key == "modules") {
            let told = [Proto::Resp2, Proto::Resp3].map(|proto| modules(&pair[1], proto));
            if let [Some(resp2), Some(resp3)] = told {
                facts.modules = [resp2.into(), resp3.into()];
            }
        }
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

/// What the server says of its modules, as it says it in this protocol: in RESP3 each one is a map. `None` if it isn't understood.
fn modules(frame: &OwnedFrame, proto: Proto) -> Option<Vec<u8>> {
    let OwnedFrame::Array(modules) = frame else { return None };
    let mut out = format!("*{}\r\n", modules.len()).into_bytes();
    for module in modules {
        let OwnedFrame::Array(words) = module else { return None };
        let header = match proto {
            Proto::Resp2 => format!("*{}\r\n", words.len()),
            Proto::Resp3 => format!("%{}\r\n", words.len() / 2),
        };
        out.extend_from_slice(header.as_bytes());
        for word in words {
            match word {
                OwnedFrame::Array(words) => {
                    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
                    words.iter().try_for_each(|word| write_plain(word, &mut out))?;
                }
                word => write_plain(word, &mut out)?,
            }
        }
    }
    Some(out)
}

fn write_plain(frame: &OwnedFrame, out: &mut Vec<u8>) -> Option<()> {
    match frame {
        OwnedFrame::BulkString(bytes) => {
            out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
        }
        OwnedFrame::SimpleString(bytes) => {
            out.push(b'+');
            out.extend_from_slice(bytes);
        }
        OwnedFrame::Integer(number) => out.extend_from_slice(format!(":{number}").as_bytes()),
        OwnedFrame::Array(_) | OwnedFrame::Error(_) | OwnedFrame::Null => return None,
    }
    out.extend_from_slice(b"\r\n");
    Some(())
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
        assert_eq!((login.id(), facts.modules[1].as_ref()), (None, &b"*0\r\n"[..]));
        let no_ping = b"-NOPERM this user has no permissions to run the 'ping' command\r\n";
        assert_eq!(login.clone().take(no_ping), Step::Done(facts));
        let loading = login.take(b"-LOADING Redis is loading the dataset in memory\r\n");
        assert!(matches!(loading, Step::Failed(refusal) if refusal.code == "LOADING"));
    }

    #[test]
    fn modules_are_told_in_either_protocol() {
        let (mut login, _) = Login::begin(None, None);
        let module = "$4\r\nname\r\n$1\r\nx\r\n$3\r\nver\r\n:1\r\n$4\r\nargs\r\n*1\r\n+a\r\n";
        let reply = format!("*4\r\n$2\r\nid\r\n:7\r\n$7\r\nmodules\r\n*1\r\n*6\r\n{module}");
        login.take(reply.as_bytes());
        let Step::Done(facts) = login.take(b"+PONG\r\n") else { panic!("not done") };
        assert_eq!(login.id(), Some(7));
        let told = facts.modules.map(|told| String::from_utf8(told.into()).unwrap());
        assert_eq!(
            told,
            ["*", "%"].map(|kind| {
                let count = if kind == "*" { 6 } else { 3 };
                format!("*1\r\n{kind}{count}\r\n{module}")
            })
        );
        let (mut login, _) = Login::begin(None, None);
        let deep = "*1\r\n".repeat(ARRAY_LIMIT + 1) + ":1\r\n";
        assert!(matches!(login.take(deep.as_bytes()), Step::Failed(_)));
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
