//! The lexer's short ways: runs of bytes that mean the same, and words that mean nothing.

/// The bytes that continue an unquoted word, in lower case; nought for those that end it.
const WORD: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte: u8 = 0;
    loop {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80 {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Which bytes mean nothing between words: no word, string, name, comment or dollar quote begins with them, no statement ends.
const DULL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte: u8 = 0;
    loop {
        let matters = byte.is_ascii_alphabetic()
            || byte >= 0x80
            || matches!(byte, b'_' | b'\'' | b'"' | b'-' | b'/' | b'$' | b';' | b'*' | b'.' | b'&');
        table[byte as usize] = !matters;
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// How many of the first bytes mean nothing between words.
pub(super) fn dull(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|byte| !DULL[usize::from(*byte)]);
    end.unwrap_or(bytes.len())
}

/// Takes the first bytes, as far as they continue a word, into `room`, of which `used` is used; what doesn't fit is passed over. How
/// many they are.
pub(super) fn take_word(bytes: &[u8], room: &mut [u8], used: &mut usize) -> usize {
    let mut taken = 0;
    for byte in bytes {
        let lower = WORD[usize::from(*byte)];
        if lower == 0 {
            break;
        }
        if let Some(slot) = room.get_mut(*used) {
            *slot = lower;
            *used += 1;
        }
        taken += 1;
    }
    taken
}

/// The word at the start, if its end is here, too, and tells no string (as in `E'..'`).
pub(super) fn whole_word(bytes: &[u8]) -> Option<&[u8]> {
    let first = bytes.first()?;
    if DULL[usize::from(*first)] || *first == b'$' {
        return None;
    }
    let end = bytes.iter().position(|byte| WORD[usize::from(*byte)] == 0)?;
    (end > 0 && bytes[end] != b'\'').then(|| &bytes[..end])
}

/// Whether a whole query is made of nothing that matters, where no routine's call and no backslash does: what most are. `false` says
/// only that it takes a closer look.
pub(super) fn is_harmless(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        if DULL[usize::from(*byte)] {
            at += 1;
            continue;
        }
        let taken = if WORD[usize::from(*byte)] != 0 && *byte != b'$' {
            harmless_word(&text[at..])
        } else {
            harmless_mark(*byte, &text[at + 1..])
        };
        let Some(taken) = taken else { return false };
        at += taken;
    }
    true
}

/// How long the word at the start is, if it means nothing.
fn harmless_word(text: &[u8]) -> Option<usize> {
    let end = text.iter().position(|byte| WORD[usize::from(*byte)] == 0).unwrap_or(text.len());
    (text.get(end) != Some(&b'\'') && !may_matter(&text[..end])).then_some(end)
}

/// How many bytes a mark takes that has `behind` it, if it means nothing, or with all that belongs to it.
fn harmless_mark(mark: u8, behind: &[u8]) -> Option<usize> {
    match (mark, behind) {
        // A name in code points may follow.
        (b'&', [b'"', ..]) => None,
        (b';' | b'.' | b'*' | b'&', _) => Some(1),
        (b'-', [next, ..]) if *next != b'-' => Some(1),
        (b'/', [next, ..]) if *next != b'*' => Some(1),
        (b'$', [next, ..]) if next.is_ascii_digit() => Some(2),
        (b'\'', body) => memchr::memchr(b'\'', body).map(|end| end + 2),
        (b'"', body) => {
            let end = memchr::memchr(b'"', body)?;
            (!may_matter(&body[..end])).then_some(end + 2)
        }
        _ => None,
    }
}

/// The words that the lexer knows, but for those with one of the beginnings, and those that only triggers heed.
const KNOWN: &[&[u8]] = &[
    b"begin",
    b"then",
    b"else",
    b"loop",
    b"set_config",
    b"setseed",
    b"pg_settings",
    b"currval",
    b"lastval",
    b"nextval",
    b"setval",
    b"insert",
    b"merge",
    b"copy",
    b"set",
    b"reset",
    b"discard",
    b"deallocate",
    b"declare",
    b"do",
    b"unlisten",
    b"create",
    b"alter",
    b"drop",
    b"close",
    b"listen",
    b"load",
    b"call",
    b"execute",
    b"prepare",
    b"local",
    b"transaction",
    b"constraints",
    b"seed",
    b"all",
    b"function",
    b"procedure",
    b"routine",
    b"trigger",
    b"extension",
    b"hold",
    b"temp",
    b"temporary",
    b"into",
    b"or",
    b"replace",
    b"global",
    b"with",
    b"on",
    b"commit",
    b"true",
];

/// What known words begin with.
const BEGINNINGS: [&[u8]; 2] = [b"pg_", b"dblink_"];

/// Whether there is a known word with this [`mark`].
const MARKS: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < KNOWN.len() {
        table[mark(KNOWN[at])] = true;
        at += 1;
    }
    table
};

