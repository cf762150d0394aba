//! What a client of the console wants, read from its words. No IO.

use super::table::{Columns, Kind, Table, Value};

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Show(Show),
    /// A setting of the session's.
    Variable(&'static str),
    Pause(Target),
    Resume(Target),
    Reconnect(Target),
    WaitClose(Target),
    Kill(String),
    Disable(String),
    Enable(String),
    Reload,
    Shutdown,
    Suspend,
    Set(String),
    Begin(&'static str),
    End(&'static str),
    /// Nothing to do here: answered with this word.
    Harmless(&'static str),
}

/// What it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    All,
    Database(String),
}

/// What there is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Help,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Pools,
    Databases,
    Clients,
    Servers,
    Lists,
    Config,
    Version,
    Users,
    Mem,
    Sockets,
    ActiveSockets,
    Fds,
    DnsHosts,
    DnsZones,
    State,
    Holders,
}

const SHOWS: [(&str, Show); 21] = [
    ("help", Show::Help),
    ("stats", Show::Stats),
    ("stats_totals", Show::StatsTotals),
    ("stats_averages", Show::StatsAverages),
    ("totals", Show::Totals),
    ("pools", Show::Pools),
    ("databases", Show::Databases),
    ("clients", Show::Clients),
    ("servers", Show::Servers),
    ("lists", Show::Lists),
    ("config", Show::Config),
    ("version", Show::Version),
    ("users", Show::Users),
    ("mem", Show::Mem),
    ("sockets", Show::Sockets),
    ("active_sockets", Show::ActiveSockets),
    ("fds", Show::Fds),
    ("dns_hosts", Show::DnsHosts),
    ("dns_zones", Show::DnsZones),
    ("state", Show::State),
    ("holders", Show::Holders),
];

/// What drivers ask of any server, and the answers.
const VARIABLES: &[(Columns, &str)] = &[
    (&[("client_encoding", Kind::Text)], "UTF8"),
    (&[("server_encoding", Kind::Text)], "UTF8"),
    (&[("datestyle", Kind::Text)], "ISO"),
    (&[("timezone", Kind::Text)], "GMT"),
    (&[("standard_conforming_strings", Kind::Text)], "on"),
    (&[("integer_datetimes", Kind::Text)], "on"),
    (&[("is_superuser", Kind::Text)], "on"),
    (&[("default_transaction_read_only", Kind::Text)], "off"),
    (&[("transaction_read_only", Kind::Text)], "off"),
    (&[("transaction_isolation", Kind::Text)], "read committed"),
    (&[("server_version", Kind::Text)], super::SERVER_VERSION),
];

/// The value of a [`Command::Variable`], under its name.
pub(super) fn variable(name: &str) -> Table {
    let known = VARIABLES.iter().find(|(columns, _)| columns[0].0 == name);
    let (columns, value) = known.copied().unwrap_or_default();
    Table { columns, rows: vec![vec![Value::from(value)]] }
}

/// The commands of a query, in order.
///
/// # Errors
/// The words that are no command.
pub(super) fn read(query: &str) -> Result<Vec<Command>, String> {
    let statements = split(query);
    statements.iter().map(|words| command(words).ok_or_else(|| said(words))).collect()
}

/// A word: as it was written, and as a keyword.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    text: String,
    /// In lower case; empty for a quoted one, or for a sign.
    key: String,
}

fn command(words: &[Word]) -> Option<Command> {
    let keys: Vec<&str> = words.iter().map(|word| word.key.as_str()).collect();
    let name = |at: usize| words.get(at).map(|word| word.text.clone());
    let target = || match words {
        [_] => Some(Target::All),
        [_, database] => Some(Target::Database(database.text.clone())),
        _ => None,
    };
    let one = || if words.len() == 2 { name(1) } else { None };
    Some(match keys[..] {
        ["show", ..] => show(words)?,
        ["pause", ..] => Command::Pause(target()?),
        ["resume", ..] => Command::Resume(target()?),
        ["reconnect", ..] => Command::Reconnect(target()?),
        ["wait_close", ..] => Command::WaitClose(target()?),
        ["kill", ..] => Command::Kill(one()?),
        ["disable", ..] => Command::Disable(one()?),
        ["enable", ..] => Command::Enable(one()?),
        ["reload"] => Command::Reload,
        ["shutdown"] => Command::Shutdown,
        ["suspend"] => Command::Suspend,
        ["set", "session" | "local", _, ..] => Command::Set(name(2)?.to_ascii_lowercase()),
        ["set", _, _, ..] => Command::Set(name(1)?.to_ascii_lowercase()),
        ["begin", ..] => Command::Begin("BEGIN"),
        ["start", "transaction", ..] => Command::Begin("START TRANSACTION"),
        ["commit" | "end", ..] => Command::End("COMMIT"),
        ["rollback" | "abort"] | ["rollback" | "abort", "work" | "transaction"] => {
            Command::End("ROLLBACK")
        }
        ["reset", _, ..] => Command::Harmless("RESET"),
        ["discard", "all"] => Command::Harmless("DISCARD ALL"),
        ["deallocate", "all"] => Command::Harmless("DEALLOCATE ALL"),
        _ => return None,
    })
}

