//! What a client says about itself and its connection, and the answers Redis 7 would give: HELLO, AUTH, SELECT, RESET,
//! QUIT and the CLIENT subcommands that concern one connection only.
//!
//! These never reach a server, whose connections are shared: the state they set belongs to the session.

use super::command::Word;
use super::transaction::OwnCommand;

/// The version of the protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Proto {
    /// RESP2, what every connection begins with.
    #[default]
    Resp2,
    /// RESP3, after `HELLO 3`.
    Resp3,
}

impl Proto {
    /// The number HELLO knows it by.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// What one client told us of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its number, as CLIENT ID gives it; unique in this process.
    pub id: u64,
    /// Its database.
    pub db: u32,
    /// Its protocol.
    pub proto: Proto,
    /// Whether it may work.
    pub standing: Standing,
    /// The number of the namespace that it is bound to.
    pub namespace: Option<usize>,
    /// Where it comes from, and where it has come to.
    pub address: Box<str>,
    /// As [`Identity::address`], our side.
    pub local: Box<str>,
    name: Box<[u8]>,
    library: Box<[u8]>,
    library_version: Box<[u8]>,
}

/// How many channels, patterns and shard channels a client has subscribed to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Subscriptions(pub [usize; 3]);

impl Subscriptions {
    /// Whether it has subscribed to nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == [0; 3]
    }
}

/// Whether a client has shown that it may use the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not yet.
    Stranger,
    /// It has, or need not.
    Known,
}

/// Who may come in, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access<'a> {
    /// What a client of the upstream itself must know.
    pub main: Main<'a>,
    /// The namespaces, by their numbers.
    pub doors: &'a [Door],
    /// The namespace of clients that give no other's name.
    pub first: Option<usize>,
}

/// A namespace, as a client comes into it.
#[derive(Clone, PartialEq, Eq)]
pub struct Door {
    /// The user.
    pub user: Box<str>,
    /// The user's password.
    pub password: Box<str>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({})", self.user)
    }
}

impl<'a> From<Main<'a>> for Access<'a> {
    fn from(main: Main<'a>) -> Self {
        Self { main, doors: &[], first: None }
    }
}

/// What a client must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Main<'a> {
    /// Nothing, and any password will do (`trust`).
    Open,
    /// Nothing, because the upstream URL has no password; as a Redis without `requirepass`.
    NoPassword {
        /// What those may say who were told otherwise.
        former: &'a [FormerKey],
    },
    /// The upstream URL's password and user (none: `default`).
    Password {
        /// The URL's user.
        user: Option<&'a str>,
        /// The URL's password.
        password: &'a str,
        /// The wrapped command's own, and what it was before, lately.
        former: &'a [FormerKey],
    },
}

impl<'a> Main<'a> {
    /// What a client may say who has connected.
    #[must_use]
    pub fn standing(self) -> Standing {
        let nothing = |former: &[FormerKey]| former.iter().any(|key| key.password.is_none());
        match self {
            Self::Password { former, .. } if !nothing(former) => Standing::Stranger,
            Self::Open | Self::NoPassword { .. } | Self::Password { .. } => Standing::Known,
        }
    }

    fn former(self) -> &'a [FormerKey] {
        match self {
            Self::Open => &[],
            Self::NoPassword { former } | Self::Password { former, .. } => former,
        }
    }
}

/// What opens besides: the wrapped command's own, or what the upstream URL gave before.
#[derive(Clone, PartialEq, Eq)]
pub struct FormerKey {
    /// The user.
    pub user: Option<Box<str>>,
    /// The user's password. `None`: it had none, and whoever says nothing is let in.
    pub password: Option<Box<str>>,
}

impl std::fmt::Debug for FormerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FormerKey(***)")
    }
}

