//! What a session has left on its server connection, as the server itself tells it.
//!
//! The lexer suspects, this decides: one Query, sent when a suspected transaction is over, whose rows name every setting
//! the session has changed and every kind of thing it has left behind. Sources: PostgreSQL documentation, "System
//! Views" (`pg_settings`, `pg_locks`, `pg_cursors`, `pg_prepared_statements`) and "System Information Functions". Every
//! name and operator is qualified, so that no `search_path` of a client's can change what is asked.

use super::settings::put_literal;
use super::sql::{Routine, Runs, Suspects};
use super::wire;

/// Most bytes of an answer.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Settings that say what the running transaction is like: no session keeps them.
const OF_A_TRANSACTION: [&str; 3] =
    ["transaction_deferrable", "transaction_isolation", "transaction_read_only"];

/// What may be asked of a server about a session.
const ASKABLE: [(Suspects, &str, &str); 4] = [
    (
        Suspects::ADVISORY_LOCK,
        "lock",
        "(SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid \
         OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
    ),
    (
        // The schema of temporary objects stays when they are gone: count what depends on it.
        Suspects::TEMPORARY,
        "temporary",
        "(SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 2615 AND refobjid \
         OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())",
    ),
    (Suspects::CURSOR, "cursor", "(SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)"),
    (
        Suspects::PREPARE,
        "prepare",
        "(SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)",
    ),
];

/// What a session has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// Every setting that was changed since login, names in lower case and sorted; `session_authorization` always; `None` if they were not asked for.
    pub settings: Option<Vec<(String, String)>>,
    /// What keeps the connection with the session.
    pub left: Suspects,
    /// The channels it listens to there, in UTF-8.
    pub channels: Vec<Box<[u8]>>,
    /// The database's own routines, if they were asked for.
    pub routines: Option<Vec<Routine>>,
}

