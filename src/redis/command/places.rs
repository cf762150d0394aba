//! Which words of a command are names: keys, channels, and patterns of either.
//!
//! Most of it stands in the table. What `COMMAND` doesn't tell, or tells of the first occurrence only where the server looks at
//! all, is read here as the server reads it. Where a command is wrong, the server will say so, and no word of it is a name.
//! Sources: Redis documentation, "Command key specifications"; the commands' own pages.

use super::spec::{Begins, Channels, Command, KeySpec, Keys, Touch};

/// What a word names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A key.
    Key(Touch),
    /// Keys, by a pattern whose first `*` stands for an element (SORT's BY and GET).
    KeysByElement,
    /// A channel that is listened to.
    Channel,
    /// A channel that is published to, or asked about.
    Target,
    /// Channels, by a pattern.
    Channels,
}

/// Calls `visit` with the number of each word that is a name, counted from the command's own.
pub fn names(command: &Command, words: &[&[u8]], visit: &mut dyn FnMut(usize, Named)) {
    match command.name {
        "SORT" | "SORT_RO" => sort(words, visit),
        "GEORADIUS" => radius(words, 6, visit),
        "GEORADIUSBYMEMBER" => radius(words, 5, visit),
        "XREAD" | "XREADGROUP" => streams(words, command.name == "XREADGROUP", visit),
        _ => command.keys.iter().for_each(|spec| by_spec(spec, words, visit)),
    }
    match command.channels {
        Channels::None => {}
        Channels::One(at) => one(words, usize::from(at), Named::Target, visit),
        Channels::All(from) => {
            let asked = command.name.starts_with("PUBSUB|");
            let named = if asked { Named::Target } else { Named::Channel };
            all(words, usize::from(from), named, visit);
        }
        Channels::Patterns(from) => all(words, usize::from(from), Named::Channels, visit),
    }
}

fn one(words: &[&[u8]], at: usize, named: Named, visit: &mut dyn FnMut(usize, Named)) {
    if at < words.len() {
        visit(at, named);
    }
}

fn all(words: &[&[u8]], from: usize, named: Named, visit: &mut dyn FnMut(usize, Named)) {
    (from..words.len()).for_each(|at| visit(at, named));
}

fn by_spec(spec: &KeySpec, words: &[&[u8]], visit: &mut dyn FnMut(usize, Named)) {
    let Some(first) = first(spec.begins, words) else { return };
    let named = Named::Key(spec.touch);
    match spec.keys {
        Keys::Range { last, step, limit } => {
            let step = usize::from(step).max(1);
            let last = match (usize::try_from(last), usize::from(limit)) {
                (Ok(more), _) => first.saturating_add(more),
                (Err(_), 0 | 1) => back(words.len(), last),
                (Err(_), part) => first + back((words.len() - first) / part, last),
            };
            let keys = (first..words.len()).step_by(step).take_while(|at| *at <= last);
            keys.for_each(|at| visit(at, named));
        }
        Keys::Counted { count, first: offset, step } => {
            let at = first + usize::from(count);
            let Some(keys) = words.get(at).and_then(|word| number(word)) else { return };
            let from = first + usize::from(offset);
            let step = usize::from(step).max(1);
            // With too large a number the server refuses the command, and does not look for keys.
            let Some(behind) = keys.checked_mul(step).and_then(|length| length.checked_add(from))
            else {
                return;
            };
            if behind <= words.len() {
                (from..behind).step_by(step).for_each(|at| visit(at, named));
            }
        }
        Keys::Untold => {}
    }
}

/// So many from the end: -1 is the last.
fn back(length: usize, by: i8) -> usize {
    length.saturating_sub(usize::from(by.unsigned_abs()))
}

fn first(begins: Begins, words: &[&[u8]]) -> Option<usize> {
    match begins {
        Begins::At(at) => Some(usize::from(at)).filter(|at| *at < words.len()),
        Begins::Behind { word, from } => {
            let is_it = |at: &usize| words[*at].eq_ignore_ascii_case(word.as_bytes());
            let found = match usize::try_from(from) {
                Ok(from) => (from..words.len()).find(is_it),
                Err(_) => (1..=back(words.len(), from)).rev().find(is_it),
            };
            found.map(|at| at + 1).filter(|at| *at < words.len())
        }
        Begins::Untold => None,
    }
}

