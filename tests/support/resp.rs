//! A Redis client that shows each reply as it came: RESP2 and RESP3.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};

use super::{DEADLINE, kept};

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Self>),
    Map(Vec<(Self, Self)>),
    Push(Vec<Self>),
    /// What the tests only compare as text: double, boolean, big number.
    Other(String),
}

impl Value {
    pub fn simple(text: &str) -> Self {
        Self::Simple(text.to_owned())
    }

    pub fn bulk(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    /// The words of an array, for comparing at a glance.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Array(items) | Self::Push(items) => items.iter().map(Self::text).collect(),
            other => panic!("not an array: {other:?}"),
        }
    }

    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Other(text) | Self::Error(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Null => "(nil)".to_owned(),
            other => panic!("not a scalar: {other:?}"),
        }
    }

    pub fn error(&self) -> &str {
        match self {
            Self::Error(text) => text,
            other => panic!("not an error: {other:?}"),
        }
    }
}

pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(port: u16) -> Self {
        Self::try_open(port).unwrap_or_else(|| panic!("nothing listens on port {port}"))
    }

    pub fn try_open(port: u16) -> Option<Self> {
        Self::try_open_at((Ipv4Addr::LOCALHOST, port).into())
    }

    pub fn try_open_at(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.set_write_timeout(Some(DEADLINE)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { reader: BufReader::new(stream) })
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).expect("the peer takes bytes");
    }

    pub fn command(&mut self, words: &[&str]) -> Value {
        if let ["AUTH" | "auth", .., password] = words {
            kept::secrets([password]);
        }
        self.send(&encode(words));
        self.reply()
    }

    /// `None` when the connection ended instead of answering.
    pub fn try_command(&mut self, words: &[&str]) -> Option<Value> {
        self.stream().write_all(&encode(words)).ok()?;
        self.try_reply()
    }

    /// All commands in one write, then all their replies.
    pub fn pipeline(&mut self, commands: &[&[&str]]) -> Vec<Value> {
        let bytes: Vec<u8> = commands.iter().flat_map(|words| encode(words)).collect();
        self.send(&bytes);
        commands.iter().map(|_| self.reply()).collect()
    }

    pub fn reply(&mut self) -> Value {
        self.try_reply().expect("a reply, not the end of the connection")
    }

    pub fn try_reply(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        // A connection may end within a reply.
        let line = line.strip_suffix("\r\n")?;
        let (kind, rest) = line.split_at(1);
        Some(match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Integer(rest.parse().ok()?),
            "$" | "=" | "!" if rest.starts_with('-') => Value::Null,
            "$" | "=" | "!" => Value::Bulk(self.bulk(rest.parse().ok()?)?),
            "*" if rest.starts_with('-') => Value::Null,
            "*" | "~" => Value::Array(self.items(rest.parse().ok()?)?),
            ">" => Value::Push(self.items(rest.parse().ok()?)?),
            "%" => Value::Map(self.pairs(rest.parse().ok()?)?),
            "_" => Value::Null,
            _ => Value::Other(line.to_owned()),
        })
    }

    /// Whether the peer has closed, waited for until the deadline.
    pub fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub fn hang_up(self) {
        let _closed_by_peer = self.stream().shutdown(Shutdown::Both);
    }

    fn bulk(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length + 2];
        self.reader.read_exact(&mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }

    fn items(&mut self, count: usize) -> Option<Vec<Value>> {
        (0..count).map(|_| self.try_reply()).collect()
    }

    fn pairs(&mut self, count: usize) -> Option<Vec<(Value, Value)>> {
        (0..count).map(|_| Some((self.try_reply()?, self.try_reply()?))).collect()
    }
}

pub fn encode(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}
