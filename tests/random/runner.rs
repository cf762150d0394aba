//! Runs a script on both sides in lock step, and sees to it that sessions of the pool move between server connections.
//!
//! Which sessions hold a server connection is what the server says of the direct side: those in a transaction, and those
//! that have left something. All other connections but one are held by *blockers*, clients in a transaction of their
//! own; so the seed decides which connection a session's next step runs on, and a pool that keeps a connection for no
//! reason is found out because a blocker waits for it in vain.

use std::collections::BTreeSet;

use super::chance::Chance;
use super::script::{Act, Message, Script, Segment, Step, hides_settings, may_keep, resets};
use super::side::{Client, State, neutral};
use super::stage::{SENTINEL, Stage};
use crate::support::pg::{Connection, Frame, Login};

/// A script that did not go the same way on both sides.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The step at which it showed.
    pub step: usize,
    pub what: String,
}

/// What scripts that went well have done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub scripts: usize,
    pub steps: usize,
    pub skipped: usize,
    pub sessions: usize,
    /// Sessions that had been served by two server connections before the script's end.
    pub moved_early: usize,
    pub errors: usize,
    pub notifications: usize,
    pub pinned_steps: usize,
    /// Steps behind which the pool reported a setting later than the server would.
    pub late_reports: usize,
    /// Sessions that heard notifications of several channels in another order.
    pub mixed: usize,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.scripts += other.scripts;
        self.steps += other.steps;
        self.skipped += other.skipped;
        self.sessions += other.sessions;
        self.moved_early += other.moved_early;
        self.errors += other.errors;
        self.notifications += other.notifications;
        self.pinned_steps += other.pinned_steps;
        self.late_reports += other.late_reports;
        self.mixed += other.mixed;
    }
}

/// A session on both sides.
struct Session {
    login: usize,
    pair: Option<Pair>,
    /// Keeps a server connection between two steps.
    holds: Holds,
    /// The server connection that served it last.
    last: Option<String>,
    seen: BTreeSet<String>,
    /// Some statement it has prepared may keep the server connection.
    keeps_later: bool,
    listened: bool,
    /// It may have changed a custom setting whose name nobody can tell: its connection stays until DISCARD ALL.
    hid: bool,
    hides_later: bool,
    /// Some statement it has prepared is given the name of a setting.
    binds_names: bool,
    resets_later: bool,
    /// Whether a RESET stands in the open transaction, and whether a named statement sets an isolation level.
    reset_inside: bool,
    isolates_later: bool,
}

struct Pair {
    direct: Client,
    pooled: Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// It is in a transaction.
    Transaction,
    /// It has left something.
    Pin,
}

/// Whether a step has been run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    Yes,
    /// It would have had to wait for a server connection, or runs only outside transactions.
    Skipped,
}

pub struct Run<'a> {
    stage: &'a mut Stage,
    sessions: Vec<Session>,
    chance: Chance,
    tally: Tally,
    at: usize,
}

type Outcome<T> = Result<T, Difference>;

/// Runs the script; the stage is clean afterwards if it went well, and to be thrown away if not.
pub fn run(stage: &mut Stage, script: &Script) -> Outcome<Tally> {
    stage.set_tables();
    let sessions = script.sessions.iter().map(|&login| Session::new(login)).collect();
    let chance = Chance::new(script.seed);
    let mut run = Run { stage, sessions, chance, tally: Tally::default(), at: 0 };
    run.play(script)?;
    run.finish()?;
    let tally = run.tally;
    if script.changes_tables() {
        stage.renew_tables();
    }
    Ok(tally)
}

impl Session {
    fn new(login: usize) -> Self {
        Self {
            login,
            pair: None,
            holds: Holds::Nothing,
            last: None,
            seen: BTreeSet::new(),
            keeps_later: false,
            listened: false,
            hid: false,
            hides_later: false,
            binds_names: false,
            resets_later: false,
            reset_inside: false,
            isolates_later: false,
        }
    }

