//! A stand-in for a Postgres that breaks off where a real one can't be made to.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::pg::framed;
use super::{DEADLINE, ports};

/// It trusts everybody. On each connection it waits for a request, and then for the words to say to it before it closes
/// the connection, which takes until the next one comes if it has said why; once there are no more words it answers
/// everything, with nothing.
pub struct Script {
    port: u16,
    words: Option<Sender<Vec<u8>>>,
    said: Receiver<()>,
}

impl Script {
    pub fn start() -> Self {
        let port = ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let ((words, spoken), (says, said)) = (channel(), channel());
        thread::spawn(move || {
            let mut slow = None;
            for stream in listener.incoming() {
                let ended = serve(stream.expect("a connection"), &spoken, &says);
                drop(std::mem::replace(&mut slow, ended));
            }
        });
        Self { port, words: Some(words), said }
    }

    pub fn url(&self) -> String {
        format!("postgres://app:app-secret@127.0.0.1:{}/app?sslmode=disable", self.port)
    }

    /// What it says to the next request of a connection, and nothing more.
    pub fn says_at_last(&self, words: &[u8]) {
        let sender = self.words.as_ref().expect("it has not got well yet");
        sender.send(words.to_vec()).expect("it runs");
    }

    pub fn gets_well(&mut self) {
        self.words = None;
    }

    /// Waits until the last words are with the kernel.
    pub fn has_said_them(&self) {
        self.said.recv_timeout(DEADLINE).expect("somebody asks it");
    }
}

/// An error behind which a server says nothing more.
pub fn farewell(code: &str) -> Vec<u8> {
    framed(b'E', format!("SFATAL\0VFATAL\0C{code}\0Mit goes\0\0").as_bytes())
}

/// One connection after the other; who leaves early is no matter. Gives what is not closed yet.
fn serve(mut stream: TcpStream, words: &Receiver<Vec<u8>>, says: &Sender<()>) -> Option<TcpStream> {
    let mut bytes = [0; 16_384];
    let _startup = stream.read(&mut bytes).ok()?;
    let key = framed(b'K', &[0; 8]);
    let welcome = [framed(b'R', &[0; 4]), key, framed(b'Z', b"I")].concat();
    stream.write_all(&welcome).ok()?;
    let mut read = stream.read(&mut bytes).ok()?;
    // The pool's own question about the database, on some connections before any client's.
    if memchr::memmem::find(&bytes[..read], b"'routines'").is_some() {
        stream.write_all(&answers(&bytes[..read])).ok()?;
        read = stream.read(&mut bytes).ok()?;
    }
    if let Ok(last) = words.recv() {
        stream.write_all(&last).ok()?;
        says.send(()).ok()?;
        return last.ends_with(b"\0\0").then_some(stream);
    }
    while read > 0 {
        stream.write_all(&answers(&bytes[..read])).ok()?;
        read = stream.read(&mut bytes).ok()?;
    }
    None
}

/// What a server answers to frames that do nothing.
fn answers(mut requests: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    while let Some((&[tag, a, b, c, d], rest)) = requests.split_first_chunk() {
        let kinds = match tag {
            b'P' => "1",
            b'B' => "2",
            b'C' => "3",
            b'E' => "I",
            b'S' => "Z",
            b'Q' => "IZ",
            _ => "",
        };
        for kind in kinds.bytes() {
            let body = if kind == b'Z' { &b"I"[..] } else { b"" };
            answers.extend(framed(kind, body));
        }
        let body = usize::try_from(u32::from_be_bytes([a, b, c, d])).expect("a length") - 4;
        requests = rest.get(body..).expect("whole frames");
    }
    answers
}
