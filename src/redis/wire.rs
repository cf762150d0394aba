//! Where a request and where a reply ends: resumable scanners that look at headers and skip bodies.
//!
//! Both are fed whatever a read brought and say how many of those bytes belong to the present frame and
//! whether it is whole. They keep a few counters, never bytes, so a 512 MB bulk string costs what an empty one
//! costs, and any split of the input gives the same answer. Nested replies need one counter, not a stack: what
//! matters is how many elements are still to come, so no depth can overflow anything.
//!
//! Source: the RESP2 and RESP3 specifications (redis.io/docs/latest/develop/reference/protocol-spec) and the
//! limits and error texts of Redis 7.0.

/// Longest bulk string that Redis takes (`proto-max-bulk-len`), bytes.
pub const BULK_LIMIT: u64 = 512 * 1024 * 1024;
/// Most arguments of one command.
pub const ARGUMENT_LIMIT: u64 = 2_147_483_647;
/// Longest inline command and longest header line, bytes (Redis: PROTO_INLINE_MAX_SIZE).
pub const INLINE_LIMIT: usize = 64 * 1024;
/// Most arguments of one command before authentication, as Redis has it.
pub const GREETING_ARGUMENT_LIMIT: u64 = 10;
/// Longest header line of an element: a type byte, a sign, digits, CRLF.
const HEADER_DIGITS: u8 = 20;
/// Most elements still to come in one reply.
const ELEMENT_LIMIT: u64 = 1 << 40;

/// Why a request can't be read on. `Display` is Redis's own text; after it Redis closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The `*` line is too long.
    #[error("Protocol error: too big mbulk count string")]
    CountLine,
    /// The `*` line holds no number, or too large a one.
    #[error("Protocol error: invalid multibulk length")]
    Count,
    /// More arguments than an unauthenticated client may send.
    #[error("Protocol error: unauthenticated multibulk length")]
    CountBeforeLogin,
    /// An argument did not begin with `$`.
    #[error("Protocol error: expected '$', got '{0}'")]
    NotBulk(char),
    /// The `$` line is too long.
    #[error("Protocol error: too big bulk count string")]
    BulkLine,
    /// The `$` line holds no number, or too large a one.
    #[error("Protocol error: invalid bulk length")]
    Bulk,
    /// A longer command than an unauthenticated client may send.
    #[error(
        "Protocol error: unauthenticated bulk length (before AUTH tidegate takes commands of up to {0} bytes; \
         authenticate first, or raise redis.login_frame_bytes)"
    )]
    LongBeforeLogin(usize),
    /// A longer argument than tidegate is set to take.
    #[error(
        "Protocol error: invalid bulk length (tidegate takes values of up to {0} bytes here; store the value in parts, \
         or raise redis.frame_bytes, in a namespace its value_bytes, too)"
    )]
    LongBulk(usize),
    /// An inline command without an end.
    #[error("Protocol error: too big inline request")]
    Inline,
    /// An inline command whose quotes do not match.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// How much of a request a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestLimits {
    /// Before authentication.
    Greeting {
        /// Longest command.
        frame_bytes: usize,
    },
    /// After it.
    Work {
        /// Longest argument.
        bulk_bytes: usize,
    },
}

impl RequestLimits {
    fn check_count(self, count: u64) -> Result<(), RequestError> {
        match self {
            Self::Greeting { .. } if count > GREETING_ARGUMENT_LIMIT => {
                Err(RequestError::CountBeforeLogin)
            }
            _ if count > ARGUMENT_LIMIT => Err(RequestError::Count),
            _ => Ok(()),
        }
    }

    fn check_bulk(self, length: u64) -> Result<(), RequestError> {
        match self {
            Self::Greeting { frame_bytes } if length > widen(frame_bytes) => {
                Err(RequestError::LongBeforeLogin(frame_bytes))
            }
            Self::Work { bulk_bytes } if length > widen(bulk_bytes).max(BULK_LIMIT) => {
                Err(RequestError::Bulk)
            }
            Self::Work { bulk_bytes } if length > widen(bulk_bytes) => {
                Err(RequestError::LongBulk(bulk_bytes))
            }
            _ => Ok(()),
        }
    }

    fn check_frame(self, length: usize) -> Result<(), RequestError> {
        match self {
            Self::Greeting { frame_bytes } if length > frame_bytes => {
                Err(RequestError::LongBeforeLogin(frame_bytes))
            }
            _ => Ok(()),
        }
    }
}

