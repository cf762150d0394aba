//! A Postgres client that sends the frames it is told to and shows each frame that comes back.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::{DEADLINE, kept, postgres};

pub const VERSION_3_0: u32 = 196_608;
pub const CANCEL: u32 = 80_877_102;
pub const SSL: u32 = 80_877_103;

/// One frame of the protocol: its type byte and what follows its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn kind(&self) -> char {
        char::from(self.tag)
    }

    /// The values of a DataRow; `None` is NULL.
    pub fn columns(&self) -> Vec<Option<String>> {
        let mut rest = Fields(&self.body);
        let count = rest.i16();
        (0..count)
            .map(|_| {
                let length = usize::try_from(rest.i32()).ok()?;
                Some(String::from_utf8_lossy(rest.take(length)).into_owned())
            })
            .collect()
    }

    /// The text of a CommandComplete, or any other frame that is one string.
    pub fn string(&self) -> String {
        Fields(&self.body).string()
    }

    /// An error without the place in the server's source that raised it: the one thing in which an
    /// error of ours may differ from the server's.
    pub fn neutral(&self) -> Self {
        if self.tag != b'E' {
            return self.clone();
        }
        let fields = self.body.split(|&byte| byte == 0);
        let kept = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
        let whole =
            framed(b'E', &kept.flat_map(|field| [field, b"\0"].concat()).collect::<Vec<_>>());
        Self { tag: b'E', body: whole[5..].to_vec() }
    }

    pub fn refusal(&self) -> Refusal {
        let mut refusal = Refusal::default();
        let mut rest = Fields(&self.body);
        while let Some(field) = rest.byte().filter(|&field| field != 0) {
            let text = rest.string();
            match field {
                b'V' => refusal.severity = text,
                b'C' => refusal.code = text,
                b'M' => refusal.message = text,
                b'D' => refusal.detail = text,
                b'H' => refusal.hint = text,
                _ => {}
            }
        }
        refusal
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.kind(), self.body.escape_ascii())
    }
}

/// What an ErrorResponse or NoticeResponse says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    pub severity: String,
    /// The SQLSTATE; empty when the connection ended without a word.
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

/// Everything a request brought, up to ReadyForQuery.
#[derive(Debug)]
pub struct Reply {
    pub frames: Vec<Frame>,
}

impl Reply {
    pub fn rows(&self) -> Vec<Vec<Option<String>>> {
        self.of('D').map(Frame::columns).collect()
    }

    pub fn tags(&self) -> Vec<String> {
        self.of('C').map(Frame::string).collect()
    }

    pub fn errors(&self) -> Vec<Refusal> {
        self.of('E').map(Frame::refusal).collect()
    }

    /// The SQLSTATEs of the errors.
    pub fn codes(&self) -> Vec<String> {
        self.errors().into_iter().map(|error| error.code).collect()
    }

    /// The frames' type bytes as one word, for comparing at a glance.
    pub fn shape(&self) -> String {
        self.frames.iter().map(Frame::kind).collect()
    }

    pub fn expect_no_error(&self) -> &Self {
        assert!(self.errors().is_empty(), "{:?}", self.errors());
        self
    }

    /// The transaction status in ReadyForQuery.
    pub fn status(&self) -> char {
        let last = self.frames.last().filter(|frame| frame.tag == b'Z');
        last.and_then(|frame| frame.body.first()).map(|&byte| char::from(byte)).expect("a Z")
    }

    fn of(&self, kind: char) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(move |frame| frame.kind() == kind)
    }
}

/// Who logs in, and with what.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub password: String,
    pub database: String,
    pub parameters: Vec<(String, String)>,
}

impl Login {
    pub fn app() -> Self {
        Self::of(postgres::USER, postgres::PASSWORD, postgres::DATABASE)
    }

    pub fn of(user: &str, password: &str, database: &str) -> Self {
        let (user, password, database) = (user.into(), password.into(), database.into());
        Self { user, password, database, parameters: Vec::new() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.into(), value.into()));
        self
    }
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// BackendKeyData as the server gave it.
    pub key: Vec<u8>,
    pub parameters: Vec<(String, String)>,
    /// How many NegotiateProtocolVersion came.
    pub negotiated: usize,
}

impl Connection {
    pub fn open(port: u16, login: &Login) -> Self {
        Self::try_open(port, login).unwrap_or_else(|refusal| panic!("login: {refusal:?}"))
    }