/// The rows of an answer as they come.
#[derive(Debug, Default)]
pub struct Answer {
    rows: Vec<u8>,
    overflow: Overflow,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Overflow {
    #[default]
    No,
    Yes,
}

/// What DISCARD ALL leaves where it is: the connection has to be closed.
#[must_use]
pub fn uncleanable(suspects: Suspects) -> Suspects {
    unaskable(suspects).without(Suspects::UNNAMED_SETTING)
}

/// What can't be asked: it is taken to be there until DISCARD ALL.
#[must_use]
pub fn unaskable(suspects: Suspects) -> Suspects {
    suspects.pins().without(askable())
}

/// What can be asked.
#[must_use]
pub fn askable() -> Suspects {
    let mut askable = Suspects::SETTING;
    askable.insert(Suspects::LISTEN);
    askable.insert(Suspects::ROUTINE);
    for (what, _, _) in ASKABLE {
        askable.insert(what);
    }
    askable
}

/// Appends the Query that asks about `suspects`; `custom` are the names with a dot the session may have set, which no
/// catalog lists.
pub fn put_question(suspects: Suspects, custom: &[String], out: &mut Vec<u8>) {
    let mut text = String::new();
    if suspects.intersects(Suspects::SETTING) {
        put_settings(custom, &mut text);
    }
    if suspects.intersects(Suspects::LISTEN) {
        separate(&mut text);
        text.push_str("SELECT 'listen', ");
        put_hex(&mut text, "channel");
        text.push_str(", '' FROM pg_catalog.pg_listening_channels() AS channel");
    }
    if suspects.intersects(Suspects::ROUTINE) {
        separate(&mut text);
        put_routines(&mut text);
    }
    for (what, word, exists) in ASKABLE {
        if suspects.intersects(what) {
            separate(&mut text);
            text.push_str("SELECT '");
            text.push_str(word);
            text.push_str("', '', '' WHERE EXISTS ");
            text.push_str(exists);
        }
    }
    text.push('\0');
    wire::put_frame(out, b'Q', &[text.as_bytes()]);
}

fn put_settings(custom: &[String], text: &mut String) {
    text.push_str("SELECT 'settings', '', ''");
    separate(text);
    text.push_str("SELECT 'setting', name, ");
    put_hex(text, "setting");
    text.push_str(" FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'");
    for name in OF_A_TRANSACTION {
        text.push_str(" AND name OPERATOR(pg_catalog.<>) '");
        text.push_str(name);
        text.push('\'');
    }
    // No catalog lists these.
    for name in
        ["role", "session_authorization"].into_iter().chain(custom.iter().map(String::as_str))
    {
        separate(text);
        text.push_str("SELECT 'setting', ");
        put_literal(text, name);
        text.push_str(", ");
        let mut value = "pg_catalog.current_setting(".to_owned();
        put_literal(&mut value, name);
        value.push_str(", true)");
        put_hex(text, &value);
        text.push_str(" WHERE ");
        text.push_str(&value);
        text.push_str(" IS NOT NULL");
    }
}

/// The database's own routines: neither the server's nor an extension's, whose bodies are text. Sources: PostgreSQL
/// documentation, `pg_proc`, `pg_language`, `pg_depend`, `pg_trigger`.
fn put_routines(text: &mut String) {
    text.push_str(
        "SELECT 'routines', '', '' UNION ALL SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgfoid \
         OPERATOR(pg_catalog.=) p.oid) THEN 'trigger' ELSE 'routine' END, ",
    );
    put_hex(text, "p.proname::pg_catalog.text");
    text.push_str(", ");
    put_hex(text, "p.prosrc");
    text.push_str(
        " FROM pg_catalog.pg_proc AS p, pg_catalog.pg_language AS l WHERE l.oid OPERATOR(pg_catalog.=) p.prolang AND l.lanname \
         OPERATOR(pg_catalog.<>) ALL ('{internal,c}'::pg_catalog.name[]) AND p.pronamespace OPERATOR(pg_catalog.<>) \
         'pg_catalog'::pg_catalog.regnamespace AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid \
         OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype \
         OPERATOR(pg_catalog.=) 'e') AND pg_catalog.octet_length(p.prosrc) OPERATOR(pg_catalog.<) 200000",
    );
}

/// A value as hexadecimal UTF-8, so that no client encoding can change it.
fn put_hex(text: &mut String, value: &str) {
    text.push_str("pg_catalog.encode(pg_catalog.convert_to(");
    text.push_str(value);
    text.push_str(", 'UTF8'), 'hex')");
}

fn separate(text: &mut String) {
    if !text.is_empty() {
        text.push_str(" UNION ALL ");
    }
}

impl Answer {
    /// A row begins.
    pub fn row(&mut self, length: u32) {
        self.add(&length.to_be_bytes());
    }

    /// Bytes of the row.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.rows.len() + bytes.len() > ANSWER_BYTES {
            self.overflow = Overflow::Yes;
        }
        if self.overflow == Overflow::No {
            self.rows.extend_from_slice(bytes);
        }
    }

    /// The server refused the question: nothing is to be read from what it said.
    pub fn spoil(&mut self) {
        self.overflow = Overflow::Yes;
    }

    /// Its rows as they are; a null is an empty column. None if it is too long.
    #[must_use]
    pub fn raw(&self) -> Vec<Vec<Vec<u8>>> {
        let mut rows = Vec::new();
        let mut rest = if self.overflow == Overflow::Yes { &[][..] } else { &self.rows[..] };
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let length = wire::widen(u32::from_be_bytes(*length)).min(behind.len());
            let (row, behind) = behind.split_at(length);
            let mut columns = Vec::new();
            let mut cells = row.get(2..).unwrap_or_default();
            while let Some((value, behind)) = column(cells) {
                columns.push(value.to_vec());
                cells = behind;
            }
            rows.push(columns);
            rest = behind;
        }
        rows
    }

    /// What it says; `None` if it can't be understood.
    #[must_use]
    pub fn read(self) -> Option<Truth> {
        if self.overflow == Overflow::Yes {
            return None;
        }
        let mut truth = Truth::default();
        let mut rest = &self.rows[..];
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk::<4>()?;
            let (row, behind) =
                behind.split_at_checked(wire::widen(u32::from_be_bytes(*length)))?;
            truth.read_row(row)?;
            rest = behind;
        }
        if let Some(settings) = &mut truth.settings {
            settings.sort();
            settings.dedup_by(|a, b| a.0 == b.0);
        }
        Some(truth)
    }
}