/// What the bytes given so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All bytes belong to a frame that goes on.
    Partial,
    /// A whole RESP array with at least one argument.
    Command,
    /// A whole inline command line.
    Inline,
    /// An empty command, which has no reply (`*0`, `*-1`).
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestState {
    Start,
    Inline,
    Count,
    Type,
    Length,
    Body { left: u64 },
}

/// Finds the end of one client command. Begin a new command with a new scanner (`Default`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestScanner {
    state: RequestState,
    arguments_left: u64,
    line: Number,
    length: usize,
}

impl Default for RequestScanner {
    fn default() -> Self {
        Self { state: RequestState::Start, arguments_left: 0, line: Number::default(), length: 0 }
    }
}

impl RequestScanner {
    /// Bytes of the present command taken so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Counts from here on: what was taken so far has been passed on.
    pub fn forget_length(&mut self) {
        self.length = 0;
    }

    /// Takes bytes of the present command from `unseen`: how many, and what it is now.
    ///
    /// Everything is consumed while the answer is [`Progress::Partial`].
    ///
    /// # Errors
    /// When no server would read on; the connection must be closed after saying so.
    pub fn advance(
        &mut self,
        unseen: &[u8],
        limits: RequestLimits,
    ) -> Result<(usize, Progress), RequestError> {
        let mut at = 0;
        let mut progress = Progress::Partial;
        while progress == Progress::Partial
            && let Some(&byte) = unseen.get(at)
        {
            if let RequestState::Body { left } = self.state {
                let here = shorter(left, unseen.len() - at);
                at += here;
                progress = self.skip_body(left - widen(here));
                continue;
            }
            at += 1;
            let line = self.take_short_line(byte, &unseen[at..], limits)?;
            if line > 0 {
                at += line;
                continue;
            }
            progress = self.take(byte, limits)?;
            if self.state == RequestState::Inline && self.length.saturating_add(at) > INLINE_LIMIT {
                return Err(RequestError::Inline);
            }
        }
        self.length = self.length.saturating_add(at);
        limits.check_frame(self.length)?;
        Ok((at, progress))
    }

    fn take(&mut self, byte: u8, limits: RequestLimits) -> Result<Progress, RequestError> {
        match self.state {
            RequestState::Start if byte == b'*' => self.next(RequestState::Count),
            RequestState::Start | RequestState::Inline => {
                self.state = RequestState::Inline;
                if byte == b'\n' {
                    return Ok(Progress::Inline);
                }
            }
            RequestState::Count => match self.line.take(byte) {
                Line::More => {}
                Line::Long => return Err(RequestError::CountLine),
                Line::Bad => return Err(RequestError::Count),
                Line::Number(None | Some(0)) => return Ok(Progress::Nothing),
                Line::Number(Some(count)) => self.count(count, limits)?,
            },
            RequestState::Type if byte == b'$' => self.next(RequestState::Length),
            RequestState::Type => return Err(RequestError::NotBulk(printable(byte))),
            RequestState::Length => match self.line.take(byte) {
                Line::More => {}
                Line::Long => return Err(RequestError::BulkLine),
                Line::Bad | Line::Number(None) => return Err(RequestError::Bulk),
                Line::Number(Some(length)) => self.begin_body(length, limits)?,
            },
            RequestState::Body { left } => return Ok(self.skip_body(left - 1)),
        }
        Ok(Progress::Partial)
    }

    /// Takes the line that this byte begins, if it is one of those that need no look at each byte: how many bytes behind that one.
    fn take_short_line(
        &mut self,
        byte: u8,
        behind: &[u8],
        limits: RequestLimits,
    ) -> Result<usize, RequestError> {
        let Some((number, length)) = short_line(behind) else { return Ok(0) };
        match (self.state, byte) {
            (RequestState::Start, b'*') if number > 0 => self.count(number, limits)?,
            (RequestState::Type, b'$') => self.begin_body(number, limits)?,
            _ => return Ok(0),
        }
        Ok(length)
    }

    fn count(&mut self, count: u64, limits: RequestLimits) -> Result<(), RequestError> {
        limits.check_count(count)?;
        self.arguments_left = count;
        self.next(RequestState::Type);
        Ok(())
    }

