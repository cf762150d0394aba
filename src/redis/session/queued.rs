//! A transaction without WATCH: it needs no backend of its own. One that is here whole goes over the lane as it is; of
//! another the session keeps the commands, answers QUEUED, and sends all with EXEC in one piece.
//!
//! What the session can't judge as the server would (commands it does not know, wrong numbers of words, commands about the
//! connection) takes the transaction to a backend of its own, where the server has the word. Source: Redis documentation,
//! "Transactions".

use std::task::Context;

use super::{Carriage, Purpose, Reason, Session, Special};
use crate::redis::command::{Flags, Step, Word, carriage, look_up, step};
use crate::redis::greeting::write_error;
use crate::redis::lane::{Submitted, Work};
use crate::redis::wire::{Arguments, Progress, RequestScanner, write_command};

/// What a server says to EXEC with more words.
const EXEC_REFUSED: &str =
    "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command";

impl Session {
    /// The length of the whole transaction at the start of `bytes`, and its replies, if it may go over a lane as it is.
    pub(super) fn whole_transaction(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let (mut at, mut commands) = (0, 0);
        loop {
            let mut scanner = RequestScanner::default();
            let (used, progress) = scanner.advance(&bytes[at..], self.request_limits()).ok()?;
            if progress != Progress::Command || !self.has_room_for(at, commands) {
                return None;
            }
            let command = &bytes[at..at + used];
            at += used;
            commands += 1;
            let mut words = Arguments::new(command);
            let what = step(words.next().unwrap_or_default());
            // With more words the server would refuse it, and stay inside the transaction.
            let alone = words.next().is_none();
            match what {
                Step::Multi if commands == 1 && alone => {}
                Step::Exec if commands > 1 && alone => return Some((at, commands)),
                Step::Other | Step::Unwatch if commands > 1 => {
                    self.upstream.scripts.note_doubtful(Arguments::new(command));
                    let passes = self.passes_as_sent(command);
                    if !passes || !can_be_queued(carriage(Arguments::new(command))) {
                        return None;
                    }
                }
                _ => return None,
            }
        }
    }

    fn has_room_for(&self, bytes: usize, commands: u32) -> bool {
        let limits = &self.upstream.limits;
        let depth = u32::try_from(limits.pipeline_depth).unwrap_or(u32::MAX);
        bytes < limits.understood_frame_bytes && commands < depth
    }

    /// A command about transactions, outside of any; everything before it is answered. Only WATCH needs the server.
    pub(super) fn begin_transaction(&mut self, cx: &mut Context<'_>, words: &[&[u8]]) -> Special {
        let name = words.first().copied().unwrap_or_default();
        let out = &mut self.out.bytes;
        match (step(name), words.len()) {
            (Step::Multi, 1) => return self.begin_queue(),
            (Step::Watch, 2..) | (Step::Other, _) => {
                self.hold(cx, Purpose::Hold(Reason::Transaction));
                return Special::Blocked;
            }
            (Step::Unwatch, 1) => out.extend_from_slice(b"+OK\r\n"),
            (Step::Exec, 1) => write_error("ERR EXEC without MULTI", out),
            (Step::Discard, 1) => write_error("ERR DISCARD without MULTI", out),
            (Step::Exec, _) => write_error(EXEC_REFUSED, out),
            _ => {
                let name = String::from_utf8_lossy(name).to_lowercase();
                write_error(&format!("ERR wrong number of arguments for '{name}' command"), out);
            }
        }
        self.upstream.metrics.requests.inc();
        Special::Taken
    }

    /// MULTI; everything before it is answered.
    pub(super) fn begin_queue(&mut self) -> Special {
        self.queue = Some(Box::default());
        self.out.bytes.extend_from_slice(b"+OK\r\n");
        self.upstream.metrics.requests.inc();
        Special::Taken
    }

    /// A command behind MULTI; everything before it is answered.
    pub(super) fn enqueue(
        &mut self,
        cx: &mut Context<'_>,
        words: &[&[u8]],
        how: Carriage,
    ) -> Special {
        let alone = words.len() == 1;
        self.upstream.scripts.note_doubtful(words.iter().copied());
        match (step(words.first().copied().unwrap_or_default()), how) {
            (Step::Exec, _) if alone => return self.execute_queue(cx),
            (Step::Discard, _) if alone => {
                self.queue = None;
                self.out.bytes.extend_from_slice(b"+OK\r\n");
            }
            (Step::Other | Step::Unwatch, _) if self.is_queueable(words, how) => {
                let Some(queue) = &mut self.queue else { return Special::Blocked };
                write_command(words, &mut queue.bytes);
                queue.commands += 1;
                self.out.bytes.extend_from_slice(b"+QUEUED\r\n");
            }
            (_, Carriage::Session(word @ (Word::Reset | Word::Quit))) => {
                self.queue = None;
                return self.answer(cx, word, words);
            }
            _ => {
                self.hold(cx, Purpose::Hold(Reason::Transaction));
                return Special::Blocked;
            }
        }
        self.upstream.metrics.requests.inc();
        Special::Taken
    }

    /// Whether the server is sure to answer QUEUED.
    fn is_queueable(&self, words: &[&[u8]], how: Carriage) -> bool {
        let room = self.queue.as_ref().is_some_and(|queue| {
            let bytes: usize = words.iter().map(|word| word.len()).sum();
            self.has_room_for(queue.bytes.len() + bytes, queue.commands)
        });
        let known = look_up(words).is_some_and(|command| {
            command.takes(words.len()) && !command.flags.has(Flags::NO_MULTI)
        });
        room && known && can_be_queued(how)
    }

    fn execute_queue(&mut self, cx: &Context<'_>) -> Special {
        let Some(queue) = self.queue.take() else { return Special::Blocked };
        let mut bytes = Vec::with_capacity(queue.bytes.len() + 32);
        write_command(&["MULTI"], &mut bytes);
        bytes.extend_from_slice(&queue.bytes);
        write_command(&["EXEC"], &mut bytes);
        // Those to MULTI and to each command are given already.
        let work = Work { bytes: &bytes, silent: queue.commands + 1, replies: 1 };
        if self.room() == 0 || self.send(cx, work) != Submitted::Taken {
            self.queue = Some(queue);
            return Special::Blocked;
        }
        self.upstream.metrics.transactions.inc();
        Special::Taken
    }
}

/// Whether a command leaves nothing on the connection, and does not block, inside MULTI.
fn can_be_queued(how: Carriage) -> bool {
    matches!(how, Carriage::Lane | Carriage::Pinned(Reason::Blocking))
}
