//! Scripts in a namespace: a script is sent as another one, in which every global name is a field of a table that holds only what
//! keeps inside. Its `redis.call` checks each command as a client's are checked, or adds the prefix, in the script's own server.
//!
//! The server's Lua has no way to run a function in an environment of its own (`setfenv` has gone with the security releases of
//! 2025), so the names are found beforehand ([`scopes`]) and the table is made in front of the script, on its first line
//! (`prologue.lua`). A script sees names without the prefix, always: `KEYS`, too.

mod scopes;
mod specs;
mod tokens;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha1::{Digest, Sha1};

use super::{Mode, Namespace, glob};
use scopes::{Others, Scoped, Uses};
use specs::Specs;
use tokens::Kind;

/// Most scripts remembered, and most bytes of them as they are sent. The oldest are forgotten.
const SCRIPTS: usize = 512;
const SCRIPT_BYTES: usize = 4 * 1024 * 1024;

const PROLOGUE: &str = include_str!("sandbox/prologue.lua");

/// What of `cjson` leaves no trace: the rest changes settings, which are everybody's.
const TRACELESS: &[&[u8]] = &[b"decode", b"encode", b"null", b"_NAME", b"_VERSION"];

/// What of `redis` a script may use as it is.
const MEMBERS: &[&str] = &[
    "LOG_DEBUG",
    "LOG_NOTICE",
    "LOG_VERBOSE",
    "LOG_WARNING",
    "REDIS_VERSION",
    "REDIS_VERSION_NUM",
    "REPL_ALL",
    "REPL_AOF",
    "REPL_NONE",
    "REPL_REPLICA",
    "REPL_SLAVE",
    "SERVER_NAME",
    "SERVER_VERSION",
    "SERVER_VERSION_NUM",
    "acl_check_cmd",
    "error_reply",
    "log",
    "replicate_commands",
    "set_repl",
    "setresp",
    "sha1hex",
    "status_reply",
];

/// Makes a namespace's scripts keep inside, and remembers them.
#[derive(Debug)]
pub struct Sandbox {
    name: Box<str>,
    mode: Mode,
    specs: Specs,
    /// By name: what the prologue's words in capitals stand for.
    words: BTreeMap<&'static str, String>,
    book: Mutex<Book>,
}

/// A script, and what is sent in its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    /// The SHA1 of what the client said, in hexadecimal digits.
    pub sha: [u8; 40],
    /// Of what is sent.
    pub sent_sha: [u8; 40],
    /// What is sent.
    pub sent: Box<[u8]>,
}

impl Script {
    /// An error line of the server's, which tells of the script that was sent, as its client knows the script.
    #[must_use]
    pub fn outward<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        match memchr::memmem::rfind(line, &self.sent_sha) {
            Some(at) => {
                let mut own = line.to_vec();
                own[at..at + self.sha.len()].copy_from_slice(&self.sha);
                Cow::Owned(own)
            }
            None => Cow::Borrowed(line),
        }
    }
}

#[derive(Debug, Default)]
struct Book {
    scripts: HashMap<[u8; 40], Arc<Script>>,
    order: VecDeque<[u8; 40]>,
    bytes: usize,
}

impl Sandbox {
    /// For the scripts of `namespace`.
    #[must_use]
    pub fn new(namespace: &Namespace) -> Self {
        Self {
            name: namespace.name.clone(),
            mode: namespace.mode,
            specs: Specs::new(namespace),
            words: words(namespace),
            book: Mutex::default(),
        }
    }

    /// The script that is sent in the place of `source`.
    ///
    /// # Errors
    /// The error line for the client: the server would not compile it, or it can't be seen through.
    pub fn wrap(&self, source: &[u8]) -> Result<Vec<u8>, String> {
        if source.contains(&0) {
            return Err(self.refuse("has a NUL in it"));
        }
        if source.first() == Some(&0x1b) {
            return Err(self.refuse("is compiled"));
        }
        let (first, rest) =
            split_shebang(source).ok_or_else(|| "ERR Invalid script shebang".to_owned())?;
        if let Some(engine) = other_engine(first) {
            return Err(format!("ERR Unexpected engine in script shebang: {engine}"));
        }
        let line = if first.is_empty() { 1 } else { 2 };
        let scoped = scopes::scoped(rest, line, &self.name).map_err(|fault| {
            let said = fault.text.replace(|letter: char| letter.is_control(), " ");
            format!("ERR Error compiling script (new function): user_script:{}: {said}", fault.line)
        })?;
        let mut sent = first.to_vec();
        sent.extend_from_slice(&self.prologue(&scoped));
        sent.push(b' ');
        sent.extend_from_slice(&scoped.source);
        Ok(sent)
    }