    fn begin_body(&mut self, length: u64, limits: RequestLimits) -> Result<(), RequestError> {
        limits.check_bulk(length)?;
        self.next(RequestState::Body { left: length + 2 });
        Ok(())
    }

    fn next(&mut self, state: RequestState) {
        self.line = Number::default();
        self.state = state;
    }

    fn skip_body(&mut self, left: u64) -> Progress {
        if left > 0 {
            self.state = RequestState::Body { left };
            return Progress::Partial;
        }
        self.arguments_left -= 1;
        if self.arguments_left == 0 {
            return Progress::Command;
        }
        self.next(RequestState::Type);
        Progress::Partial
    }
}

/// The arguments of a RESP array command that [`RequestScanner`] accepted, as far as its bytes are here.
#[derive(Debug, Clone)]
pub struct Arguments<'a> {
    rest: &'a [u8],
}

impl<'a> Arguments<'a> {
    /// Reads the arguments of `command`, which begins with its `*` line.
    #[must_use]
    pub fn new(command: &'a [u8]) -> Self {
        let short = command.get(1..).and_then(short_line).map(|(_count, length)| 1 + length);
        let rest = short.or_else(|| line_end(command)).map_or(&[][..], |end| &command[end..]);
        Self { rest }
    }

    /// What was not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, end) = match short_line(self.rest.get(1..)?) {
            Some((length, line)) => (usize::try_from(length).ok()?, 1 + line),
            None => long_line(self.rest)?,
        };
        let argument = self.rest.get(end..end.checked_add(length)?)?;
        self.rest = self.rest.get(end + length + 2..).unwrap_or(&[]);
        Some(argument)
    }
}

/// The number in the line at the start of `bytes`, and where that ends.
fn long_line(bytes: &[u8]) -> Option<(usize, usize)> {
    let end = line_end(bytes)?;
    let mut number = 0_usize;
    for byte in bytes.get(1..end - 2)? {
        number = number.checked_mul(10)?.checked_add(usize::from(byte.wrapping_sub(b'0')))?;
    }
    Some((number, end))
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', bytes).map(|newline| newline + 1).filter(|end| *end >= 2)
}

/// Splits an inline command the way Redis does: blanks separate, `"` and `'` quote, `"` knows escapes.
///
/// # Errors
/// When a quote has no end, or does not end its word.
pub fn split_inline(line: &[u8]) -> Result<Vec<Vec<u8>>, RequestError> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii();
    while !rest.is_empty() {
        let (word, used) = inline_word(rest)?;
        words.push(word);
        rest = rest[used..].trim_ascii_start();
    }
    Ok(words)
}

fn inline_word(text: &[u8]) -> Result<(Vec<u8>, usize), RequestError> {
    let mut word = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' | 0 => break,
            b'"' | b'\'' => {
                at += 1 + quoted(&text[at + 1..], byte, &mut word)?;
                return match text.get(at) {
                    None => Ok((word, at)),
                    Some(after) if after.is_ascii_whitespace() => Ok((word, at)),
                    Some(_) => Err(RequestError::Quotes),
                };
            }
            _ => word.push(byte),
        }
        at += 1;
    }
    Ok((word, at.max(1)))
}

fn quoted(text: &[u8], quote: u8, word: &mut Vec<u8>) -> Result<usize, RequestError> {
    let mut at = 0;
    loop {
        match (text.get(at), text.get(at + 1)) {
            (None, _) => return Err(RequestError::Quotes),
            (Some(&byte), _) if byte == quote => return Ok(at + 1),
            (Some(b'\\'), Some(b'\'')) if quote == b'\'' => {
                word.push(b'\'');
                at += 2;
            }
            (Some(b'\\'), Some(&escaped)) if quote == b'"' => {
                let hex = text.get(at + 2..at + 4).and_then(hex_byte);
                match (escaped, hex) {
                    (b'x', Some(byte)) => {
                        word.push(byte);
                        at += 2;
                    }
                    (b'n', _) => word.push(b'\n'),
                    (b'r', _) => word.push(b'\r'),
                    (b't', _) => word.push(b'\t'),
                    (b'b', _) => word.push(8),
                    (b'a', _) => word.push(7),
                    (other, _) => word.push(other),
                }
                at += 2;
            }
            (Some(&byte), _) => {
                word.push(byte);
                at += 1;
            }
        }
    }
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes()
        .all(|digit| digit.is_ascii_hexdigit())
        .then(|| u8::from_str_radix(text, 16).ok())?
}

