//! The words of a Lua 5.1 source, cut exactly as the server's own lexer cuts them. Where that would complain, so does this, with its
//! words. Source: Lua 5.1 reference manual, "Lexical Conventions", and what its `llex.c` does beyond.

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a [u8],
    /// Where it begins in the source.
    pub(super) at: usize,
    pub(super) line: usize,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    /// A name that is reserved, or a sign.
    Sign,
    Number,
    /// A string in quotes or in long brackets.
    String,
    /// The end of the source.
    End,
}

/// What is wrong with a source, and in which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) text: String,
}

const RESERVED: &[&str] = &[
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local",
    "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
];

const SIGNS: &[&str] = &[
    "...", "..", "==", "<=", ">=", "~=", "+", "-", "*", "/", "%", "^", "#", "<", ">", "=", "(",
    ")", "{", "}", "[", "]", ";", ":", ",", ".",
];

/// All tokens of `source`, the end among them, whose first line has the number `line`.
pub(super) fn tokens(source: &[u8], line: usize) -> Result<Vec<Token<'_>>, Fault> {
    let mut lexer = Lexer { source, at: 0, line };
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next()?;
        tokens.push(token);
        if token.kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    source: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.source.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Result<Token<'a>, Fault> {
        self.skip_blanks()?;
        let (at, line) = (self.at, self.line);
        let kind = match self.peek(0) {
            None => Kind::End,
            Some(b'"' | b'\'') => self.quoted()?,
            Some(b'[') => match self.level() {
                Level::Long(level) => {
                    self.long(level, "string")?;
                    Kind::String
                }
                Level::None => self.sign()?,
                Level::Broken => return Err(self.near("invalid long string delimiter", at)),
            },
            Some(byte) if byte.is_ascii_digit() => self.number(),
            Some(b'.') if self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) => self.number(),
            Some(byte) if byte.is_ascii_alphabetic() || byte == b'_' => self.word(),
            Some(_) => self.sign()?,
        };
        Ok(Token { kind, text: &self.source[at..self.at], at, line })
    }

    fn skip_blanks(&mut self) -> Result<(), Fault> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'\n' | b'\r'), _) => self.newline(),
                (Some(b' ' | b'\t' | 0x0b | 0x0c), _) => self.at += 1,
                (Some(b'-'), Some(b'-')) => self.comment()?,
                _ => return Ok(()),
            }
        }
    }

    /// One line end, of one byte or of two different ones.
    fn newline(&mut self) {
        self.at += match (self.peek(0), self.peek(1)) {
            (Some(b'\n'), Some(b'\r')) | (Some(b'\r'), Some(b'\n')) => 2,
            _ => 1,
        };
        self.line += 1;
    }

    fn comment(&mut self) -> Result<(), Fault> {
        self.at += 2;
        if self.peek(0) == Some(b'[')
            && let Level::Long(level) = self.level()
        {
            return self.long(level, "comment");
        }
        while self.peek(0).is_some_and(|byte| !matches!(byte, b'\n' | b'\r')) {
            self.at += 1;
        }
        Ok(())
    }

    /// What kind of bracket stands here.
    fn level(&self) -> Level {
        let equals = self.source[self.at + 1..].iter().take_while(|byte| **byte == b'=').count();
        match (self.peek(1 + equals), equals) {
            (Some(b'['), _) => Level::Long(equals),
            (_, 0) => Level::None,
            _ => Level::Broken,
        }
    }

    /// To the end of what long brackets enclose.
    fn long(&mut self, level: usize, what: &str) -> Result<(), Fault> {
        self.at += level + 2;
        loop {
            match self.peek(0) {
                None => {
                    let text = format!("unfinished long {what} near '<eof>'");
                    return Err(Fault { line: self.line, text });
                }
                Some(b']') if self.closes(level) => {
                    self.at += level + 2;
                    return Ok(());
                }
                Some(b'\n' | b'\r') => self.newline(),
                Some(_) => self.at += 1,
            }
        }
    }

    fn closes(&self, level: usize) -> bool {
        let rest = &self.source[self.at + 1..];
        rest.len() > level && rest[..level].iter().all(|byte| *byte == b'=') && rest[level] == b']'
    }

    fn quoted(&mut self) -> Result<Kind, Fault> {
        let from = self.at;
        let quote = self.peek(0);
        self.at += 1;
        loop {
            match self.peek(0) {
                None => {
                    let text = "unfinished string near '<eof>'".to_owned();
                    return Err(Fault { line: self.line, text });
                }
                Some(b'\n' | b'\r') => return Err(self.near("unfinished string", from)),
                Some(b'\\') => self.escape(from)?,
                byte => {
                    self.at += 1;
                    if byte == quote {
                        return Ok(Kind::String);
                    }
                }
            }
        }
    }

    fn escape(&mut self, from: usize) -> Result<(), Fault> {
        let before = self.at;
        self.at += 1;
        match self.peek(0) {
            None => {}
            Some(b'\n' | b'\r') => self.newline(),
            Some(byte) if byte.is_ascii_digit() => {
                let digits = self.source[self.at..].iter().take(3);
                let digits = digits.take_while(|byte| byte.is_ascii_digit());
                let (mut value, mut count) = (0_u32, 0);
                for digit in digits {
                    value = value * 10 + u32::from(digit - b'0');
                    count += 1;
                }
                self.at += count;
                if value > 255 {
                    self.at = before;
                    return Err(self.near("escape sequence too large", from));
                }
            }
            Some(_) => self.at += 1,
        }
        Ok(())
    }

    /// Whether it is one is for the server to say: all that matters here is where it ends.
    fn number(&mut self) -> Kind {
        while self.peek(0).is_some_and(|byte| byte.is_ascii_digit() || byte == b'.') {
            self.at += 1;
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(0), Some(b'+' | b'-')));
        }
        while self.peek(0).is_some_and(is_of_word) {
            self.at += 1;
        }
        Kind::Number
    }

    fn word(&mut self) -> Kind {
        let from = self.at;
        while self.peek(0).is_some_and(is_of_word) {
            self.at += 1;
        }
        let word = &self.source[from..self.at];
        match RESERVED.iter().any(|reserved| reserved.as_bytes() == word) {
            true => Kind::Sign,
            false => Kind::Name,
        }
    }

    fn sign(&mut self) -> Result<Kind, Fault> {
        let rest = &self.source[self.at..];
        let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(sign.as_bytes())) else {
            self.at += 1;
            let from = self.at - 1;
            return Err(match rest.first() {
                Some(byte) if byte.is_ascii_control() => Fault {
                    line: self.line,
                    text: format!("unexpected symbol near 'char({byte})'"),
                },
                _ => self.near("unexpected symbol", from),
            });
        };
        self.at += sign.len();
        Ok(Kind::Sign)
    }

    fn near(&self, what: &str, from: usize) -> Fault {
        let near = String::from_utf8_lossy(&self.source[from..self.at.max(from + 1)]);
        Fault { line: self.line, text: format!("{what} near '{near}'") }
    }
}