fn show(words: &[Word]) -> Option<Command> {
    let keys: Vec<&str> = words[1..].iter().map(|word| word.key.as_str()).collect();
    match keys[..] {
        ["time", "zone"] => return Some(Command::Variable("timezone")),
        ["transaction", "isolation", "level"] => {
            return Some(Command::Variable("transaction_isolation"));
        }
        [_] => {}
        _ => return None,
    }
    // PgBouncer takes them in double quotes, too.
    let name = words[1].text.to_ascii_lowercase();
    if let Some((_, show)) = SHOWS.iter().find(|(known, _)| *known == name) {
        return Some(Command::Show(*show));
    }
    let variable = VARIABLES.iter().find(|(columns, _)| columns[0].0 == name);
    variable.map(|(columns, _)| Command::Variable(columns[0].0))
}

/// The words again, for an error; at most so many characters.
fn said(words: &[Word]) -> String {
    const MOST: usize = 100;
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    texts.join(" ").chars().filter(|one| !one.is_control()).take(MOST).collect()
}

/// The words of each statement; empty statements are left out.
fn split(query: &str) -> Vec<Vec<Word>> {
    let mut statements = vec![Vec::new()];
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            _ if first.is_whitespace() => (None, &rest[first.len_utf8()..]),
            ';' => {
                statements.push(Vec::new());
                (None, &rest[1..])
            }
            '-' if rest.starts_with("--") => (None, rest.split_once('\n').map_or("", |(_, a)| a)),
            '/' if rest.starts_with("/*") => (None, behind_comment(rest)),
            '"' | '\'' => {
                let (text, after) = quoted(&rest[1..], first);
                (Some(Word { text, key: String::new() }), after)
            }
            _ if is_word(first) => {
                let end = rest.find(|one| !is_word(one)).unwrap_or(rest.len());
                let text = rest[..end].to_owned();
                (Some(Word { key: text.to_ascii_lowercase(), text }), &rest[end..])
            }
            _ => {
                let text = first.to_string();
                (Some(Word { text, key: String::new() }), &rest[first.len_utf8()..])
            }
        };
        if let (Some(word), Some(statement)) = (word, statements.last_mut()) {
            statement.push(word);
        }
        rest = after;
    }
    statements.retain(|statement| !statement.is_empty());
    statements
}

fn is_word(one: char) -> bool {
    one.is_alphanumeric() || matches!(one, '_' | '.' | '-' | '$' | '@')
}

/// What follows a comment; comments nest, as in Postgres.
fn behind_comment(text: &str) -> &str {
    let mut depth = 0_usize;
    let mut rest = text;
    loop {
        if let Some(after) = rest.strip_prefix("/*") {
            (depth, rest) = (depth + 1, after);
        } else if let Some(after) = rest.strip_prefix("*/") {
            (depth, rest) = (depth - 1, after);
            if depth == 0 {
                return rest;
            }
        } else {
            let Some(one) = rest.chars().next() else { return "" };
            rest = &rest[one.len_utf8()..];
        }
    }
}

/// The text up to the closing quote, which is written twice within it, and what follows.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((part, after)) = rest.split_once(quote) {
        value.push_str(part);
        match after.strip_prefix(quote) {
            None => return (value, after),
            Some(further) => {
                value.push(quote);
                rest = further;
            }
        }
    }
    value.push_str(rest);
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_several_at_once() {
        let read = |query: &str| read(query).unwrap();
        assert_eq!(read("SHOW  Stats;"), [Command::Show(Show::Stats)]);
        assert_eq!(read("show \"pools\""), [Command::Show(Show::Pools)]);
        assert_eq!(
            read("-- who\nshow version; /* a /* b */ ; */ show help;;"),
            [Command::Show(Show::Version), Command::Show(Show::Help)]
        );
        assert_eq!(read(" ; ;"), []);
        assert_eq!(read("PAUSE"), [Command::Pause(Target::All)]);
        let app = || Target::Database("App-1".to_owned());
        assert_eq!(read("pause App-1"), [Command::Pause(app())]);
        assert_eq!(read("RESUME \"App-1\";"), [Command::Resume(app())]);
        assert_eq!(read("kill 'a''b'"), [Command::Kill("a'b".to_owned())]);
        assert_eq!(
            read("show transaction isolation level"),
            [Command::Variable("transaction_isolation")]
        );
        assert_eq!(read("SHOW DateStyle"), [Command::Variable("datestyle")]);
        for set in ["SET Extra_float_digits = 3", "set session extra_float_digits to '3'"] {
            assert_eq!(read(set), [Command::Set("extra_float_digits".to_owned())], "{set}");
        }
        assert_eq!(read("begin transaction read only"), [Command::Begin("BEGIN")]);
    }

    #[test]
    fn what_is_no_command_is_said_again() {
        for (query, said) in [
            ("select 1", "select 1"),
            ("show state of things", "show state of things"),
            ("show version; drop table t", "drop table t"),
            ("kill", "kill"),
            ("pause a b", "pause a b"),
            ("'pause'", "pause"),
            ("rollback to savepoint s", "rollback to savepoint s"),
            ("show 'unclosed", "show unclosed"),
            ("/* unclosed", ""),
        ] {
            match read(query) {
                Ok(commands) => assert!(said.is_empty() && commands.is_empty(), "{query}"),
                Err(words) => assert_eq!(words, said, "{query}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_words_are_read(query in "(show|pause|;|--|/\\*|\\*/|'|\"|\n|é|[ -~]){0,30}") {
            let _commands = read(&query);
        }
    }

    #[test]
    fn every_variable_has_a_value() {
        for (columns, value) in VARIABLES {
            assert_eq!(columns.len(), 1);
            assert_eq!(variable(columns[0].0).rows, [[Value::from(*value)]]);
        }
    }
}