    fn refuse(&self, what: &str) -> String {
        format!("NOPERM the script {what}; it is refused in namespace '{}'", self.name)
    }

    /// As [`Sandbox::wrap`], once for each script: it is known from then on.
    ///
    /// # Errors
    /// As there.
    pub fn learn(&self, source: &[u8]) -> Result<Arc<Script>, String> {
        let sha = hexadecimal(source);
        if let Some(script) = self.lock().scripts.get(&sha) {
            return Ok(Arc::clone(script));
        }
        let sent = self.wrap(source)?.into_boxed_slice();
        let script = Arc::new(Script { sha, sent_sha: hexadecimal(&sent), sent });
        self.lock().enter(&script);
        Ok(script)
    }

    /// The script with this SHA1, given in hexadecimal digits of either case.
    #[must_use]
    pub fn look_up(&self, sha: &[u8]) -> Option<Arc<Script>> {
        let sha: [u8; 40] = sha.to_ascii_lowercase().try_into().ok()?;
        self.lock().scripts.get(&sha).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What makes the table of a script's names.
    fn prologue(&self, scoped: &Scoped<'_>) -> Vec<u8> {
        let uses = &scoped.uses;
        let calls = Calls::of(uses);
        let mut sections = vec!["begin"];
        if calls.any() {
            sections.extend(self.sections_of_calls(&self.listed(uses)));
        }
        sections.extend(calls.pcall.then_some("pcall"));
        sections.extend(calls.call.then_some("caller"));
        let wants = |name: &str| uses.has(name) || uses.has("_G");
        let has_keys = wants("KEYS") && self.mode == Mode::Prefix;
        sections.extend(has_keys.then_some("keys"));
        sections.extend((!uses.assigned.is_empty() || uses.has("_G")).then_some("sealed"));
        sections.push("library");
        sections.extend(wants("getmetatable").then_some("getmetatable"));
        let mut text: String = sections.into_iter().map(section).collect();
        text.push_str(&self.table(uses, &calls));
        if uses.has("_G") || uses.assigned.contains("_G") {
            text.push_str(section("seal"));
        }
        text.push_str(section("end"));
        self.filled(&text, scoped)
    }

    /// What the calls of the commands in `listed` need.
    fn sections_of_calls(&self, listed: &[(&str, &str)]) -> Vec<&'static str> {
        let ops = |op: char| {
            listed.iter().any(|(_, spec)| spec.split_once(':').is_some_and(|it| it.1.contains(op)))
        };
        let has_names = listed.iter().any(|(_, spec)| spec.contains(':'));
        let has_whole = listed.iter().any(|(_, spec)| spec.starts_with('w'));
        let [own, whole, names] = match self.mode {
            Mode::Prefix => ["build_prefix", "build_prefix_whole", "build_prefix_names"],
            Mode::Enforce => ["build_enforce", "build_enforce_whole", "build_enforce_names"],
        };
        let wanted = [
            ("call", true),
            ("build", true),
            ("build_says", has_names || has_whole),
            (own, true),
            (whole, has_whole),
            (names, has_names),
            ("build_sort", ops('S')),
            ("build_radius", ops('G')),
            ("build_streams", ops('X') || ops('Y')),
            ("build_names", has_names),
            ("build_whole", has_whole),
            ("build_end", true),
        ];
        wanted.into_iter().filter_map(|(section, wanted)| wanted.then_some(section)).collect()
    }

    /// The statement that makes the table.
    fn table(&self, uses: &Uses<'_>, calls: &Calls) -> String {
        let mut text = "TABLE={__error=error".to_owned();
        let all = uses.has("_G");
        let wanted = scopes::GLOBALS.iter().filter(|name| all || uses.has(name));
        for name in wanted {
            let value = match *name {
                "_G" => continue,
                "KEYS" if self.mode == Mode::Prefix => "keys".to_owned(),
                "redis" => redis(uses, calls),
                "server" => format!("rawget(_G,\"server\")and {}", redis(uses, calls)),
                "getmetatable" => "getmetatable_of_table".to_owned(),
                "os" => "rawget(_G,\"os\")and{clock=os.clock}".to_owned(),
                "cjson" if is_traceless(uses) => "library(cjson)".to_owned(),
                "cjson" => "cjson.new()".to_owned(),
                "bit" | "cmsgpack" | "coroutine" | "math" | "string" | "struct" | "table" => {
                    format!("library({name})")
                }
                name => name.to_owned(),
            };
            let _infallible = write!(text, ",{name}={value}");
        }
        text.push_str("}\n");
        text
    }

