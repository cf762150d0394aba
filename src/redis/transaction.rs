//! The session's own commands inside a transaction (CLIENT SETNAME, SELECT, HELLO …). The server queues them with all the
//! others, so that it judges them and keeps their order; what they mean for the session is taken from its answer to
//! EXEC.

use std::collections::VecDeque;

use super::command::Word;
use super::wire::{Reply, ReplyError, ReplyScanner, write_command};

/// What no server knows: inside MULTI it makes EXEC fail, as every refused command does.
pub(super) const UNKNOWN_COMMAND: &str = "TIDEGATE.REFUSED";

/// Most commands of its own that a session may have queued, and their most bytes.
const OWN_LIMIT: usize = 1_000;
const OWN_BYTES: usize = 64 * 1024;

/// A command of the session's own that the server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCommand {
    /// Which.
    pub word: Word,
    /// All of it.
    pub words: Vec<Vec<u8>>,
}

impl OwnCommand {
    /// Keeps the command for when it is answered.
    #[must_use]
    pub fn new(word: Word, words: &[&[u8]]) -> Self {
        Self { word, words: words.iter().map(|word| word.to_vec()).collect() }
    }
}

/// The commands of a transaction that is not run yet.
#[derive(Debug, Default)]
pub struct Queue {
    /// As they go to the server.
    pub bytes: Vec<u8>,
    /// How many they are.
    pub commands: u32,
}

impl Queue {
    /// A command was refused: EXEC is to fail, as it does behind any refusal.
    pub fn refuse(&mut self) {
        write_command(&[UNKNOWN_COMMAND], &mut self.bytes);
        self.commands += 1;
    }
}

/// What the server has queued since MULTI.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Sent and not answered yet.
    sent: VecDeque<OwnCommand>,
    /// Queued, with their places among all that are.
    queued: VecDeque<(u64, OwnCommand)>,
    count: u64,
    bytes: usize,
}

impl Transaction {
    /// Whether another command of the session's own can be kept.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.sent.len() + self.queued.len() < OWN_LIMIT && self.bytes < OWN_BYTES
    }

    /// A command of the session's own is on its way.
    pub fn send_own(&mut self, command: OwnCommand) {
        self.bytes += command.words.iter().map(Vec::len).sum::<usize>();
        self.sent.push_back(command);
    }

    /// The server has queued a command that is not the session's own.
    pub fn queued(&mut self) {
        self.count += 1;
    }

    /// The server has queued the next of the session's own commands.
    pub fn queued_own(&mut self) {
        self.queued.extend(self.sent.pop_front().map(|command| (self.count, command)));
        self.count += 1;
    }

    /// The server has refused the next of the session's own commands.
    pub fn refused_own(&mut self) {
        self.sent.pop_front();
    }

    /// Reads the answer to EXEC; `None` if nothing in it is the session's own.
    #[must_use]
    pub fn into_outcome(self) -> Option<Outcome> {
        (!self.queued.is_empty())
            .then_some(Outcome { queued: self.queued, stage: Stage::Header(Vec::new()) })
    }
}

/// Takes the server's reply to a command of the session's own, and writes the client's.
pub type Answer<'a> = dyn FnMut(&OwnCommand, &[u8], &mut Vec<u8>) + 'a;

/// Takes the answer to EXEC apart as it comes.
#[derive(Debug)]
pub struct Outcome {
    queued: VecDeque<(u64, OwnCommand)>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Header(Vec<u8>),
    /// Within the answer to the command with this place.
    Element {
        place: u64,
        scanner: ReplyScanner,
        held: Vec<u8>,
    },
    /// The transaction was not run.
    Aborted,
}

