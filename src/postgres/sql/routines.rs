//! What the database's own functions and procedures leave behind when they are called, as far as their bodies tell.
//!
//! A body is read as a query is read, strings that it may run as SQL included, and so is what it calls. What a body puts
//! together from pieces stays hidden.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use super::names::{self, SettingName, Token};
use super::{Findings, Lexer, Quoting, Suspects};

/// How deep strings lie in strings that are still read.
const DEPTH: usize = 4;

/// Words by which a body runs a string: EXECUTE in PL/pgSQL, and what other languages have for it.
const RUN: [&str; 5] = ["execute", "spi_exec", "spi_exec_query", "spi_execute", "spi_query"];

/// A routine as the catalog has it: PostgreSQL documentation, `pg_proc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routine {
    /// Its name, without its schema.
    pub name: String,
    /// Its body.
    pub body: String,
    /// When it runs.
    pub runs: Runs,
}

/// When a routine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// When it is called.
    Called,
    /// When a table changes, too: it is a trigger's.
    ByTrigger,
}

/// The routines whose calls leave something behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routines {
    by_name: HashMap<Box<[u8]>, Findings, RandomState>,
    by_triggers: Findings,
}

/// A body, read.
struct Body {
    findings: Findings,
    /// The words in it, which may be names of routines.
    words: HashSet<Box<[u8]>, RandomState>,
}

impl Routines {
    /// Reads them all.
    #[must_use]
    pub fn read(all: &[Routine]) -> Self {
        let mut bodies: Vec<Body> = all.iter().map(|routine| Body::read(&routine.body)).collect();
        let mut routines = Self::default();
        // Each round finds those that call what was found in the one before.
        while routines.note(all, &bodies) == Noted::Something {
            for body in &mut bodies {
                let called: Vec<_> =
                    body.words.iter().filter_map(|word| routines.by_name.get(word)).collect();
                called.into_iter().for_each(|findings| body.findings.add(findings));
            }
        }
        routines
    }

    /// Whether no call leaves anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What a call of this name leaves.
    pub(super) fn call(&self, name: &[u8]) -> Option<&Findings> {
        self.by_name.get(name)
    }

    /// What a change of a table leaves.
    pub(super) fn change(&self) -> &Findings {
        &self.by_triggers
    }

    fn note(&mut self, all: &[Routine], bodies: &[Body]) -> Noted {
        let mut noted = Noted::Nothing;
        for (routine, body) in all.iter().zip(bodies) {
            if body.findings.is_empty() {
                continue;
            }
            let known = self.by_name.entry(routine.name.as_bytes().into()).or_default();
            let before = known.clone();
            known.add(&body.findings);
            if *known != before {
                noted = Noted::Something;
            }
            if routine.runs == Runs::ByTrigger {
                self.by_triggers.add(&body.findings);
            }
        }
        noted
    }
}

#[derive(PartialEq, Eq)]
enum Noted {
    Nothing,
    Something,
}

impl Body {
    fn read(text: &str) -> Self {
        let mut lexer = Lexer::within(Quoting::Standard);
        lexer.feed(text.as_bytes());
        let mut findings = lexer.finish();
        let tokens = names::tokens(text.as_bytes(), Quoting::Standard);
        if findings.settings == [SettingName::Unknown] {
            findings.settings = names::of_body(&tokens);
        }
        let word = |token: &Token<'_>| match token {
            Token::Word(word) | Token::Quoted(word) => Some(word.as_bytes().into()),
            _ => None,
        };
        let words: HashSet<Box<[u8]>, RandomState> = tokens.iter().filter_map(word).collect();
        if RUN.iter().any(|run| words.contains(run.as_bytes())) {
            strings(&tokens).for_each(|text| findings.add(&read_string(text, DEPTH)));
        }
        Self { findings, words }
    }
}

/// A string that may be run as SQL, or be a message to somebody.
fn read_string(text: &[u8], depth: usize) -> Findings {
    let mut findings = super::read(text, Quoting::Standard, None);
    findings.suspects = findings.suspects.without(NEVER_BY_CHANCE);
    if depth > 0 {
        let tokens = names::tokens(text, Quoting::Standard);
        strings(&tokens).for_each(|text| findings.add(&read_string(text, depth - 1)));
    }
    findings
}

