//! A server connection lost with a session on it: what the client is told, so that its session can go on.

use super::super::exchange::Status;
use super::super::message::{self, ErrorFields};
use super::ledger::Keepsake;
use super::replies::undo;
use super::{Ledger, Line, Retry, Stance};

/// How a session sends its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// Each after it has heard the end of the one before.
    #[default]
    InTurn,
    /// Some before that: it may be sending what makes sense only if the one before worked.
    Ahead,
}

/// What becomes of a session whose connection is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It ends: it had something on the connection that nothing brings back, or nobody can tell what its client
    /// believes.
    Ends,
    /// Nothing was asked of the server that it can have run: these bytes of the client's go again.
    Unrun(Vec<u8>),
    /// It goes on.
    GoesOn(Aftermath),
}

/// How a session goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aftermath {
    /// For the client, now.
    pub words: Vec<u8>,
    /// Whether the rest of a refused request is still to come.
    pub stance: Stance,
    /// Whether the client has to be told at its next request.
    pub late: Late,
    /// What the client's transaction has come to.
    pub transaction: Transaction,
    /// Bytes still to come of a frame that nobody wants any more.
    pub dropping: u32,
}

/// Whether a client that was owed nothing has to hear of the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Late {
    /// No.
    #[default]
    No,
    /// When it asks for something next.
    NextRequest,
}

/// What a client's transaction has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transaction {
    /// There is none.
    #[default]
    None,
    /// It has failed and waits for its ROLLBACK.
    Failed,
}

/// SQLSTATEs by which a server refuses to go on, before it looks at what it was sent: administrator's shutdown, not
/// accepting connections, idle session timeout.
const BEFORE_WORK: [&str; 3] = ["57P01", "57P03", "57P05"];

/// The connection is lost; `error` says so to whoever has to hear it. The line is of no use afterwards.
pub fn lose(
    line: &mut Line,
    ledger: &mut Option<Box<Ledger>>,
    pace: Pace,
    error: &ErrorFields,
) -> Loss {
    let exchange = &line.exchange;
    let status = exchange.status();
    let owes = exchange.owes_client();
    let open = status != Status::Idle || exchange.is_failing();
    // Outside a transaction what follows would run as if the lost request had ended well.
    let believes = !open && owes && (pace == Pace::Ahead || line.pace == Pace::Ahead);
    if !line.server_at_boundary() || believes {
        return Loss::Ends;
    }
    if ledger.as_deref_mut().is_some_and(|ledger| ledger.lost() == Keepsake::Lost) {
        return Loss::Ends;
    }
    let answers = exchange.answers();
    let wants_sync = exchange.wants_sync();
    let ready = message::ready(if open { Status::Failed } else { Status::Idle });
    let Some(words) = tell(line, ledger, &message::error_frame(error), &ready) else {
        return Loss::Ends;
    };
    if owes && let Some(flight) = unrun(line) {
        return Loss::Unrun(flight);
    }
    let refusing = wants_sync && (owes || !answers);
    // Who was in a failed transaction has had its error.
    let unheard = !owes && answers && (status == Status::Transaction || wants_sync);
    Loss::GoesOn(Aftermath {
        words: if owes { words } else { Vec::new() },
        stance: if refusing { Stance::Refusing } else { Stance::Open },
        late: if unheard { Late::NextRequest } else { Late::No },
        transaction: if open { Transaction::Failed } else { Transaction::None },
        dropping: line.client_rest,
    })
}

/// The error, and the end, for each request under way; what they did to the session's maps is taken back.
fn tell(
    line: &mut Line,
    ledger: &mut Option<Box<Ledger>>,
    error: &[u8],
    ready: &[u8],
) -> Option<Vec<u8>> {
    let status = *ready.last()?;
    let mut words = Vec::new();
    while line.exchange.owed() > 0 {
        if let Some(tag) = line.exchange.end_of_ours() {
            line.exchange.replied(tag, status).ok()?;
            continue;
        }
        line.exchange.replied(b'E', status).ok()?;
        undo(line, ledger);
        words.extend_from_slice(error);
        if line.exchange.owed() > 0 {
            line.exchange.replied(b'Z', status).ok()?;
            words.extend_from_slice(ready);
        }
    }
    Some(words)
}

/// The client's bytes, if the server can have run nothing of them: it said why it goes, and every answer that comes
/// before a statement runs (ParseComplete, BindComplete) was still owed. A server's buffer empties in order.
fn unrun(line: &mut Line) -> Option<Vec<u8>> {
    let before_work =
        line.farewell().is_some_and(|error| BEFORE_WORK.contains(&error.code.as_str()));
    let possible = matches!(line.retry, Retry::Possible | Retry::IfUnrun) && line.told_parses == 0;
    (before_work && possible).then(|| std::mem::take(&mut line.flight))
}