impl Outcome {
    /// Takes the next bytes of the answer. What is not the session's own goes to `out`; each answer to a command of its
    /// own is given to `answer`, which writes what the client gets.
    ///
    /// # Errors
    /// When the bytes are not RESP.
    pub fn advance(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        answer: &mut Answer<'_>,
    ) -> Result<(), ReplyError> {
        while let Some(&byte) = bytes.first() {
            match &mut self.stage {
                Stage::Aborted => {
                    out.extend_from_slice(bytes);
                    return Ok(());
                }
                Stage::Header(line) => {
                    line.push(byte);
                    bytes = &bytes[1..];
                    if byte == b'\n' {
                        out.extend_from_slice(line);
                        let ran = matches!(line.get(..2), Some([b'*', b'1'..=b'9']));
                        let element = || Stage::Element {
                            place: 0,
                            scanner: ReplyScanner::default(),
                            held: Vec::new(),
                        };
                        self.stage = if ran { element() } else { Stage::Aborted };
                    }
                }
                Stage::Element { place, scanner, held } => {
                    let (used, reply) = scanner.advance(bytes)?;
                    let own = self.queued.front().filter(|(own, _)| own == place);
                    match own {
                        Some(_) => held.extend_from_slice(&bytes[..used]),
                        None => out.extend_from_slice(&bytes[..used]),
                    }
                    bytes = &bytes[used..];
                    if reply == Reply::Partial {
                        continue;
                    }
                    if let Some((_, command)) = own {
                        answer(command, held, out);
                        held.clear();
                        self.queued.pop_front();
                    }
                    *place += 1;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transaction of three commands, the second of which is the session's own; one more was refused.
    fn transaction() -> Transaction {
        let mut transaction = Transaction::default();
        transaction.queued();
        transaction.send_own(OwnCommand::new(Word::Hello, &[b"HELLO", b"x"]));
        transaction.send_own(OwnCommand::new(Word::GetName, &[b"CLIENT", b"GETNAME"]));
        transaction.refused_own();
        transaction.queued_own();
        transaction.queued();
        transaction
    }

    fn read(answer: &[u8], chunk: usize) -> (String, String) {
        let mut outcome = transaction().into_outcome().expect("something is the session's own");
        let (mut out, mut heard) = (Vec::new(), Vec::new());
        for piece in answer.chunks(chunk) {
            let mut own = |command: &OwnCommand, reply: &[u8], out: &mut Vec<u8>| {
                assert_eq!(command.word, Word::GetName);
                heard.extend_from_slice(reply);
                out.extend_from_slice(b"$4\r\nmine\r\n");
            };
            outcome.advance(piece, &mut out, &mut own).expect("it is RESP");
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(heard).unwrap())
    }

    #[test]
    fn the_sessions_own_answer_stands_in_its_place_however_the_bytes_are_split() {
        let ran = "*3\r\n*2\r\n:1\r\n+x\r\n$8\r\ntidegate\r\n%1\r\n+a\r\n$-1\r\n";
        for chunk in 1..ran.len() {
            let (out, heard) = read(ran.as_bytes(), chunk);
            assert_eq!(out, "*3\r\n*2\r\n:1\r\n+x\r\n$4\r\nmine\r\n%1\r\n+a\r\n$-1\r\n");
            assert_eq!(heard, "$8\r\ntidegate\r\n");
        }
    }

    #[test]
    fn a_transaction_that_was_not_run_passes_as_it_is() {
        for answer in ["*-1\r\n", "_\r\n", "-EXECABORT no\r\n", "*0\r\n"] {
            for chunk in 1..answer.len() {
                assert_eq!(read(answer.as_bytes(), chunk), (answer.to_owned(), String::new()));
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut transaction = Transaction::default();
        let long = vec![b'x'; 10_000];
        let mut kept = 0;
        while transaction.has_room() {
            transaction.send_own(OwnCommand::new(Word::SetName, &[b"CLIENT", b"SETNAME", &long]));
            kept += 1;
        }
        assert_eq!(kept, 7);
        assert!(Transaction::default().into_outcome().is_none());
    }
}