/// What the server said of itself at our login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `redis` or `valkey`.
    pub server: String,
    /// Its version.
    pub version: String,
    /// `standalone`, `sentinel` or `cluster`.
    pub mode: String,
    /// `master` or `replica`.
    pub role: String,
    /// Highest protocol it speaks. RESP2: it is older than HELLO (Redis 6).
    pub proto: Proto,
    /// The highest database number that it accepted so far.
    pub known_db: u32,
    /// What it says of its modules, in RESP2 and in RESP3.
    pub modules: [Box<[u8]>; 2],
}

impl ServerFacts {
    /// [`ServerFacts::modules`] of a server that has none.
    pub const NO_MODULES: [&[u8]; 2] = [b"*0\r\n"; 2];
}

impl Default for ServerFacts {
    /// Of a server that was not reached yet.
    fn default() -> Self {
        Self {
            server: "redis".into(),
            version: "0.0.0".into(),
            mode: "standalone".into(),
            role: "master".into(),
            proto: Proto::Resp2,
            known_db: 0,
            modules: Self::NO_MODULES.map(Box::from),
        }
    }
}

/// What must happen after the answer was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Nothing is to be answered yet: the server must be asked whether it has this database.
    AskDatabase(u32),
    /// Close the connection.
    Close,
}

const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";
const WRONGPASS: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
const NO_PASSWORD: &str = "-ERR AUTH <password> called without any password configured for the default user. \
     Are you sure your configuration is correct?\r\n";
/// What is told to a client that would come into another namespace while something of this one's lasts.
pub const TOO_LATE: &str = "ERR tidegate: a client that has subscribed, or is inside a transaction, can't become another user; \
     do it before";
const BAD_NAME: &str =
    "-ERR Client names cannot contain spaces, newlines or special characters.\r\n";

impl Identity {
    /// A client that has just connected.
    #[must_use]
    pub fn new(id: u64, db: u32, access: Access<'_>) -> Self {
        Self {
            id,
            db,
            proto: Proto::Resp2,
            standing: access.main.standing(),
            namespace: access.first,
            address: Box::default(),
            local: Box::default(),
            name: Box::default(),
            library: Box::default(),
            library_version: Box::default(),
        }
    }