/// A number as the server reads it where it looks for keys: what digits there are, behind blanks and a sign. The command itself
/// is stricter, so that more keys may be found than it will touch.
fn number(word: &[u8]) -> Option<usize> {
    let digits = word.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

fn sort(words: &[&[u8]], visit: &mut dyn FnMut(usize, Named)) {
    one(words, 1, Named::Key(Touch::Read), visit);
    let mut at = 2;
    while let Some(word) = words.get(at) {
        let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
        let left = words.len() - at - 1;
        at += match () {
            () if is("ASC") || is("DESC") || is("ALPHA") => 1,
            () if is("LIMIT") && left >= 2 => 3,
            () if is("STORE") && left >= 1 => {
                visit(at + 1, Named::Key(Touch::Write));
                2
            }
            () if (is("BY") || is("GET")) && left >= 1 => {
                visit(at + 1, Named::KeysByElement);
                2
            }
            // A syntax error, behind which the server still looks for keys.
            () => 1,
        };
    }
}

/// Each STORE and STOREDIST: the last one counts.
fn radius(words: &[&[u8]], from: usize, visit: &mut dyn FnMut(usize, Named)) {
    one(words, 1, Named::Key(Touch::Read), visit);
    let mut at = from;
    while let Some(word) = words.get(at) {
        let stores = [&b"STORE"[..], b"STOREDIST"].iter().any(|it| word.eq_ignore_ascii_case(it));
        if stores && at + 1 < words.len() {
            at += 1;
            visit(at, Named::Key(Touch::Write));
        }
        at += 1;
    }
}

fn streams(words: &[&[u8]], in_group: bool, visit: &mut dyn FnMut(usize, Named)) {
    let mut at = 1;
    while let Some(word) = words.get(at) {
        let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
        let left = words.len() - at - 1;
        at += match () {
            () if (is("BLOCK") || is("COUNT") || is("CLAIM")) && left >= 1 => 2,
            () if is("STREAMS") && left >= 1 => {
                let touch = if in_group { Touch::Write } else { Touch::Read };
                // With an odd number the server says that they are unbalanced.
                let keys = if left.is_multiple_of(2) { left / 2 } else { 0 };
                return (0..keys).for_each(|key| visit(at + 1 + key, Named::Key(touch)));
            }
            () if is("GROUP") && left >= 2 => 3,
            () if is("NOACK") => 1,
            () => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::look_up;
    use super::*;

    fn of(line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut found = Vec::new();
        names(look_up(&words).unwrap(), &words, &mut |at, named| {
            let kind = match named {
                Named::Key(Touch::Read) => "",
                Named::Key(Touch::Write) => "!",
                Named::KeysByElement => "*",
                Named::Channel => "#",
                Named::Target => "@",
                Named::Channels => "#*",
            };
            found.push(format!("{}{kind}", std::str::from_utf8(words[at]).unwrap()));
        });
        found.join(" ")
    }

    #[test]
    fn every_key_of_a_command_is_found() {
        assert_eq!(of("GET k"), "k");
        assert_eq!(of("get"), "");
        assert_eq!(of("MSET a 1 b 2"), "a! b!");
        assert_eq!(of("MGET a b c"), "a b c");
        assert_eq!(of("BLPOP a b 0"), "a! b!");
        assert_eq!(of("BITOP AND d a b"), "d! a b");
        assert_eq!(of("ZUNIONSTORE d 2 a b WEIGHTS 1 2"), "d! a b");
        assert_eq!(of("EVAL s 2 a b c"), "a! b!");
        assert_eq!(of("EVAL s 0 a"), "");
        assert_eq!(of("EVAL s 9 a"), "");
        assert_eq!(of("EVAL s +1 a"), "a!");
        assert_eq!(of("EVAL s -1 a"), "");
        assert_eq!(of("LMPOP 2 a b LEFT"), "a! b!");
        assert_eq!(of("XGROUP CREATE s g $"), "s!");
        assert_eq!(of("OBJECT freq k"), "k");
        assert_eq!(of("MSETEX 2 a 1 b 2 NX"), "a! b!");
    }

    #[test]
    fn options_are_read_as_the_server_reads_them() {
        assert_eq!(of("SORT k BY w_* GET # GET o_*->f LIMIT 0 1 STORE d"), "k w_** #* o_*->f* d!");
        assert_eq!(of("SORT k store a STORE b"), "k a! b!");
        assert_eq!(of("GEORADIUS k 1 2 3 km STORE a COUNT 1 storedist b"), "k a! b!");
        assert_eq!(of("XREAD COUNT 1 STREAMS a b 0 0"), "a b");
        assert_eq!(of("XREADGROUP COUNT 1 GROUP STREAMS c STREAMS s >"), "s!");
        assert_eq!(of("XREAD STREAMS a b 0"), "");
    }

    #[test]
    fn channels_are_names_too() {
        assert_eq!(of("PUBLISH c m"), "c@");
        assert_eq!(of("SUBSCRIBE a b"), "a# b#");
        assert_eq!(of("PSUBSCRIBE a*"), "a*#*");
        assert_eq!(of("PUBSUB NUMSUB a b"), "a@ b@");
    }
}