/// What a `[` begins.
enum Level {
    /// A long bracket, with so many equal signs.
    Long(usize),
    /// A bracket.
    None,
    /// Neither.
    Broken,
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl<'a> Token<'a> {
    pub(super) fn is(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign.as_bytes()
    }

    /// What a string in quotes says, if that is what stands there.
    pub(super) fn says(&self) -> Option<&'a [u8]> {
        let inner = self.text.get(1..self.text.len().checked_sub(1)?)?;
        let plain = self.kind == Kind::String && matches!(self.text.first(), Some(b'"' | b'\''));
        (plain && !inner.contains(&b'\\')).then_some(inner)
    }
}

/// Adds a token to others, with a blank where the two would be one.
pub(super) fn join(token: &[u8], out: &mut Vec<u8>) {
    let joins = |byte: Option<&u8>| byte.is_some_and(|byte| is_of_word(*byte) || *byte == b'.');
    let minus = out.last() == Some(&b'-') && token.first() == Some(&b'-');
    if minus || (joins(out.last()) && joins(token.first())) {
        out.push(b' ');
    }
    out.extend_from_slice(token);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(source: &str) -> String {
        match tokens(source.as_bytes(), 1) {
            Ok(tokens) => {
                let text = |token: &Token<'_>| String::from_utf8_lossy(token.text).into_owned();
                tokens.iter().map(text).collect::<Vec<_>>().join("\u{b7}")
            }
            Err(fault) => format!("{}: {}", fault.line, fault.text),
        }
    }

    #[test]
    fn cut_as_the_server_cuts() {
        for (source, tokens) in [
            ("a.b..c...d", "a\u{b7}.\u{b7}b\u{b7}..\u{b7}c\u{b7}...\u{b7}d\u{b7}"),
            ("3..2 0xA.5e-1z", "3..2\u{b7}0xA\u{b7}.5e-1z\u{b7}"),
            ("a--b\nc--[[d\n]]e--[=[f]]\n]=]g", "a\u{b7}c\u{b7}e\u{b7}g\u{b7}"),
            ("x[[ ] ]]y[=[ ]] ]=]", "x\u{b7}[[ ] ]]\u{b7}y\u{b7}[=[ ]] ]=]\u{b7}"),
            ("'a\\'b' \"\\065\\\nc\"", "'a\\'b'\u{b7}\"\\065\\\nc\"\u{b7}"),
            ("--[==x\na[b[1]]", "a\u{b7}[\u{b7}b\u{b7}[\u{b7}1\u{b7}]\u{b7}]\u{b7}"),
            ("a~=b", "a\u{b7}~=\u{b7}b\u{b7}"),
            ("a\n'b", "2: unfinished string near '<eof>'"),
            ("'b\n", "1: unfinished string near ''b'"),
            ("[==x", "1: invalid long string delimiter near '['"),
            ("[[a [[ b]]", "[[a [[ b]]\u{b7}"),
            ("'\\300'", "1: escape sequence too large near '''"),
            ("a ~ b", "1: unexpected symbol near '~'"),
            ("a \u{1b}", "1: unexpected symbol near 'char(27)'"),
        ] {
            assert_eq!(cut(source), tokens, "{source}");
        }
    }

    #[test]
    fn squeezing_keeps_the_tokens() {
        let source = "local a = 1 - -2 .. 3 -- c\nreturn a..b . c";
        let mut squeezed = Vec::new();
        tokens(source.as_bytes(), 1)
            .unwrap()
            .iter()
            .for_each(|token| join(token.text, &mut squeezed));
        assert_eq!(cut(std::str::from_utf8(&squeezed).unwrap()), cut(source));
        assert!(squeezed.len() < source.len());
    }
}
