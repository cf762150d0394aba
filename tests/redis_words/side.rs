//! One of the two sides: its sessions, and what they are answered.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use super::Step;
use super::support::DEADLINE;

pub struct Side {
    port: u16,
    sessions: Vec<BufReader<TcpStream>>,
}

impl Side {
    pub fn new(port: u16, sessions: usize) -> Self {
        let sessions = (0..sessions).map(|_| open(port)).collect();
        Self { port, sessions }
    }

    /// All sessions are as if they had just come.
    pub fn reset(&mut self) {
        for session in &mut self.sessions {
            session.get_ref().write_all(b"*1\r\n$5\r\nRESET\r\n").unwrap();
            if frame(session).as_deref() != Some(b"+RESET\r\n") {
                *session = open(self.port);
            }
        }
    }

    /// Every command's reply; fewer if the connection was closed.
    pub fn say(&mut self, step: &Step) -> Vec<Vec<u8>> {
        let session = &mut self.sessions[step.session];
        let bytes: Vec<u8> = step.commands.iter().flat_map(super::words::Command::bytes).collect();
        for piece in bytes.chunks(step.piece_bytes) {
            if session.get_ref().write_all(piece).is_err() {
                break;
            }
        }
        let replies: Vec<_> = step.commands.iter().map_while(|_| frame(session)).collect();
        if replies.len() < step.commands.len() {
            *session = open(self.port);
        }
        replies.into_iter().map(without_id).map(without_modules).map(without_sha).collect()
    }
}

fn open(port: u16) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    BufReader::with_capacity(64 * 1024, stream)
}

/// The bytes of the next frame, whatever it holds; `None` at the end of the connection.
fn frame(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut open = 1_usize;
    while open > 0 {
        open -= 1;
        let begins = bytes.len();
        from.read_until(b'\n', &mut bytes).ok().filter(|&read| read > 0)?;
        let line = &bytes[begins..];
        let number = std::str::from_utf8(&line[1..line.len() - 2]).ok().map(str::parse::<i64>);
        let number = number.and_then(Result::ok).and_then(|number| usize::try_from(number).ok());
        match (line[0], number) {
            (b'$' | b'=' | b'!', Some(length)) => {
                let at = bytes.len();
                bytes.resize(at + length + 2, 0);
                from.read_exact(&mut bytes[at..]).ok()?;
            }
            (b'*' | b'~' | b'>', Some(count)) => open += count,
            (b'%', Some(count)) => open += 2 * count,
            _ => {}
        }
    }
    Some(bytes)
}

/// In a pipeline a script's error tells of the script as it was sent.
fn without_sha(mut reply: Vec<u8>) -> Vec<u8> {
    const SCRIPT: &[u8] = b" script: ";
    if reply.first() == Some(&b'-')
        && let Some(at) = reply.windows(SCRIPT.len()).position(|window| window == SCRIPT)
    {
        let begins = at + SCRIPT.len();
        let ends = (begins + 40).min(reply.len());
        reply.drain(begins..ends);
    }
    reply
}

/// HELLO tells a number that is the connection's.
fn without_id(reply: Vec<u8>) -> Vec<u8> {
    const ID: &[u8] = b"$2\r\nid\r\n:";
    let (mut hidden, mut rest) = (Vec::new(), &reply[..]);
    while let Some(at) = rest.windows(ID.len()).position(|window| window == ID) {
        let (before, behind) = rest.split_at(at + ID.len());
        hidden.extend_from_slice(before);
        let digits = behind.iter().take_while(|byte| byte.is_ascii_digit()).count();
        rest = &behind[digits..];
    }
    if hidden.is_empty() {
        return reply;
    }
    hidden.extend_from_slice(rest);
    hidden
}

/// HELLO tells of modules, which tidegate does not.
fn without_modules(mut reply: Vec<u8>) -> Vec<u8> {
    const MODULES: &[u8] = b"$7\r\nmodules\r\n";
    let mut from = 0;
    while let Some(at) = reply[from..].windows(MODULES.len()).position(|window| window == MODULES) {
        let begins = from + at + MODULES.len();
        let mut behind = &reply[begins..];
        let Some(value) = frame(&mut behind) else { return reply };
        reply.drain(begins..begins + value.len());
        from = begins;
    }
    reply
}
