//! One side of the comparison: a client and what it hears, directly or through the pool.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use super::script::{Message, Segment};
use crate::support::pg::{Connection, Frame, framed};

/// A session's connection on one side.
pub struct Client {
    connection: Connection,
    /// Channel and payload of each notification.
    pub heard: Vec<(String, String)>,
    /// The status of the last ReadyForQuery.
    pub status: char,
    pub state: State,
    /// What the server has reported of its settings.
    pub parameters: BTreeMap<String, String>,
}

/// Where the extended protocol stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Behind a ReadyForQuery.
    Synced,
    /// Behind a Flush.
    Open,
    /// Behind an error that a Flush brought: the server skips.
    Skipping,
    /// The connection has ended.
    Gone,
}

/// The type of a frame of ours, for what is none of the server's.
const OURS: u8 = b'!';

/// How long a report may be late.
const LATE: Duration = Duration::from_secs(1);

impl Client {
    pub fn new(connection: Connection) -> Self {
        let parameters = connection.parameters.iter().cloned().collect();
        Self { connection, heard: Vec::new(), status: 'I', state: State::Synced, parameters }
    }

    /// The process id that the greeting gave.
    pub fn greeted_pid(&self) -> i32 {
        let pid = self.connection.key.first_chunk::<4>().expect("a key");
        i32::from_be_bytes(*pid)
    }

    /// Reads settings that are reported late, until they are as `wanted` or nothing more comes.
    pub fn settle(&mut self, wanted: &BTreeMap<String, String>) {
        while self.parameters != *wanted {
            match self.connection.frame_within(LATE) {
                Some(frame) if frame.tag == b'A' => self.hear(&frame),
                Some(frame) if frame.tag == b'S' => self.report(&frame),
                _ => return,
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.status == 'I' && self.state == State::Synced
    }

    /// Whether the server can do something for it later that was begun now.
    pub fn is_under_way(&self) -> bool {
        matches!(self.state, State::Open | State::Skipping)
            || self.state == State::Synced && self.status != 'I'
    }

    pub fn into_connection(mut self) -> Connection {
        self.connection.parameters = self.parameters.into_iter().collect();
        self.connection
    }

    /// Sends all in one write and reads every answer; notifications are kept apart.
    pub fn say(&mut self, segments: &[Segment]) -> Vec<Frame> {
        let messages: Vec<&Message> = segments.iter().flatten().collect();
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.bytes()).collect();
        if self.connection_takes(&bytes).is_err() {
            return vec![self.end("broken")];
        }
        let mut frames = Vec::new();
        let readies = messages.iter().filter(|message| message.readies()).count();
        for _ in 0..readies {
            self.read_until_ready(&mut frames);
        }
        let open = messages.iter().rev().take_while(|message| !message.readies());
        let answers = open.filter(|message| message.is_answered_alone()).count();
        self.read_answers(answers, &mut frames);
        frames
    }

    fn connection_takes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        use std::io::Write;
        self.connection.stream().write_all(bytes)
    }

    fn read_until_ready(&mut self, frames: &mut Vec<Frame>) {
        loop {
            let frame = self.next();
            let status = frame.body.first().copied();
            let (tag, kind) = (frame.tag, frame.kind());
            frames.push(frame);
            if tag == OURS {
                return;
            }
            if kind == 'Z' {
                self.state = State::Synced;
                self.status = status.map_or('?', char::from);
                return;
            }
        }
    }

    /// What a Flush brings: one answer for each message, or an error.
    fn read_answers(&mut self, mut answers: usize, frames: &mut Vec<Frame>) {
        if answers > 0 && self.state == State::Synced {
            self.state = State::Open;
        }
        while answers > 0 && self.state == State::Open {
            let frame = self.next();
            match frame.kind() {
                '1' | '2' | '3' | 'T' | 'n' | 'C' | 'I' | 's' => answers -= 1,
                'E' => self.state = State::Skipping,
                _ => {}
            }
            frames.push(frame);
        }
    }