    /// Whether saying this may keep a server connection.
    fn may_keep(&self, segments: &[Segment]) -> bool {
        segments.iter().flatten().any(|message| match message {
            Message::Query(sql) | Message::Parse(_, sql) => may_keep(sql),
            Message::Bind { .. } => self.keeps_later || self.binds_names,
            Message::Flush => true,
            _ => false,
        })
    }
}

impl Session {
    /// Whether it would look at its settings behind a RESET in the same flight: the pool brings what was given at startup
    /// back behind that.
    fn looks_too_early(&self, segments: &[Segment]) -> bool {
        self.login != 0
            && segments.iter().any(|segment| {
                let executes =
                    segment.iter().filter(|message| matches!(message, Message::Execute(..)));
                let several = executes.count() > 1;
                segment.iter().any(|message| match message {
                    Message::Query(sql) => resets(sql) && sql.contains(';'),
                    Message::Parse(_, sql) => several && resets(sql),
                    Message::Bind { .. } => several && self.resets_later,
                    _ => false,
                })
            })
    }
}

impl Session {
    /// Whether it would set the isolation level behind a RESET of its transaction: what was given at startup is brought back
    /// by a query, behind which the server allows that no more.
    fn isolates_too_late(&self, segments: &[Segment]) -> bool {
        let isolates = |message: &Message| match message {
            Message::Query(sql) | Message::Parse(_, sql) => sql.contains("isolation"),
            Message::Bind { .. } => self.isolates_later,
            _ => false,
        };
        self.login != 0 && self.reset_inside && segments.iter().flatten().any(isolates)
    }
}

