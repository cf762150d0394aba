//! Requests sent and replies still owed on one server connection.
//!
//! The exchange is an exact queue: every frame that makes the server answer puts one entry in, every answer must fit
//! the entry in front. What doesn't fit is a [`Desync`], and the connection is closed before a wrong byte can reach a
//! session. Source: PostgreSQL documentation, "Message Flow", and for COPY and error recovery the behaviour of the
//! server's command loop (`PostgresMain`): after an error in the extended protocol it reads and ignores everything up
//! to the next Sync; in COPY FROM STDIN it ignores Sync and Flush, and any other frame ends the copy with an error.

use std::collections::VecDeque;
use std::sync::Arc;

use super::statements::Statement;

/// A named statement as a request changes it.
#[derive(Debug)]
pub struct Named {
    /// The client's name for it.
    pub name: Box<[u8]>,
    /// What the name stands for.
    pub statement: Arc<Statement>,
}

/// One reply owed by the server.
#[derive(Debug)]
pub enum Owed {
    /// A named Parse of the client's.
    ParseNamed(Box<Named>),
    /// A named Parse of a statement the server has already: a Close was sent in its place, and its answer is passed on
    /// as ParseComplete.
    ParseKnown(Box<Named>),
    /// An unnamed Parse, and what was unnamed before it.
    ParseUnnamed(Option<Arc<Statement>>),
    /// A Parse sent on unchanged, with no effect on any map.
    ParsePlain,
    /// A Parse of ours; the statement's number.
    ParseOurs(u64),
    /// A Close of a name the session had.
    CloseNamed(Box<Named>),
    /// A Close of the unnamed statement, and what it was.
    CloseUnnamed(Option<Arc<Statement>>),
    /// A Close of a portal, or of a name nobody knows.
    ClosePlain,
    /// A Close of ours.
    CloseOurs,
    /// A Close of ours that makes room for another statement; the number of the name.
    CloseEvicted(u64),
    /// A Bind.
    Bind,
    /// A Describe of a statement, or of a portal made of one: the statement's number, if it is known.
    Describe(Option<u64>),
    /// A Describe of ours.
    DescribeOurs(u64),
    /// A Bind that the server was made to refuse, and why.
    Refused(Refusal),
    /// An Execute.
    Execute,
    /// A Sync.
    Sync,
    /// A Sync of ours behind a Query: its answer is passed on only if the Query was never looked at.
    Spare,
    /// A simple Query.
    Query,
    /// A simple Query of ours, no part of whose answer is passed on.
    QueryOurs,
    /// A Query of ours that asks what the session has left on the server; its rows are kept.
    Truth,
    /// A Query of ours by which the hub takes over what the session listens to.
    HandOver,
    /// A Query of ours that leaves the server in a failed transaction, no part of whose answer is passed on.
    Failing,
    /// Frames of ours up to a Sync, behind a RESET: they bring back what the client gave at startup, and the client hears
    /// of it.
    Resettle,
    /// A FunctionCall.
    Function,
    /// A CopyDone or CopyFail that was sent before the server said it is copying.
    CopyEnd,
}

impl Owed {
    /// Whether an error before it does not reach beyond it.
    fn ends_flight(&self) -> bool {
        matches!(
            self,
            Self::Sync
                | Self::Spare
                | Self::Query
                | Self::QueryOurs
                | Self::Truth
                | Self::HandOver
                | Self::Failing
                | Self::Resettle
                | Self::Function
        )
    }
}

/// Why a Bind is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The statement's rows don't look as the client was told.
    Plan,
    /// It would read what a sequence gave to another session.
    Sequence,
}

/// The transaction status of the last ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No transaction.
    Idle,
    /// In a transaction.
    Transaction,
    /// In a failed transaction.
    Failed,
}

/// What the client's request in front is, if rows come for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// A Query: nothing but ReadyForQuery ends it.
    Query,
    /// An Execute: the first reply behind its rows does.
    Execute,
    /// Something else.
    Otherwise,
}

/// What becomes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on as it is.
    Relay,
    /// Passed on under another type.
    RelayAs(u8),
    /// Kept from the client.
    Swallow,
}

