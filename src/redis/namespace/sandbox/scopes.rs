//! Which names of a Lua 5.1 source are global, found by reading it as the server's compiler reads it, and the source with each of
//! them made a field of one table. What this does not understand is refused: no source passes in which a global name was not seen.
//! Source: Lua 5.1 reference manual, "The Complete Syntax of Lua" and "Visibility Rules".
//!
//! It recurses as deep as the source is nested, and as the server's compiler does: at most [`LEVELS`] deep.

use std::collections::{BTreeMap, BTreeSet};

use super::tokens::{Fault, Kind, Token, tokens};

/// The deepest nesting. Source: `LUAI_MAXCCALLS` of Lua 5.1.
const LEVELS: usize = 200;

/// So many commands are told apart; of a script with more it is not known which it calls.
const COMMANDS: usize = 64;

/// A source whose global names are fields of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scoped<'a> {
    pub(super) source: Vec<u8>,
    /// The table's name.
    pub(super) table: String,
    pub(super) uses: Uses<'a>,
}

/// What a source uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uses<'a> {
    /// Global names that a script may use.
    pub(super) globals: BTreeSet<&'static str>,
    /// What is used of libraries, `redis.call`; with nothing behind the point: it is not clear what.
    pub(super) members: BTreeSet<(&'static str, &'a [u8])>,
    /// Commands that are called, as they are spelt.
    pub(super) commands: BTreeSet<&'a [u8]>,
    /// Whether there are others.
    pub(super) others: Others,
    /// What is assigned to: global names, or members of libraries.
    pub(super) assigned: BTreeSet<&'static str>,
}

/// Whether commands are called whose names don't stand in the source.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    #[default]
    None,
    Some,
}

/// What scripts may use by name.
pub(super) const GLOBALS: &[&str] = &[
    "ARGV",
    "KEYS",
    "_G",
    "_VERSION",
    "assert",
    "bit",
    "cjson",
    "cmsgpack",
    "coroutine",
    "error",
    "getmetatable",
    "ipairs",
    "math",
    "next",
    "os",
    "pairs",
    "pcall",
    "rawequal",
    "rawget",
    "rawset",
    "redis",
    "select",
    "server",
    "setmetatable",
    "string",
    "struct",
    "table",
    "tonumber",
    "tostring",
    "type",
    "unpack",
    "xpcall",
];
const LIBRARIES: &[&str] = &["cjson", "redis", "server"];
/// What the server has and a namespace has not.
const REFUSED: &[&str] = &["collectgarbage", "gcinfo", "load", "loadstring"];

/// Reads `source`, whose first line has the number `line`, for a script in the namespace called `namespace`.
pub(super) fn scoped<'a>(
    source: &'a [u8],
    line: usize,
    namespace: &str,
) -> Result<Scoped<'a>, Fault> {
    let tokens = tokens(source, line)?;
    let table = unused(&tokens);
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        level: 0,
        locals: Vec::new(),
        places: BTreeMap::new(),
        functions: vec![Function { dots: true, loops: 0 }],
        edits: Vec::new(),
        uses: Uses::default(),
        table: &table,
        namespace,
    };
    parser.chunk()?;
    if parser.peek().kind != Kind::End {
        return Err(parser.expected("<eof>"));
    }
    let Parser { edits, uses, .. } = parser;
    Ok(Scoped { source: edited(source, edits), table, uses })
}

/// A name that the source does not know.
fn unused(tokens: &[Token<'_>]) -> String {
    let names: BTreeSet<&[u8]> = tokens.iter().map(|token| token.text).collect();
    let mut number = 0;
    loop {
        let name = format!("_{number}");
        if !names.contains(name.as_bytes()) {
            return name;
        }
        number += 1;
    }
}

fn edited(source: &[u8], mut edits: Vec<Edit>) -> Vec<u8> {
    // A bracket stands in front of what is put before a name.
    edits.sort_by_key(|edit| (edit.at, edit.text != "("));
    let mut out = Vec::with_capacity(source.len() + edits.len() * 4);
    let mut done = 0;
    for edit in edits {
        out.extend_from_slice(&source[done..edit.at]);
        out.extend_from_slice(edit.text.as_bytes());
        done = edit.at + edit.instead_of;
    }
    out.extend_from_slice(&source[done..]);
    out
}

/// Something put into the source, or in the place of something.
#[derive(Debug)]
struct Edit {
    at: usize,
    instead_of: usize,
    text: String,
}

struct Local<'a> {
    name: &'a [u8],
    is: Meaning,
}

