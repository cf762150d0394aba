//! A statement as it may be shown to people: its first words, without literals and comments.

use std::fmt::Write as _;

/// Most characters of a shape.
const SHAPE_CHARS: usize = 100;

/// The first words of a statement, of which `text` may be no more than the beginning. Every literal, one that is cut off
/// included, is a question mark; comments are left out; white space is one blank. At most 100 characters.
///
/// Source: PostgreSQL documentation, "Lexical Structure".
#[must_use]
pub fn shape(text: &[u8]) -> String {
    let mut shape = Shape { text, at: 0, out: String::new(), chars: 0 };
    while shape.at < text.len() && shape.chars < SHAPE_CHARS {
        shape.token();
    }
    if shape.at < text.len() {
        shape.out.push('…');
    }
    shape.out.truncate(shape.out.trim_end().len());
    shape.out
}

struct Shape<'a> {
    text: &'a [u8],
    at: usize,
    out: String,
    chars: usize,
}

impl Shape<'_> {
    fn token(&mut self) {
        let rest = &self.text[self.at..];
        match rest[0] {
            byte if byte.is_ascii_whitespace() || byte.is_ascii_control() => {
                self.at += 1;
                self.blank();
            }
            b'-' if rest.starts_with(b"--") => {
                self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                self.blank();
            }
            b'/' if rest.starts_with(b"/*") => {
                self.at += comment(rest);
                self.blank();
            }
            b'\'' => self.literal(string(rest, Escapes::None)),
            b'$' => match dollar_quoted(rest) {
                Some(length) => self.literal(length),
                // A parameter: $1.
                None => {
                    self.put(1 + rest[1..].iter().take_while(|byte| byte.is_ascii_digit()).count())
                }
            },
            b'"' => self.put(quoted(rest)),
            byte if byte.is_ascii_digit() => self.literal(number(rest)),
            byte if is_word(byte) => self.word(),
            _ => self.put(1),
        }
    }

    /// A word; one that is stuck to a quote says how to read the literal behind it.
    fn word(&mut self) {
        let rest = &self.text[self.at..];
        let length = rest.iter().take_while(|byte| is_word(**byte) || **byte == b'$').count();
        let (word, behind) = rest.split_at(length);
        let prefix = |one: &[u8]| word.eq_ignore_ascii_case(one);
        if behind.starts_with(b"'")
            && (prefix(b"e") || prefix(b"b") || prefix(b"x") || prefix(b"n"))
        {
            let escapes = if prefix(b"e") { Escapes::Backslash } else { Escapes::None };
            return self.literal(length + string(behind, escapes));
        }
        if prefix(b"u") && behind.starts_with(b"&'") {
            return self.literal(length + 1 + string(&behind[1..], Escapes::None));
        }
        self.put(length);
    }

    fn literal(&mut self, length: usize) {
        self.at += length;
        self.push("?");
    }

    fn put(&mut self, length: usize) {
        let piece = String::from_utf8_lossy(&self.text[self.at..self.at + length]).into_owned();
        self.at += length;
        let piece: String = piece.chars().filter(|one| !one.is_control()).collect();
        self.push(&piece);
    }

    fn blank(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with(' ') {
            self.push(" ");
        }
    }

    fn push(&mut self, piece: &str) {
        for one in piece.chars().take(SHAPE_CHARS - self.chars.min(SHAPE_CHARS)) {
            // Writing to a string can't fail.
            let _ = self.out.write_char(one);
            self.chars += 1;
        }
    }
}

/// Letters, and everything beyond ASCII: PostgreSQL takes that for letters, too.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    None,
    Backslash,
}

/// Bytes of the string that begins with a quote here; all there are if it does not end, and if nobody can tell where it
/// does: whether a backslash hides the quote behind it, a setting of the session says.
fn string(text: &[u8], escapes: Escapes) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            // In some encodings of clients it is the second byte of a character.
            b'\\' if escapes == Escapes::Backslash && text[at - 1] >= 0x80 => return text.len(),
            b'\\' if escapes == Escapes::Backslash => at += 2,
            b'\\' if text.get(at + 1) == Some(&b'\'') => return text.len(),
            b'\'' if text.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Bytes of the quoted name that begins here.
fn quoted(text: &[u8]) -> usize {
    let end = text[1..].iter().position(|byte| *byte == b'"');
    end.map_or(text.len(), |end| end + 2)
}

/// Bytes of the dollar-quoted string that begins here, if it is one and no parameter.
fn dollar_quoted(text: &[u8]) -> Option<usize> {
    let tag = text[1..].iter().take_while(|byte| is_word(**byte)).count() + 2;
    if text.get(tag - 1) != Some(&b'$') || text[1].is_ascii_digit() {
        return None;
    }
    let (tag, body) = text.split_at(tag);
    let end = memchr::memmem::find(body, tag);
    Some(end.map_or(text.len(), |end| tag.len() + end + tag.len()))
}

/// Bytes of the number that begins here: 12, 1.5e-3, `0x1F`, `1_000`.
fn number(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        let exponent = matches!(text[at - 1], b'e' | b'E') && matches!(byte, b'+' | b'-');
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || exponent) {
            break;
        }
        at += 1;
    }
    at
}

/// Bytes of the comment that begins here; comments nest.
fn comment(text: &[u8]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < text.len() && depth > 0 {
        let two = &text[at..];
        if two.starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
        } else if two.starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else {
            at += 1;
        }
    }
    at.min(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_and_comments_are_gone() {
        for (text, expected) in [
            ("select 1", "select ?"),
            (
                "  SELECT *\n FROM a -- secret\n WHERE b = 'x''y' AND c=1.5e-3",
                "SELECT * FROM a WHERE b = ? AND c=?",
            ),
            ("alter role u password 'hunter2'", "alter role u password ?"),
            (
                "select E'a\\'b', b'01', U&'d\\0061t', $$x$$, $a$ y $b$ $a$, $1",
                "select ?, ?, ?, ?, ?, $1",
            ),
            ("/* a /* b */ c */ begin", "begin"),
            (r"select 'a\', 'secret'", "select ?"),
            ("select 'cut of", "select ?"),
            ("select $$cut of", "select ?"),
            ("select \"T1\".a1 from t2", "select \"T1\".a1 from t2"),
            ("insert into t values (0x1F, 1_000)", "insert into t values (?, ?)"),
            ("", ""),
            ("   ", ""),
        ] {
            assert_eq!(shape(text.as_bytes()), expected, "{text}");
        }
        let long = format!("select {}", "a, ".repeat(100));
        assert_eq!(shape(long.as_bytes()).chars().count(), SHAPE_CHARS + 1);
    }

    #[test]
    fn a_character_that_ends_like_a_backslash_hides_no_quote() {
        let mut text = b"select E'".to_vec();
        // In Shift JIS one character.
        text.extend([0x95, 0x5c]);
        text.extend(b"', 'secret'");
        assert_eq!(shape(&text), "select ?");
    }

    proptest! {
        #[test]
        fn anything_has_a_shape_and_no_string_shows(text in "[a-z'$ /*\"\\\\0-9-]{0,200}", secret in "[A-Z]{8}") {
            let all = format!("{text} '{secret}");
            let _any = shape(all.as_bytes());
            let clean = format!("select '{secret}', E'\\'{secret}', $t${secret}$t$ {}", text);
            prop_assert!(!shape(clean.as_bytes()).contains(&secret));
        }
    }
}