/// Tells most words apart by their ends and their length. The factors were searched for: no word that queries are full of has a
/// known one's mark.
const fn mark(word: &[u8]) -> usize {
    let [first, .., last] = word else { return 0 };
    let (first, last) = (first.to_ascii_lowercase(), last.to_ascii_lowercase());
    (first as usize * 5 + last as usize * 113 + word.len() * 3) % 256
}

/// Whether the lexer may know a word. Most words of most queries are passed over without comparing them to any.
pub(super) fn may_matter(word: &[u8]) -> bool {
    let begins =
        |known: &&[u8]| word.get(..known.len()).is_some_and(|b| b.eq_ignore_ascii_case(known));
    let [first, _, ..] = word else { return false };
    let may_begin = matches!(first, b'p' | b'P' | b'd' | b'D');
    MARKS[mark(word)] || (may_begin && BEGINNINGS.iter().any(begins))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each word that the lexer's source compares to must get as far as the comparison.
    #[test]
    fn every_word_that_the_lexer_knows_may_matter() {
        let source = include_str!("../sql.rs");
        let literals = source.split("b\"").skip(1).filter_map(|rest| rest.split('"').next());
        let heeded_by_triggers = ["update", "delete", "truncate"];
        let words: Vec<_> =
            literals.filter(|word| word.len() > 1 && !heeded_by_triggers.contains(word)).collect();
        assert!(words.len() > 50, "{words:?}");
        for word in words {
            assert!(may_matter(word.as_bytes()), "{word}");
            assert!(may_matter(word.to_ascii_uppercase().as_bytes()), "{word}");
        }
        for word in ["abalance", "where", "select", "from", "aid", "users", "order"] {
            assert!(!may_matter(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn what_words_begin_with_is_looked_for_by_its_first_letter() {
        assert!(BEGINNINGS.iter().all(|word| matches!(word[0], b'p' | b'd')));
    }

    #[test]
    fn runs_end_where_they_should() {
        assert_eq!(dull(b" = 12, (x"), 8);
        assert_eq!(dull(b"'a"), 0);
        assert_eq!(dull(b""), 0);
        assert_eq!(whole_word(b"Se lect"), Some(&b"Se"[..]));
        for none in [&b"select"[..], b"e'x' ", b"$1 ", b"1a ", b" a ", b"'a' ", b""] {
            assert_eq!(whole_word(none), None, "{none:?}");
        }
        let taken = |bytes: &[u8]| {
            let (mut room, mut used) = ([0; 6], 1);
            let taken = take_word(bytes, &mut room, &mut used);
            (taken, room[1..used].to_vec())
        };
        assert_eq!(taken(b"Bc_\xc3\xa9 d"), (5, b"bc_\xc3\xa9".to_vec()));
        assert_eq!(taken(b"a1$Bcdef"), (8, b"a1$bc".to_vec()), "what doesn't fit");
        assert_eq!(taken(b"'"), (0, Vec::new()));
    }

    #[test]
    fn what_queries_are_full_of_is_harmless() {
        for text in [
            &b"SELECT abalance FROM pgbench_accounts WHERE aid = 12345;"[..],
            br#"SELECT "a"."id", 'it''s' FROM "auth_user" AS "a" WHERE "a"."n" = $1 LIMIT 21"#,
            b"UPDATE t SET n = n - 1 / 2 WHERE k = 'x' RETURNING *;",
            b"select a",
            b"select 1",
            b"",
        ] {
            // SET is a word that matters, if only at the start of a statement.
            let expected = !text.starts_with(b"UPDATE");
            assert_eq!(is_harmless(text), expected, "{}", String::from_utf8_lossy(text));
        }
        for text in [
            &b"select set_config('a', 'b', false)"[..],
            b"select 1 -- set",
            b"select /* set */ 1",
            b"select $$x$$",
            b"select e'\\''",
            b"select \"pg_temp\".x",
            b"select 'open",
            b"select U&\"\\0073et_config\"('a', 'b', false)",
            b"select 1 -",
            b"select x; set",
            b"set x = 1",
        ] {
            assert!(!is_harmless(text), "{}", String::from_utf8_lossy(text));
        }
    }
}
