//! One client of the console, from its first command to its goodbye.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{interval, timeout};

use super::command::{self, Command, Show, Target};
use super::control::Change;
use super::extended::{Described, Execute, Prepared, description};
use super::show::POOL;
use super::table::{Columns, Formats, Table, Value, complete, data_row, describe, frame};
use super::{Desk, config, invalid};
use crate::lifecycle::Drain;
use crate::net::{Address, Stream};
use crate::postgres::cancel::CancelHandle;
use crate::postgres::clients::{Seats, Wanted};
use crate::postgres::exchange::Status;
use crate::postgres::message::{
    ErrorFields, Severity, cstr, error_frame, next_frame, notice_frame, ready,
};
use crate::postgres::orders::Entry;
use crate::postgres::settings::{self, Settings};

/// Longest frame of a client.
const FRAME_BYTES: usize = 64 * 1024;
/// Bytes asked of the socket at once.
const READ_BYTES: usize = 4096;
/// Longest time to deliver the last words to a client that is sent away, and most reads of what it still sends.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_READS: usize = 64;
/// Time between two looks whether what a command waits for has come.
const LOOK: Duration = Duration::from_millis(20);

const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION|STATE\
    \n\tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|HOLDERS\
    \n\tSHOW DNS_HOSTS|DNS_ZONES\
    \n\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\
    \n\tPAUSE [<db>]\
    \n\tRESUME [<db>]\
    \n\tDISABLE <db>\
    \n\tENABLE <db>\
    \n\tRECONNECT [<db>]\
    \n\tKILL <db>\
    \n\tRELOAD\
    \n\tSHUTDOWN\
    \n\tWAIT_CLOSE [<db>]";

/// How a visit ends.
enum End {
    /// The client has gone.
    Gone,
    /// It is sent away with these words.
    Dismissed(ErrorFields),
}

/// Why a wait ends before its time.
enum Interruption {
    /// The client does not want to wait any longer.
    Cancelled,
    End(End),
}

/// Whether frames of the extended protocol are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Reading,
    /// One went wrong: nothing is, until the next Sync.
    Skipping,
}

/// What a command brings.
struct Outcome {
    notice: Option<ErrorFields>,
    table: Option<Table>,
    tag: String,
}

impl Outcome {
    fn done(tag: &str) -> Self {
        Self { notice: None, table: None, tag: tag.to_owned() }
    }
}

struct Visit {
    desk: Desk,
    client: Stream,
    received: BytesMut,
    cancel: CancelHandle,
    drain: Drain,
    block: Status,
    pace: Pace,
    prepared: Prepared,
}

impl Desk {
    /// What the client is told of settings at login.
    pub(in crate::postgres) fn reported(&self) -> &[(String, String)] {
        &self.reported
    }

    /// Serves the client until it leaves or the drain starts.
    pub(in crate::postgres) async fn pass(
        self,
        client: Stream,
        leftover: Vec<u8>,
        cancel: CancelHandle,
        (peer, drain): (Address, Drain),
    ) {
        let _guard = drain.guard();
        let seats = Seats::new(POOL, &self.user, &self.database);
        let asked = settings::normalize(&self.parameters).unwrap_or_default();
        let settings = Settings { plan: 0, startup: None, asked, reported: Vec::new() };
        let ends = (peer, client.local());
        cancel.card().introduce(ends, &Arc::new(settings), &seats);
        let received = BytesMut::from(&leftover[..]);
        let (block, pace, prepared) = (Status::Idle, Pace::Reading, Prepared::default());
        let desk = self;
        let mut visit = Visit { desk, client, received, cancel, drain, block, pace, prepared };
        let end = visit.talk().await;
        if let End::Dismissed(fields) = end {
            // Whoever doesn't read its last words goes without them.
            let _sent = timeout(LAST_WORDS, visit.say_goodbye(&error_frame(&fields))).await;
        }
    }
}