impl Run<'_> {
    fn play(&mut self, script: &Script) -> Outcome<()> {
        self.tally.scripts = 1;
        for (at, step) in script.steps.iter().enumerate() {
            self.at = at;
            match self.step(step)? {
                Ran::Yes => self.tally.steps += 1,
                Ran::Skipped => self.tally.skipped += 1,
            }
        }
        self.at = script.steps.len();
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Outcome<Ran> {
        let s = step.session;
        match &step.act {
            Act::Say(segments) => {
                if self.sessions[s].pair.is_none() {
                    self.come(s, self.sessions[s].login)?;
                }
                if self.sessions[s].pair.is_none() {
                    return Ok(Ran::Skipped);
                }
                self.say_step(s, segments, step.shift)
            }
            Act::Come(login) => {
                if self.sessions[s].pair.is_some() {
                    return Ok(Ran::Skipped);
                }
                self.come(s, *login)?;
                Ok(Ran::Yes)
            }
            how => self.go(s, how),
        }
    }

    fn say_step(&mut self, s: usize, segments: &[Segment], shift: Option<usize>) -> Outcome<Ran> {
        let keeps = self.sessions[s].may_keep(segments);
        let free_but_one = self.free() >= 2;
        if self.sessions[s].looks_too_early(segments) {
            return Ok(Ran::Skipped);
        }
        if self.pair(s).direct.status == 'I' {
            self.sessions[s].reset_inside = false;
        }
        if self.sessions[s].listened && unlistens(segments) {
            if segments.len() > 1 || self.pair(s).direct.status != 'I' {
                return Ok(Ran::Skipped);
            }
            // An UNLISTEN may overtake what the hub has not heard yet.
            self.make_room(s, None)?;
            self.say(s, &[vec![Message::Query("select 'all is heard'".into())]])?;
            let Some(pair) = &mut self.sessions[s].pair else { return Ok(Ran::Skipped) };
            pair.pooled.listen_for(pair.direct.heard.len());
        }
        if self.sessions[s].isolates_too_late(segments) {
            return Ok(Ran::Skipped);
        }
        let pair = self.pair(s);
        if pair.direct.status == 'E' && ends_in_flush(segments) {
            return Ok(Ran::Skipped);
        }
        if pair.direct.status != 'I' && listens(segments) {
            // Who listens already hears what others said since its transaction began, too.
            return Ok(Ran::Skipped);
        }
        let may_have_failed = match pair.direct.status {
            'E' => true,
            'T' => segments.len() > 1,
            _ => false,
        };
        if may_have_failed && describes_a_name(segments) {
            return Ok(Ran::Skipped);
        }
        if executes_what_was_bound(segments) && (pair.direct.status != 'T' || segments.len() > 1) {
            return Ok(Ran::Skipped);
        }
        if only_outside(segments) && !pair.direct.is_idle() {
            return Ok(Ran::Skipped);
        }
        if self.sessions[s].holds == Holds::Nothing {
            if keeps && !free_but_one {
                return Ok(Ran::Skipped);
            }
            if !self.make_room(s, shift)? {
                return Ok(Ran::Skipped);
            }
        } else {
            self.tally.pinned_steps += 1;
        }
        // Only messages of the extended protocol may follow a Flush.
        let begins = segments.first().and_then(|segment| segment.first());
        if self.pair(s).direct.state != State::Synced
            && matches!(begins, Some(Message::Query(_) | Message::Call(..)))
        {
            self.say(s, &[vec![Message::Sync]])?;
        }
        self.note(s, segments);
        self.say(s, segments)?;
        self.look(s, segments)?;
        if shift.is_some() {
            self.see_backend(s)?;
        }
        Ok(Ran::Yes)
    }

    /// What is known of a session by what it says.
    fn note(&mut self, s: usize, segments: &[Segment]) {
        let session = &mut self.sessions[s];
        for message in segments.iter().flatten() {
            match message {
                Message::Query(sql) => session.hid |= hides_settings(sql),
                Message::Parse(_, sql) => {
                    session.keeps_later |= may_keep(sql);
                    session.hides_later |= hides_settings(sql);
                    session.resets_later |= resets(sql);
                    session.binds_names |= sql.contains("set_config($");
                }
                Message::Bind { values, .. } => {
                    let unreadable = values.first().is_none_or(Option::is_none);
                    session.hid |= session.hides_later || session.binds_names && unreadable;
                }
                _ => {}
            }
            if let Message::Parse(name, sql) = message {
                session.isolates_later |= !name.is_empty() && sql.contains("isolation");
            }
            if let Message::Bind { .. } = message {
                session.reset_inside |= session.resets_later;
            }
            if let Message::Parse(_, sql) | Message::Query(sql) = message {
                session.reset_inside |= resets(sql);
                session.listened |= sql.to_ascii_lowercase().contains("listen");
            }
        }
    }

    /// Says the same on both sides, and compares the answers.
    fn say(&mut self, s: usize, segments: &[Segment]) -> Outcome<()> {
        let pair = self.pair(s);
        let was_idle = pair.direct.is_idle();
        let was_failed = pair.direct.status == 'E';
        let mut direct = pair.direct.say(segments);
        if was_idle && has_void_plan(&direct) && binds_what_changes(segments) {
            direct = again(&mut pair.direct, segments);
        }
        let pooled = pair.pooled.say(segments);
        let gone = pair.direct.state == State::Gone;
        let last_tag = direct.iter().rev().find(|frame| frame.tag == b'C').map(Frame::string);
        self.tally.errors += direct.iter().filter(|frame| frame.tag == b'E').count();
        let (direct, pooled) = (comparable(&direct, was_failed), comparable(&pooled, was_failed));
        self.same(s, &direct, &pooled)?;
        self.same_reports(s)?;
        if last_tag.as_deref() == Some("DISCARD ALL") {
            self.sessions[s].hid = false;
        }
        if gone {
            self.forget(s)?;
        }
        Ok(())
    }

    fn same(&self, s: usize, direct: &[Frame], pooled: &[Frame]) -> Outcome<()> {
        if direct == pooled {
            return Ok(());
        }
        let (one, other) = (direct, pooled);
        let at = one.iter().zip(other).take_while(|(one, other)| one == other).count();
        let show = |frames: &[Frame]| {
            frames
                .iter()
                .skip(at.saturating_sub(1))
                .take(4)
                .map(shown)
                .collect::<Vec<_>>()
                .join("\n      ")
        };
        Err(self.differ(format!(
            "session {s}, frame {at}:\n   direct: {}\n   pooled: {}",
            show(direct),
            show(pooled)
        )))
    }

    /// What the client knows of its settings.
    fn same_reports(&mut self, s: usize) -> Outcome<()> {
        let pair = self.pair(s);
        if pair.direct.parameters == pair.pooled.parameters {
            return Ok(());
        }
        pair.pooled.settle(&pair.direct.parameters);
        let differs =
            |(name, value): &(&String, &String)| pair.pooled.parameters.get(*name) != Some(*value);
        let wanted: Vec<_> = pair.direct.parameters.iter().filter(differs).collect();
        if wanted.is_empty() {
            self.tally.late_reports += 1;
            return Ok(());
        }
        let told: Vec<_> =
            wanted.iter().map(|(name, _)| pair.pooled.parameters.get(*name)).collect();
        let what = format!("session {s} is told of settings {wanted:?}, pooled {told:?}");
        Err(self.differ(what))
    }

    fn differ(&self, what: String) -> Difference {
        Difference { step: self.at, what }
    }

    /// What the session holds now, by what the server says on the direct side.
    fn look(&mut self, s: usize, segments: &[Segment]) -> Outcome<()> {
        let may_have_changed =
            self.sessions[s].holds != Holds::Nothing || self.sessions[s].may_keep(segments);
        let hid = self.sessions[s].hid;
        let Some(pair) = &mut self.sessions[s].pair else { return Ok(()) };
        let holds = if pair.direct.is_under_way() {
            Holds::Transaction
        } else if hid || may_have_changed && leaves_something(&mut pair.direct) {
            Holds::Pin
        } else {
            Holds::Nothing
        };
        self.sessions[s].holds = holds;
        Ok(())
    }

    fn come(&mut self, s: usize, login: usize) -> Outcome<()> {
        if !self.make_room(s, None)? {
            return Ok(());
        }
        let (direct, pooled) = self.stage.pair(login);
        let session = &mut self.sessions[s];
        *session =
            Session { login, seen: std::mem::take(&mut session.seen), ..Session::new(login) };
        match (direct, pooled) {
            (Ok(direct), Ok(pooled)) => {
                if direct.parameters != pooled.parameters {
                    let (one, other) = (direct.parameters, pooled.parameters);
                    return Err(self.differ(format!("greeting of {s}: {one:?}, pooled {other:?}")));
                }
                session.pair = Some(Pair { direct, pooled });
                self.see_backend(s)
            }
            (Err(one), Err(other)) if one == other => Ok(()),
            (one, other) => {
                let (one, other) = (one.map(|_| ()), other.map(|_| ()));
                Err(self.differ(format!("login {login} of {s}: {one:?}, pooled {other:?}")))
            }
        }
    }

    fn go(&mut self, s: usize, how: &Act) -> Outcome<Ran> {
        let Some(pair) = self.sessions[s].pair.take() else { return Ok(Ran::Skipped) };
        let pid = pair.direct.greeted_pid();
        let (one, other) = (&pair.direct.heard, &pair.pooled.heard);
        if !one.starts_with(other) && !other.starts_with(one) {
            return Err(self.differ(format!("session {s} heard {one:?}, pooled {other:?}")));
        }
        for client in [pair.direct, pair.pooled] {
            let mut connection = client.into_connection();
            match how {
                Act::Leave => connection.send(&crate::support::pg::terminate()),
                Act::HangUpInside => connection.send(b"Q\0\0\0\x20select 1"),
                _ => {}
            }
            connection.hang_up();
        }
        self.stage.until_gone(pid);
        self.forget(s)?;
        Ok(Ran::Yes)
    }

    /// The session has gone; whatever it held comes back.
    fn forget(&mut self, s: usize) -> Outcome<()> {
        let session = &mut self.sessions[s];
        session.pair = None;
        let held = std::mem::replace(&mut session.holds, Holds::Nothing);
        if held != Holds::Nothing {
            self.gather()?;
        }
        Ok(())
    }

    fn pair(&mut self, s: usize) -> &mut Pair {
        self.sessions[s].pair.as_mut().expect("the session is there")
    }

    fn held(&self) -> usize {
        self.sessions.iter().filter(|session| session.holds != Holds::Nothing).count()
    }

    /// Server connections that no session of the script holds.
    fn free(&self) -> usize {
        self.stage.connections().saturating_sub(self.held())
    }

    /// Sees to it that a session that holds no server connection gets one: another than its last, if it shall.
    fn make_room(&mut self, s: usize, shift: Option<usize>) -> Outcome<bool> {
        if self.sessions[s].holds != Holds::Nothing {
            return Ok(true);
        }
        let free = self.free();
        if free == 0 {
            return Ok(false);
        }
        if shift.is_some() && free >= 2 {
            self.gather()?;
        }
        if self.stage.blocked() >= free {
            let last = self.sessions[s].last.clone();
            let released = self.stage.release(last.as_deref(), shift.unwrap_or(0));
            released.map_err(|what| self.differ(what))?;
        }
        Ok(true)
    }

    /// The blockers take every server connection that no session holds.
    fn gather(&mut self) -> Outcome<()> {
        let free = self.free();
        let disturb = self.chance.often(25);
        self.stage.gather(free, disturb).map_err(|refusal| {
            let held: Vec<usize> = (0..self.sessions.len())
                .filter(|&s| self.sessions[s].holds != Holds::Nothing)
                .collect();
            self.differ(format!(
                "a blocker can't have a connection though only {held:?} hold one each: {refusal}"
            ))
        })
    }

    /// Notes which server connection serves the session, if it can be asked without a trace.
    fn see_backend(&mut self, s: usize) -> Outcome<()> {
        let Some(pair) = &mut self.sessions[s].pair else { return Ok(()) };
        if !pair.direct.is_idle() {
            return Ok(());
        }
        let frames = pair.pooled.say(&[asked("select pg_catalog.pg_backend_pid()")]);
        let shape: String = frames.iter().map(Frame::kind).collect();
        if shape != "12DC33Z" {
            let words = frames.iter().map(shown).collect::<Vec<_>>().join("\n  ");
            return Err(self.differ(format!("session {s} asks for its backend:\n  {words}")));
        }
        let pid = frames[2].columns().remove(0).expect("a pid");
        self.sessions[s].seen.insert(pid.clone());
        self.sessions[s].last = Some(pid);
        Ok(())
    }

    /// Ends what is open, compares what was heard, and proves that each session has moved.
    fn finish(&mut self) -> Outcome<()> {
        for s in 0..self.sessions.len() {
            if self.sessions[s].pair.is_some() {
                self.tally.sessions += 1;
                self.tally.moved_early += usize::from(self.sessions[s].seen.len() >= 2);
                self.end_transaction(s)?;
            }
        }
        self.compare_heard()?;
        for s in 0..self.sessions.len() {
            if self.sessions[s].pair.is_some() {
                self.tidy(s)?;
            }
        }
        for s in 0..self.sessions.len() {
            if self.sessions[s].pair.is_some() {
                self.prove(s)?;
            }
        }
        for session in &mut self.sessions {
            if let Some(pair) = session.pair.take() {
                self.stage.keep(session.login, pair.direct, pair.pooled, &mut self.chance);
            }
        }
        Ok(())
    }

    fn end_transaction(&mut self, s: usize) -> Outcome<()> {
        if self.pair(s).direct.state != State::Synced {
            self.say(s, &[vec![Message::Sync]])?;
        }
        if self.pair(s).direct.status != 'I' {
            self.say(s, &[vec![Message::Query("rollback".into())]])?;
        }
        self.look_closely(s)
    }

    fn look_closely(&mut self, s: usize) -> Outcome<()> {
        self.look(s, &[vec![Message::Flush]])
    }

    fn compare_heard(&mut self) -> Outcome<()> {
        let listened: Vec<usize> = (0..self.sessions.len())
            .filter(|&s| self.sessions[s].listened && self.sessions[s].pair.is_some())
            .collect();
        if listened.is_empty() {
            return Ok(());
        }
        for &s in &listened {
            self.make_room(s, None)?;
            self.say(s, &[vec![Message::Query(format!("listen {SENTINEL}"))]])?;
        }
        self.stage.notify_sentinel();
        for &s in &listened {
            let pair = self.pair(s);
            let mut strays =
                [pair.direct.listen_until(SENTINEL), pair.pooled.listen_until(SENTINEL)];
            // What the hub has heard may come behind what the connection of the latest LISTEN has.
            strays[1] =
                strays[1].take().or_else(|| pair.pooled.listen_for(pair.direct.heard.len()));
            let (one, other) = (pair.direct.heard.clone(), pair.pooled.heard.clone());
            if !self.hears_the_same(s) || strays.iter().any(Option::is_some) {
                return Err(self.differ(format!(
                    "session {s} heard\n   direct: {one:?} {:?}\n   pooled: {other:?} {:?}",
                    strays[0], strays[1]
                )));
            }
            self.tally.notifications += one.len();
        }
        Ok(())
    }

    /// Each channel's notifications in their order. What came while the hub took one over may stand behind another's, which
    /// is counted.
    fn hears_the_same(&mut self, s: usize) -> bool {
        let pair = self.pair(s);
        let (mut one, mut other) = (pair.direct.heard.clone(), pair.pooled.heard.clone());
        if one == other {
            return true;
        }
        for heard in [&mut one, &mut other] {
            heard.sort_by(|left, right| left.0.cmp(&right.0));
        }
        self.tally.mixed += 1;
        one == other
    }

    /// The session leaves nothing.
    fn tidy(&mut self, s: usize) -> Outcome<()> {
        self.make_room(s, None)?;
        self.say(s, &[vec![Message::Query("discard all".into())]])?;
        self.look_closely(s)?;
        if !self.hears_the_same(s) {
            let pair = self.pair(s);
            let heard = (pair.direct.heard.clone(), pair.pooled.heard.clone());
            return Err(self.differ(format!("session {s} heard, direct and pooled: {heard:?}")));
        }
        Ok(())
    }

    fn prove(&mut self, s: usize) -> Outcome<()> {
        if self.sessions[s].seen.len() < 2 {
            self.make_room(s, Some(0))?;
            self.see_backend(s)?;
        }
        if self.sessions[s].seen.len() < 2 {
            return Err(
                self.differ(format!("session {s} was served by {:?} alone", self.sessions[s].seen))
            );
        }
        Ok(())
    }
}