    fn next(&mut self) -> Frame {
        if self.state == State::Gone {
            return self.end("gone");
        }
        loop {
            match self.connection.try_frame() {
                Ok(frame) if frame.tag == b'A' => self.hear(&frame),
                Ok(frame) if frame.tag == b'S' => self.report(&frame),
                Ok(frame) => return frame,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.end("no answer in time");
                }
                Err(_) => return self.end("closed"),
            }
        }
    }

    fn end(&mut self, how: &str) -> Frame {
        self.state = State::Gone;
        Frame { tag: OURS, body: how.into() }
    }

    fn hear(&mut self, frame: &Frame) {
        let mut fields = frame.body[4..].split(|byte| *byte == 0);
        let mut field = || String::from_utf8_lossy(fields.next().expect("a field")).into_owned();
        self.heard.push((field(), field()));
    }

    fn report(&mut self, frame: &Frame) {
        let mut fields = frame.body.split(|byte| *byte == 0);
        let mut field = || String::from_utf8_lossy(fields.next().expect("a field")).into_owned();
        let (name, value) = (field(), field());
        self.parameters.insert(name, value);
    }

    /// Reads until it has heard of `channel`; gives what comes instead.
    pub fn listen_until(&mut self, channel: &str) -> Option<Frame> {
        self.listen_while(|heard| heard.last().is_none_or(|(last, _)| last != channel))
    }

    /// Reads until it has heard so many.
    pub fn listen_for(&mut self, count: usize) -> Option<Frame> {
        self.listen_while(|heard| heard.len() < count)
    }

    fn listen_while(&mut self, wants: impl Fn(&[(String, String)]) -> bool) -> Option<Frame> {
        while wants(&self.heard) {
            match self.connection.try_frame() {
                Ok(frame) if frame.tag == b'A' => self.hear(&frame),
                Ok(frame) if frame.tag == b'S' => self.report(&frame),
                Ok(frame) => return Some(frame),
                Err(error) => {
                    return Some(Frame { tag: OURS, body: error.to_string().into_bytes() });
                }
            }
        }
        None
    }
}

/// A frame without what may differ: the place in the server's source that raised an error, and oids.
pub fn neutral(frame: &Frame) -> Frame {
    match frame.tag {
        b'E' if is_of_temp(&frame.refusal().message) => without_temp(frame),
        b'E' | b'N' => without_place(frame),
        b'T' => without_oids(frame),
        _ => frame.clone(),
    }
}

fn is_of_temp(message: &str) -> bool {
    message.contains("pg_temp") || message == "table \"x\" does not exist"
}

/// Whether the schema of temporary objects is there with nothing in it depends on what a connection has seen.
fn without_temp(frame: &Frame) -> Frame {
    Frame { tag: frame.tag, body: b"Mnothing of the kind in pg_temp\0\0".to_vec() }
}

fn without_place(frame: &Frame) -> Frame {
    let fields = frame.body.split(|&byte| byte == 0);
    // What waits for a lock waits in the parser where the statement is parsed anew.
    let locked = frame.tag == b'E' && frame.refusal().code == "55P03";
    let place = |first: u8| matches!(first, b'F' | b'L' | b'R') || locked && first == b'P';
    let kept = fields.filter(|field| !field.first().is_some_and(|first| place(*first)));
    let body = kept.flat_map(|field| [field, b"\0"].concat()).collect::<Vec<_>>();
    let body = without_name(body);
    let body = without_row(&body);
    Frame { tag: frame.tag, body: framed(frame.tag, &body)[5..].to_vec() }
}

/// Two names of a client's for one text are one statement to the pool, which may say either.
fn without_name(mut body: Vec<u8>) -> Vec<u8> {
    let before = b"prepared statement \"s";
    let places = body.windows(before.len()).enumerate().filter(|(_, some)| some == before);
    let digits: Vec<usize> = places.map(|(at, _)| at + before.len()).collect();
    for at in digits {
        body[at] = b'?';
    }
    body
}

/// Where a row lies in its table depends on when the table was cleaned up.
fn without_row(body: &[u8]) -> Vec<u8> {
    let fields = body.split_inclusive(|&byte| byte == 0);
    let is_row =
        |field: &[u8]| field.starts_with(b"W") && field.windows(7).any(|some| some == b"tuple (");
    fields.filter(|field| !is_row(field)).flatten().copied().collect()
}

/// The first oid that is none of the catalog's own.
const FIRST_USER_OID: u32 = 16_384;

fn without_oids(frame: &Frame) -> Frame {
    let mut body = frame.body.clone();
    let mut at = 2;
    while at < body.len() {
        let name = body[at..].iter().position(|&byte| byte == 0).expect("a name ends");
        at += name + 1;
        // Of its table, and of its type.
        for place in [at, at + 6] {
            let oid = u32::from_be_bytes(body[place..place + 4].try_into().expect("four bytes"));
            if oid >= FIRST_USER_OID {
                body[place..place + 4].copy_from_slice(&FIRST_USER_OID.to_be_bytes());
            }
        }
        at += 18;
    }
    Frame { tag: frame.tag, body }
}