impl Visit {
    async fn talk(&mut self) -> End {
        loop {
            let (tag, body) = match self.frame().await {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            if let Err(end) = self.take(tag, &body).await {
                return end;
            }
        }
    }

    async fn say_goodbye(&mut self, words: &[u8]) {
        if self.send(words).await.is_err() || self.client.shutdown().await.is_err() {
            return;
        }
        // Closing a socket with bytes unread resets it, and the words could be lost with it.
        let mut piece = [0; 1024];
        for _ in 0..LAST_READS {
            if !matches!(self.client.read(&mut piece).await, Ok(1..)) {
                return;
            }
        }
    }

    /// The next frame: its type and body.
    async fn frame(&mut self) -> Result<(u8, Vec<u8>), End> {
        loop {
            let next = next_frame(&self.received, FRAME_BYTES)
                .map_err(|error| End::Dismissed(ErrorFields::fatal("08P01", error.to_string())))?;
            if let Some(frame) = next {
                let (tag, body, bytes) = (frame.tag, frame.body.to_vec(), frame.bytes);
                let _frame = self.received.split_to(bytes);
                return Ok((tag, body));
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), End> {
        self.received.reserve(READ_BYTES);
        let limit = self.desk.console.settings.get().limits.client_idle_timeout;
        let idle = async {
            if limit.is_zero() {
                std::future::pending().await
            } else {
                tokio::time::sleep(limit).await;
            }
        };
        let card = Arc::clone(self.cancel.card());
        tokio::select! {
            biased;
            () = self.drain.started() => Err(End::Dismissed(leaving())),
            () = poll_fn(|cx| card.poll_wanted(cx)) => {
                // There is nothing to cancel.
                let wanted = card.take_wanted();
                if wanted.has(Wanted::LEAVE) { Err(End::Dismissed(leaving())) } else { Ok(()) }
            }
            read = self.client.read_buf(&mut self.received) => match read {
                Ok(1..) => Ok(()),
                Ok(0) | Err(_) => Err(End::Gone),
            },
            () = idle => {
                let message = "terminating connection due to idle-session timeout";
                Err(End::Dismissed(ErrorFields::fatal("57P05", message)))
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let limit = self.desk.console.settings.get().limits.slow_reader;
        let sent = timeout(limit, async {
            self.client.write_all(bytes).await?;
            self.client.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    async fn take(&mut self, tag: u8, body: &[u8]) -> Result<(), End> {
        match tag {
            b'X' => Err(End::Gone),
            b'S' => {
                self.pace = Pace::Reading;
                if self.block == Status::Idle {
                    self.prepared.end_transaction();
                }
                self.send(&ready(self.block)).await
            }
            _ if self.pace == Pace::Skipping => Ok(()),
            b'Q' => self.simple(body).await,
            b'P' | b'B' | b'D' | b'E' | b'C' => self.extended(tag, body).await,
            // All is sent at once.
            b'H' => Ok(()),
            // Left over from a COPY that never began.
            b'd' | b'c' | b'f' => Ok(()),
            b'F' => {
                let refused = error_frame(&unsupported("function calls", "Send a command."));
                self.send(&[refused, ready(self.block)].concat()).await
            }
            other => {
                let message = format!("invalid frontend message type {other}");
                Err(End::Dismissed(ErrorFields::fatal("08P01", message)))
            }
        }
    }

    /// A Query: all its commands, up to one that fails.
    async fn simple(&mut self, body: &[u8]) -> Result<(), End> {
        let text = cstr(body).and_then(|(text, _)| std::str::from_utf8(text).ok());
        let read = text
            .ok_or_else(|| invalid("that is not UTF-8"))
            .and_then(|text| command::read(text).map_err(|words| invalid(&words)));
        let mut said = Vec::new();
        match read {
            Err(fields) => said.extend(self.failed(&fields)),
            Ok(commands) if commands.is_empty() => said.extend(frame(b'I', b"")),
            Ok(commands) => {
                for command in commands {
                    match self.run(command).await? {
                        Ok(outcome) => put(outcome, &mut said),
                        Err(fields) => {
                            said.extend(self.failed(&fields));
                            break;
                        }
                    }
                }
            }
        }
        said.extend(ready(self.block));
        self.send(&said).await
    }

    /// One frame of the extended protocol.
    async fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), End> {
        let said = match tag {
            b'P' => self.prepared.parse(body),
            b'B' => self.prepared.bind(body),
            b'C' => self.prepared.close(body),
            b'D' => self.prepared.describe(body).map(|described| {
                let (Described::Statement(command) | Described::Portal(command, _)) = described;
                let columns = command.and_then(columns);
                description(&described, columns)
            }),
            _ => self.execute(body).await?,
        };
        match said {
            Ok(said) => self.send(&said).await,
            Err(fields) => {
                self.pace = Pace::Skipping;
                let failed = self.failed(&fields);
                self.send(&failed).await
            }
        }
    }

    async fn execute(&mut self, body: &[u8]) -> Result<Result<Vec<u8>, ErrorFields>, End> {
        let command = match self.prepared.execute(body) {
            Ok(Execute::Say(said)) => return Ok(Ok(said)),
            Ok(Execute::Run(command)) => command,
            Err(fields) => return Ok(Err(fields)),
        };
        let outcome = match self.run(command).await? {
            Ok(outcome) => outcome,
            Err(fields) => return Ok(Err(fields)),
        };
        let mut said = outcome.notice.as_ref().map(notice_frame).unwrap_or_default();
        let Some(Table { columns, rows }) = outcome.table else {
            said.extend(complete(&outcome.tag));
            return Ok(Ok(said));
        };
        Ok(self.prepared.ran(body, columns, rows, outcome.tag).map(|rows| [said, rows].concat()))
    }

    /// An error's frame; a transaction block has failed with it.
    fn failed(&mut self, fields: &ErrorFields) -> Vec<u8> {
        if self.block == Status::Transaction {
            self.block = Status::Failed;
        }
        error_frame(fields)
    }

    async fn run(&mut self, command: Command) -> Result<Result<Outcome, ErrorFields>, End> {
        self.desk.console.commands.fetch_add(1, Relaxed);
        if self.block == Status::Failed && !matches!(command, Command::End(_)) {
            let message =
                "current transaction is aborted, commands ignored until end of transaction block";
            return Ok(Err(ErrorFields::error("25P02", message)));
        }
        match &command {
            Command::Pause(_) | Command::WaitClose(_) | Command::Kill(_) | Command::Reload => {}
            _ => return Ok(self.run_at_once(command)),
        }
        tracing::info!(user = self.desk.user, ?command, "console");
        match self.run_and_wait(command).await {
            Ok(outcome) => Ok(outcome),
            Err(Interruption::Cancelled) => {
                let message = "canceling statement due to user request";
                Ok(Err(ErrorFields::error("57014", message)))
            }
            Err(Interruption::End(end)) => Err(end),
        }
    }

    /// What ends when others have done their part.
    async fn run_and_wait(
        &mut self,
        command: Command,
    ) -> Result<Result<Outcome, ErrorFields>, Interruption> {
        match command {
            Command::Pause(target) => self.pause(&target).await,
            Command::Kill(database) => self.kill(&Target::Database(database)).await,
            Command::WaitClose(target) => self.wait_close(&target).await,
            Command::Reload => self.reload().await,
            other => Ok(self.run_at_once(other)),
        }
    }

    async fn pause(
        &mut self,
        target: &Target,
    ) -> Result<Result<Outcome, ErrorFields>, Interruption> {
        let console = Arc::clone(&self.desk.console);
        let change = match console.pause(target) {
            Ok(change) => change,
            Err(fields) => return Ok(Err(fields)),
        };
        let over = || console.outdated(target) == 0 || !console.is_paused(target);
        if let Err(interruption) = self.wait(over).await {
            // A pause that nobody knows of must not last.
            if change == Change::Made {
                let _resumed = console.resume(target);
            }
            return Err(interruption);
        }
        if !console.is_paused(target) {
            return Ok(Err(not_paused("it was resumed before all was idle")));
        }
        Ok(Ok(Outcome::done("PAUSE")))
    }

    async fn kill(
        &mut self,
        target: &Target,
    ) -> Result<Result<Outcome, ErrorFields>, Interruption> {
        let console = Arc::clone(&self.desk.console);
        let killed = match console.kill(target) {
            Ok(killed) => killed,
            Err(fields) => return Ok(Err(fields)),
        };
        // Who comes meanwhile is none of them, and may stay.
        self.wait(|| console.outdated(target) == 0 && !console.has_any(&killed)).await?;
        Ok(Ok(Outcome::done("KILL")))
    }

    /// Has the settings read again: what waits for a restart comes as a notice, what is wrong as an error.
    async fn reload(&mut self) -> Result<Result<Outcome, ErrorFields>, Interruption> {
        let Some(request) = self.desk.console.reload.clone() else {
            return Ok(Err(unsupported("RELOAD", "Restart tidegate.")));
        };
        let asked = tokio::spawn(async move { request.make().await });
        self.wait(|| asked.is_finished()).await?;
        let answer = asked.await.unwrap_or_else(|_| Err("the settings were not read".to_owned()));
        Ok(match answer {
            Ok(words) if words.is_empty() => Ok(Outcome::done("RELOAD")),
            Ok(words) => {
                let notice = ErrorFields::new(Severity::Notice, "01000", words.join("; "));
                Ok(Outcome { notice: Some(notice), ..Outcome::done("RELOAD") })
            }
            // The code of a configuration file in error.
            Err(problem) => Err(ErrorFields::error("F0000", problem)
                .hint("Nothing has changed. Mend it and RELOAD again.")),
        })
    }

    async fn wait_close(
        &mut self,
        target: &Target,
    ) -> Result<Result<Outcome, ErrorFields>, Interruption> {
        let console = Arc::clone(&self.desk.console);
        if let Err(fields) = console.named(target) {
            return Ok(Err(fields));
        }
        self.wait(|| console.outdated(target) == 0).await?;
        Ok(Ok(Outcome::done("WAIT_CLOSE")))
    }

    /// Waits until it is `over`, unless the client leaves or cancels, or the drain starts.
    async fn wait(&mut self, over: impl Fn() -> bool) -> Result<(), Interruption> {
        let mut looks = interval(LOOK);
        let card = Arc::clone(self.cancel.card());
        self.cancel.clear();
        while !over() {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.drain.started() => {
                    return Err(Interruption::End(End::Dismissed(leaving())));
                }
                () = poll_fn(|cx| card.poll_wanted(cx)) => {
                    let wanted = card.take_wanted();
                    if wanted.has(Wanted::LEAVE) {
                        return Err(Interruption::End(End::Dismissed(leaving())));
                    }
                    if wanted.has(Wanted::CANCEL) {
                        return Err(Interruption::Cancelled);
                    }
                }
                () = poll_fn(|cx| self.client.poll_hangup(cx)) => {
                    return Err(Interruption::End(End::Gone));
                }
            }
        }
        Ok(())
    }

    fn run_at_once(&mut self, command: Command) -> Result<Outcome, ErrorFields> {
        match command {
            Command::Show(Show::Help) => {
                let usage = ErrorFields::new(Severity::Notice, "00000", "Console usage");
                let notice = Some(usage.detail(HELP));
                Ok(Outcome { notice, ..Outcome::done("SHOW") })
            }
            Command::Show(Show::Fds) => Err(unsupported(
                "SHOW FDS",
                "Descriptors are not handed to another process; start a second tidegate and stop this one instead.",
            )),
            Command::Show(show) => {
                let table = Some(self.desk.console.show(show));
                Ok(Outcome { table, ..Outcome::done("SHOW") })
            }
            Command::Variable(name) => {
                Ok(Outcome { table: Some(command::variable(name)), ..Outcome::done("SHOW") })
            }
            Command::Begin(tag) => {
                self.block = Status::Transaction;
                Ok(Outcome::done(tag))
            }
            Command::End(tag) => {
                let failed = self.block == Status::Failed;
                self.block = Status::Idle;
                Ok(Outcome::done(if failed { "ROLLBACK" } else { tag }))
            }
            Command::Harmless(tag) => {
                if tag != "RESET" {
                    self.prepared.clear();
                }
                Ok(Outcome::done(tag))
            }
            Command::Set(name) if config::knows(&name) => {
                Err(unsupported("SET of settings", "Change the configuration file and RELOAD."))
            }
            Command::Set(_) => Ok(Outcome::done("SET")),
            other => {
                tracing::info!(user = self.desk.user, command = ?other, "console");
                self.obey(other)
            }
        }
    }

    /// What changes something and needs no wait.
    fn obey(&self, command: Command) -> Result<Outcome, ErrorFields> {
        let console = &self.desk.console;
        match command {
            Command::Resume(target) => match (console.resume(&target)?, target) {
                (Change::Made, _) => Ok(Outcome::done("RESUME")),
                (Change::None, Target::All) => Err(not_paused("no database is paused")),
                (Change::None, Target::Database(name)) => {
                    Err(not_paused(&format!("database {name} is not paused")))
                }
            },
            Command::Reconnect(target) => {
                console.reconnect(&target).map(|()| Outcome::done("RECONNECT"))
            }
            Command::Disable(database) => {
                console.admit(&database, Entry::Disabled).map(|()| Outcome::done("DISABLE"))
            }
            Command::Enable(database) => {
                console.admit(&database, Entry::Allowed).map(|()| Outcome::done("ENABLE"))
            }
            Command::Shutdown => match &console.stop {
                Some(stop) => {
                    stop.make();
                    Ok(Outcome::done("SHUTDOWN"))
                }
                None => Err(unsupported(
                    "SHUTDOWN under tidegate run",
                    "It lives as long as the command that it runs: stop that.",
                )),
            },
            Command::Suspend => Err(unsupported("SUSPEND", "PAUSE does what it is mostly for.")),
            _ => Err(invalid("")),
        }
    }
}

/// The columns that a command's rows have.
fn columns(command: &Command) -> Option<Columns> {
    match command {
        Command::Show(Show::Help | Show::Fds) => None,
        Command::Show(Show::Config) => Some(config::COLUMNS),
        Command::Show(show) => Some(show.columns()),
        Command::Variable(name) => Some(command::variable(name).columns),
        _ => None,
    }
}

/// A command's frames in the simple protocol.
fn put(outcome: Outcome, said: &mut Vec<u8>) {
    let Outcome { notice, table, tag } = outcome;
    said.extend(notice.as_ref().map(notice_frame).unwrap_or_default());
    if let Some(Table { columns, rows }) = table {
        let formats = Formats::default();
        said.extend(describe(columns, &formats));
        let rows: &[Vec<Value>] = &rows;
        rows.iter().for_each(|row| said.extend(data_row(columns, row, &formats)));
    }
    said.extend(complete(&tag));
}

fn unsupported(what: &str, hint: &str) -> ErrorFields {
    ErrorFields::error("0A000", format!("{what}: not supported")).hint(hint)
}

fn not_paused(message: &str) -> ErrorFields {
    ErrorFields::error("55000", message)
}

fn leaving() -> ErrorFields {
    ErrorFields::fatal("57P01", "terminating connection due to administrator command")
}