/// Writes `arguments` as a RESP array command.
pub fn write_command<A: AsRef<[u8]>>(arguments: &[A], out: &mut Vec<u8>) {
    write_line(b'*', arguments.len(), out);
    for argument in arguments {
        let argument = argument.as_ref();
        write_line(b'$', argument.len(), out);
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

/// A server said something that is not RESP: nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a reply that is not RESP (byte {0:#04x} where {1} was due)")]
pub struct ReplyError(pub u8, pub &'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyState {
    Type,
    Line,
    Number { kind: Kind },
    Body { left: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bulk,
    /// So many elements per unit of the number; an attribute's own place is taken by what follows it.
    Aggregate {
        per_unit: u64,
        counts: Counts,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    AsElement,
    AsNothing,
}

/// Finds the end of one reply or push frame. Starts over by itself after each whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyScanner {
    state: ReplyState,
    elements_left: u64,
    line: Number,
    first: u8,
}

impl Default for ReplyScanner {
    fn default() -> Self {
        Self { state: ReplyState::Type, elements_left: 0, line: Number::default(), first: 0 }
    }
}

/// What [`ReplyScanner::advance`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// All bytes belong to a frame that goes on.
    Partial,
    /// The end of a reply to a command.
    Whole,
    /// The end of an out-of-band frame (RESP3 `>`), which answers no command.
    Push,
}

impl ReplyScanner {
    /// Whether a frame has begun and not ended.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.elements_left > 0
    }

    /// The type byte of the present frame, or of the last one.
    #[must_use]
    pub fn first(&self) -> u8 {
        self.first
    }

    /// Whether the present frame, or the last one, is an out-of-band push.
    #[must_use]
    pub fn is_push(&self) -> bool {
        self.first == b'>'
    }

    /// Takes bytes of the present frame from `unseen`: how many, and whether it ends with them.
    ///
    /// # Errors
    /// When the bytes are not RESP; the connection must be closed.
    pub fn advance(&mut self, unseen: &[u8]) -> Result<(usize, Reply), ReplyError> {
        let mut at = 0;
        while let Some(&byte) = unseen.get(at) {
            match self.state {
                ReplyState::Body { left } => {
                    let here = shorter(left, unseen.len() - at);
                    at += here;
                    self.body(left - widen(here));
                }
                ReplyState::Line => match memchr::memchr(b'\n', &unseen[at..]) {
                    Some(newline) => {
                        at += newline + 1;
                        self.element();
                    }
                    None => at = unseen.len(),
                },
                ReplyState::Type => {
                    at += 1;
                    self.begin(byte)?;
                    if let ReplyState::Number { kind } = self.state
                        && let Some((number, length)) = short_count(&unseen[at..])
                    {
                        at += length;
                        self.counted(byte, kind, number)?;
                    }
                }
                ReplyState::Number { kind } => {
                    at += 1;
                    self.number(byte, kind)?;
                }
            }
            if self.elements_left == 0 {
                return Ok((at, if self.is_push() { Reply::Push } else { Reply::Whole }));
            }
        }
        Ok((at, Reply::Partial))
    }

    fn begin(&mut self, byte: u8) -> Result<(), ReplyError> {
        if self.elements_left == 0 {
            self.elements_left = 1;
            self.first = byte;
        }
        let aggregate = |per_unit, counts| Kind::Aggregate { per_unit, counts };
        let kind = match byte {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {
                self.state = ReplyState::Line;
                return Ok(());
            }
            b'$' | b'!' | b'=' => Kind::Bulk,
            b'*' | b'~' | b'>' => aggregate(1, Counts::AsElement),
            b'%' => aggregate(2, Counts::AsElement),
            b'|' => aggregate(2, Counts::AsNothing),
            other => return Err(ReplyError(other, "a type")),
        };
        self.line = Number::default();
        self.state = ReplyState::Number { kind };
        Ok(())
    }

    fn number(&mut self, byte: u8, kind: Kind) -> Result<(), ReplyError> {
        let number = match self.line.take(byte) {
            Line::More => return Ok(()),
            Line::Long | Line::Bad => return Err(ReplyError(byte, "a length")),
            Line::Number(number) => number,
        };
        self.counted(byte, kind, number)
    }

    fn counted(&mut self, byte: u8, kind: Kind, number: Option<u64>) -> Result<(), ReplyError> {
        match (kind, number) {
            (Kind::Bulk, Some(length)) => {
                let left = length.checked_add(2).ok_or(ReplyError(byte, "a sane length"))?;
                self.state = ReplyState::Body { left };
            }
            (Kind::Bulk, None) => self.element(),
            (Kind::Aggregate { per_unit, counts }, number) => {
                let more = number.unwrap_or(0).checked_mul(per_unit);
                let left = more.and_then(|more| self.elements_left.checked_add(more));
                self.elements_left = left
                    .filter(|left| *left <= ELEMENT_LIMIT)
                    .ok_or(ReplyError(byte, "a sane count"))?;
                match counts {
                    Counts::AsElement => self.element(),
                    Counts::AsNothing => self.state = ReplyState::Type,
                }
            }
        }
        Ok(())
    }

    fn body(&mut self, left: u64) {
        if left > 0 {
            self.state = ReplyState::Body { left };
        } else {
            self.element();
        }
    }

    fn element(&mut self) {
        self.elements_left -= 1;
        self.state = ReplyState::Type;
    }
}

/// Appends a header line.
pub(super) fn write_line(kind: u8, mut number: usize, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 || at == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// The number up to CRLF at the start of `bytes`, and how long that line is, if it is here whole, short and plain, as nearly all
/// are. Any other is read byte by byte ([`Number`]).
pub(super) fn short_line(bytes: &[u8]) -> Option<(u64, usize)> {
    let digit = |byte: u8| u64::from(byte - b'0');
    match *bytes {
        [a @ b'0'..=b'9', b'\r', b'\n', ..] => Some((digit(a), 3)),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', ..] => Some((10 * digit(a) + digit(b), 4)),
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Some((100 * digit(a) + 10 * digit(b) + digit(c), 5))
        }
        _ => None,
    }
}

/// As [`short_line`], of a reply: RESP2 says null as a length of -1.
fn short_count(bytes: &[u8]) -> Option<(Option<u64>, usize)> {
    match bytes {
        [b'-', b'1', b'\r', b'\n', ..] => Some((None, 4)),
        _ => short_line(bytes).map(|(number, length)| (Some(number), length)),
    }
}

/// A decimal number up to CRLF, fed byte by byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Number {
    value: u64,
    digits: u8,
    sign: Sign,
    end: End,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sign {
    #[default]
    Plus,
    Minus,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    CarriageReturn,
}

enum Line {
    More,
    /// `None` is a negative number, which stands for null.
    Number(Option<u64>),
    Bad,
    Long,
}

impl Number {
    fn take(&mut self, byte: u8) -> Line {
        match (self.end, byte) {
            (End::CarriageReturn, b'\n') if self.digits > 0 => Line::Number(match self.sign {
                Sign::Plus => Some(self.value),
                Sign::Minus => None,
            }),
            (End::CarriageReturn, _) => Line::Bad,
            (End::Open, b'\r') => {
                self.end = End::CarriageReturn;
                Line::More
            }
            (End::Open, b'-') if self.digits == 0 && self.sign == Sign::Plus => {
                self.sign = Sign::Minus;
                Line::More
            }
            // The server takes neither leading zeros nor a negative nought, and it is the server's connection that would end.
            (End::Open, b'0'..=b'9') if self.digits > 0 && self.value == 0 => Line::Bad,
            (End::Open, b'0') if self.sign == Sign::Minus && self.digits == 0 => Line::Bad,
            (End::Open, b'0'..=b'9') if self.digits >= HEADER_DIGITS => Line::Long,
            (End::Open, b'0'..=b'9') => {
                let digit = u64::from(byte - b'0');
                match self.value.checked_mul(10).and_then(|tens| tens.checked_add(digit)) {
                    Some(value) => {
                        self.value = value;
                        self.digits += 1;
                        Line::More
                    }
                    None => Line::Long,
                }
            }
            (End::Open, _) => Line::Bad,
        }
    }
}

fn widen(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn shorter(left: u64, here: usize) -> usize {
    usize::try_from(left).map_or(here, |left| left.min(here))
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }
}

#[cfg(test)]
mod tests;
