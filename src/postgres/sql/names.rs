//! The custom settings that a query names. No catalog lists them, so the server can be asked about them only by name.
//!
//! Read only when the lexer suspects a change of settings, which is rare: it may take its time, and has the whole text.

use super::Quoting;

/// Longest name, in bytes; and most names of one query. What goes beyond can't be told.
const NAME_BYTES: usize = 1024;
const NAMES: usize = 64;

/// How deep DO blocks may lie in each other.
const DEPTH: usize = 8;

/// A custom setting that a query may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingName {
    /// This one, which has a dot in it.
    Named(Box<str>),
    /// The one that the Bind's parameter with this number names, counted from one.
    Parameter(u16),
    /// Any.
    Unknown,
}

/// What a query says of settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) names: Vec<SettingName>,
    pub(super) resets: Resets,
}

/// Whether a setting may go back to what it was at login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resets {
    #[default]
    No,
    /// By DEFAULT or NULL as its new value.
    Yes,
    /// And it may be the role, or the session's user.
    Identity,
}

/// What the query names.
pub(super) fn read(text: &[u8], quoting: Quoting) -> Named {
    let mut named = Named::default();
    read_into(text, quoting, DEPTH, &mut named);
    named
}

/// One token of a query, as far as names of settings matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A word without quotes, in lower case.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// A string; `None` if it has escapes.
    Text(Option<String>),
    /// A string between dollar signs.
    Body(&'a [u8]),
    Parameter(u16),
    Sign(u8),
}