/// What a local stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Anything,
    /// `redis.call` or `redis.pcall`, until it is assigned to.
    Call,
}

struct Function {
    /// Whether it may say `...`.
    dots: bool,
    loops: usize,
}

/// What an expression with a name or bracket in front is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Primary {
    Call,
    /// A local, or a field of something.
    Place,
    /// A global name, and nothing behind it: the number of its edit.
    Global(usize),
    /// A member of a library.
    Member(&'static str),
    Value,
}

struct Parser<'a, 't> {
    tokens: &'t [Token<'a>],
    at: usize,
    level: usize,
    locals: Vec<Local<'a>>,
    /// Where in `locals` those of a name stand.
    places: BTreeMap<&'a [u8], Vec<usize>>,
    functions: Vec<Function>,
    edits: Vec<Edit>,
    uses: Uses<'a>,
    table: &'t str,
    namespace: &'t str,
}

impl<'a> Parser<'a, '_> {
    fn ahead(&self, by: usize) -> Token<'a> {
        self.tokens.get(self.at + by).or(self.tokens.last()).copied().unwrap_or(Token {
            kind: Kind::End,
            text: &[],
            at: 0,
            line: 1,
        })
    }

    fn peek(&self) -> Token<'a> {
        self.ahead(0)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn take(&mut self, sign: &str) -> bool {
        let is_it = self.peek().is(sign);
        if is_it {
            self.next();
        }
        is_it
    }

    fn expect(&mut self, sign: &str) -> Result<(), Fault> {
        if self.take(sign) { Ok(()) } else { Err(self.expected(sign)) }
    }

    /// What closes something that was opened in the line `line`.
    fn expect_close(&mut self, sign: &str, open: &str, line: usize) -> Result<(), Fault> {
        if self.take(sign) {
            return Ok(());
        }
        if line == self.peek().line {
            return Err(self.expected(sign));
        }
        Err(self.fault(&format!("'{sign}' expected (to close '{open}' at line {line})")))
    }

    fn name(&mut self) -> Result<Token<'a>, Fault> {
        if self.peek().kind == Kind::Name {
            return Ok(self.next());
        }
        Err(self.fault("'<name>' expected"))
    }

    fn expected(&self, sign: &str) -> Fault {
        self.fault(&format!("'{sign}' expected"))
    }

    fn fault(&self, what: &str) -> Fault {
        let token = self.peek();
        let near = match token.kind {
            Kind::End => "<eof>".into(),
            _ => String::from_utf8_lossy(token.text),
        };
        Fault { line: token.line, text: format!("{what} near '{near}'") }
    }

    fn enter(&mut self) -> Result<(), Fault> {
        self.level += 1;
        let text = "chunk has too many syntax levels".to_owned();
        let deep = self.level > LEVELS;
        if deep { Err(Fault { line: self.peek().line, text }) } else { Ok(()) }
    }

    fn leave(&mut self) {
        self.level -= 1;
    }

    fn declare(&mut self, name: &'a [u8], is: Meaning) {
        self.places.entry(name).or_default().push(self.locals.len());
        self.locals.push(Local { name, is });
    }

    /// The scope ends in which there were more than so many.
    fn undeclare(&mut self, outside: usize) {
        for local in self.locals.drain(outside..) {
            if let Some(places) = self.places.get_mut(local.name) {
                places.pop();
            }
        }
    }

    fn find(&mut self, name: &[u8]) -> Option<&mut Local<'a>> {
        let at = *self.places.get(name)?.last()?;
        self.locals.get_mut(at)
    }

    /// A block with a scope of its own.
    fn block(&mut self) -> Result<(), Fault> {
        let outside = self.locals.len();
        self.chunk()?;
        self.undeclare(outside);
        Ok(())
    }

    fn chunk(&mut self) -> Result<(), Fault> {
        self.enter()?;
        let mut is_last = false;
        while !is_last && !self.ends_block() {
            is_last = self.statement()?;
            self.take(";");
        }
        self.leave();
        Ok(())
    }

    fn ends_block(&self) -> bool {
        let token = self.peek();
        token.kind == Kind::End
            || ["else", "elseif", "end", "until"].iter().any(|word| token.is(word))
    }

    /// Whether nothing may follow it.
    fn statement(&mut self) -> Result<bool, Fault> {
        let token = self.peek();
        let line = token.line;
        let word = if token.kind == Kind::Sign { token.text } else { b"" };
        match word {
            b"if" => self.choice(line)?,
            b"while" => {
                self.next();
                self.expression()?;
                self.expect("do")?;
                self.in_loop(Self::block)?;
                self.expect_close("end", "while", line)?;
            }
            b"do" => {
                self.next();
                self.block()?;
                self.expect_close("end", "do", line)?;
            }
            b"for" => self.count_or_walk(line)?,
            b"repeat" => self.repeat(line)?,
            b"function" => self.named_function(line)?,
            b"local" => self.local()?,
            b"return" => {
                self.answer()?;
                return Ok(true);
            }
            b"break" => {
                self.next();
                if self.functions.last().is_none_or(|function| function.loops == 0) {
                    return Err(self.fault("no loop to break"));
                }
                return Ok(true);
            }
            _ => self.call_or_assignment()?,
        }
        Ok(false)
    }

    fn choice(&mut self, line: usize) -> Result<(), Fault> {
        self.next();
        loop {
            self.expression()?;
            self.expect("then")?;
            self.block()?;
            if !self.take("elseif") {
                break;
            }
        }
        if self.take("else") {
            self.block()?;
        }
        self.expect_close("end", "if", line)
    }

    fn in_loop(&mut self, body: fn(&mut Self) -> Result<(), Fault>) -> Result<(), Fault> {
        self.count_loops(|loops| loops + 1);
        body(self)?;
        self.count_loops(|loops| loops - 1);
        Ok(())
    }

    fn count_loops(&mut self, change: fn(usize) -> usize) {
        if let Some(function) = self.functions.last_mut() {
            function.loops = change(function.loops);
        }
    }

    fn count_or_walk(&mut self, line: usize) -> Result<(), Fault> {
        self.next();
        let outside = self.locals.len();
        let mut names = vec![self.name()?];
        if self.take("=") {
            self.expression()?;
            self.expect(",")?;
            self.expression()?;
            if self.take(",") {
                self.expression()?;
            }
        } else if self.peek().is(",") || self.peek().is("in") {
            while self.take(",") {
                names.push(self.name()?);
            }
            self.expect("in")?;
            self.expressions()?;
        } else {
            return Err(self.fault("'=' or 'in' expected"));
        }
        self.expect("do")?;
        names.iter().for_each(|name| self.declare(name.text, Meaning::Anything));
        self.in_loop(Self::block)?;
        self.undeclare(outside);
        self.expect_close("end", "for", line)
    }

    /// The condition sees the block's names.
    fn repeat(&mut self, line: usize) -> Result<(), Fault> {
        self.next();
        let outside = self.locals.len();
        self.in_loop(Self::chunk)?;
        self.expect_close("until", "repeat", line)?;
        self.expression()?;
        self.undeclare(outside);
        Ok(())
    }

    fn named_function(&mut self, line: usize) -> Result<(), Fault> {
        self.next();
        let name = self.name()?;
        let followed = self.peek().is(".") || self.peek().is(":");
        if let Primary::Global(edit) = self.variable(name) {
            match followed {
                true => self.note_method(edit, name),
                false => self.assign_global(edit, name),
            }
        } else if !followed {
            self.forget(name.text);
        }
        while self.take(".") {
            self.name()?;
        }
        let method = self.take(":");
        if method {
            self.name()?;
        }
        self.body(if method { &[b"self"] } else { &[] }, line)
    }

    fn local(&mut self) -> Result<(), Fault> {
        self.next();
        if self.peek().is("function") {
            let line = self.next().line;
            let name = self.name()?;
            self.declare(name.text, Meaning::Anything);
            return self.body(&[], line);
        }
        let mut names = vec![self.name()?];
        while self.take(",") {
            names.push(self.name()?);
        }
        let mut is = Meaning::Anything;
        if self.take("=") {
            let from = self.at;
            let is_call = names.len() == 1 && self.is_bare_call(from);
            if is_call {
                is = Meaning::Call;
            }
            self.expressions()?;
            if is_call && self.at != from + 3 {
                is = Meaning::Anything;
                self.uses.others = Others::Some;
            }
        }
        names.iter().for_each(|name| self.declare(name.text, is));
        Ok(())
    }

    /// Whether `redis.call` stands here, and is not called.
    fn is_bare_call(&self, at: usize) -> bool {
        let ahead = |by: usize| self.ahead(at + by - self.at);
        let is_redis = ahead(0).text == b"redis" && !self.is_local(b"redis");
        is_redis && ahead(1).is(".") && is_caller(ahead(2).text) && !begins_call(ahead(3))
    }

    fn is_local(&self, name: &[u8]) -> bool {
        self.places.get(name).is_some_and(|places| !places.is_empty())
    }

    fn answer(&mut self) -> Result<(), Fault> {
        self.next();
        if self.ends_block() || self.peek().is(";") {
            return Ok(());
        }
        let (from, token) = (self.at, self.peek());
        let redis = token.text == b"redis" && !self.is_local(b"redis");
        let redis = redis && is_caller(self.ahead(2).text);
        let is_call = self.expression()? == Primary::Call;
        // A tail call would leave no trace of the line that it stands in.
        if is_call && !self.peek().is(",") && (redis || self.functions.len() == 1) {
            let last = self.tokens[from..self.at].last().copied().unwrap_or(token);
            self.insert(token.at, "(");
            self.insert(last.at + last.text.len(), ")");
            return Ok(());
        }
        while self.take(",") {
            self.expression()?;
        }
        Ok(())
    }

    fn insert(&mut self, at: usize, text: &str) {
        self.edits.push(Edit { at, instead_of: 0, text: text.to_owned() });
    }

    fn call_or_assignment(&mut self) -> Result<(), Fault> {
        let mut first = self.peek();
        let mut place = self.primary()?;
        if place == Primary::Call {
            return Ok(());
        }
        loop {
            match place {
                Primary::Global(edit) => self.assign_global(edit, first),
                Primary::Member(library) => {
                    self.uses.assigned.insert(library);
                }
                Primary::Place => self.forget(first.text),
                Primary::Call | Primary::Value => return Err(self.fault("syntax error")),
            }
            if !self.take(",") {
                break;
            }
            first = self.peek();
            place = self.primary()?;
        }
        self.expect("=")?;
        self.expressions()
    }

    /// A local that may have been assigned to is no longer known to be what it was.
    fn forget(&mut self, name: &[u8]) {
        if let Some(local) = self.find(name)
            && local.is == Meaning::Call
        {
            local.is = Meaning::Anything;
            self.uses.others = Others::Some;
        }
    }

    fn assign_global(&mut self, edit: usize, name: Token<'a>) {
        if let Some(edit) = self.edits.get_mut(edit) {
            *edit = Edit { at: name.at, instead_of: 0, text: format!("{}.", self.table) };
        }
        self.uses.assigned.insert("_G");
    }

    fn expressions(&mut self) -> Result<(), Fault> {
        self.expression()?;
        while self.take(",") {
            self.expression()?;
        }
        Ok(())
    }

    /// What binds closer than what is no matter here.
    fn expression(&mut self) -> Result<Primary, Fault> {
        self.enter()?;
        let mut is = self.operand()?;
        while is_binary(self.peek()) {
            self.next();
            self.operand()?;
            is = Primary::Value;
        }
        self.leave();
        Ok(is)
    }

    fn operand(&mut self) -> Result<Primary, Fault> {
        let mut is_bare = true;
        while ["not", "-", "#"].iter().any(|sign| self.peek().is(sign)) {
            self.next();
            is_bare = false;
        }
        let token = self.peek();
        let plain = ["nil", "true", "false"].iter().any(|word| token.is(word));
        if plain || matches!(token.kind, Kind::Number | Kind::String) {
            self.next();
        } else if token.is("...") {
            if self.functions.last().is_none_or(|function| !function.dots) {
                return Err(self.fault("cannot use '...' outside a vararg function"));
            }
            self.next();
        } else if token.is("{") {
            self.table_of_values()?;
        } else if token.is("function") {
            self.next();
            self.body(&[], token.line)?;
        } else {
            let is = self.primary()?;
            return Ok(if is_bare { is } else { Primary::Value });
        }
        Ok(Primary::Value)
    }

    fn table_of_values(&mut self) -> Result<(), Fault> {
        let line = self.peek().line;
        self.expect("{")?;
        while !self.peek().is("}") {
            if self.take("[") {
                self.expression()?;
                self.expect("]")?;
                self.expect("=")?;
            } else if self.peek().kind == Kind::Name && self.ahead(1).is("=") {
                self.next();
                self.next();
            }
            self.expression()?;
            if !self.take(",") && !self.take(";") {
                break;
            }
        }
        self.expect_close("}", "{", line)
    }

    /// From a function's parameters to its end.
    fn body(&mut self, first: &[&'static [u8]], line: usize) -> Result<(), Fault> {
        let outside = self.locals.len();
        first.iter().for_each(|name| self.declare(name, Meaning::Anything));
        self.expect("(")?;
        let mut dots = false;
        if !self.peek().is(")") {
            loop {
                if self.take("...") {
                    dots = true;
                    break;
                }
                let name = match self.peek().kind {
                    Kind::Name => self.next(),
                    _ => return Err(self.fault("<name> or '...' expected")),
                };
                self.declare(name.text, Meaning::Anything);
                if !self.take(",") {
                    break;
                }
            }
        }
        self.expect(")")?;
        if dots {
            // As the server's compiler does, for scripts of Lua 5.0.
            self.declare(b"arg", Meaning::Anything);
        }
        self.functions.push(Function { dots, loops: 0 });
        self.chunk()?;
        self.functions.pop();
        self.undeclare(outside);
        self.expect_close("end", "function", line)
    }

    /// A name or something in brackets, and what follows it.
    fn primary(&mut self) -> Result<Primary, Fault> {
        let first = self.peek();
        let mut is = if self.take("(") {
            self.expression()?;
            self.expect_close(")", "(", first.line)?;
            Primary::Value
        } else if first.kind == Kind::Name {
            self.next();
            self.variable(first)
        } else {
            return Err(self.fault("unexpected symbol"));
        };
        is = self.of_library(first, is);
        loop {
            let token = self.peek();
            if self.take(".") {
                self.name()?;
                is = Primary::Place;
            } else if self.take("[") {
                self.expression()?;
                self.expect("]")?;
                is = Primary::Place;
            } else if self.take(":") {
                self.name()?;
                self.arguments()?;
                is = Primary::Call;
            } else if begins_call(token) {
                self.arguments()?;
                is = Primary::Call;
            } else {
                return Ok(is);
            }
        }
    }

    /// What is used of a library, if `first` is one.
    fn of_library(&mut self, first: Token<'a>, is: Primary) -> Primary {
        let Primary::Global(_) = is else { return is };
        let Some(library) = LIBRARIES.iter().find(|name| name.as_bytes() == first.text) else {
            return is;
        };
        let (point, member) = (self.peek(), self.ahead(1));
        if !(point.is(".") && member.kind == Kind::Name) {
            self.note_untold(first.text);
            return is;
        }
        self.next();
        self.next();
        self.uses.members.insert((library, member.text));
        if *library != "cjson" && is_caller(member.text) {
            // An alias is looked at where it is used.
            if begins_call(self.peek()) || !self.is_aliased() {
                self.note_command();
            }
        }
        Primary::Member(library)
    }

    /// A library is used in a way that does not tell what of it.
    fn note_untold(&mut self, name: &[u8]) {
        let library = LIBRARIES.iter().find(|library| library.as_bytes() == name);
        if let Some(library) = library {
            self.uses.members.insert((library, b""));
            self.uses.others = Others::Some;
        }
    }

    /// A function is put into something global; no call may stand in its name.
    fn note_method(&mut self, edit: usize, name: Token<'a>) {
        self.note_untold(name.text);
        let library = LIBRARIES.iter().find(|library| library.as_bytes() == name.text);
        self.uses.assigned.extend(library);
        if !GLOBALS.iter().any(|global| global.as_bytes() == name.text) {
            self.assign_global(edit, name);
        }
    }

    /// Behind something that calls commands.
    fn note_command(&mut self) {
        let (open, name, then) = (self.peek(), self.ahead(1), self.ahead(2));
        let told = match open.kind {
            Kind::String => open.says(),
            _ if open.is("(") && (then.is(",") || then.is(")")) => name.says(),
            _ => None,
        };
        match told {
            Some(command) if self.uses.commands.len() < COMMANDS => {
                self.uses.commands.insert(command);
            }
            _ => self.uses.others = Others::Some,
        }
    }

    /// Whether what ends here is all that a local is set to.
    fn is_aliased(&self) -> bool {
        let back = |by: usize| self.at.checked_sub(by).and_then(|at| self.tokens.get(at));
        let is = |by: usize, sign: &str| back(by).is_some_and(|token| token.is(sign));
        is(4, "=") && is(6, "local")
    }

    /// What a name stands for; a global one is noted.
    fn variable(&mut self, name: Token<'a>) -> Primary {
        if let Some(local) = self.find(name.text) {
            if local.is == Meaning::Call {
                self.note_command();
            }
            return Primary::Place;
        }
        let known = GLOBALS.iter().find(|global| global.as_bytes() == name.text);
        let edit = match known {
            Some(global) => {
                self.uses.globals.insert(global);
                if *global == "_G" {
                    self.uses.others = Others::Some;
                }
                Edit { at: name.at, instead_of: 0, text: format!("{}.", self.table) }
            }
            None => self.unknown(name),
        };
        self.edits.push(edit);
        Primary::Global(self.edits.len() - 1)
    }

    /// A name that the script can't have: the server's own error function says so, so that the line is the script's.
    fn unknown(&self, name: Token<'a>) -> Edit {
        let shown = String::from_utf8_lossy(name.text);
        let refused = REFUSED.iter().any(|refused| refused.as_bytes() == name.text);
        let text = match refused {
            true => format!("'{shown}' is refused in namespace '{}'", self.namespace),
            false => {
                format!("Script attempted to access nonexistent global variable '{shown}'")
            }
        };
        let text = super::quoted(text.as_bytes());
        let text = format!("{}.__error({text})", self.table);
        Edit { at: name.at, instead_of: name.text.len(), text }
    }

    fn arguments(&mut self) -> Result<(), Fault> {
        let token = self.peek();
        if token.kind == Kind::String {
            self.next();
            return Ok(());
        }
        if token.is("{") {
            return self.table_of_values();
        }
        if !token.is("(") {
            return Err(self.fault("function arguments expected"));
        }
        self.next();
        if self.take(")") {
            return Ok(());
        }
        self.expressions()?;
        self.expect_close(")", "(", token.line)
    }
}

fn is_caller(member: &[u8]) -> bool {
    matches!(member, b"call" | b"pcall")
}

fn begins_call(token: Token<'_>) -> bool {
    token.is("(") || token.is("{") || token.kind == Kind::String
}

fn is_binary(token: Token<'_>) -> bool {
    const BINARY: &[&str] =
        &["+", "-", "*", "/", "%", "^", "..", "~=", "==", "<", "<=", ">", ">=", "and", "or"];
    BINARY.iter().any(|sign| token.is(sign))
}

#[cfg(test)]
mod tests;