/// Statements of a table whose columns change: see the header.
fn only_outside(segments: &[Segment]) -> bool {
    segments.iter().flatten().any(|message| {
        matches!(message, Message::Bind { statement, .. } if super::generator::of_changed_table(statement).is_some())
    })
}

/// Whether it says UNLISTEN, perhaps by a statement parsed before.
fn unlistens(segments: &[Segment]) -> bool {
    segments.iter().flatten().any(|message| match message {
        Message::Query(sql) | Message::Parse(_, sql) => {
            let sql = sql.to_ascii_lowercase();
            sql.contains("unlisten") || sql.contains("discard")
        }
        _ => false,
    })
}

/// Whether it says LISTEN.
fn listens(segments: &[Segment]) -> bool {
    segments.iter().flatten().any(|message| match message {
        Message::Query(sql) | Message::Parse(_, sql) => {
            sql.to_ascii_lowercase().replace("unlisten", "").contains("listen")
        }
        _ => false,
    })
}

/// Whether an Execute runs a portal of an earlier step. In a failed transaction that may crash Postgres 15.
fn executes_what_was_bound(segments: &[Segment]) -> bool {
    segments.iter().any(|segment| {
        let bind = segment.iter().position(|message| matches!(message, Message::Bind { .. }));
        let execute = segment.iter().position(|message| matches!(message, Message::Execute(..)));
        execute.is_some_and(|execute| bind.is_none_or(|bind| execute < bind))
    })
}