/// What a routine's body names. What it runs by EXECUTE is left to who reads its strings.
pub(super) fn of_body(tokens: &[Token<'_>]) -> Vec<SettingName> {
    let mut named = Named::default();
    read_tokens(tokens, Quoting::Standard, DEPTH, &mut named);
    named.names
}

fn read_into(text: &[u8], quoting: Quoting, depth: usize, named: &mut Named) {
    let tokens = tokens(text, quoting);
    // In a block it runs what nobody can read.
    if depth < DEPTH && tokens.iter().any(|token| is(token, "execute")) {
        named.add(SettingName::Unknown);
    }
    read_tokens(&tokens, quoting, depth, named);
}

fn read_tokens(tokens: &[Token<'_>], quoting: Quoting, depth: usize, named: &mut Named) {
    let mut starts = true;
    for at in 0..tokens.len() {
        let rest = &tokens[at + 1..];
        if tokens[at] == Token::Quoted("set_config".to_owned()) {
            call(rest, named);
        }
        let Token::Word(word) = &tokens[at] else {
            starts = tokens[at] == Token::Sign(b';');
            continue;
        };
        match word.as_str() {
            "set" if starts => set(rest, named),
            "reset" if starts => name(rest, named),
            "do" if starts => block(rest, quoting, depth, named),
            "set_config" => call(rest, named),
            // A name in code points: it may be that of a routine that changes any.
            "u" if matches!(rest, [Token::Sign(b'&'), Token::Quoted(_), ..]) => {
                named.add(SettingName::Unknown);
            }
            "pg_settings" if tokens[..at].iter().any(|token| is(token, "update")) => {
                named.add(SettingName::Unknown);
            }
            _ => {}
        }
        // Within a block statements begin behind these, too.
        starts = matches!(word.as_str(), "begin" | "then" | "else" | "loop");
    }
}

impl Named {
    fn add(&mut self, name: SettingName) {
        if self.names.contains(&name) {
            return;
        }
        let name = if self.names.len() < NAMES { name } else { SettingName::Unknown };
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    fn add_named(&mut self, name: &str) {
        if name.len() > NAME_BYTES || name == "seed" {
            self.add(SettingName::Unknown);
        } else if name.contains('.') {
            self.add(SettingName::Named(name.into()));
        }
    }
}

/// Whether SET, SET SESSION or RESET changes by this word who the session is.
pub(super) fn is_identity(word: &[u8]) -> bool {
    matches!(word, b"role" | b"session" | b"authorization" | b"session_authorization")
}

fn is(token: &Token<'_>, word: &str) -> bool {
    matches!(token, Token::Word(other) if other == word)
}

/// Behind SET.
fn set(rest: &[Token<'_>], named: &mut Named) {
    let rest = match rest {
        [first, second, ..] if is(first, "session") && *second != Token::Sign(b'.') => &rest[1..],
        [first, second, ..] if is(first, "local") && *second != Token::Sign(b'.') => return,
        _ => rest,
    };
    name(rest, named);
    let value = rest.iter().take_while(|token| **token != Token::Sign(b';'));
    let zone_of_login = |rest: &[Token<'_>]| matches!(rest, [time, zone, local, ..] if is(time, "time") && is(zone, "zone") && is(local, "local"));
    if value.clone().any(|token| is(token, "default")) || zone_of_login(rest) {
        named.resets = named.resets.max(reset_of(rest.first()));
    }
}

/// What goes back when a setting of this name does; by another name than a plain one it may be any.
fn reset_of(name: Option<&Token<'_>>) -> Resets {
    match name {
        Some(Token::Word(name) | Token::Quoted(name) | Token::Text(Some(name)))
            if !is_identity(name.to_ascii_lowercase().as_bytes()) =>
        {
            Resets::Yes
        }
        _ => Resets::Identity,
    }
}

/// A name with or without dots.
fn name(mut rest: &[Token<'_>], named: &mut Named) {
    let mut whole = String::new();
    loop {
        match rest {
            [Token::Word(word), Token::Sign(b'&'), ..] if word == "u" => {
                return named.add(SettingName::Unknown);
            }
            [Token::Word(part) | Token::Quoted(part), Token::Sign(b'.'), behind @ ..] => {
                whole.push_str(part);
                whole.push('.');
                rest = behind;
            }
            [Token::Word(part) | Token::Quoted(part), ..] => {
                whole.push_str(part);
                return named.add_named(&whole);
            }
            // The rest of the name is put there by format() or ||.
            [] | [Token::Sign(b'%'), ..] => return named.add(SettingName::Unknown),
            _ => return,
        }
    }
}

/// Behind DO: its body is SQL, too.
fn block(rest: &[Token<'_>], quoting: Quoting, depth: usize, named: &mut Named) {
    let statement = rest.iter().take_while(|token| **token != Token::Sign(b';'));
    for token in statement {
        match token {
            Token::Body(body) if depth > 0 => read_into(body, quoting, depth - 1, named),
            Token::Body(_) | Token::Text(_) => named.add(SettingName::Unknown),
            _ => {}
        }
    }
}

/// Behind `set_config`.
fn call(rest: &[Token<'_>], named: &mut Named) {
    let [Token::Sign(b'('), rest @ ..] = rest else { return };
    let Some(arguments) = arguments(rest) else { return named.add(SettingName::Unknown) };
    let [name, value, local] = arguments[..] else { return named.add(SettingName::Unknown) };
    if let [local] = local
        && is(local, "true")
    {
        return;
    }
    if value.first().is_some_and(|value| is(value, "null")) {
        let name = uncast(name);
        named.resets = named.resets.max(reset_of(name.first().filter(|_| name.len() == 1)));
    }
    match uncast(name) {
        [Token::Text(Some(name))] => named.add_named(name),
        [Token::Parameter(number)] => named.add(SettingName::Parameter(*number)),
        _ => named.add(SettingName::Unknown),
    }
}

/// A call's arguments up to its closing parenthesis.
fn arguments<'a, 'b>(rest: &'b [Token<'a>]) -> Option<Vec<&'b [Token<'a>]>> {
    let (mut found, mut depth, mut from) = (Vec::new(), 0_usize, 0);
    for (at, token) in rest.iter().enumerate() {
        match token {
            Token::Sign(b'(') => depth += 1,
            Token::Sign(b')') if depth == 0 => {
                found.push(&rest[from..at]);
                return Some(found);
            }
            Token::Sign(b')') => depth -= 1,
            Token::Sign(b',') if depth == 0 => {
                found.push(&rest[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// Without a cast to another name of text.
fn uncast<'a, 'b>(argument: &'b [Token<'a>]) -> &'b [Token<'a>] {
    match argument {
        [value @ .., Token::Sign(b':'), Token::Sign(b':'), Token::Word(to)]
            if to == "text" || to == "varchar" =>
        {
            value
        }
        _ => argument,
    }
}

/// Takes a text apart.
pub(super) fn tokens(text: &[u8], quoting: Quoting) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        rest = match first {
            b'-' if behind.first() == Some(&b'-') => past_line(behind),
            b'/' if behind.first() == Some(&b'*') => past_comment(&behind[1..]),
            b'\'' => {
                let (token, behind) = string(behind, quoting == Quoting::Backslash);
                found.push(token);
                behind
            }
            b'e' | b'E' if behind.first() == Some(&b'\'') => {
                let (token, behind) = string(&behind[1..], true);
                found.push(token);
                behind
            }
            b'"' => {
                let (name, behind) = quoted(behind);
                found.push(Token::Quoted(name));
                behind
            }
            b'$' => {
                let (token, behind) = dollar(behind);
                found.push(token);
                behind
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => {
                let length = rest.iter().take_while(|&&byte| is_of_word(byte)).count();
                let (word, behind) = rest.split_at(length);
                let word = String::from_utf8_lossy(word).to_ascii_lowercase();
                found.push(Token::Word(word));
                behind
            }
            byte if byte.is_ascii_whitespace() => behind,
            byte => {
                found.push(Token::Sign(byte));
                behind
            }
        };
    }
    found
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}

fn past_line(text: &[u8]) -> &[u8] {
    memchr::memchr2(b'\n', b'\r', text).map_or(&[], |end| &text[end + 1..])
}

/// Behind a comment that has just begun; comments nest.
fn past_comment(text: &[u8]) -> &[u8] {
    let (mut depth, mut at) = (1_usize, 0);
    while depth > 0 {
        match text.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            Some(_) => at += 1,
            None => return &[],
        }
    }
    &text[at..]
}

/// A string that has just begun.
fn string(text: &[u8], escapes: bool) -> (Token<'_>, &[u8]) {
    let mut value = Vec::new();
    let mut escaped = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match (byte, text.get(at + 1)) {
            (b'\'', Some(b'\'')) => at += 1,
            (b'\'', _) => {
                at += 1;
                match goes_on(&text[at..]).filter(|_| escapes) {
                    Some(between) => at += between,
                    None => break,
                }
                continue;
            }
            (b'\\', _) if escapes => {
                escaped = true;
                at += 1;
            }
            _ => {}
        }
        value.push(byte);
        at += 1;
    }
    let value = String::from_utf8(value).ok().filter(|_| !escaped);
    (Token::Text(value), text.get(at..).unwrap_or_default())
}

/// How many bytes stand between a string and one that goes on with it, with that one's quote: spaces and line comments.
fn goes_on(behind: &[u8]) -> Option<usize> {
    let mut rest = behind;
    loop {
        rest = match rest {
            [byte, next @ ..] if super::is_space(*byte) => next,
            [b'-', b'-', next @ ..] => past_line(next),
            [b'\'', next @ ..] => return Some(behind.len() - next.len()),
            _ => return None,
        };
    }
}

/// A name in quotes that has just begun.
fn quoted(text: &[u8]) -> (String, &[u8]) {
    let mut name = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        if byte == b'"' {
            if text.get(at) != Some(&b'"') {
                break;
            }
            at += 1;
        }
        name.push(byte);
    }
    (String::from_utf8_lossy(&name).into_owned(), text.get(at..).unwrap_or_default())
}

/// Behind a dollar sign: a parameter, or a string between dollar signs.
fn dollar(text: &[u8]) -> (Token<'_>, &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 {
        let number = std::str::from_utf8(&text[..digits]).ok().and_then(|text| text.parse().ok());
        return (number.map_or(Token::Sign(b'$'), Token::Parameter), &text[digits..]);
    }
    let name = text.iter().take_while(|&&byte| is_of_word(byte) && byte != b'$').count();
    if text.get(name) != Some(&b'$') {
        return (Token::Sign(b'$'), text);
    }
    let tag = [b"$", &text[..=name]].concat();
    let body = &text[name + 1..];
    match memchr::memmem::find(body, &tag) {
        Some(end) => (Token::Body(&body[..end]), &body[end + tag.len()..]),
        None => (Token::Body(body), &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(text: &str) -> Vec<String> {
        let named = read(text.as_bytes(), Quoting::Standard);
        let show = |name: &SettingName| match name {
            SettingName::Named(name) => name.to_string(),
            SettingName::Parameter(number) => format!("${number}"),
            SettingName::Unknown => "?".to_owned(),
        };
        named.names.iter().map(show).collect()
    }

    #[test]
    fn finds_the_names_of_custom_settings() {
        for (text, wanted) in [
            ("set app.user_id = 7", "app.user_id"),
            ("SET SESSION App.User TO 'x'", "app.user"),
            ("set session.x = 1", "session.x"),
            ("set \"App\".\"user id\" = 1", "App.user id"),
            ("set app /* c */ . -- d\n x = 1", "app.x"),
            ("set work_mem = '1MB'", ""),
            ("set local app.x = 1", ""),
            ("set local.x = 1", "local.x"),
            ("select pg_catalog.\"set_config\"('app.x', 'y', false)", "app.x"),
            ("do $$ begin execute 'set a.b = 1'; end $$", "?"),
            ("-- c\rset app.x = 1", "app.x"),
            ("select U&\"set_confi\\0067\"('app.x', 'y', false)", "?"),
            ("select E'a' -- b\n 'b\\'', set_config('app.x', 'y', false)", "app.x"),
            ("select 'a'\n'b\\', set_config('app.x', 'y', false)", "app.x"),
            ("reset app.x", "app.x"),
            ("reset all", ""),
            ("begin; set app.x = 1; set app.y = 2; commit", "app.x app.y"),
            ("update t set a.b = 1", ""),
            ("select set_config('app.x', 'y', false)", "app.x"),
            ("select set_config('app.it''s', 'y', $1)", "app.it's"),
            ("select set_config('app.x'::text, f(1, 2), false)", "app.x"),
            ("select set_config('work_mem', '1MB', false)", ""),
            ("select set_config('app.x', 'y', true)", ""),
            ("select set_config($1, $2, false)", "$1"),
            ("select set_config($12::text, $2, $3)", "$12"),
            ("select set_config('app.' || name, 'y', false) from t", "?"),
            ("select set_config(E'app.\\x', 'y', false)", "?"),
            ("select set_config(E'app.x', 'y', false)", "app.x"),
            ("select set_config(name, 'y', false) from t", "?"),
            ("select set_config('app.x', 'y', fal", "?"),
            ("select 'set_config(''app.x'', 1, false)'", ""),
            ("do $$ begin set app.x = 1; end $$", "app.x"),
            (
                "do language plpgsql $a$ begin if a then perform set_config('b.c', '$$', false); end if; end $a$",
                "b.c",
            ),
            ("do 'begin end'", "?"),
            ("set u&\"\\0061pp\".x = 1", "?"),
            ("update pg_catalog.pg_settings set setting = 'x'", "?"),
            ("select * from pg_settings", ""),
        ] {
            assert_eq!(names(text).join(" "), wanted, "{text}");
        }
    }

    #[test]
    fn default_and_null_reset() {
        for text in [
            "set x to default",
            "set session a.b = DEFAULT",
            "set session time zone local",
            "select set_config('x', null, false)",
        ] {
            assert_eq!(read(text.as_bytes(), Quoting::Standard).resets, Resets::Yes, "{text}");
        }
        for text in [
            "set role to default",
            "set session authorization default",
            "set x to default; set \"role\" = default; set y to default",
            "select set_config('Role', null, false)",
            "select set_config($1, null, false)",
        ] {
            assert_eq!(read(text.as_bytes(), Quoting::Standard).resets, Resets::Identity, "{text}");
        }
        assert_eq!(read(b"set x = 1; select 'default'", Quoting::Standard).resets, Resets::No);
    }

    #[test]
    fn too_many_names_are_unknown() {
        let text: String = (0..100).map(|n| format!("set a.n{n} = 1;")).collect();
        let found = names(&text);
        assert!(found.len() <= NAMES + 1 && found.contains(&"?".to_owned()));
        assert_eq!(names(&format!("set a.{} = 1", "x".repeat(2000))), ["?"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _found = read(&text, Quoting::Backslash);
        }
    }
}
