//! What becomes of a command of the session that holds the backend.

use super::{Condition, Decision, Expect, Hold, Meaning, Pinned};
use crate::redis::command::{Carriage, Reason, Step, Word, is_tracking, is_unsubscribe, step};
use crate::redis::greeting::Proto;
use crate::redis::transaction::{OwnCommand, UNKNOWN_COMMAND};
use crate::redis::wire::write_command;

const TOO_MANY: &str = "ERR tidegate: too many commands about the connection inside one MULTI; \
     send them before it, or in several transactions";
const NO_KILL: &str = "ERR tidegate: CLIENT KILL can't stand inside MULTI; send it before the transaction or behind it";
/// A server that doesn't know it says the same.
const NO_NOTIFICATIONS: &str = "ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.";

/// A command that is to be decided about.
#[derive(Clone, Copy)]
struct Command<'a> {
    /// At least its name.
    words: &'a [&'a [u8]],
    carriage: Carriage,
    /// As they came.
    bytes: &'a [u8],
}

impl<'a> Command<'a> {
    fn name(&self) -> &'a [u8] {
        self.words.first().copied().unwrap_or_default()
    }

    fn step(&self) -> Step {
        step(self.name())
    }
}

impl Pinned {
    /// Decides about a command, of which at least the name is in `words`; if taken, `bytes` are to be sent and a reply is expected.
    pub fn take(&mut self, words: &[&[u8]], carriage: Carriage, bytes: &[u8]) -> Decision {
        let command = Command { words, carriage, bytes };
        // Behind a WATCH that is refused the session goes on over its lane.
        let begins = [Meaning::Began, Meaning::Tracks].map(Expect::Relay);
        if self.expects.iter().any(|expect| begins.contains(expect)) {
            return Decision::Wait;
        }
        match self.hold {
            Hold::Preparing(_) | Hold::Once | Hold::Ending | Hold::Fencing => Decision::Wait,
            Hold::First(_) if self.queue.is_some() => {
                self.replay();
                self.take_queueing(command)
            }
            Hold::First(reason) => self.take_first(reason, command),
            Hold::Watching => self.take_watching(command),
            Hold::Queueing => self.take_queueing(command),
            Hold::Subscribed => self.take_subscribed(command),
            Hold::Stream => self.stream(bytes),
            Hold::Tracking => self.take_tracking(command),
        }
    }

    fn relay(&mut self, bytes: &[u8], expect: Option<Expect>, hold: Hold) -> Decision {
        self.requests.extend_from_slice(bytes);
        self.expects.extend(expect);
        self.hold = hold;
        Decision::Taken
    }

    /// From here on the bytes of both sides pass as they are. Not before all that is not simply relayed is answered.
    fn stream(&mut self, bytes: &[u8]) -> Decision {
        let relayed =
            |expect: &Expect| matches!(expect, Expect::Relay(_) | Expect::Confirmations(_));
        if !self.expects.iter().all(relayed) {
            return Decision::Wait;
        }
        self.expects.clear();
        self.relay(bytes, None, Hold::Stream)
    }

    /// The server runs a command of the session's own, whose state is on both sides.
    fn run_own(&mut self, word: Word, words: &[&[u8]], bytes: &[u8], hold: Hold) -> Decision {
        // What rides along with HELLO (AUTH, SETNAME) stays on the connection.
        if word == Word::Hello && words.len() > 2 {
            self.condition = Condition::Spoilt;
        }
        self.own.push_back(OwnCommand::new(word, words));
        self.relay(bytes, Some(Expect::Own), hold)
    }

    /// Refuses a command inside MULTI so that EXEC fails, as it does behind any other refusal.
    pub fn refuse_queued(&mut self, text: &str) -> Decision {
        write_command(&[UNKNOWN_COMMAND], &mut self.requests);
        self.expects.push_back(Expect::Refusal(text.into()));
        Decision::Taken
    }

    fn queue(&mut self, bytes: &[u8]) -> Decision {
        self.relay(bytes, Some(Expect::Relay(Meaning::Queued)), Hold::Queueing)
    }

