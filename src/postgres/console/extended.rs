//! The extended protocol's statements and portals, of commands without parameters. No IO.

use std::collections::{HashMap, VecDeque};

use super::command::{self, Command};
use super::table::{Columns, Format, Formats, Value, complete, data_row, describe, frame};
use super::{invalid, syntax};
use crate::postgres::message::{ErrorFields, cstr};

/// Most statements, and most portals, of one client.
const MOST: usize = 100;

/// What a client has prepared.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    statements: HashMap<String, Option<Command>>,
    portals: HashMap<String, Portal>,
}

/// A statement about to be executed, or of which rows are left.
#[derive(Debug)]
struct Portal {
    command: Option<Command>,
    formats: Formats,
    left: Option<Left>,
}

/// What was not fetched yet.
#[derive(Debug)]
struct Left {
    columns: Columns,
    rows: VecDeque<Vec<Value>>,
    tag: String,
}

/// What an Execute comes to.
#[derive(Debug)]
pub(super) enum Execute {
    /// It can be answered.
    Say(Vec<u8>),
    /// This must be run first; then [`Prepared::ran`].
    Run(Command),
}

/// What a Describe is about.
pub(super) enum Described<'a> {
    Statement(Option<&'a Command>),
    Portal(Option<&'a Command>, &'a Formats),
}

impl Prepared {
    /// Parse: keeps a statement.
    pub(super) fn parse(&mut self, body: &[u8]) -> Result<Vec<u8>, ErrorFields> {
        let (name, rest) = cstr(body).ok_or_else(malformed)?;
        let (query, _types) = cstr(rest).ok_or_else(malformed)?;
        let mut commands = command::read(text(query)?).map_err(|words| invalid(&words))?;
        if commands.len() > 1 {
            return Err(syntax("cannot insert multiple commands into a prepared statement"));
        }
        let name = text(name)?;
        if !name.is_empty() && self.statements.contains_key(name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(ErrorFields::error("42P05", message));
        }
        if !self.statements.contains_key(name) {
            bounded(self.statements.len())?;
        }
        self.statements.insert(name.to_owned(), commands.pop());
        Ok(frame(b'1', b""))
    }

    /// Bind: makes a portal of a statement.
    pub(super) fn bind(&mut self, body: &[u8]) -> Result<Vec<u8>, ErrorFields> {
        let (portal, rest) = cstr(body).ok_or_else(malformed)?;
        let (statement, rest) = cstr(rest).ok_or_else(malformed)?;
        let (_formats, rest) = shorts(rest).ok_or_else(malformed)?;
        let (values, rest) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
        if u16::from_be_bytes(*values) != 0 {
            return Err(ErrorFields::error("08P01", "the console's commands take no parameters"));
        }
        let (formats, _) = shorts(rest).ok_or_else(malformed)?;
        let format = |code: &u16| match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            _ => Err(ErrorFields::error("08P01", format!("unsupported format code: {code}"))),
        };
        let formats = Formats(formats.iter().map(format).collect::<Result<_, _>>()?);
        let command = self.statement(text(statement)?)?.cloned();
        let portal = text(portal)?;
        if !self.portals.contains_key(portal) {
            bounded(self.portals.len())?;
        }
        self.portals.insert(portal.to_owned(), Portal { command, formats, left: None });
        Ok(frame(b'2', b""))
    }

    /// Describe: what it is about.
    pub(super) fn describe(&self, body: &[u8]) -> Result<Described<'_>, ErrorFields> {
        let (kind, name) = name_of(body)?;
        if kind == b'S' {
            return Ok(Described::Statement(self.statement(name)?));
        }
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        Ok(Described::Portal(portal.command.as_ref(), &portal.formats))
    }

    /// Close. What isn't there is closed, too.
    pub(super) fn close(&mut self, body: &[u8]) -> Result<Vec<u8>, ErrorFields> {
        let (kind, name) = name_of(body)?;
        if kind == b'S' {
            self.statements.remove(name);
        } else {
            self.portals.remove(name);
        }
        Ok(frame(b'3', b""))
    }

    /// Execute.
    pub(super) fn execute(&mut self, body: &[u8]) -> Result<Execute, ErrorFields> {
        let (name, most) = execution(body)?;
        let portal = self.portals.get_mut(name).ok_or_else(|| no_portal(name))?;
        match (&portal.left, &portal.command) {
            (None, Some(command)) => Ok(Execute::Run(command.clone())),
            (None, None) => Ok(Execute::Say(frame(b'I', b""))),
            (Some(_), _) => Ok(Execute::Say(portal.fetch(most))),
        }
    }

    /// The command that the Execute `body` asked for has run, and brought this.
    pub(super) fn ran(
        &mut self,
        body: &[u8],
        columns: Columns,
        rows: Vec<Vec<Value>>,
        tag: String,
    ) -> Result<Vec<u8>, ErrorFields> {
        let (name, most) = execution(body)?;
        let portal = self.portals.get_mut(name).ok_or_else(|| no_portal(name))?;
        portal.left = Some(Left { columns, rows: rows.into(), tag });
        Ok(portal.fetch(most))
    }

    /// The transaction is over, and every portal with it.
    pub(super) fn end_transaction(&mut self) {
        self.portals.clear();
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.statements.clear();
        self.portals.clear();
    }

    fn statement(&self, name: &str) -> Result<Option<&Command>, ErrorFields> {
        let known = self.statements.get(name).map(Option::as_ref);
        known.ok_or_else(|| {
            let message = format!("prepared statement \"{name}\" does not exist");
            ErrorFields::error("26000", message)
        })
    }
}