/// Whether a named statement is described. In a failed transaction that works where the server has it, and the pool may
/// have to parse it first.
fn describes_a_name(segments: &[Segment]) -> bool {
    segments
        .iter()
        .flatten()
        .any(|message| matches!(message, Message::DescribeStatement(name) if !name.is_empty()))
}

fn ends_in_flush(segments: &[Segment]) -> bool {
    segments.last().and_then(|segment| segment.last()) == Some(&Message::Flush)
}

/// Frames as they are compared. In a failed transaction a server answers what it needs no look at the catalog for, and
/// refuses the rest; where a connection has to parse a statement that the client thinks it has, it refuses that at once.
/// Either way the client is refused.
fn comparable(frames: &[Frame], mut failed: bool) -> Vec<Frame> {
    let mut all = Vec::new();
    for group in frames.split_inclusive(|frame| frame.tag == b'Z') {
        let refused = group.iter().any(is_refusal);
        for frame in group {
            if !(failed && refused) {
                all.push(neutral(frame));
            } else if is_refusal(frame) {
                all.push(Frame { tag: b'E', body: b"Mrefused\0\0".to_vec() });
            } else if !b"123tTn".contains(&frame.tag) {
                all.push(neutral(frame));
            }
        }
        if let Some(ready) = group.last().filter(|frame| frame.tag == b'Z') {
            failed = ready.body == b"E";
        }
    }
    all
}

