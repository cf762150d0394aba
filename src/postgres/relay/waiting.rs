//! A client's bytes while its session has no server connection.

use super::super::wire::{self, HEADER_BYTES};
use super::{Violation, client_header};

/// What a client's bytes say while its session has no server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Bytes that are done with: frames no server need see.
    pub dropped: usize,
    /// What follows them.
    pub work: Work,
}

/// Whether a session without a server connection needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Not before this many bytes are there.
    Wait(usize),
    /// Now.
    Ready,
    /// The end of the refused request has passed: its ReadyForQuery is due.
    RefusalEnds,
    /// The client said goodbye.
    Goodbye,
}

/// What a session without a server connection does with its client's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// Looks for work.
    Open,
    /// Drops everything up to the end of a request that was refused.
    Refusing,
}

/// Looks at a client's bytes while its session has no server connection: drops what no server need see (the rest of a
/// COPY that failed, a Flush), and says when there is work. `rest` counts the bytes still to come of a dropped frame.
/// A frame up to `gather` bytes long (a Parse: `understood`) is waited for, so that a slow sender holds no connection.
///
/// # Errors
/// [`Violation`] for what can't be a frame.
pub fn waiting(
    rest: &mut u32,
    stance: Stance,
    input: &[u8],
    gather: usize,
    understood: usize,
) -> Result<Waiting, Violation> {
    let mut at = 0;
    loop {
        let take = (input.len() - at).min(wire::widen(*rest));
        at += take;
        *rest -= u32::try_from(take).unwrap_or(*rest);
        let done = |work| Ok(Waiting { dropped: at, work });
        let Some(header) = client_header(&input[at..])? else {
            return done(Work::Wait(HEADER_BYTES));
        };
        let ends = matches!(header.tag, b'S' | b'Q' | b'F');
        match (stance, header.tag) {
            (_, b'X') => return done(Work::Goodbye),
            (_, b'd' | b'c' | b'f' | b'H') => {}
            (Stance::Open, _) => {
                // What must be understood whole is gathered whole, or a connection would be held for its sender's sake.
                let bound = if header.tag == b'P' { understood } else { gather };
                let whole = if header.frame() > bound {
                    header.frame().min(gather)
                } else {
                    header.frame()
                };
                let here = input.len() - at;
                return done(if here < whole { Work::Wait(whole) } else { Work::Ready });
            }
            (Stance::Refusing, _) if ends => {
                *rest = header.body;
                let take = (input.len() - at - HEADER_BYTES).min(wire::widen(*rest));
                *rest -= u32::try_from(take).unwrap_or(*rest);
                let dropped = at + HEADER_BYTES + take;
                return Ok(Waiting { dropped, work: Work::RefusalEnds });
            }
            (Stance::Refusing, _) => {}
        }
        at += HEADER_BYTES;
        *rest = header.body;
    }
}

/// Whether a client's bytes begin with a request that does nothing but end a transaction without a trace of it.
#[must_use]
pub fn is_rollback(input: &[u8]) -> bool {
    let Ok(Some(header)) = client_header(input) else { return false };
    let Some(body) = input.get(HEADER_BYTES..header.frame()) else { return false };
    let text = match header.tag {
        b'Q' => wire::cstr(body),
        b'P' => wire::cstr(body).and_then(|(_, rest)| wire::cstr(rest)),
        _ => None,
    };
    let Some(text) = text.and_then(|(text, _)| std::str::from_utf8(text).ok()) else {
        return false;
    };
    let text = text.trim().trim_end_matches(';').trim_end().to_ascii_lowercase();
    let words: Vec<&str> = text.split_ascii_whitespace().take(3).collect();
    matches!(words[..], ["rollback" | "abort"] | ["rollback" | "abort", "work" | "transaction"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_is_known() {
        let says = |tag: u8, body: &[u8]| {
            let mut frame = Vec::new();
            wire::put_frame(&mut frame, tag, &[body]);
            is_rollback(&frame)
        };
        for text in ["ROLLBACK", " rollback ;", "Abort", "ROLLBACK\nTRANSACTION", "abort work;"] {
            assert!(says(b'Q', format!("{text}\0").as_bytes()), "{text}");
            assert!(says(b'P', format!("s1\0{text}\0\0\0").as_bytes()), "{text}");
        }
        let others = [
            "",
            "commit",
            "rollback to savepoint a",
            "rollback prepared 'a'",
            "rollback and chain",
            "rollback; select 1",
            "select 1",
        ];
        for text in others {
            assert!(!says(b'Q', format!("{text}\0").as_bytes()), "{text}");
        }
        assert!(!says(b'S', b""));
        assert!(!is_rollback(b"Q\0\0"));
    }
}