    /// The refusal of any other command before authentication.
    #[must_use]
    pub fn refusal() -> &'static str {
        NOAUTH
    }

    /// Answers a session command into `out`. `arguments` begins with the command's name.
    pub fn answer(
        &mut self,
        word: Word,
        arguments: &[&[u8]],
        access: Access<'_>,
        facts: &ServerFacts,
        out: &mut Vec<u8>,
    ) -> Effect {
        let before = matches!(word, Word::Hello | Word::Auth | Word::Reset | Word::Quit);
        if self.standing == Standing::Stranger && !before {
            out.extend_from_slice(NOAUTH.as_bytes());
            return Effect::Nothing;
        }
        match word {
            Word::Hello => self.hello(&arguments[1..], access, facts, out),
            Word::Auth => self.auth(&arguments[1..], access, out),
            Word::Select => return self.select(&arguments[1..], facts, out),
            Word::Reset => {
                let (address, local) = (self.address.clone(), self.local.clone());
                *self = Self { address, local, ..Self::new(self.id, 0, access) };
                out.extend_from_slice(b"+RESET\r\n");
            }
            Word::Quit => {
                out.extend_from_slice(b"+OK\r\n");
                return Effect::Close;
            }
            Word::SetName => match arguments {
                [_, _, name] => out.extend_from_slice(self.set_name(name).as_bytes()),
                _ => wrong_number("client|setname", out),
            },
            Word::GetName => self.get_name(out),
            Word::Id => out.extend_from_slice(format!(":{}\r\n", self.id).as_bytes()),
            Word::SetInfo => self.set_info(arguments, out),
            Word::Info => self.info(out),
            // The session knows of the others.
            Word::List | Word::Kill => {}
            Word::NoEvict | Word::ReplyOn => out.extend_from_slice(b"+OK\r\n"),
            // A server that doesn't know it says the same.
            Word::MaintNotifications => {
                let word = String::from_utf8_lossy(arguments.get(1).copied().unwrap_or_default());
                write_error(&format!("ERR unknown subcommand '{word}'. Try CLIENT HELP."), out);
            }
        }
        Effect::Nothing
    }

    /// Takes the server's `reply` to a command of the session's own that had to run there, and writes the answer into `out`. What
    /// the server refuses is refused.
    pub fn settle(
        &mut self,
        command: &OwnCommand,
        reply: &[u8],
        access: Access<'_>,
        facts: &ServerFacts,
        out: &mut Vec<u8>,
    ) {
        if reply.first() == Some(&b'-') {
            return out.extend_from_slice(reply);
        }
        let words: Vec<&[u8]> = command.words.iter().map(Vec::as_slice).collect();
        match command.word {
            // About the connection, which is not the client's: the answer is the session's own.
            Word::Hello | Word::GetName | Word::Id | Word::Info => {
                self.answer(command.word, &words, access, facts, out);
            }
            Word::Select => {
                self.db = database(&words).unwrap_or(self.db);
                out.extend_from_slice(reply);
            }
            Word::SetName | Word::SetInfo => {
                self.answer(command.word, &words, access, facts, &mut Vec::new());
                out.extend_from_slice(reply);
            }
            Word::Auth => self.settle_auth(&words, access, facts, out),
            Word::Reset
            | Word::Quit
            | Word::NoEvict
            | Word::ReplyOn
            | Word::List
            | Word::Kill
            | Word::MaintNotifications => out.extend_from_slice(reply),
        }
    }

    /// Whether a user and a password are right is for us to say. In a transaction a client stays whose it is.
    fn settle_auth(
        &mut self,
        words: &[&[u8]],
        access: Access<'_>,
        facts: &ServerFacts,
        out: &mut Vec<u8>,
    ) {
        let (mut then, from) = (self.clone(), out.len());
        then.answer(Word::Auth, words, access, facts, out);
        if then.namespace == self.namespace {
            *self = then;
        } else {
            out.truncate(from);
            write_error(TOO_LATE, out);
        }
    }

    fn hello(
        &mut self,
        options: &[&[u8]],
        access: Access<'_>,
        facts: &ServerFacts,
        out: &mut Vec<u8>,
    ) {
        match self.hello_options(options, access, facts) {
            Ok(proto) => {
                self.proto = proto;
                self.write_hello(facts, out);
            }
            Err(refusal) => out.extend_from_slice(&refusal),
        }
    }

    fn hello_options(
        &mut self,
        options: &[&[u8]],
        access: Access<'_>,
        facts: &ServerFacts,
    ) -> Result<Proto, Vec<u8>> {
        if facts.proto == Proto::Resp2 {
            return Err(b"-ERR unknown command 'HELLO'\r\n".to_vec());
        }
        let proto = match options.first().map(|number| integer(number)) {
            None => self.proto,
            Some(Some(2)) => Proto::Resp2,
            Some(Some(3)) => Proto::Resp3,
            Some(Some(_)) => return Err(b"-NOPROTO unsupported protocol version\r\n".to_vec()),
            Some(None) => {
                let text = "-ERR Protocol version is not an integer or out of range\r\n";
                return Err(text.into());
            }
        };
        let mut rest = options.get(1..).unwrap_or_default();
        let (mut name, mut proof) = (None, None);
        while let [option, more @ ..] = rest {
            match more {
                [user, password, more @ ..] if option.eq_ignore_ascii_case(b"AUTH") => {
                    proof = Some((*user, *password));
                    rest = more;
                }
                [value, more @ ..] if option.eq_ignore_ascii_case(b"SETNAME") => {
                    name = Some(*value);
                    rest = more;
                }
                _ => {
                    let shown = String::from_utf8_lossy(option).replace(['\r', '\n'], " ");
                    let text = format!("-ERR Syntax error in HELLO option '{shown}'\r\n");
                    return Err(text.into_bytes());
                }
            }
        }
        if let Some((user, password)) = proof {
            self.prove(Some(user), password, access).map_err(str::as_bytes)?;
        }
        if self.standing == Standing::Stranger {
            let text = "-NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
                 <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP \
                 protocol version at the same time\r\n";
            return Err(text.into());
        }
        if let Some(name) = name {
            let answer = self.set_name(name);
            if answer != "+OK\r\n" {
                return Err(answer.into());
            }
        }
        Ok(proto)
    }

    fn write_hello(&self, facts: &ServerFacts, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.proto {
            Proto::Resp2 => b"*14\r\n",
            Proto::Resp3 => b"%7\r\n",
        });
        let mut pair = |key: &str, value: &str| {
            write_bulk(key.as_bytes(), out);
            write_bulk(value.as_bytes(), out);
        };
        pair("server", &facts.server);
        pair("version", &facts.version);
        write_bulk(b"proto", out);
        out.extend_from_slice(format!(":{}\r\n", self.proto.number()).as_bytes());
        write_bulk(b"id", out);
        out.extend_from_slice(format!(":{}\r\n", self.id).as_bytes());
        let mut pair = |key: &str, value: &str| {
            write_bulk(key.as_bytes(), out);
            write_bulk(value.as_bytes(), out);
        };
        pair("mode", &facts.mode);
        pair("role", &facts.role);
        write_bulk(b"modules", out);
        let [resp2, resp3] = &facts.modules;
        out.extend_from_slice(match self.proto {
            Proto::Resp2 => resp2,
            Proto::Resp3 => resp3,
        });
    }

    fn auth(&mut self, arguments: &[&[u8]], access: Access<'_>, out: &mut Vec<u8>) {
        let answer = match (arguments, access.main) {
            ([password], Main::NoPassword { former }) if !opens(former, None, password) => {
                Err(NO_PASSWORD)
            }
            ([password], _) => self.prove(None, password, access),
            ([user, password], _) => self.prove(Some(user), password, access),
            ([], _) => return wrong_number("auth", out),
            _ => Err("-ERR syntax error\r\n"),
        };
        out.extend_from_slice(answer.err().unwrap_or("+OK\r\n").as_bytes());
    }

    fn prove(
        &mut self,
        user: Option<&[u8]>,
        password: &[u8],
        access: Access<'_>,
    ) -> Result<(), &'static str> {
        let door = access.doors.iter().position(|door| user == Some(door.user.as_bytes()));
        if let Some((at, door)) = door.and_then(|at| Some((at, access.doors.get(at)?))) {
            if access.main != Main::Open && !same_secret(password, door.password.as_bytes()) {
                return Err(WRONGPASS);
            }
            (self.standing, self.namespace) = (Standing::Known, Some(at));
            return Ok(());
        }
        // All are compared, whichever fits.
        let former = opens(access.main.former(), user, password);
        let right = match access.main {
            Main::Open => true,
            Main::NoPassword { .. } => user.is_none_or(|user| user == b"default"),
            Main::Password { user: expected, password: secret, .. } => {
                is_key((expected, secret), user, password)
            }
        };
        if !(right | former) {
            return Err(WRONGPASS);
        }
        (self.standing, self.namespace) = (Standing::Known, access.first);
        Ok(())
    }

    fn select(&mut self, arguments: &[&[u8]], facts: &ServerFacts, out: &mut Vec<u8>) -> Effect {
        let [number] = arguments else {
            wrong_number("select", out);
            return Effect::Nothing;
        };
        let Some(number) = integer(number) else {
            out.extend_from_slice(b"-ERR value is not an integer or out of range\r\n");
            return Effect::Nothing;
        };
        match u32::try_from(number) {
            Ok(db) if db <= facts.known_db => {
                self.db = db;
                out.extend_from_slice(b"+OK\r\n");
            }
            Ok(db) => return Effect::AskDatabase(db),
            Err(_negative) => out.extend_from_slice(b"-ERR DB index is out of range\r\n"),
        }
        Effect::Nothing
    }

    fn set_name(&mut self, name: &[u8]) -> &'static str {
        if !name.iter().all(u8::is_ascii_graphic) {
            return BAD_NAME;
        }
        self.name = name.into();
        "+OK\r\n"
    }

    fn get_name(&self, out: &mut Vec<u8>) {
        match (self.name.is_empty(), self.proto) {
            (false, _) => write_bulk(&self.name, out),
            (true, Proto::Resp2) => out.extend_from_slice(b"$-1\r\n"),
            (true, Proto::Resp3) => out.extend_from_slice(b"_\r\n"),
        }
    }

    fn set_info(&mut self, arguments: &[&[u8]], out: &mut Vec<u8>) {
        let [_, _, attribute, value] = arguments else {
            return wrong_number("client|setinfo", out);
        };
        let slot = if attribute.eq_ignore_ascii_case(b"LIB-NAME") {
            &mut self.library
        } else if attribute.eq_ignore_ascii_case(b"LIB-VER") {
            &mut self.library_version
        } else {
            let shown = String::from_utf8_lossy(attribute).replace(['\r', '\n'], " ");
            out.extend_from_slice(format!("-ERR Unrecognized option '{shown}'\r\n").as_bytes());
            return;
        };
        if !value.iter().all(u8::is_ascii_graphic) {
            let name = String::from_utf8_lossy(attribute).to_lowercase();
            let text =
                format!("-ERR {name} cannot contain spaces, newlines or special characters.\r\n");
            return out.extend_from_slice(text.as_bytes());
        }
        *slot = (*value).into();
        out.extend_from_slice(b"+OK\r\n");
    }

    fn info(&self, out: &mut Vec<u8>) {
        self.write_text(&self.line(0, Subscriptions::default(), "client|info"), out);
    }

    /// How it names itself, for people; empty if it doesn't.
    #[must_use]
    pub fn shown_name(&self) -> String {
        String::from_utf8_lossy(&self.name).chars().filter(|one| !one.is_control()).collect()
    }

    /// The client's line in CLIENT LIST, with its age in seconds and the command that it has given now. What Redis keeps of memory
    /// and buffers is nought.
    #[must_use]
    pub fn line(&self, age: u64, subscriptions: Subscriptions, command: &str) -> String {
        let Subscriptions([channels, patterns, shards]) = subscriptions;
        // A path is a unix socket's.
        let flags = match (subscriptions.is_empty(), self.address.starts_with('/')) {
            (true, false) => "N",
            (true, true) => "U",
            (false, false) => "P",
            (false, true) => "PU",
        };
        format!(
            "id={} addr={} laddr={} fd=0 name={} age={age} idle=0 flags={flags} db={} sub={channels} \
             psub={patterns} ssub={shards} multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 \
             obl=0 oll=0 omem=0 tot-mem=0 events=r cmd={command} user=default redir=-1 resp={} \
             lib-name={} lib-ver={}\n",
            self.id,
            self.address,
            self.local,
            String::from_utf8_lossy(&self.name),
            self.db,
            self.proto.number(),
            String::from_utf8_lossy(&self.library),
            String::from_utf8_lossy(&self.library_version),
        )
    }

    /// Writes a text in the client's protocol.
    pub fn write_text(&self, text: &str, out: &mut Vec<u8>) {
        match self.proto {
            Proto::Resp2 => write_bulk(text.as_bytes(), out),
            Proto::Resp3 => {
                out.extend_from_slice(format!("={}\r\ntxt:{text}\r\n", text.len() + 4).as_bytes());
            }
        }
    }
}