    fn queue_own(&mut self, word: Word, words: &[&[u8]], bytes: &[u8]) -> Decision {
        if !self.transaction.has_room() {
            return self.refuse_queued(TOO_MANY);
        }
        let plain_hello = word == Word::Hello && words.len() <= 2;
        // The server would not know what opens here. It keeps the place of the answer; with nothing behind it, it refuses it.
        let mut in_its_place = Vec::new();
        let bytes = if word == Word::Auth && words.len() > 1 {
            write_command(&["PING"], &mut in_its_place);
            &*in_its_place
        } else {
            bytes
        };
        let asks =
            matches!(word, Word::Select | Word::GetName | Word::Id | Word::Info | Word::Auth);
        if !plain_hello && !asks {
            self.condition = Condition::Spoilt;
        }
        self.transaction.send_own(OwnCommand::new(word, words));
        self.relay(bytes, Some(Expect::Relay(Meaning::QueuedOwn)), Hold::Queueing)
    }

    fn plain(&mut self, bytes: &[u8]) -> Decision {
        self.relay(bytes, Some(Expect::Relay(Meaning::Plain)), self.hold)
    }

    /// Brings the server to where the session is in its transaction.
    fn replay(&mut self) {
        let Some(queue) = self.queue.take() else { return };
        write_command(&["MULTI"], &mut self.requests);
        self.requests.extend_from_slice(&queue.bytes);
        self.expects.push_back(Expect::Replayed(Meaning::Plain));
        self.expects.extend((0..queue.commands).map(|_| Expect::Replayed(Meaning::Queued)));
        self.hold = Hold::Queueing;
    }

    fn take_first(&mut self, reason: Reason, command: Command<'_>) -> Decision {
        let Command { words, bytes, .. } = command;
        let plain = Some(Expect::Relay(Meaning::Plain));
        match reason {
            Reason::Transaction => {
                let hold =
                    if command.step() == Step::Multi { Hold::Queueing } else { Hold::Watching };
                self.relay(bytes, Some(Expect::Relay(Meaning::Began)), hold)
            }
            Reason::Subscription => {
                self.hold = Hold::Subscribed;
                self.take_subscribed(Command { carriage: Carriage::Pinned(reason), ..command })
            }
            Reason::Stream => self.stream(bytes),
            Reason::Tracking => {
                self.condition = Condition::Spoilt;
                self.relay(bytes, Some(Expect::Relay(Meaning::Tracks)), Hold::Tracking)
            }
            Reason::Database => self.run_own(Word::Select, words, bytes, Hold::Once),
            Reason::Wait => {
                // WAIT is about the connection's own last write. The session's writes went over a lane, before this one,
                // so waiting for a later write of this connection covers them. A publication is replicated and stores nothing.
                write_command(&["PUBLISH", "tidegate:wait", ""], &mut self.requests);
                self.expects.push_back(Expect::Swallow);
                self.relay(bytes, plain, Hold::Once)
            }
            Reason::Blocking | Reason::Large | Reason::Kill => self.relay(bytes, plain, Hold::Once),
            Reason::Unknown => {
                self.condition = Condition::Spoilt;
                self.relay(bytes, plain, Hold::Once)
            }
        }
    }

    fn answer(&self, word: Word) -> Decision {
        if self.expects.is_empty() { Decision::Answer(word) } else { Decision::Wait }
    }

    fn refuse(&self, text: &'static str) -> Decision {
        if self.expects.is_empty() { Decision::Refuse(text) } else { Decision::Wait }
    }

    fn take_watching(&mut self, command: Command<'_>) -> Decision {
        let Command { words, carriage, bytes } = command;
        let [plain, ends] = [Meaning::Plain, Meaning::Ends].map(|one| Some(Expect::Relay(one)));
        match (command.step(), carriage) {
            (Step::Multi, _) if words.len() == 1 => self.relay(bytes, plain, Hold::Queueing),
            (Step::Unwatch, _) if words.len() == 1 => self.relay(bytes, ends, self.rest()),
            (_, Carriage::Pinned(Reason::Subscription)) => {
                self.condition = Condition::Spoilt;
                self.hold = Hold::Subscribed;
                self.take_subscribed(command)
            }
            _ => self.take_other(command),
        }
    }