    /// The prologue on one line, its words in capitals filled in.
    fn filled(&self, text: &str, scoped: &Scoped<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let Ok(tokens) = tokens::tokens(text.as_bytes(), 1) else { return out };
        let fillings: Vec<(Kind, String)> = tokens
            .iter()
            .map(|token| {
                let word = String::from_utf8_lossy(token.text).into_owned();
                let filling = match &*word {
                    "TABLE" => scoped.table.clone(),
                    "KNOWN" => self.known(&scoped.uses),
                    "SPECS" => self.specs_text(&scoped.uses),
                    "REASONS" => {
                        let reasons = self.specs.reasons.iter().skip(1);
                        reasons.map(|why| quoted(why.as_bytes())).collect::<Vec<_>>().join(",")
                    }
                    word => self.words.get(word).cloned().unwrap_or_else(|| word.to_owned()),
                };
                (token.kind, filling)
            })
            .collect();
        for (_, filling) in fillings {
            tokens::join(filling.as_bytes(), &mut out);
        }
        out
    }

    /// What is known of the commands that stand in the script, by how they stand there.
    fn known(&self, uses: &Uses<'_>) -> String {
        let mut text = String::new();
        for name in &uses.commands {
            if let Some(spec) =
                self.specs.of(name).filter(|spec| matches!(*spec, "1" | "2" | "3" | "4"))
            {
                let name = quoted(name);
                let _infallible = write!(text, "[{name}]=\"{}\",", self.level(spec));
            }
        }
        text
    }

    /// Where all that may be written may be read and no more, there is no need to tell the two apart.
    fn level<'a>(&self, spec: &'a str) -> &'a str {
        let same = self.words.get("OWNS") == self.words.get("SEES");
        match spec {
            "2" if same => "1",
            "4" if same => "3",
            spec => spec,
        }
    }

    /// All commands that the script may call, and their specs.
    fn listed(&self, uses: &Uses<'_>) -> Vec<(&str, &str)> {
        let is_used = |name: &str| {
            let own = name.split('|').next().unwrap_or_default().as_bytes();
            uses.others == Others::Some
                || uses.commands.iter().any(|used| used.eq_ignore_ascii_case(own))
        };
        let lines = self.specs.lines.iter().map(|(name, spec)| (&**name, self.level(spec)));
        lines.filter(|(name, _)| is_used(name)).collect()
    }

    fn specs_text(&self, uses: &Uses<'_>) -> String {
        let mut text = "\n".to_owned();
        for (name, spec) in self.listed(uses) {
            let _infallible = writeln!(text, "{name}={spec}");
        }
        quoted(text.as_bytes())
    }
}

/// Which of the two are wanted.
struct Calls {
    call: bool,
    pcall: bool,
    /// All that there is.
    all: bool,
}

impl Calls {
    fn of(uses: &Uses<'_>) -> Self {
        let all = uses.has("_G")
            || uses
                .members
                .iter()
                .any(|(library, member)| *library != "cjson" && member.is_empty());
        let wants = |wanted: &[u8]| {
            all || uses
                .members
                .iter()
                .any(|(library, member)| *library != "cjson" && *member == wanted)
        };
        Self { call: wants(b"call"), pcall: wants(b"pcall"), all }
    }

    fn any(&self) -> bool {
        self.call || self.pcall
    }
}

impl Uses<'_> {
    fn has(&self, global: &str) -> bool {
        self.globals.contains(global)
    }
}

/// The table that stands for `redis`.
fn redis(uses: &Uses<'_>, calls: &Calls) -> String {
    let mut text = "{".to_owned();
    let uses_it =
        |name: &str| calls.all || uses.members.iter().any(|(_, member)| *member == name.as_bytes());
    if calls.call {
        text.push_str("call=redis_call,");
    }
    if calls.pcall {
        text.push_str("pcall=redis_pcall,");
    }
    for name in MEMBERS.iter().filter(|name| uses_it(name)) {
        let _infallible = match *name {
            "setresp" if calls.any() => {
                text.push_str("setresp=function(...)redis.setresp(...)resp3=...==3 end,");
                Ok(())
            }
            name => write!(text, "{name}=redis.{name},"),
        };
    }
    text.push('}');
    if uses.assigned.contains("redis") || uses.assigned.contains("server") {
        return format!("setmetatable({{}},{{__newindex=sealed,__index={text}}})");
    }
    text
}

fn is_traceless(uses: &Uses<'_>) -> bool {
    let mut members = uses.members.iter().filter(|(library, _)| *library == "cjson");
    !uses.has("_G")
        && !uses.assigned.contains("cjson")
        && members.all(|(_, member)| TRACELESS.contains(member))
}