impl Truth {
    fn read_row(&mut self, row: &[u8]) -> Option<()> {
        let (_columns, rest) = row.split_first_chunk::<2>()?;
        let (word, rest) = column(rest)?;
        let (name, rest) = column(rest)?;
        let (value, _) = column(rest)?;
        match word {
            b"settings" => {
                self.settings.get_or_insert_default();
            }
            b"setting" => {
                let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
                let value = String::from_utf8(unhex(value)?).ok()?;
                if (name.as_str(), value.as_str()) != ("role", "none") {
                    self.settings.get_or_insert_default().push((name, value));
                }
            }
            b"routines" => {
                self.routines.get_or_insert_default();
            }
            b"routine" | b"trigger" => {
                let runs = if word == b"trigger" { Runs::ByTrigger } else { Runs::Called };
                let [name, body] = [name, value].map(|hex| unhex(hex).map(String::from_utf8));
                let routine = Routine { name: name?.ok()?, body: body?.ok()?, runs };
                self.routines.get_or_insert_default().push(routine);
            }
            b"listen" => {
                self.left.insert(Suspects::LISTEN);
                self.channels.push(unhex(name)?.into());
            }
            other => {
                let known = ASKABLE.iter().find(|(_, word, _)| word.as_bytes() == other)?;
                self.left.insert(known.0);
            }
        }
        Some(())
    }
}

fn column(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(rows: &[[&str; 3]]) -> Answer {
        let mut answer = Answer::default();
        for row in rows {
            let mut bytes = vec![0, 3];
            for column in row {
                bytes.extend(u32::try_from(column.len()).unwrap().to_be_bytes());
                bytes.extend(column.as_bytes());
            }
            answer.row(u32::try_from(bytes.len()).unwrap());
            bytes.iter().for_each(|byte| answer.add(&[*byte]));
        }
        answer
    }

    #[test]
    fn rows_become_truth() {
        let rows = [
            ["settings", "", ""],
            ["setting", "TimeZone", "555443"],
            ["setting", "role", "6e6f6e65"],
            ["setting", "session_authorization", "617070"],
            ["setting", "app.who", "4ac3bc72"],
            ["lock", "", ""],
        ];
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let truth = answer(&rows).read().unwrap();
        let who = pair("session_authorization", "app");
        let settings = vec![pair("app.who", "Jür"), who, pair("timezone", "UTC")];
        let left = Suspects::ADVISORY_LOCK;
        let settings = Some(settings);
        assert_eq!(truth, Truth { settings, left, ..Truth::default() });
        let truth = answer(&[["routines", "", ""], ["trigger", "66", "6162"]]).read().unwrap();
        let (name, body) = ("f".to_owned(), "ab".to_owned());
        assert_eq!(truth.routines, Some(vec![Routine { name, body, runs: Runs::ByTrigger }]));
        let truth = answer(&[["listen", "6e657773", ""]]).read().unwrap();
        assert_eq!((truth.left, truth.channels), (Suspects::LISTEN, vec![b"news"[..].into()]));
        let truth = answer(&rows[5..]).read().unwrap();
        assert_eq!(truth.settings, None);
    }

    #[test]
    fn what_can_not_be_understood_is_no_truth() {
        assert_eq!(answer(&[["strange", "", ""]]).read(), None);
        assert_eq!(answer(&[["setting", "a", "6"]]).read(), None);
        let mut long = Answer::default();
        long.row(8 << 20);
        (0..8 << 10).for_each(|_| long.add(&[0; 1024]));
        assert!(long.rows.len() <= ANSWER_BYTES);
        assert_eq!(long.read(), None);
    }
}