impl Portal {
    fn fetch(&mut self, most: usize) -> Vec<u8> {
        let Some(left) = &mut self.left else { return Vec::new() };
        let count = if most == 0 { left.rows.len() } else { most.min(left.rows.len()) };
        let mut bytes = Vec::new();
        for row in left.rows.drain(..count) {
            bytes.extend(data_row(left.columns, &row, &self.formats));
        }
        let last = if left.rows.is_empty() { complete(&left.tag) } else { frame(b's', b"") };
        bytes.extend(last);
        bytes
    }
}

/// The answer to a Describe, from the columns that its command has.
pub(super) fn description(described: &Described<'_>, columns: Option<Columns>) -> Vec<u8> {
    let nothing = Formats::default();
    let (mut bytes, formats) = match described {
        Described::Statement(_) => (frame(b't', &[0, 0]), &nothing),
        Described::Portal(_, formats) => (Vec::new(), *formats),
    };
    bytes.extend(columns.map_or_else(|| frame(b'n', b""), |columns| describe(columns, formats)));
    bytes
}

fn bounded(count: usize) -> Result<(), ErrorFields> {
    if count < MOST {
        return Ok(());
    }
    Err(ErrorFields::error("54000", format!("more than {MOST} prepared statements or portals"))
        .hint("Close those that are done with."))
}

fn name_of(body: &[u8]) -> Result<(u8, &str), ErrorFields> {
    let (kind, rest) = body.split_first().ok_or_else(malformed)?;
    let (name, _) = cstr(rest).ok_or_else(malformed)?;
    match kind {
        b'S' | b'P' => Ok((*kind, text(name)?)),
        _ => Err(malformed()),
    }
}

fn execution(body: &[u8]) -> Result<(&str, usize), ErrorFields> {
    let (name, rest) = cstr(body).ok_or_else(malformed)?;
    let (most, _) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    // Nought and what is below mean all.
    let most = usize::try_from(i32::from_be_bytes(*most)).unwrap_or(0);
    Ok((text(name)?, most))
}

/// A count, and so many numbers of two bytes.
fn shorts(bytes: &[u8]) -> Option<(Vec<u16>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let (numbers, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*count)) * 2)?;
    let number = |pair: &[u8]| u16::from_be_bytes([pair[0], pair[1]]);
    Some((numbers.chunks_exact(2).map(number).collect(), rest))
}