/// A section of the prologue.
fn section(name: &str) -> &'static str {
    let sections = PROLOGUE.split("--@ ").skip(1);
    let mut named = sections.filter_map(|section| section.split_once('\n'));
    named.find(|(title, _)| *title == name).map(|(_, text)| text).unwrap_or_default()
}

/// The words that are the same for all scripts of a namespace.
fn words(namespace: &Namespace) -> BTreeMap<&'static str, String> {
    let begins = |word: &str, prefixes: &mut dyn Iterator<Item = &Box<[u8]>>| {
        let tests: Vec<String> = prefixes
            .map(|prefix| format!("sub({word},1,{})=={}", prefix.len(), quoted(prefix)))
            .collect();
        if tests.is_empty() { "false".to_owned() } else { format!("({})", tests.join(" or ")) }
    };
    let owns = |word: &str| begins(word, &mut namespace.prefixes.iter());
    let sees = |word: &str| begins(word, &mut namespace.prefixes.iter().chain(&namespace.readable));
    let list = |patterns: VecDeque<Vec<u8>>| {
        patterns.iter().map(|pattern| quoted(pattern)).collect::<Vec<_>>().join(",")
    };
    let prefix = match namespace.mode {
        Mode::Prefix => namespace.prefix(),
        Mode::Enforce => b"",
    };
    let mut literal = Vec::new();
    glob::literal(prefix, &mut literal);
    let patterns = namespace.patterns(true);
    let all = match patterns.iter().next() {
        Some(one) if patterns.len() == 1 => quoted(one),
        _ => quoted(b"*"),
    };
    // Of several keys the first alone.
    let of = |one: char, all: char| {
        format!("(known[c]==\"{one}\" or known[c]==\"{all}\" and (...)==nil)")
    };
    let fast = match (namespace.mode, namespace.readable.is_empty()) {
        (Mode::Prefix, _) => of('1', '3'),
        (Mode::Enforce, true) => format!("{} and {}", of('1', '3'), owns("k")),
        (Mode::Enforce, false) => {
            let [writes, reads] = [of('1', '3'), of('2', '4')];
            format!("({writes} and {} or {reads} and {})", owns("k"), sees("k"))
        }
    };
    let given = match namespace.mode {
        Mode::Prefix => format!("{}..k", quoted(prefix)),
        Mode::Enforce => "k".to_owned(),
    };
    BTreeMap::from([
        ("ALL", all),
        ("FAST", fast),
        ("GIVEN", given),
        ("LENGTH", prefix.len().to_string()),
        ("LITERAL", quoted(&literal)),
        ("NAMESPACE", quoted(namespace.name.as_bytes())),
        ("OWN", list(namespace.patterns(false))),
        ("OWNS", owns("word")),
        ("PATTERNS", list(patterns)),
        ("PREFIX", quoted(prefix)),
        ("SEES", sees("word")),
    ])
}

/// The line that says what a script is for, if there is one, and the rest. `None`: it has no end.
fn split_shebang(source: &[u8]) -> Option<(&[u8], &[u8])> {
    if !source.starts_with(b"#!") {
        return Some((&[], source));
    }
    let end = memchr::memchr(b'\n', source)?;
    Some(source.split_at(end + 1))
}

/// The language that the first line names, if it is another than Lua.
fn other_engine(first: &[u8]) -> Option<String> {
    let engine = first.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let shown = || String::from_utf8_lossy(engine).replace(|letter: char| letter.is_control(), " ");
    (!matches!(engine, b"" | b"#!lua")).then(shown)
}

/// `bytes` as a string in a Lua source, on one line.
fn quoted(bytes: &[u8]) -> String {
    let mut text = "\"".to_owned();
    for byte in bytes {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => text.push(char::from(*byte)),
            b'\n' => text.push_str("\\n"),
            byte => {
                let _infallible = write!(text, "\\{byte:03}");
            }
        }
    }
    text.push('"');
    text
}

pub(super) fn hexadecimal(text: &[u8]) -> [u8; 40] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 40];
    let hash = Sha1::digest(text);
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash.iter()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    digits
}

impl Book {
    fn enter(&mut self, script: &Arc<Script>) {
        if script.sent.len() > SCRIPT_BYTES || self.scripts.contains_key(&script.sha) {
            return;
        }
        self.bytes += script.sent.len();
        self.order.push_back(script.sha);
        self.scripts.insert(script.sha, Arc::clone(script));
        while self.order.len() > SCRIPTS || self.bytes > SCRIPT_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            let gone = self.scripts.remove(&oldest);
            self.bytes -= gone.map_or(0, |script| script.sent.len());
        }
    }
}

#[cfg(test)]
mod tests;