    pub fn try_open(port: u16, login: &Login) -> Result<Self, Refusal> {
        Self::try_open_at((Ipv4Addr::LOCALHOST, port).into(), login)
    }

    pub fn try_open_at(address: SocketAddr, login: &Login) -> Result<Self, Refusal> {
        let mut connection = Self::knock_at(address)?;
        connection.send(&startup(VERSION_3_0, login));
        connection.greet(login)?;
        Ok(connection)
    }

    /// A connection on which nothing has been said yet.
    pub fn knock(port: u16) -> Result<Self, Refusal> {
        Self::knock_at((Ipv4Addr::LOCALHOST, port).into())
    }

    pub fn knock_at(address: SocketAddr) -> Result<Self, Refusal> {
        let stream = TcpStream::connect(address).map_err(|error| silence(&error))?;
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket option");
        stream.set_write_timeout(Some(DEADLINE)).expect("a socket option");
        Ok(Self {
            stream,
            buffer: Vec::new(),
            key: Vec::new(),
            parameters: Vec::new(),
            negotiated: 0,
        })
    }

    /// Answers what the server asks after a startup packet, until ReadyForQuery.
    pub fn greet(&mut self, login: &Login) -> Result<(), Refusal> {
        kept::secrets([&login.password]);
        let mut scram = None;
        loop {
            let frame = self.try_frame().map_err(|error| silence(&error))?;
            match frame.tag {
                b'R' => self.authenticate(&frame, login, &mut scram),
                b'S' => {
                    let mut rest = Fields(&frame.body);
                    self.parameters.push((rest.string(), rest.string()));
                }
                b'K' => self.key = frame.body,
                b'E' => return Err(frame.refusal()),
                b'Z' => return Ok(()),
                b'v' => self.negotiated += 1,
                b'N' => {}
                other => panic!("unexpected in a greeting: {:?}", char::from(other)),
            }
        }
    }

    fn authenticate(&mut self, frame: &Frame, login: &Login, scram: &mut Option<ScramSha256>) {
        let mut rest = Fields(&frame.body);
        match rest.i32() {
            0 => {}
            3 => self.send(&framed(b'p', &[login.password.as_bytes(), b"\0"].concat())),
            10 => {
                let binding = ChannelBinding::unsupported();
                let state = scram.insert(ScramSha256::new(login.password.as_bytes(), binding));
                let first = state.message();
                let length = i32::try_from(first.len()).expect("short").to_be_bytes();
                self.send(&framed(b'p', &[b"SCRAM-SHA-256\0", &length[..], first].concat()));
            }
            11 => {
                let state = scram.as_mut().expect("the server asked for SCRAM first");
                state.update(rest.0).expect("a SCRAM challenge");
                let answer = state.message().to_vec();
                self.send(&framed(b'p', &answer));
            }
            12 => {
                let state = scram.as_mut().expect("the server asked for SCRAM first");
                state.finish(rest.0).expect("the server's proof");
            }
            other => panic!("authentication request {other}"),
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn port(&self) -> u16 {
        self.stream.peer_addr().expect("connected").port()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the peer takes bytes");
    }

    /// The next frame; an error when the connection ends or the deadline passes.
    pub fn try_frame(&mut self) -> std::io::Result<Frame> {
        loop {
            if let Some(frame) = self.buffered() {
                return Ok(frame);
            }
            let mut chunk = [0; 16_384];
            match self.stream.read(&mut chunk)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    pub fn frame(&mut self) -> Frame {
        self.try_frame().expect("a frame, not the end of the connection")
    }

    /// Whatever comes within `limit`.
    pub fn frame_within(&mut self, limit: Duration) -> Option<Frame> {
        self.stream.set_read_timeout(Some(limit)).expect("a socket option");
        let frame = self.try_frame().ok();
        self.stream.set_read_timeout(Some(DEADLINE)).expect("a socket option");
        frame
    }

    /// All frames until one of kind `last`.
    pub fn frames_until(&mut self, last: char) -> Vec<Frame> {
        let mut frames = vec![self.frame()];
        while frames.last().map(Frame::kind) != Some(last) {
            frames.push(self.frame());
        }
        frames
    }

    pub fn reply(&mut self) -> Reply {
        Reply { frames: self.frames_until('Z') }
    }

    /// The frames until the peer closes; panics if it has not by the deadline.
    pub fn last_words(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            match self.try_frame() {
                Ok(frame) => frames.push(frame),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                    ) =>
                {
                    return frames;
                }
                Err(error) => panic!("the peer did not close: {error}, after {frames:?}"),
            }
        }
    }

    pub fn query(&mut self, sql: &str) -> Reply {
        self.send(&query(sql));
        self.reply()
    }

    /// The single value of a query that must not fail.
    pub fn one(&mut self, sql: &str) -> String {
        let reply = self.query(sql);
        let rows = reply.expect_no_error().rows();
        rows.into_iter().flatten().next().flatten().unwrap_or_else(|| panic!("no value: {sql}"))
    }

    /// The process id of the server's backend that answers now.
    pub fn backend(&mut self) -> String {
        self.one("select pg_backend_pid()")
    }

    pub fn exchange(&mut self, parts: &[Vec<u8>]) -> Reply {
        self.send(&parts.concat());
        self.reply()
    }

    /// A cancel request for this session, on a connection of its own; returns once it was taken.
    pub fn cancel(&self) {
        let mut other = Self::knock(self.port()).expect("the listener is up");
        let length = u32::try_from(8 + self.key.len()).expect("short").to_be_bytes();
        other.send(&[&length[..], &CANCEL.to_be_bytes()[..], &self.key[..]].concat());
        assert_eq!(other.last_words(), Vec::new());
    }

    /// Ends as a killed process does: without Terminate.
    pub fn hang_up(self) {
        let _closed_by_peer = self.stream.shutdown(Shutdown::Both);
    }

    fn buffered(&mut self) -> Option<Frame> {
        let (head, _) = self.buffer.split_first_chunk::<5>()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let end = usize::try_from(length).expect("a length") + 1;
        let tag = head[0];
        let body = self.buffer.get(5..end)?.to_vec();
        self.buffer.drain(..end);
        Some(Frame { tag, body })
    }
}

fn silence(error: &std::io::Error) -> Refusal {
    Refusal { message: format!("closed without a word: {error}"), ..Refusal::default() }
}

/// Reads the fields of a frame; a frame that is too short is a failed test.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        head
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn string(&mut self) -> String {
        let end = self.0.iter().position(|&byte| byte == 0).expect("a string ends with nought");
        let text = String::from_utf8_lossy(self.take(end)).into_owned();
        self.take(1);
        text
    }
}

pub fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    [&[tag][..], &length[..], body].concat()
}