fn text(bytes: &[u8]) -> Result<&str, ErrorFields> {
    std::str::from_utf8(bytes)
        .map_err(|_| ErrorFields::error("22021", "invalid byte sequence for encoding \"UTF8\""))
}

fn malformed() -> ErrorFields {
    ErrorFields::error("08P01", "malformed message of the extended protocol")
}

fn no_portal(name: &str) -> ErrorFields {
    ErrorFields::error("34000", format!("portal \"{name}\" does not exist"))
}

#[cfg(test)]
mod tests {
    use super::super::table::Kind;
    use super::*;

    const COLUMNS: Columns = &[("n", Kind::Int4)];

    fn kinds(mut bytes: &[u8]) -> String {
        let mut kinds = String::new();
        while let Some((head, _)) = bytes.split_first_chunk::<5>() {
            kinds.push(char::from(head[0]));
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            bytes = &bytes[usize::try_from(length).unwrap() + 1..];
        }
        kinds
    }

    #[test]
    fn rows_come_in_portions() {
        let mut prepared = Prepared::default();
        assert_eq!(kinds(&prepared.parse(b"s\0SHOW LISTS\0\0\0").unwrap()), "1");
        assert_eq!(prepared.parse(b"s\0SHOW LISTS\0\0\0").unwrap_err().code, "42P05");
        assert_eq!(kinds(&prepared.bind(b"p\0s\0\0\0\0\0\0\x01\0\x01").unwrap()), "2");
        let described = prepared.describe(b"Pp\0").unwrap();
        assert_eq!(kinds(&description(&described, Some(COLUMNS))), "T");
        let described = prepared.describe(b"Ss\0").unwrap();
        assert_eq!(kinds(&description(&described, None)), "tn");
        let two = b"p\0\0\0\0\x02";
        assert!(matches!(prepared.execute(two), Ok(Execute::Run(Command::Show(_)))));
        let rows = (0..3_u64).map(|n| vec![Value::from(n)]).collect();
        let said = prepared.ran(two, COLUMNS, rows, "SHOW".to_owned()).unwrap();
        assert_eq!(kinds(&said), "DDs");
        let Ok(Execute::Say(said)) = prepared.execute(two) else { panic!("it ran already") };
        assert_eq!(kinds(&said), "DC");
        prepared.end_transaction();
        assert_eq!(prepared.execute(two).unwrap_err().code, "34000");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_borne(body in proptest::collection::vec(0_u8..4, 0..40)) {
            let mut prepared = Prepared::default();
            let _parsed = prepared.parse(&body);
            let _bound = prepared.bind(&body);
            let _described = prepared.describe(&body).is_ok();
            let _executed = prepared.execute(&body);
            let _closed = prepared.close(&body);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut prepared = Prepared::default();
        for (body, code) in [
            (&b"s\0select 1\0\0\0"[..], "42601"),
            (b"s\0show help; show help\0\0\0", "42601"),
            (b"s\0show help", "08P01"),
            (b"s\0\xff\0\0\0", "22021"),
        ] {
            assert_eq!(prepared.parse(body).unwrap_err().code, code);
        }
        assert_eq!(prepared.bind(b"\0none\0\0\0\0\0\0\0").unwrap_err().code, "26000");
        assert_eq!(prepared.bind(b"\0\0\0\0\0\x01\0\0").unwrap_err().code, "08P01");
        assert_eq!(prepared.bind(b"\0\0\0\x09").unwrap_err().code, "08P01");
        prepared.parse(b"\0;\0\0\0").unwrap();
        prepared.bind(b"\0\0\0\0\0\0\0\0").unwrap();
        let Ok(Execute::Say(said)) = prepared.execute(b"\0\0\0\0\0") else { panic!("is empty") };
        assert_eq!(kinds(&said), "I");
        for n in 1..MOST {
            prepared.parse(format!("{n}\0show help\0\0\0").as_bytes()).unwrap();
        }
        assert_eq!(prepared.parse(b"more\0show help\0\0\0").unwrap_err().code, "54000");
    }
}
