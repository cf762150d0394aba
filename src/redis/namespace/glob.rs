//! Patterns as Redis has them: `*`, `?`, `[a-z]`, `[^x]`, and a backslash before what is meant as it is.
//! Source: Redis documentation, "KEYS".

/// `name` as a pattern that fits nothing else.
pub(super) fn literal(name: &[u8], out: &mut Vec<u8>) {
    for byte in name {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// What every name that fits `pattern` begins with.
pub(super) fn head(pattern: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    let mut bytes = pattern.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => break,
            b'\\' => head.extend(bytes.next().or(Some(byte))),
            byte => head.push(*byte),
        }
    }
    head
}

/// Whether `name` fits `pattern`. At most as many steps as the product of both lengths.
pub(super) fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut place) = (0, 0);
    // Behind the last star, and where in the name it was tried last.
    let mut again: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            if at == pattern.len() {
                return true;
            }
            again = Some((at, place));
            continue;
        }
        let step = match (name.get(place), pattern.get(at)) {
            (None, None) => return true,
            (Some(byte), Some(_)) => one(&pattern[at..], *byte),
            _ => None,
        };
        match (step, again) {
            (Some(used), _) => {
                at += used;
                place += 1;
            }
            (None, Some((behind, tried))) if tried < name.len() => {
                (at, place) = (behind, tried + 1);
                again = Some((behind, tried + 1));
            }
            (None, _) => return false,
        }
    }
}

/// The length of the first thing in `pattern` if `byte` fits it.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => set(rest, byte).map(|used| used + 1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

/// The length of a set, its end among it, if `byte` is in it. One without an end goes on to the pattern's.
fn set(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &pattern[at.min(pattern.len())..] {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [from, b'-', to, ..] => {
                let (low, high) = (from.min(to), from.max(to));
                found |= (low..=high).contains(&&byte);
                at += 3;
            }
            [plain, ..] => {
                found |= *plain == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_as_in_redis() {
        for (pattern, name) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[^a]x", "bx"),
            ("\\*", "*"),
            ("a**b*", "aXbY"),
            ("[\\]]", "]"),
            ("*a*b*a", "xaybza"),
        ] {
            assert!(fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("a", ""),
            ("a*c", "ab"),
            ("[a-c]", "d"),
            ("[^a]", "a"),
            ("\\*", "x"),
            ("?", ""),
        ] {
            assert!(!fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn a_literal_fits_itself_alone() {
        let mut pattern = Vec::new();
        literal(b"a*[b]?\\", &mut pattern);
        assert!(fits(&pattern, b"a*[b]?\\"));
        assert!(!fits(&pattern, b"aX[b]?\\"));
        assert_eq!(head(&pattern), b"a*[b]?\\");
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = b"*a".repeat(200);
        assert!(!fits(
            &pattern,
            &b"a".repeat(100_000)[..99_999].iter().map(|_| b'b').collect::<Vec<_>>()
        ));
    }
}
