//! What the server says to an attempt or a call, and what the client gets for it.

use super::{Catch, Class, Form, Kind, Pop, Proto};

/// The beginning of the reply to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// Not enough to tell.
    More,
    /// There was nothing.
    Nothing,
    /// An error.
    Refused,
    /// There was something: these bytes stand for the first so many of the reply, and the rest is the client's as it is.
    Found {
        /// Bytes that are replaced.
        used: usize,
        /// What replaces them.
        begins: Vec<u8>,
    },
}

/// The whole reply to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing came.
    Nothing,
    /// This came.
    Caught(Catch),
    /// An error: its line.
    Refused(String),
}

impl Pop {
    /// Looks at the first bytes of the reply to the attempt.
    #[must_use]
    pub fn read_head(&self, bytes: &[u8]) -> Head {
        let Some(end) = line(bytes, 0) else { return Head::More };
        match bytes {
            [b'-', ..] => Head::Refused,
            [b'_', ..] | [b'*' | b'$', b'-', ..] => Head::Nothing,
            _ => match self.form {
                Form::Nested | Form::Alone => Head::Found { used: 0, begins: Vec::new() },
                Form::Pair => head_of(bytes, end, b"*2\r\n", 1),
                Form::Triple => head_of(bytes, end, b"*3\r\n", 2),
            },
        }
    }

    /// Writes what the client gets when its time is over.
    pub fn write_nothing(proto: Proto, out: &mut Vec<u8>) {
        out.extend_from_slice(match proto {
            Proto::Resp2 => b"*-1\r\n",
            Proto::Resp3 => b"_\r\n",
        });
    }

    /// Writes what the client gets for `catch`.
    pub fn write_reply(&self, catch: &Catch, proto: Proto, out: &mut Vec<u8>) {
        match self.form {
            Form::Alone => catch.items.iter().for_each(|item| bulk(item, out)),
            Form::Pair => {
                out.extend_from_slice(b"*2\r\n");
                bulk(&catch.key, out);
                catch.items.iter().for_each(|item| bulk(item, out));
            }
            Form::Triple => {
                out.extend_from_slice(b"*3\r\n");
                bulk(&catch.key, out);
                members(catch, proto, b"", out);
            }
            Form::Nested => {
                out.extend_from_slice(b"*2\r\n");
                bulk(&catch.key, out);
                let kind = self.class.kind();
                out.extend_from_slice(format!("*{}\r\n", catch.elements(kind)).as_bytes());
                match kind {
                    Kind::List => catch.items.iter().for_each(|item| bulk(item, out)),
                    Kind::Sorted => members(catch, proto, b"*2\r\n", out),
                }
            }
        }
    }
}

impl Class {
    /// Reads the whole reply, RESP2, to a call; `None` if it is none.
    #[must_use]
    pub fn read_answer(&self, reply: &[u8]) -> Option<Answer> {
        match reply {
            [b'-', error @ ..] => {
                let error = String::from_utf8_lossy(error.trim_ascii_end()).into_owned();
                Some(Answer::Refused(error))
            }
            [b'*' | b'$', b'-', ..] => Some(Answer::Nothing),
            _ => {
                let mut strings = strings(reply)?;
                let key = match self {
                    Self::Move { source, .. } => source.clone(),
                    Self::List { .. } | Self::Sorted { .. } if strings.is_empty() => return None,
                    Self::List { .. } | Self::Sorted { .. } => strings.remove(0).into(),
                };
                Some(Answer::Caught(Catch { key, items: strings }))
            }
        }
    }
}

/// `*2 key *1 …`, of which `nested` headers behind the key are left out.
fn head_of(bytes: &[u8], first: usize, begins: &[u8], nested: usize) -> Head {
    let Some(mut at) = string(bytes, first).map(|(_, end)| end) else { return Head::More };
    let key = &bytes[first..at];
    for _ in 0..nested {
        let Some(end) = line(bytes, at) else { return Head::More };
        at = end;
    }
    Head::Found { used: at, begins: [begins, key].concat() }
}

fn members(catch: &Catch, proto: Proto, each: &[u8], out: &mut Vec<u8>) {
    for pair in catch.items.chunks_exact(2) {
        out.extend_from_slice(each);
        bulk(&pair[0], out);
        match proto {
            Proto::Resp2 => bulk(&pair[1], out),
            Proto::Resp3 => {
                out.push(b',');
                out.extend_from_slice(&pair[1]);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// All bulk strings of a whole reply that holds arrays and bulk strings alone.
fn strings(reply: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut at, mut found) = (0, Vec::new());
    while let Some(kind) = reply.get(at) {
        at = match kind {
            b'*' => line(reply, at)?,
            b'$' => {
                let (text, end) = string(reply, at)?;
                found.push(text.to_vec());
                end
            }
            _ => return None,
        };
    }
    Some(found)
}

/// The bulk string at `at`, and where it ends.
fn string(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let begin = line(bytes, at)?;
    let digits = bytes.get(at + 1..begin - 2)?;
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let text = bytes.get(begin..begin.checked_add(length)?)?;
    let end = begin + length + 2;
    (bytes.len() >= end).then_some((text, end))
}

/// Where the line at `at` ends.
fn line(bytes: &[u8], at: usize) -> Option<usize> {
    let newline = memchr::memchr(b'\n', bytes.get(at..)?)?;
    (newline >= 2).then_some(at + newline + 1)
}