    fn take_queueing(&mut self, command: Command<'_>) -> Decision {
        let Command { words, carriage, bytes } = command;
        match (command.step(), carriage) {
            // With more words it ends the transaction, too.
            (Step::Exec, _) => self.relay(bytes, Some(Expect::Relay(Meaning::Exec)), self.rest()),
            (Step::Discard, _) if words.len() == 1 => {
                self.relay(bytes, Some(Expect::Relay(Meaning::Ends)), self.rest())
            }
            (_, Carriage::Session(Word::Reset | Word::Quit)) => match carriage {
                Carriage::Session(word) => self.answer(word),
                _ => Decision::Wait,
            },
            // Where their answers will stand in EXEC's nobody can tell.
            (_, Carriage::Pinned(Reason::Subscription | Reason::Stream)) => self.stream(bytes),
            (_, Carriage::Refused(text)) => self.refuse_queued(text),
            (_, Carriage::Session(Word::MaintNotifications)) => {
                self.refuse_queued(NO_NOTIFICATIONS)
            }
            // There it would end connections of the server, which are everybody's.
            (_, Carriage::Session(Word::Kill)) => self.refuse_queued(NO_KILL),
            (_, Carriage::Session(word)) => self.queue_own(word, words, bytes),
            (_, Carriage::Pinned(Reason::Unknown)) => {
                self.condition = Condition::Spoilt;
                self.queue(bytes)
            }
            _ => self.queue(bytes),
        }
    }

    /// Its namespace lets nothing through that changes what comes unasked.
    fn take_tracking(&mut self, command: Command<'_>) -> Decision {
        let Command { words, carriage, bytes } = command;
        let [began, ends] = [Meaning::Began, Meaning::Ends].map(|one| Some(Expect::Relay(one)));
        match (command.step(), carriage) {
            (Step::Multi, _) if words.len() == 1 => self.relay(bytes, began, Hold::Queueing),
            (Step::Watch, _) if words.len() > 1 => self.relay(bytes, began, Hold::Watching),
            (_, Carriage::Lane) if is_tracking(words) => self.relay(bytes, ends, Hold::Ending),
            _ => self.take_other(command),
        }
    }

    fn take_subscribed(&mut self, command: Command<'_>) -> Decision {
        let Command { words, carriage, bytes } = command;
        match carriage {
            _ if is_unsubscribe(command.name()) => {
                self.requests.extend_from_slice(bytes);
                write_command(&["CLIENT", "INFO"], &mut self.requests);
                self.captured.clear();
                self.expects.push_back(Expect::Fence);
                self.hold = Hold::Fencing;
                Decision::Taken
            }
            Carriage::Pinned(Reason::Subscription) => {
                let confirmations = Expect::Confirmations(words.len().saturating_sub(1).max(1));
                self.relay(bytes, Some(confirmations), Hold::Subscribed)
            }
            Carriage::Session(word @ (Word::Reset | Word::Quit)) => self.answer(word),
            // A subscriber that speaks RESP2 is refused all this, which is the server's to do.
            Carriage::Session(_) if self.key.proto == Proto::Resp2 => self.plain(bytes),
            Carriage::Pinned(Reason::Transaction) => {
                self.condition = Condition::Spoilt;
                self.plain(bytes)
            }
            _ => self.take_other(command),
        }
    }

    /// What is done in the same way whatever the backend is held for.
    fn take_other(&mut self, command: Command<'_>) -> Decision {
        let Command { words, carriage, bytes } = command;
        match carriage {
            Carriage::Session(word @ (Word::Select | Word::Hello)) => {
                self.run_own(word, words, bytes, self.hold)
            }
            Carriage::Session(word) => self.answer(word),
            Carriage::Refused(text) => self.refuse(text),
            Carriage::Pinned(Reason::Stream) => self.stream(bytes),
            Carriage::Pinned(Reason::Unknown) => {
                self.condition = Condition::Spoilt;
                self.plain(bytes)
            }
            Carriage::Lane | Carriage::Pinned(_) => self.plain(bytes),
        }
    }
}