/// What a failed transaction refuses.
fn is_refusal(frame: &Frame) -> bool {
    frame.tag == b'E'
        && ["25P02", "08P01", "26000", "34000", "42P05"].contains(&&*frame.refusal().code)
}

fn has_void_plan(frames: &[Frame]) -> bool {
    frames.iter().any(|frame| {
        frame.tag == b'E' && {
            let refusal = frame.refusal();
            refusal.code == "0A000" && refusal.message.contains("cached plan")
        }
    })
}

/// Whether the pool may prepare something anew; what SQL has prepared it leaves alone.
fn binds_what_changes(segments: &[Segment]) -> bool {
    segments.iter().flatten().any(|message| {
        matches!(message, Message::Bind { statement, .. }
            if super::generator::of_changed_table(statement).is_some())
    })
}

/// What a client gets that prepares its statement anew and asks again: what the pool does for it.
fn again(client: &mut Client, segments: &[Segment]) -> Vec<Frame> {
    for message in segments.iter().flatten() {
        if let Message::Bind { statement, .. } = message
            && let Some(sql) = super::generator::of_changed_table(statement)
        {
            client.say(&[vec![
                Message::CloseStatement(statement.clone()),
                Message::Parse(statement.clone(), sql.into()),
                Message::Sync,
            ]]);
        }
    }
    client.say(segments)
}