pub fn startup(version: u32, login: &Login) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    let who = [("user", &login.user), ("database", &login.database)];
    let more = login.parameters.iter().map(|(name, value)| (name.as_str(), value));
    for (name, value) in who.into_iter().chain(more) {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    [&length[..], &body[..]].concat()
}

pub fn query(sql: &str) -> Vec<u8> {
    framed(b'Q', format!("{sql}\0").as_bytes())
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    framed(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// Binds `values` in text to the portal `portal`.
pub fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0").into_bytes();
    body.extend_from_slice(&u16::try_from(values.len()).expect("few").to_be_bytes());
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    framed(b'B', &body)
}

pub fn describe_statement(name: &str) -> Vec<u8> {
    framed(b'D', format!("S{name}\0").as_bytes())
}

pub fn describe_portal(name: &str) -> Vec<u8> {
    framed(b'D', format!("P{name}\0").as_bytes())
}

/// Executes a portal; `most` rows, nought for all.
pub fn execute(portal: &str, most: u32) -> Vec<u8> {
    framed(b'E', &[portal.as_bytes(), b"\0", &most.to_be_bytes()[..]].concat())
}

pub fn close_statement(name: &str) -> Vec<u8> {
    framed(b'C', format!("S{name}\0").as_bytes())
}

pub fn sync() -> Vec<u8> {
    framed(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    framed(b'H', b"")
}

pub fn terminate() -> Vec<u8> {
    framed(b'X', b"")
}

pub fn copy_data(bytes: &[u8]) -> Vec<u8> {
    framed(b'd', bytes)
}

pub fn copy_done() -> Vec<u8> {
    framed(b'c', b"")
}

pub fn copy_fail(why: &str) -> Vec<u8> {
    framed(b'f', format!("{why}\0").as_bytes())
}

/// The old fast-path call of a function by its oid, arguments in text.
pub fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&u16::try_from(arguments.len()).expect("few").to_be_bytes());
    for argument in arguments {
        body.extend_from_slice(&u32::try_from(argument.len()).expect("short").to_be_bytes());
        body.extend_from_slice(argument.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    framed(b'F', &body)
}