/// Writes an error of ours as one line; `text` begins with its error word.
pub fn write_error(text: &str, out: &mut Vec<u8>) {
    out.push(b'-');
    out.extend(text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

fn write_bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn wrong_number(command: &str, out: &mut Vec<u8>) {
    write_error(&format!("ERR wrong number of arguments for '{command}' command"), out);
}

/// The database that `SELECT` names.
fn database(words: &[&[u8]]) -> Option<u32> {
    words.get(1).and_then(|number| u32::try_from(integer(number)?).ok())
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether one of them fits.
fn opens(former: &[FormerKey], user: Option<&[u8]>, password: &[u8]) -> bool {
    let keys =
        former.iter().filter_map(|key| Some((key.user.as_deref(), key.password.as_deref()?)));
    keys.map(|key| is_key(key, user, password)).fold(false, |right, one| right | one)
}

/// Whether a client that says this has the key. As with Redis, a lone password is the default user's; the URL's user is the one we
/// are.
fn is_key((expected, secret): (Option<&str>, &str), user: Option<&[u8]>, password: &[u8]) -> bool {
    let named = user.is_none_or(|user| user == expected.unwrap_or("default").as_bytes());
    same_secret(password, secret.as_bytes()) && named
}

/// Compares in a time that does not tell how much was right.
fn same_secret(given: &[u8], secret: &[u8]) -> bool {
    let difference = given
        .iter()
        .zip(secret.iter().cycle())
        .fold(0_u8, |difference, (left, right)| difference | (left ^ right));
    difference == 0 && given.len() == secret.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            server: "redis".into(),
            version: "7.0.15".into(),
            mode: "standalone".into(),
            role: "master".into(),
            proto: Proto::Resp3,
            known_db: 0,
            modules: ServerFacts::NO_MODULES.map(Box::from),
        }
    }

    const SECRET: Access<'static> = Access {
        main: Main::Password { user: None, password: "pw", former: &[] },
        doors: &[],
        first: None,
    };

    fn say(identity: &mut Identity, word: Word, line: &str, access: Access<'_>) -> String {
        let arguments: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut out = Vec::new();
        identity.answer(word, &arguments, access, &facts(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_stranger_must_show_the_password() {
        let mut client = Identity::new(7, 0, SECRET);
        assert!(say(&mut client, Word::Id, "CLIENT ID", SECRET).starts_with("-NOAUTH"));
        assert!(say(&mut client, Word::Hello, "HELLO 3", SECRET).starts_with("-NOAUTH HELLO"));
        assert_eq!(client.proto, Proto::Resp2);
        assert!(say(&mut client, Word::Auth, "AUTH no", SECRET).starts_with("-WRONGPASS"));
        assert!(say(&mut client, Word::Auth, "AUTH pwpw", SECRET).starts_with("-WRONGPASS"));
        assert!(say(&mut client, Word::Auth, "AUTH me pw", SECRET).starts_with("-WRONGPASS"));
        assert_eq!(client.standing, Standing::Stranger);
        let hello = say(&mut client, Word::Hello, "HELLO 3 AUTH default pw SETNAME me", SECRET);
        assert!(hello.starts_with("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"), "{hello}");
        assert_eq!(say(&mut client, Word::Id, "CLIENT ID", SECRET), ":7\r\n");
        assert_eq!(say(&mut client, Word::GetName, "CLIENT GETNAME", SECRET), "$2\r\nme\r\n");
        assert_eq!(say(&mut client, Word::Reset, "RESET", SECRET), "+RESET\r\n");
        assert_eq!(client, Identity::new(7, 0, SECRET));
    }

    #[test]
    fn a_url_without_password_needs_none() {
        let (no_password, open) = (Main::NoPassword { former: &[] }.into(), Main::Open.into());
        let mut client = Identity::new(1, 0, no_password);
        assert!(say(&mut client, Word::Auth, "AUTH x", no_password).starts_with("-ERR AUTH"));
        assert_eq!(say(&mut client, Word::Auth, "AUTH default x", no_password), "+OK\r\n");
        assert_eq!(say(&mut client, Word::Auth, "AUTH any x", open), "+OK\r\n");
    }

    /// Whoever was told of another URL comes in by that.
    #[test]
    fn what_the_url_said_before_opens() {
        let key = |user: Option<&str>, password: Option<&str>| FormerKey {
            user: user.map(Into::into),
            password: password.map(Into::into),
        };
        let keys = [key(None, Some("own")), key(Some("me"), Some("mine"))];
        let access = Main::NoPassword { former: &keys }.into();
        let mut client = Identity::new(1, 0, access);
        for line in ["AUTH own", "AUTH default own", "AUTH me mine", "AUTH mine"] {
            assert_eq!(say(&mut client, Word::Auth, line, access), "+OK\r\n", "{line}");
        }
        assert!(say(&mut client, Word::Auth, "AUTH x", access).starts_with("-ERR AUTH"));
        assert!(say(&mut client, Word::Auth, "AUTH me own", access).starts_with("-WRONGPASS"));
        let keys = [key(None, None)];
        let main = Main::Password { user: None, password: "pw", former: &keys };
        let mut client = Identity::new(1, 0, main.into());
        assert_eq!(say(&mut client, Word::Id, "CLIENT ID", main.into()), ":1\r\n");
        assert_eq!(say(&mut client, Word::Auth, "AUTH pw", main.into()), "+OK\r\n");
        for line in ["AUTH x", "AUTH default x", "AUTH me pw"] {
            assert!(say(&mut client, Word::Auth, line, main.into()).starts_with("-WRONGPASS"));
        }
    }

    #[test]
    fn a_namespace_has_a_password_of_its_own() {
        let door = |name: &str| Door { user: name.into(), password: format!("{name}-pw").into() };
        let doors = [door("cache"), door("queue")];
        let access = Access { doors: &doors, ..SECRET };
        let mut client = Identity::new(1, 0, access);
        for line in
            ["AUTH cache pw", "AUTH cache queue-pw", "AUTH cache-pw", "AUTH default cache-pw"]
        {
            assert!(say(&mut client, Word::Auth, line, access).starts_with("-WRONGPASS"), "{line}");
            assert_eq!((client.standing, client.namespace), (Standing::Stranger, None), "{line}");
        }
        assert_eq!(say(&mut client, Word::Auth, "AUTH queue queue-pw", access), "+OK\r\n");
        assert_eq!(client.namespace, Some(1));
        assert!(say(&mut client, Word::Auth, "AUTH cache no", access).starts_with("-WRONGPASS"));
        assert_eq!(client.namespace, Some(1));
        assert!(
            say(&mut client, Word::Hello, "HELLO 3 AUTH cache cache-pw", access).starts_with("%7")
        );
        assert_eq!(client.namespace, Some(0));
        assert_eq!(say(&mut client, Word::Auth, "AUTH pw", access), "+OK\r\n");
        assert_eq!(client.namespace, None);
        let first = Access { first: Some(1), ..access };
        assert_eq!(say(&mut client, Word::Auth, "AUTH pw", first), "+OK\r\n");
        assert_eq!(client.namespace, Some(1));
        say(&mut client, Word::Reset, "RESET", first);
        assert_eq!((client.standing, client.namespace), (Standing::Stranger, Some(1)));
    }

    #[test]
    fn hello_and_select_refuse_as_redis_does() {
        let open = Main::Open.into();
        let mut client = Identity::new(1, 0, open);
        assert!(say(&mut client, Word::Hello, "HELLO 4", open).starts_with("-NOPROTO "));
        assert!(
            say(&mut client, Word::Hello, "HELLO x", open).starts_with("-ERR Protocol version")
        );
        assert!(
            say(&mut client, Word::Hello, "HELLO 3 WHAT", open).starts_with("-ERR Syntax error")
        );
        assert_eq!(client.proto, Proto::Resp2);
        assert!(say(&mut client, Word::Select, "SELECT x", open).starts_with("-ERR value"));
        assert!(say(&mut client, Word::Select, "SELECT -1", open).starts_with("-ERR DB index"));
        let mut out = Vec::new();
        let ask = client.answer(Word::Select, &[b"SELECT", b"9"], open, &facts(), &mut out);
        assert_eq!((ask, out.len(), client.db), (Effect::AskDatabase(9), 0, 0));
    }
}
