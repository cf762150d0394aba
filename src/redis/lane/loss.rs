//! What becomes of commands on a lane whose connection is lost: what can't have been applied, or only reads, is sent again.
//!
//! A command of which the last byte was not written was not applied. One that was written may have been. If it only reads, it
//! may be asked again, unless a command of the same session behind it may have written: then the answer would be of another
//! time. A transaction was applied if its EXEC was, so it is looked at as one.

use std::collections::VecDeque;

use crate::redis::command::{Access, Way, look_up};
use crate::redis::wire::{Arguments, Progress, RequestLimits, RequestScanner};

/// Most bytes of sent commands kept, to be sent again. Older ones are forgotten; their sessions get an error instead.
const KEPT_BYTES: usize = 1024 * 1024;
/// How often a command may lose its connection before that is taken to be its fault.
pub(super) const TRIES: u8 = 2;

/// Bytes that were sent and not yet answered, in order.
#[derive(Debug, Default)]
pub(super) struct Sent {
    chunks: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
}

impl Sent {
    /// Keeps what was sent at this place of the stream.
    pub(super) fn keep(&mut self, begins: u64, bytes: Vec<u8>) {
        self.close(begins, bytes);
        while self.bytes > KEPT_BYTES {
            self.forget_first();
        }
    }

    /// What stands behind all others, however long: no more will be sent.
    pub(super) fn close(&mut self, begins: u64, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.chunks.push_back((begins, bytes));
    }

    /// All before this place is answered.
    pub(super) fn answered(&mut self, place: u64) {
        while self.chunks.front().is_some_and(|(begins, bytes)| begins + length(bytes) <= place) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, bytes)) = self.chunks.pop_front() {
            self.bytes -= bytes.len();
        }
    }

    /// What was sent between these places, or is to be, if it is still here.
    pub(super) fn get(&self, begins: u64, ends: u64) -> Option<&[u8]> {
        let (from, bytes) = self.chunks.iter().rev().find(|(from, _)| *from <= begins)?;
        let place = |at: u64| usize::try_from(at - from).ok();
        bytes.get(place(begins)?..place(ends)?)
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// One session's commands, in one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// Where they stand in the stream.
    pub(super) begins: u64,
    /// And where they end.
    pub(super) ends: u64,
    /// Replies that come first and are nobody's.
    pub(super) silent: u32,
    /// Replies that the session still awaits.
    pub(super) replies: u32,
    /// How many connections they have seen end.
    pub(super) tries: u8,
}

/// What becomes of a share.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict<'a> {
    /// So many commands may have been applied: their replies are errors.
    pub(super) errors: u32,
    /// What is sent again behind those, with its silent and other replies.
    pub(super) again: Option<(&'a [u8], u32, u32)>,
}

impl Verdict<'_> {
    fn lost(share: &Share) -> Self {
        Self { errors: share.replies, again: None }
    }
}

/// A command of a share.
struct Piece {
    begins: usize,
    ends: usize,
    nature: Nature,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nature {
    Reads,
    Other,
    /// It begins or ends a transaction.
    Frame,
}

/// Whether a command of the same session further behind may have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    Nothing,
    Written,
}

/// Looks at one share when `written` bytes of the stream were written.
pub(super) fn judge<'a>(
    share: &Share,
    sent: &'a Sent,
    written: u64,
    behind: Behind,
) -> Verdict<'a> {
    let Some(bytes) = sent.get(share.begins, share.ends) else { return Verdict::lost(share) };
    let Some(pieces) = pieces(bytes) else { return Verdict::lost(share) };
    let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
    let Some(answered) = count.checked_sub(share.silent + share.replies) else {
        return Verdict::lost(share);
    };
    let is_sent = |piece: &Piece| share.begins + length(&bytes[..piece.ends]) <= written;
    if share.silent > 0 || pieces.iter().any(|piece| piece.nature == Nature::Frame) {
        let applied = pieces.last().is_none_or(is_sent) || answered > 0;
        if applied {
            return Verdict::lost(share);
        }
        return Verdict { errors: 0, again: Some((bytes, share.silent, share.replies)) };
    }
    let open = pieces.get(usize::try_from(answered).unwrap_or(usize::MAX)..).unwrap_or_default();
    let repeats = share.tries < TRIES && behind == Behind::Nothing;
    let lost = |piece: &Piece| is_sent(piece) && !(repeats && piece.nature == Nature::Reads);
    let errors = open.iter().rposition(lost).map_or(0, |last| last + 1);
    let again = open.get(errors).map(|first| {
        let replies = share.replies.saturating_sub(u32::try_from(errors).unwrap_or(u32::MAX));
        (&bytes[first.begins..], 0, replies)
    });
    Verdict { errors: u32::try_from(errors).unwrap_or(u32::MAX), again }
}

/// Whether the next reply to commands that were sent together, `owed` of which are not answered, is the server's own word. What a
/// script says its author has written, and it may have written before it says so.
pub(super) fn is_of_the_server(bytes: &[u8], owed: u32) -> bool {
    let next = || {
        let pieces = pieces(bytes)?;
        let answered = pieces.len().checked_sub(usize::try_from(owed).ok()?)?;
        let piece = pieces.get(answered)?;
        look_up(&Arguments::new(bytes.get(piece.begins..piece.ends)?).take(1).collect::<Vec<_>>())
    };
    next().is_some_and(|command| !matches!(command.name, "EVAL" | "EVALSHA" | "FCALL"))
}

