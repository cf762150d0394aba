//! A script: what each session does, step by step, and how a failed one is shown.

use std::fmt;

use crate::support::pg;

/// What several sessions do, one after the other.
#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    /// With what each session logs in, as a number of [`super::LOGINS`].
    pub sessions: Vec<usize>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub session: usize,
    pub act: Act,
    /// On another server connection than the session had last; the number chooses which.
    pub shift: Option<usize>,
}

#[derive(Clone, Debug)]
pub enum Act {
    /// Segments in one write; each but the last ends in a Query, a FunctionCall or a Sync.
    Say(Vec<Segment>),
    /// Logs in again if it has gone.
    Come(usize),
    /// Says Terminate.
    Leave,
    /// Breaks off.
    HangUp,
    /// Breaks off inside a message.
    HangUpInside,
}

pub type Segment = Vec<Message>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Query(String),
    Parse(String, String),
    Bind { portal: String, statement: String, values: Vec<Option<String>>, binary: bool },
    DescribeStatement(String),
    DescribePortal(String),
    Execute(String, u32),
    CloseStatement(String),
    ClosePortal(String),
    Sync,
    Flush,
    CopyData(String),
    CopyDone,
    CopyFail,
    Call(u32, Vec<String>),
}

impl Message {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Query(sql) => pg::query(sql),
            Self::Parse(name, sql) => pg::parse(name, sql),
            Self::Bind { portal, statement, values, binary } => {
                bind(portal, statement, values, *binary)
            }
            Self::DescribeStatement(name) => pg::describe_statement(name),
            Self::DescribePortal(name) => pg::describe_portal(name),
            Self::Execute(portal, most) => pg::execute(portal, *most),
            Self::CloseStatement(name) => pg::close_statement(name),
            Self::ClosePortal(name) => pg::framed(b'C', format!("P{name}\0").as_bytes()),
            Self::Sync => pg::sync(),
            Self::Flush => pg::flush(),
            Self::CopyData(text) => pg::copy_data(text.as_bytes()),
            Self::CopyDone => pg::copy_done(),
            Self::CopyFail => pg::copy_fail("enough"),
            Self::Call(oid, values) => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                pg::function_call(*oid, &values)
            }
        }
    }

    /// Whether it brings a ReadyForQuery.
    pub fn readies(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Sync | Self::Call(..))
    }

    /// Whether it brings an answer of its own, other than a ReadyForQuery.
    pub fn is_answered_alone(&self) -> bool {
        !self.readies() && !self.copies() && *self != Self::Flush
    }

    fn copies(&self) -> bool {
        matches!(self, Self::CopyData(_) | Self::CopyDone | Self::CopyFail)
    }
}

fn bind(portal: &str, statement: &str, values: &[Option<String>], binary: bool) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0").into_bytes();
    body.extend_from_slice(&u16::try_from(values.len()).expect("few").to_be_bytes());
    for value in values {
        match value {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
                body.extend_from_slice(value.as_bytes());
            }
        }
    }
    body.extend_from_slice(if binary { &[0, 1, 0, 1] } else { &[0, 0] });
    pg::framed(b'B', &body)
}

/// Whether messages can be left out of a segment without making somebody wait for ever.
pub fn can_be_cut(segment: &Segment) -> bool {
    !segment.iter().any(Message::copies)
}

/// Whether running `sql` may keep the server connection with the session; rather once too often.
pub fn may_keep(sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    let words = ["begin", "start ", "temp", "lock", "hold", "prepare", "do $", "declare", "chain"];
    hides_settings(&sql) || words.iter().any(|word| sql.contains(word))
}

/// Whether `sql` may change a custom setting without naming it in so many words.
pub fn hides_settings(sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    sql.contains("do $") && sql.contains("execute")
        || ["do '", "update pg_settings", "set_config(name"].iter().any(|word| sql.contains(word))
}

/// Whether `sql` may bring settings back to what they were at login.
pub fn resets(sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    ["reset", "default", "discard"].iter().any(|word| sql.contains(word))
}

impl Script {
    /// Whether it may change what the tables are.
    pub fn changes_tables(&self) -> bool {
        self.texts().any(|sql| {
            let sql = sql.to_ascii_lowercase();
            ["alter table", "create table", "create index", "drop table", "truncate", "create view"]
                .iter()
                .any(|word| sql.contains(word))
        })
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.steps
            .iter()
            .flat_map(|step| match &step.act {
                Act::Say(segments) => segments.iter().flatten().collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .filter_map(|message| match message {
                Message::Query(sql) | Message::Parse(_, sql) => Some(sql.as_str()),
                _ => None,
            })
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "script {} with {} sessions, logins {:?}",
            self.seed,
            self.sessions.len(),
            self.sessions
        )?;
        for (at, step) in self.steps.iter().enumerate() {
            writeln!(f, "{at:3}  {step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = if self.shift.is_some() { ">" } else { " " };
        write!(f, "{moved}s{} ", self.session)?;
        match &self.act {
            Act::Say(segments) => {
                for segment in segments {
                    write!(f, " {{")?;
                    for message in segment {
                        write!(f, " {message}")?;
                    }
                    write!(f, " }}")?;
                }
                Ok(())
            }
            other => write!(f, " {other:?}"),
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(sql) => write!(f, "Q[{sql}]"),
            Self::Parse(name, sql) => write!(f, "Parse {name:?}[{sql}]"),
            Self::Bind { portal, statement, values, binary } => {
                let values: Vec<&str> =
                    values.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
                let form = if *binary { " binary" } else { "" };
                write!(f, "Bind {portal:?}<-{statement:?}{values:?}{form}")
            }
            other => write!(f, "{other:?}"),
        }
    }
}
