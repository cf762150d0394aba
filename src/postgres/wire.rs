//! Frames on the Postgres wire: where one begins and how long it is.
//!
//! Source: PostgreSQL documentation, "Message Formats" (protocol 3.0 and 3.2). A frame is one byte of type and four
//! bytes of length, big-endian, which count themselves but not the type. Only headers are read here: what a frame
//! means is said in `exchange`, and what must be rewritten in `relay`.

/// Bytes of a frame's type and length.
pub const HEADER_BYTES: usize = 5;

/// Bytes of the length, which counts itself.
const LENGTH_BYTES: u32 = 4;

/// Longest frame Postgres accepts of any kind (its `PQ_LARGE_MESSAGE_LIMIT`).
pub const LARGE_FRAME_BYTES: u32 = 0x3fff_ffff;

/// Longest frame Postgres accepts of those kinds that carry names only (its `PQ_SMALL_MESSAGE_LIMIT`).
pub const SMALL_FRAME_BYTES: u32 = 10_000;

/// A frame's type and the length of what follows its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// Bytes after the header.
    pub body: u32,
}

impl Header {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame(self) -> usize {
        HEADER_BYTES + widen(self.body)
    }
}

/// What a byte string begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Fewer bytes than a header has.
    Short,
    /// The length can't be that of a frame.
    Absurd {
        /// The type byte that came with it.
        tag: u8,
    },
    /// A header.
    Frame(Header),
}

/// Reads the header at the start of `bytes`.
#[must_use]
pub fn head(bytes: &[u8]) -> Head {
    let [tag, a, b, c, d, ..] = *bytes else {
        return Head::Short;
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    match length.checked_sub(4) {
        Some(body) if length <= LARGE_FRAME_BYTES => Head::Frame(Header { tag, body }),
        _ => Head::Absurd { tag },
    }
}

/// Some types of frames whose names are letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags(u64);

impl Tags {
    /// Those of these names.
    #[must_use]
    pub const fn of(letters: &[u8]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < letters.len() {
            assert!(letters[at].is_ascii_alphabetic());
            set |= 1 << (letters[at] - b'@');
            at += 1;
        }
        Self(set)
    }

    /// Whether this one is among them.
    #[must_use]
    pub const fn has(self, tag: u8) -> bool {
        let at = tag.wrapping_sub(b'@');
        at < 64 && self.0 >> at & 1 == 1
    }
}

/// How many bytes at the start of `bytes` are whole frames of these types, one behind another.
#[must_use]
pub fn run_of(tags: Tags, bytes: &[u8]) -> usize {
    let (mut end, mut last) = (0, 0);
    while let Head::Frame(header) = head(&bytes[end..])
        // Mostly there are many of one type.
        && (header.tag == last || tags.has(header.tag))
        && header.frame() <= bytes.len() - end
    {
        last = header.tag;
        end += header.frame();
    }
    end
}

/// Whether `length` bytes of body are more than a frame of a client with this type may have, by Postgres' own limits.
/// `None` for a type that no client may send.
#[must_use]
pub fn client_body_fits(header: Header) -> Option<bool> {
    let Header { tag, body } = header;
    match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => Some(body < LARGE_FRAME_BYTES),
        b'C' | b'D' | b'E' | b'f' => Some(body <= SMALL_FRAME_BYTES - LENGTH_BYTES),
        b'S' | b'H' | b'c' | b'X' => Some(body == 0),
        _ => None,
    }
}

/// The zero-terminated string at the start of `bytes` (without its zero), and what follows it.
#[must_use]
pub fn cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The value of a whole Bind's parameter, counted from one; `None` if it is NULL or not there. The text types' text and
/// binary formats are the same bytes.
#[must_use]
pub fn bound_value(bind: &[u8], number: u16) -> Option<&[u8]> {
    let (_portal, rest) = cstr(bind)?;
    let (_statement, rest) = cstr(rest)?;
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let rest = rest.get(2 * usize::from(u16::from_be_bytes(*formats))..)?;
    let (values, mut rest) = rest.split_first_chunk::<2>()?;
    if number == 0 || number > u16::from_be_bytes(*values) {
        return None;
    }
    for _ in 1..number {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        rest = behind.get(length..)?;
    }
    let (length, rest) = rest.split_first_chunk::<4>()?;
    rest.get(..usize::try_from(i32::from_be_bytes(*length)).ok()?)
}

/// Appends a frame whose body is the given parts, one after the other.
pub fn put_frame(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    put_header(out, tag, body);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends the header of a frame with `body` bytes to follow. Lengths beyond what a frame can carry are cut to the
/// largest one; callers bound their bodies far below it.
pub fn put_header(out: &mut Vec<u8>, tag: u8, body: usize) {
    out.push(tag);
    let length = u32::try_from(body.saturating_add(4)).unwrap_or(LARGE_FRAME_BYTES);
    out.extend_from_slice(&length.to_be_bytes());
}

/// A wire length as a memory length.
#[must_use]
pub fn widen(length: u32) -> usize {
    // Every platform tidegate builds for has at least 32-bit addresses.
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_by_its_number() {
        let bind = b"p\0s\0\0\x01\0\x01\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\x02bc\0\0";
        assert_eq!(bound_value(bind, 1), Some(&b"a"[..]));
        assert_eq!(bound_value(bind, 2), None);
        assert_eq!(bound_value(bind, 3), Some(&b"bc"[..]));
        assert_eq!((bound_value(bind, 0), bound_value(bind, 4)), (None, None));
        assert_eq!(bound_value(&bind[..20], 3), None);
    }

    #[test]
    fn header_counts_itself() {
        assert_eq!(head(b"Z\0\0\0\x05I"), Head::Frame(Header { tag: b'Z', body: 1 }));
        assert_eq!(head(b"S\0\0\0\x04"), Head::Frame(Header { tag: b'S', body: 0 }));
        assert_eq!(head(b"S\0\0\0"), Head::Short);
    }

    #[test]
    fn lengths_no_frame_can_have_are_absurd() {
        assert_eq!(head(b"Q\0\0\0\x03"), Head::Absurd { tag: b'Q' });
        assert_eq!(head(b"Q\0\0\0\0"), Head::Absurd { tag: b'Q' });
        assert_eq!(head(b"Q\xff\xff\xff\xff"), Head::Absurd { tag: b'Q' });
        assert_eq!(head(b"Q\x40\0\0\0"), Head::Absurd { tag: b'Q' });
    }

    #[test]
    fn small_frames_are_bounded() {
        let fits = |tag, body| client_body_fits(Header { tag, body });
        // The length counts itself.
        assert_eq!(fits(b'D', 9_996), Some(true));
        assert_eq!(fits(b'D', 9_997), Some(false));
        assert_eq!(fits(b'S', 1), Some(false));
        assert_eq!(fits(b'Q', 100_000_000), Some(true));
        assert_eq!(fits(b'?', 0), None);
    }
}