/// What a reply did to the requests behind it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing special.
    Went,
    /// An error: the requests it took with it are in [`Exchange::take_lost`].
    Lost,
    /// An error answered a query of ours.
    OursFailed,
    /// The server would not say what the session has left.
    TruthFailed,
    /// The hub can't take over.
    HandOverFailed,
    /// The client's startup settings did not come back.
    ResettleFailed,
}

/// The server's answer doesn't fit what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a '{}' frame that no request of ours asked for", char::from(*.tag))]
pub struct Desync {
    /// Type of the frame.
    pub tag: u8,
}

/// What the server does with the client's frames now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Answers them.
    Answering,
    /// Ignores them up to the next Sync.
    Skipping,
    /// Takes them as COPY data.
    CopyIn,
}

/// The queue of owed replies, and what it knows of the server's state.
#[derive(Debug)]
pub struct Exchange {
    owed: VecDeque<Owed>,
    lost: Vec<Owed>,
    mode: Mode,
    status: Status,
    synced: Synced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Synced {
    Yes,
    /// An extended-protocol frame went out and no Sync behind it: an implicit transaction may be open.
    No,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            owed: VecDeque::new(),
            lost: Vec::new(),
            mode: Mode::Answering,
            status: Status::Idle,
            synced: Synced::Yes,
        }
    }
}