/// The commands in `bytes`, which are whole.
fn pieces(bytes: &[u8]) -> Option<Vec<Piece>> {
    let limits = RequestLimits::Work { bulk_bytes: usize::MAX };
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (used, progress) = RequestScanner::default().advance(&bytes[at..], limits).ok()?;
        if progress != Progress::Command {
            return None;
        }
        let (begins, ends) = (at, at + used);
        pieces.push(Piece { begins, ends, nature: nature(&bytes[begins..ends]) });
        at = ends;
    }
    Some(pieces)
}

fn nature(command: &[u8]) -> Nature {
    let words: Vec<&[u8]> = Arguments::new(command).take(2).collect();
    match look_up(&words) {
        Some(command) if command.way == Way::Transaction => Nature::Frame,
        Some(command) if command.access == Access::Reads => Nature::Reads,
        Some(command) if matches!(command.name, "PING" | "ECHO" | "TIME") => Nature::Reads,
        _ => Nature::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::wire::write_command;

    fn command(line: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_command(&line.split(' ').collect::<Vec<_>>(), &mut bytes);
        bytes
    }

    /// Commands with a bar where the written bytes end; how many are errors, and what is sent again.
    fn of(lines: &str, silent: u32, answered: u32, tries: u8, behind: Behind) -> (u32, String) {
        let mut bytes = Vec::new();
        let (mut written, mut count) = (None, 0);
        for line in lines.split("; ") {
            let before = bytes.len();
            bytes.extend(command(line.trim_end_matches('|')));
            count += 1;
            if line.ends_with('|') {
                // All but its last byte, or all of it.
                let half = line.ends_with("||");
                written = Some(if half { bytes.len() - 1 } else { bytes.len() });
            }
            assert!(before < bytes.len());
        }
        let place = |at: usize| 100 + u64::try_from(at).unwrap();
        let mut sent = Sent::default();
        sent.keep(100, bytes.clone());
        let share = Share {
            begins: 100,
            ends: place(bytes.len()),
            silent,
            replies: count - silent - answered,
            tries,
        };
        let verdict = judge(&share, &sent, place(written.unwrap_or(0)), behind);
        let mut again = Vec::new();
        if let Some((bytes, silent_again, replies)) = verdict.again {
            let pieces = pieces(bytes).unwrap();
            assert_eq!(pieces.len(), usize::try_from(silent_again + replies).unwrap());
            for piece in pieces {
                let words: Vec<&[u8]> = Arguments::new(&bytes[piece.begins..piece.ends]).collect();
                again.push(String::from_utf8(words.join(&b' ')).unwrap());
            }
        }
        (verdict.errors, again.join("; "))
    }

    fn fresh(lines: &str) -> (u32, String) {
        of(lines, 0, 0, 0, Behind::Nothing)
    }

    fn told(errors: u32, again: &str) -> (u32, String) {
        (errors, again.to_owned())
    }

    #[test]
    fn what_only_reads_is_asked_again() {
        assert_eq!(fresh("GET a; PING|"), told(0, "GET a; PING"));
        assert_eq!(fresh("INCR n; GET a|; INCR n"), told(1, "GET a; INCR n"));
        assert_eq!(of("GET a; GET b|", 0, 1, 0, Behind::Nothing), told(0, "GET b"));
    }

    #[test]
    fn what_may_have_been_applied_is_not_sent_again_nor_what_stands_before_it() {
        assert_eq!(fresh("GET a; INCR n|; GET b"), told(2, "GET b"));
        assert_eq!(of("GET a|; GET b", 0, 0, 0, Behind::Written), told(1, "GET b"));
        assert_eq!(of("GET a; GET b|; INCR n", 0, 0, 2, Behind::Nothing), told(2, "INCR n"));
    }

    #[test]
    fn what_was_not_written_to_its_last_byte_was_not_applied() {
        assert_eq!(fresh("INCR n; INCR m||"), told(1, "INCR m"));
        assert_eq!(fresh("INCR n; INCR m"), told(0, "INCR n; INCR m"));
    }

    #[test]
    fn a_transaction_is_sent_again_whole_or_not_at_all() {
        let all = "MULTI; GET a; INCR n; EXEC";
        assert_eq!(fresh("MULTI; GET a; INCR n; EXEC||"), told(0, all));
        assert_eq!(fresh("MULTI; GET a; INCR n; EXEC|"), told(4, ""));
        assert_eq!(of("MULTI; GET a; INCR n|; EXEC", 0, 1, 0, Behind::Nothing), told(3, ""));
        assert_eq!(of("MULTI; GET a; INCR n|; EXEC", 3, 0, 0, Behind::Nothing), told(0, all));
        assert_eq!(of("MULTI; GET a; INCR n; EXEC|", 3, 0, 0, Behind::Nothing), told(1, ""));
    }

    #[test]
    fn what_a_script_says_is_not_the_servers_word() {
        let bytes = [command("SET a 1"), command("evalsha 0"), command("SET a 2")].concat();
        let asked = [3, 2, 1, 4, 0].map(|owed| is_of_the_server(&bytes, owed));
        assert_eq!(asked, [true, false, true, false, false]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_forgotten_when_answered() {
        let mut sent = Sent::default();
        sent.keep(0, vec![0; 10]);
        sent.keep(10, vec![1; 10]);
        assert_eq!(sent.get(12, 14), Some(&[1, 1][..]));
        sent.answered(10);
        assert_eq!((sent.get(2, 4), sent.bytes), (None, 10));
        sent.keep(20, vec![2; KEPT_BYTES]);
        assert_eq!((sent.get(12, 14), sent.bytes), (None, KEPT_BYTES));
        sent.keep(20 + length(&[2; KEPT_BYTES]), vec![3; KEPT_BYTES + 1]);
        assert_eq!(sent.bytes, 0);
    }
}