/// Strings with which a statement may begin: not what is put behind something else, as in `'UPDATE ' || t || ' SET ..'`.
fn strings<'a>(tokens: &'a [Token<'a>]) -> impl Iterator<Item = &'a [u8]> {
    let behind = |at: usize| at > 0 && tokens[at - 1] == Token::Sign(b'|');
    let begin = tokens.iter().enumerate().filter(move |(at, _)| !behind(*at));
    begin.filter_map(|(_, token)| match token {
        // In quotes of the second kind stand the strings of other languages.
        Token::Text(Some(text)) | Token::Quoted(text) => Some(text.as_bytes()),
        Token::Body(text) => Some(*text),
        _ => None,
    })
}

/// What can't be asked about is not believed of a string that only begins with its word.
const NEVER_BY_CHANCE: Suspects = {
    let mut all = Suspects::LOAD;
    all.insert(Suspects::SEED);
    all.insert(Suspects::DBLINK);
    all
};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn routine(name: &str, body: &str, runs: Runs) -> Routine {
        Routine { name: name.to_owned(), body: body.to_owned(), runs }
    }

    fn read(query: &str, routines: &[Routine]) -> Findings {
        let routines = Arc::new(Routines::read(routines));
        super::super::read(query.as_bytes(), Quoting::Standard, Some(&routines))
    }

    fn called(body: &str) -> Findings {
        read("select f(1)", &[routine("f", body, Runs::Called)])
    }

    fn names(findings: &Findings) -> Vec<String> {
        let show = |name: &SettingName| match name {
            SettingName::Named(name) => name.to_string(),
            _ => "?".to_owned(),
        };
        findings.settings.iter().map(show).collect()
    }

    #[test]
    fn a_call_leaves_what_the_body_says() {
        for (body, what, settings) in [
            ("begin perform set_config('app.x', $1, false); end", Suspects::SETTING, "app.x"),
            ("begin set work_mem = '1MB'; end", Suspects::SETTING, ""),
            ("begin if a then set app.y = 1; end if; end", Suspects::SETTING, "app.y"),
            ("select set_config('app.x', $1, false)", Suspects::SETTING, "app.x"),
            ("begin perform pg_advisory_lock(1); end", Suspects::ADVISORY_LOCK, ""),
            ("begin create temp table t (); end", Suspects::TEMPORARY, ""),
            ("begin execute 'set app.z = ' || quote_literal(v); end", Suspects::SETTING, "app.z"),
            ("begin execute format('set %I = %L', k, v); end", Suspects::SETTING, "?"),
            ("begin execute 'set app.' || k || ' = 1'; end", Suspects::SETTING, "?"),
            (
                "begin execute 'select set_config(''app.q'', $1, false)' using v; end",
                Suspects::SETTING,
                "app.q",
            ),
            ("begin execute $q$ listen $q$ || quote_ident(c); end", Suspects::LISTEN, ""),
            ("plpy.execute(\"set app.p = 1\")", Suspects::SETTING, "app.p"),
        ] {
            let found = called(body);
            assert_eq!(found.suspects.without(Suspects::SEQUENCE_DRAW), what, "{body}");
            assert_eq!(names(&found).join(" "), settings, "{body}");
        }
    }

    #[test]
    fn harmless_bodies_are_let_alone() {
        for body in [
            "begin update t set a = 1; end",
            "begin perform set_config('app.x', $1, true); end",
            "begin set local work_mem = '1MB'; end",
            "begin raise notice 'set app.x = 1'; end",
            "begin execute 'update ' || t || ' set a = 1'; end",
            "begin execute 'load me'; end",
            "begin return select 1; end",
        ] {
            let suspects = called(body).suspects.without(Suspects::SEQUENCE_DRAW);
            assert_eq!(suspects, Suspects::NONE, "{body}");
        }
    }

    #[test]
    fn what_calls_what_leaves_something_leaves_it_too() {
        let all = [
            routine("outer", "begin perform middle(); end", Runs::Called),
            routine("middle", "select \"In.ner\"()", Runs::Called),
            routine("In.ner", "begin perform set_config('a.b', '1', false); end", Runs::Called),
            routine("again", "begin perform again(); end", Runs::Called),
        ];
        let found = read("call outer()", &all);
        assert!(found.suspects.intersects(Suspects::SETTING));
        assert_eq!(names(&found), ["a.b"]);
        assert_eq!(read("select again()", &all).suspects, Suspects::NONE);
        assert_eq!(read("select 'outer()' -- outer()", &all), Findings::default());
    }

    #[test]
    fn a_trigger_runs_when_a_table_changes() {
        let body = "begin perform set_config('a.b', '1', false); return new; end";
        let all = [routine("f", body, Runs::ByTrigger)];
        for query in ["update t set x = 1", "delete from t", "copy t from stdin", "truncate t"] {
            assert!(read(query, &all).suspects.intersects(Suspects::SETTING), "{query}");
        }
        assert_eq!(read("select * from t", &all).suspects, Suspects::NONE);
    }

    #[test]
    fn a_changed_routine_is_noticed() {
        for query in [
            "create function f() returns int language sql as ''",
            "create or replace procedure p() language sql as ''",
            "alter function f() volatile",
            "drop routine f",
            "create trigger t after insert on a execute function f()",
            "create constraint trigger t after insert on a execute function f()",
            "create extension if not exists x",
        ] {
            assert!(read(query, &[]).suspects.intersects(Suspects::ROUTINE), "{query}");
        }
        assert!(!read("create table function (a int)", &[]).suspects.intersects(Suspects::SETTING));
    }
}