impl Exchange {
    /// Whether nothing is owed and no transaction, explicit or implicit, can be open.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.owed.is_empty()
            && self.status == Status::Idle
            && self.synced == Synced::Yes
            && self.mode == Mode::Answering
    }

    /// Replies owed.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether something was sent behind the last Sync, or Query: an error in it takes with it what follows.
    #[must_use]
    pub fn is_inside_flight(&self) -> bool {
        self.owed.back().is_some_and(|owed| !owed.ends_flight())
    }

    /// What was unnamed before the first of the requests under way that change the unnamed statement; the outer `None` if there is no
    /// such request.
    pub fn next_unnamed(&mut self) -> Option<Option<&mut Option<Arc<Statement>>>> {
        self.owed.iter_mut().find_map(|owed| match owed {
            Owed::ParseUnnamed(before) | Owed::CloseUnnamed(before) => Some(Some(before)),
            Owed::Query => Some(None),
            _ => None,
        })
    }

    /// Whether a ReadyForQuery is owed.
    #[must_use]
    pub fn owes_ready(&self) -> bool {
        self.owed.iter().any(ends_flight)
    }

    /// Whether a reply is owed that the client waits for.
    #[must_use]
    pub fn owes_client(&self) -> bool {
        let ours = |owed: &Owed| {
            is_query_of_ours(owed)
                || matches!(
                    owed,
                    Owed::ParseOurs(_)
                        | Owed::DescribeOurs(_)
                        | Owed::CloseOurs
                        | Owed::CloseEvicted(_)
                )
        };
        self.owed.iter().any(|owed| !ours(owed))
    }

    /// Whether a request sent now goes behind another whose end the client has not heard.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.owed.is_empty() && self.synced == Synced::Yes && self.owes_client()
    }

    /// Whether an error now would take with it all that the client has asked for: nothing of its stands behind the next
    /// ReadyForQuery.
    #[must_use]
    pub fn is_last_flight(&self) -> bool {
        let runs =
            |owed: &Owed| !is_query_of_ours(owed) && !matches!(owed, Owed::Sync | Owed::CopyEnd);
        !self.owed.iter().skip_while(|owed| !ends_flight(owed)).skip(1).any(runs)
    }

    /// Whether the server is being brought into a failed transaction.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.owed.iter().any(|owed| matches!(owed, Owed::Failing))
    }

    /// The reply that would be the last to the request in front, if that is one of ours.
    #[must_use]
    pub fn end_of_ours(&self) -> Option<u8> {
        match self.owed.front()? {
            Owed::ParseOurs(_) => Some(b'1'),
            Owed::DescribeOurs(_) => Some(b'n'),
            Owed::CloseOurs | Owed::CloseEvicted(_) => Some(b'3'),
            front => is_query_of_ours(front).then_some(b'Z'),
        }
    }

    /// Whether a flight sent now is the first of a transaction, and the only one that the client waits for.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.status == Status::Idle
            && self.synced == Synced::Yes
            && self.mode == Mode::Answering
            && !self.owes_client()
    }

    /// The Sync in front becomes one of ours: its answer is swallowed. `false` if there is none in front.
    pub fn take_sync_over(&mut self) -> bool {
        match self.owed.front_mut() {
            Some(front) if is_sync(front) => {
                *front = Owed::QueryOurs;
                true
            }
            _ => false,
        }
    }

    /// Whether the reply that comes now tells what the session has left on the server.
    #[must_use]
    pub fn hears_truth(&self) -> bool {
        matches!(self.owed.front(), Some(Owed::Truth))
    }

    /// Whether the server answers the client now.
    #[must_use]
    pub fn answering(&self) -> Answers {
        match self.owed.front() {
            Some(Owed::Query) => Answers::Query,
            Some(Owed::Execute) => Answers::Execute,
            _ => Answers::Otherwise,
        }
    }

    /// The statement that the reply which comes now may describe.
    #[must_use]
    pub fn describes(&self) -> Option<&Owed> {
        self.owed
            .front()
            .filter(|front| matches!(front, Owed::Describe(Some(_)) | Owed::DescribeOurs(_)))
    }

    /// Why the request in front is refused, if that was our doing.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self.owed.front() {
            Some(Owed::Refused(why)) => Some(*why),
            _ => None,
        }
    }

    /// Whether the reply that comes now is to a query of the handover.
    #[must_use]
    pub fn hands_over(&self) -> bool {
        matches!(self.owed.front(), Some(Owed::HandOver))
    }

    /// The status of the last ReadyForQuery.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the server waits for COPY data.
    #[must_use]
    pub fn copies_in(&self) -> bool {
        self.mode == Mode::CopyIn
    }

    /// Whether a Sync is needed before the server's state is known: after extended-protocol frames without one, or
    /// while it skips.
    #[must_use]
    pub fn wants_sync(&self) -> bool {
        self.synced == Synced::No || self.mode == Mode::Skipping
    }

    /// Whether the server will look at an extended-protocol frame sent now, as far as is known.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.mode == Mode::Answering
    }

    /// A frame of the extended protocol other than Sync and Flush goes out.
    pub fn sent(&mut self, owed: Owed) {
        match self.mode {
            Mode::Answering => {
                self.owed.push_back(owed);
                self.synced = Synced::No;
            }
            Mode::Skipping => {}
            // Any frame that is not of COPY ends it with an error and is used up by that.
            Mode::CopyIn => self.mode = Mode::Answering,
        }
    }

    /// A Close or a Parse of ours goes out that opens no transaction by itself and comes ahead of other frames.
    pub fn sent_ahead(&mut self, owed: Owed) {
        self.owed.push_back(owed);
    }

    /// A simple Query or a FunctionCall goes out: it answers with a ReadyForQuery of its own.
    pub fn sent_query(&mut self, owed: Owed) {
        match self.mode {
            Mode::Answering => {
                self.owed.push_back(owed);
                self.synced = Synced::Yes;
            }
            Mode::Skipping => {}
            Mode::CopyIn => self.mode = Mode::Answering,
        }
    }

    /// A Sync goes out.
    pub fn sent_sync(&mut self) {
        match self.mode {
            Mode::CopyIn => {}
            Mode::Answering | Mode::Skipping => {
                self.mode = Mode::Answering;
                self.owed.push_back(Owed::Sync);
                self.synced = Synced::Yes;
            }
        }
    }

    /// A Sync of ours goes out behind a Query that may be lost with a Parse ahead of it.
    pub fn sent_spare(&mut self) {
        self.owed.push_back(Owed::Spare);
    }

    /// A CopyDone or CopyFail goes out.
    pub fn sent_copy_end(&mut self) {
        match self.mode {
            Mode::CopyIn => self.mode = Mode::Answering,
            // Nobody said yet that there is a copy: it counts only if one begins.
            Mode::Answering if !self.owed.is_empty() => self.owed.push_back(Owed::CopyEnd),
            Mode::Answering | Mode::Skipping => {}
        }
    }

    /// The requests that the last error took with it, oldest first; the first is the one that failed.
    pub fn take_lost(&mut self) -> Vec<Owed> {
        std::mem::take(&mut self.lost)
    }

    /// A reply of type `tag` came; `status` is the byte of a ReadyForQuery.
    ///
    /// # Errors
    /// [`Desync`] if no request asked for it.
    pub fn replied(&mut self, tag: u8, status: u8) -> Result<(Verdict, Outcome), Desync> {
        match tag {
            b'E' => return Ok(self.failed()),
            b'Z' => return self.ready(status).map(|verdict| (verdict, Outcome::Went)),
            b'G' => return self.copy_in().map(|verdict| (verdict, Outcome::Went)),
            _ => {}
        }
        let front = self.owed.front();
        let verdict = match tag {
            // Notices, settings and notifications come at any time.
            // What a statement is warned of, its client has heard when it was parsed first.
            b'N' if matches!(front, Some(Owed::ParseOurs(_))) => Verdict::Swallow,
            b'N' if front.is_some_and(is_query_of_ours) => Verdict::Swallow,
            b'S' if matches!(
                front,
                Some(Owed::QueryOurs | Owed::Truth | Owed::Failing | Owed::HandOver)
            ) =>
            {
                Verdict::Swallow
            }
            b'N' | b'S' | b'A' => Verdict::Relay,
            _ => self.fits(tag)?,
        };
        Ok((verdict, Outcome::Went))
    }

    /// Matches an ordinary reply with the request in front.
    fn fits(&mut self, tag: u8) -> Result<Verdict, Desync> {
        let front = self.owed.front().ok_or(Desync { tag })?;
        let (verdict, ends) = match (front, tag) {
            (Owed::ParseNamed(_) | Owed::ParseUnnamed(_) | Owed::ParsePlain, b'1') => {
                (Verdict::Relay, true)
            }
            (Owed::ParseOurs(_), b'1') | (Owed::CloseOurs | Owed::CloseEvicted(_), b'3') => {
                (Verdict::Swallow, true)
            }
            (Owed::ParseKnown(_), b'3') => (Verdict::RelayAs(b'1'), true),
            (Owed::CloseNamed(_) | Owed::CloseUnnamed(_) | Owed::ClosePlain, b'3') => {
                (Verdict::Relay, true)
            }
            (Owed::Bind, b'2') | (Owed::Describe(_), b'T' | b'n') => (Verdict::Relay, true),
            (Owed::Describe(_), b't') => (Verdict::Relay, false),
            (Owed::DescribeOurs(_), b'T' | b'n') => (Verdict::Swallow, true),
            (Owed::DescribeOurs(_), b't') => (Verdict::Swallow, false),
            (Owed::Execute, b'C' | b'I' | b's') => (Verdict::Relay, true),
            (Owed::Execute, b'D' | b'H' | b'W' | b'd' | b'c') => (Verdict::Relay, false),
            (Owed::Query, b'T' | b'D' | b'C' | b'I' | b'H' | b'W' | b'd' | b'c')
            | (Owed::Function, b'V') => (Verdict::Relay, false),
            (Owed::Resettle, b'1' | b'2' | b'3') => (Verdict::Swallow, false),
            (ours, b'T' | b'D' | b'C' | b'I') if is_query_of_ours(ours) => {
                (Verdict::Swallow, false)
            }
            _ => return Err(Desync { tag }),
        };
        if ends {
            self.answered();
        }
        Ok(verdict)
    }

    /// The request in front has its answer. A CopyDone behind it that no copy took counts for nothing.
    fn answered(&mut self) {
        self.owed.pop_front();
        while matches!(self.owed.front(), Some(Owed::CopyEnd)) {
            self.owed.pop_front();
        }
    }

    /// CopyInResponse: whatever was sent behind the COPY is read by it.
    fn copy_in(&mut self) -> Result<Verdict, Desync> {
        if !matches!(self.owed.front(), Some(Owed::Execute | Owed::Query)) {
            return Err(Desync { tag: b'G' });
        }
        self.mode = Mode::CopyIn;
        let by_query = matches!(self.owed.front(), Some(Owed::Query));
        while self.mode == Mode::CopyIn && self.owed.len() > 1 {
            match self.owed.remove(1) {
                // Ignored while copying; the client's real one is still to come.
                Some(Owed::Sync) => {}
                Some(Owed::CopyEnd) => self.mode = Mode::Answering,
                // Its first frame ends the copy. The rest is answered, or skipped up to the Sync.
                Some(Owed::Resettle) => {
                    self.mode = Mode::Answering;
                    let rest = if by_query { Owed::Resettle } else { Owed::Sync };
                    self.owed.insert(1, rest);
                }
                // Any other frame ends the copy with an error and is used up by that.
                Some(other) => {
                    self.mode = Mode::Answering;
                    self.lost.push(other);
                }
                None => {}
            }
        }
        // What is left decides, to its end: what stands behind the last Sync or Query leaves a transaction open.
        let mut last = self.owed.iter().rev().filter(|owed| !matches!(owed, Owed::CopyEnd));
        self.synced = if last.next().is_some_and(ends_flight) { Synced::Yes } else { Synced::No };
        Ok(Verdict::Relay)
    }

    fn failed(&mut self) -> (Verdict, Outcome) {
        if self.mode == Mode::CopyIn {
            self.mode = Mode::Answering;
        }
        match self.owed.front() {
            Some(Owed::QueryOurs) => return (Verdict::Swallow, Outcome::OursFailed),
            Some(Owed::Truth) => return (Verdict::Swallow, Outcome::TruthFailed),
            Some(Owed::Resettle) => return (Verdict::Swallow, Outcome::ResettleFailed),
            Some(Owed::HandOver) => return (Verdict::Swallow, Outcome::HandOverFailed),
            // As it should.
            Some(Owed::Failing) => return (Verdict::Swallow, Outcome::Went),
            // Nothing owed: the server's last words. At a Sync: a deferred check. Each stays in front for its Z.
            None | Some(Owed::Query | Owed::Function | Owed::Sync) => {
                return (Verdict::Relay, Outcome::Went);
            }
            Some(_) => {}
        }
        while let Some(front) = self.owed.front_mut() {
            if matches!(front, Owed::Spare) {
                *front = Owed::Sync;
            }
            if is_sync(front) {
                return (Verdict::Relay, Outcome::Lost);
            }
            if let Some(lost) = self.owed.pop_front() {
                self.lost.push(lost);
            }
        }
        self.mode = Mode::Skipping;
        (Verdict::Relay, Outcome::Lost)
    }

    fn ready(&mut self, status: u8) -> Result<Verdict, Desync> {
        let verdict = match self.owed.front() {
            Some(Owed::Sync | Owed::Query | Owed::Function) => Verdict::Relay,
            Some(ours) if is_query_of_ours(ours) => Verdict::Swallow,
            _ => return Err(Desync { tag: b'Z' }),
        };
        self.status = match status {
            b'I' => Status::Idle,
            b'T' => Status::Transaction,
            b'E' => Status::Failed,
            _ => return Err(Desync { tag: b'Z' }),
        };
        if self.mode == Mode::CopyIn {
            self.mode = Mode::Answering;
        }
        self.answered();
        Ok(verdict)
    }
}

fn is_query_of_ours(owed: &Owed) -> bool {
    matches!(
        owed,
        Owed::QueryOurs
            | Owed::Truth
            | Owed::Resettle
            | Owed::Failing
            | Owed::HandOver
            | Owed::Spare
    )
}

/// Whether the answer to it ends with a ReadyForQuery.
fn ends_flight(owed: &Owed) -> bool {
    matches!(owed, Owed::Sync | Owed::Query | Owed::Function) || is_query_of_ours(owed)
}

fn is_sync(owed: &Owed) -> bool {
    matches!(owed, Owed::Sync)
}

#[cfg(test)]
mod tests;