/// A question that leaves no trace in the session, not even its unnamed statement and portal.
fn asked(sql: &str) -> Segment {
    let name = || "asked of the session".to_owned();
    vec![
        Message::Parse(name(), sql.into()),
        Message::Bind { portal: name(), statement: name(), values: Vec::new(), binary: false },
        Message::Execute(name(), 0),
        Message::ClosePortal(name()),
        Message::CloseStatement(name()),
        Message::Sync,
    ]
}

const LEFT: &str = "select exists (select from pg_catalog.pg_locks where locktype operator(pg_catalog.=) 'advisory' \
     and pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) \
     or exists (select from pg_catalog.pg_depend where refclassid operator(pg_catalog.=) 2615 \
     and refobjid operator(pg_catalog.=) pg_catalog.pg_my_temp_schema()) \
     or exists (select from pg_catalog.pg_cursors where is_holdable) \
     or exists (select from pg_catalog.pg_prepared_statements where from_sql)";

fn leaves_something(direct: &mut Client) -> bool {
    let frames = direct.say(&[asked(LEFT)]);
    let row = frames.iter().find(|frame| frame.tag == b'D');
    let row = row.unwrap_or_else(|| panic!("the server tells what is left: {frames:?}"));
    row.columns() == [Some("t".to_owned())]
}

fn shown(frame: &Frame) -> String {
    let text = match frame.tag {
        b'E' | b'N' => format!("{} {}", frame.kind(), frame.body.escape_ascii()),
        b'D' => format!("D {:?}", frame.columns()),
        _ => format!("{frame:?}"),
    };
    text.chars().take(400).collect()
}

/// Opens a connection of each side; what a refusal says is kept for comparing.
pub fn open(port: u16, login: &Login) -> Result<Client, String> {
    Connection::try_open(port, login).map(Client::new).map_err(|refusal| format!("{refusal:?}"))
}
