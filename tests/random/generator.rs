//! Makes scripts: which session says what next, drawn from the themes of the script.
//!
//! Names come from small sets, so that statements meet what others have left. What is guessed of a session (whether it is
//! in a transaction) only weighs what comes next: any text may fail, on both sides alike.

use super::chance::Chance;
use super::script::{Act, Message, Script, Segment, Step};
use super::words;
use super::{LOGIN_IN_LATIN1, LOGINS, Profile};

/// Longest script.
const STEPS: usize = 36;

/// What a script is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    Settings,
    Custom,
    Roles,
    Transactions,
    Data,
    Temporary,
    Locks,
    Cursors,
    SqlPrepare,
    Protocol,
    Portals,
    Copy,
    Tables,
    Listen,
    Discard,
    Errors,
    Blocks,
    Look,
    Sequences,
}

const THEMES: [Theme; 18] = [
    Theme::Settings,
    Theme::Custom,
    Theme::Roles,
    Theme::Transactions,
    Theme::Data,
    Theme::Temporary,
    Theme::Locks,
    Theme::Cursors,
    Theme::SqlPrepare,
    Theme::Protocol,
    Theme::Portals,
    Theme::Copy,
    Theme::Tables,
    Theme::Listen,
    Theme::Discard,
    Theme::Errors,
    Theme::Blocks,
    Theme::Sequences,
];

/// Statements of the table whose columns change, by the names they always have: of such a statement the server says that
/// its result type has changed, the pool prepares it anew.
pub fn of_changed_table(statement: &str) -> Option<&'static str> {
    match statement {
        "d1" => Some("select * from d order by 1"),
        "d2" => Some("select *, $1::text from d where b <> 'x' order by 1"),
        _ => None,
    }
}

struct Generator {
    chance: Chance,
    themes: Vec<(usize, Theme)>,
    listens: bool,
    /// Whether statements are prepared in SQL; if not, SQL may deallocate those of the protocol.
    prepares: bool,
    sessions: Vec<Guess>,
}

/// What is guessed of a session.
#[derive(Clone, Copy, Default)]
struct Guess {
    /// Steps since its transaction began.
    transaction: Option<usize>,
    /// It left behind a Flush.
    open: bool,
}

/// The script of this seed.
pub fn script(seed: u64, profile: &Profile) -> Script {
    let mut chance = Chance::new(seed);
    let count = 2 + chance.below(profile.sessions - 1);
    let login = |chance: &mut Chance| loop {
        let login = if chance.often(50) { 0 } else { chance.below(LOGINS.len()) };
        if !(profile.listens && login == LOGIN_IN_LATIN1) {
            return login;
        }
    };
    let sessions: Vec<usize> = (0..count).map(|_| login(&mut chance)).collect();
    let mut themes = vec![(6, Theme::Look), (6, Theme::Transactions), (3, Theme::Protocol)];
    for _ in 0..2 + chance.below(3) {
        themes.push((12, THEMES[chance.below(THEMES.len())]));
    }
    themes.extend(THEMES.map(|theme| (1, theme)));
    if !profile.listens {
        themes.retain(|(_, theme)| *theme != Theme::Listen);
    }
    let guesses = vec![Guess::default(); count];
    let (listens, prepares) = (profile.listens, chance.often(70));
    let mut generator = Generator { chance, themes, listens, prepares, sessions: guesses };
    let steps = 8 + generator.chance.below(STEPS - 8);
    let steps = (0..steps)
        .map(|_| {
            let session = generator.chance.below(count);
            let shift = generator.chance.often(40).then(|| generator.chance.below(8));
            let act = match generator.chance.below(100) {
                0 => Act::Leave,
                1 => Act::HangUp,
                2 if generator.chance.often(40) => Act::HangUpInside,
                3 => Act::Come(login(&mut generator.chance)),
                _ => Act::Say(generator.say(session)),
            };
            if !matches!(act, Act::Say(_) | Act::Come(_)) {
                generator.sessions[session] = Guess::default();
            }
            Step { session, act, shift }
        })
        .collect();
    Script { seed, sessions, steps }
}

impl Generator {
    fn say(&mut self, s: usize) -> Vec<Segment> {
        let guess = &mut self.sessions[s];
        if let Some(age) = &mut guess.transaction {
            *age += 1;
            if *age > 4 && self.chance.often(35) {
                self.sessions[s].transaction = None;
                let end = self.chance.pick(&["commit", "rollback", "end", "abort"]);
                return vec![self.spoken(end)];
            }
        }
        if std::mem::take(&mut self.sessions[s].open) {
            return vec![self.after_flush()];
        }
        let segments = match self.chance.below(100) {
            0..80 => 1,
            80..92 => 2,
            _ => 3 + self.chance.below(3),
        };
        let mut all: Vec<Segment> = (0..segments).map(|_| self.segment(s)).collect();
        if segments > 1 && all.iter().any(mentions_changed_table) {
            all.truncate(1);
        }
        let count = all.len();
        all.retain({
            let mut at = 0;
            move |segment: &Segment| {
                at += 1;
                at == count || !segment.iter().any(changes_names)
            }
        });
        let last = all.last_mut().expect("a segment");
        if last.last() == Some(&Message::Sync)
            && self.chance.often(12)
            && !last.iter().any(copies)
            && !mentions_changed_table(last)
        {
            last.pop();
            last.push(Message::Flush);
            self.sessions[s].open = true;
        }
        all
    }

    /// What follows a Flush: Sync at once, or more before it.
    fn after_flush(&mut self) -> Segment {
        if self.chance.often(40) {
            return vec![Message::Sync];
        }
        self.extended()
    }

    fn segment(&mut self, s: usize) -> Segment {
        let theme = self.chance.weighted(&self.themes);
        match theme {
            Theme::Protocol => return self.extended(),
            Theme::Portals => return self.portals(),
            Theme::Copy => return self.copy(),
            Theme::Tables if self.chance.often(60) => return self.changed_table(),
            Theme::Custom | Theme::Settings if self.chance.often(20) => {
                return self.bound_setting(theme);
            }
            _ => {}
        }
        if self.chance.often(2) {
            return vec![self.call()];
        }
        let sql = self.sql(theme, s);
        if self.chance.often(12) {
            return vec![Message::Query(self.several(sql, s))];
        }
        self.spoken(&sql)
    }

    fn call(&mut self) -> Message {
        let (oid, values) = self.chance.weighted(&[
            (2, (177, ["40", "2"])),
            (1, (154, ["1", "0"])),
            (1, (4_000_000_000, ["1", "2"])),
        ]);
        Message::Call(oid, values.map(str::to_owned).to_vec())
    }

    /// Several statements in one Query.
    fn several(&mut self, first: String, s: usize) -> String {
        let mut texts = vec![first];
        for _ in 0..1 + self.chance.below(3) {
            let theme = self.chance.weighted(&self.themes);
            texts.push(self.sql(theme, s));
        }
        texts.join("; ")
    }

    /// By either protocol.
    fn spoken(&mut self, sql: &str) -> Segment {
        if self.chance.often(60) {
            return vec![Message::Query(sql.into())];
        }
        let name = self.chance.pick(&["", "", "", "s1", "s2", "s3"]);
        let portal = self.chance.pick(&["", "", "", "p1"]);
        let mut segment = Vec::new();
        if !name.is_empty() && self.chance.often(60) {
            segment.push(Message::CloseStatement(name.into()));
        }
        segment.push(Message::Parse(name.into(), sql.into()));
        if self.chance.often(20) {
            segment.push(Message::DescribeStatement(name.into()));
        }
        segment.push(bound(portal, name, &[]));
        if self.chance.often(60) {
            segment.push(Message::DescribePortal(portal.into()));
        }
        segment.push(Message::Execute(portal.into(), 0));
        if self.chance.often(15) {
            segment.push(Message::Execute(portal.into(), 0));
        }
        segment.push(Message::Sync);
        segment
    }

    /// Messages of the extended protocol in an order of their own.
    fn extended(&mut self) -> Segment {
        let mut segment = Vec::new();
        for _ in 0..1 + self.chance.below(6) {
            let name = self.chance.pick(&["", "", "s1", "s2", "s3", "s4", "q1"]).to_owned();
            let portal = self.chance.pick(&["", "", "", "p1", "p2"]).to_owned();
            match self.chance.below(16) {
                0..4 if name != "q1" => {
                    let sql = self.allowed(words::PREPARED).to_owned();
                    if self.chance.often(50) {
                        segment.push(Message::CloseStatement(name.clone()));
                    }
                    segment.push(Message::Parse(name, sql));
                }
                4..10 => {
                    let values = self.values();
                    let binary = self.chance.often(15);
                    let (p, n) = (portal.clone(), name);
                    segment.push(Message::Bind { portal: p, statement: n, values, binary });
                    segment.push(Message::Execute(portal, self.most()));
                }
                10 => segment.push(Message::DescribeStatement(name)),
                11 => segment.push(Message::DescribePortal(portal)),
                12 => segment.push(Message::Execute(portal, self.most())),
                13 => segment.push(Message::CloseStatement(name)),
                14 => segment.push(Message::ClosePortal(portal)),
                _ => segment.push(Message::Flush),
            }
        }
        segment.push(Message::Sync);
        segment
    }

    fn most(&mut self) -> u32 {
        self.chance.weighted(&[(6, 0), (2, 1), (1, 2)])
    }

    fn values(&mut self) -> Vec<Option<String>> {
        let count = self.chance.weighted(&[(5, 0), (5, 1), (2, 2)]);
        (0..count)
            .map(|_| {
                let value = self.chance.pick(&["1", "2", "103", "word", "NULL", "", "-7", "it's"]);
                (value != "NULL").then(|| value.to_owned())
            })
            .collect()
    }

    /// A portal read in pieces.
    fn portals(&mut self) -> Segment {
        let portal = self.chance.pick(&["", "p1", "p2"]).to_owned();
        let sql = self.chance.pick(words::ROWS).to_owned();
        let mut segment = match self.chance.below(3) {
            0 => Vec::new(),
            1 => vec![Message::Parse(String::new(), sql), bound(&portal, "", &[])],
            _ => vec![
                Message::CloseStatement("s1".into()),
                Message::Parse("s1".into(), sql),
                bound(&portal, "s1", &[]),
            ],
        };
        for _ in 0..1 + self.chance.below(3) {
            let most = self.chance.weighted(&[(3, 1), (2, 2), (1, 0)]);
            segment.push(Message::Execute(portal.clone(), most));
        }
        if self.chance.often(20) {
            segment.push(Message::ClosePortal(portal));
        }
        segment.push(Message::Sync);
        segment
    }

    fn copy(&mut self) -> Segment {
        let sql = self.chance.pick(words::COPIES).to_owned();
        let mut segment = Vec::new();
        let extended = self.chance.often(40);
        if extended {
            // By a name that nothing else runs: a COPY without data waits for ever.
            segment.push(Message::CloseStatement("copy".into()));
            segment.push(Message::Parse("copy".into(), sql.clone()));
            segment.push(bound("", "copy", &[]));
            segment.push(Message::Execute(String::new(), 0));
        } else {
            segment.push(Message::Query(sql.clone()));
        }
        if sql.contains("from stdin") {
            for _ in 0..self.chance.below(3) {
                let row = self.chance.pick(&["x\t1\n", "y\t2\n", "\\N\t3\n", "bad\tword\n"]);
                segment.push(Message::CopyData(row.into()));
            }
            let end = if self.chance.often(80) { Message::CopyDone } else { Message::CopyFail };
            segment.push(end);
        }
        if extended {
            segment.push(Message::Sync);
        }
        segment
    }

    /// The table whose columns change: prepared, run, changed.
    fn changed_table(&mut self) -> Segment {
        let name = self.chance.pick(&["d1", "d2"]);
        let values: &[&str] = if name == "d2" { &["7"] } else { &[] };
        let mut segment = Vec::new();
        if self.chance.often(25) {
            let sql = of_changed_table(name).expect("it is one");
            segment.push(Message::Parse(name.into(), sql.into()));
        }
        segment.push(bound("", name, values));
        segment.push(Message::DescribePortal(String::new()));
        segment.push(Message::Execute(String::new(), 0));
        segment.push(Message::Sync);
        segment
    }

    fn bound_setting(&mut self, theme: Theme) -> Segment {
        let (name, value) = match theme {
            Theme::Custom => {
                let name = self.chance.pick(words::CUSTOM);
                (name.replace('"', ""), self.chance.pick(words::CUSTOM_VALUES).to_owned())
            }
            _ => {
                let (name, value) = self.setting();
                (name.to_owned(), value.trim_matches('\'').replace("''", "'"))
            }
        };
        let local = self.chance.pick(&["false", "false", "true"]);
        let statement = self.chance.pick(&["", "s4"]);
        let mut segment = Vec::new();
        if self.chance.often(60) {
            segment.push(Message::CloseStatement(statement.into()));
        }
        let sql = "select set_config($1, $2, $3::bool)";
        segment.push(Message::Parse(statement.into(), sql.into()));
        segment.push(bound("", statement, &[&name, &value, local]));
        segment.push(Message::Execute(String::new(), 0));
        segment.push(Message::Sync);
        segment
    }

    fn setting(&mut self) -> (&'static str, &'static str) {
        loop {
            let (name, values) = words::SETTINGS[self.chance.below(words::SETTINGS.len())];
            if !(self.listens && name == "client_encoding") {
                return (name, self.chance.pick(values));
            }
        }
    }

    fn sql(&mut self, theme: Theme, s: usize) -> String {
        match theme {
            Theme::Settings => self.change_setting(),
            Theme::Custom => self.change_custom(),
            Theme::Transactions => self.transaction(s),
            Theme::Listen => self.filled(words::LISTEN),
            Theme::Look | Theme::Protocol | Theme::Portals | Theme::Copy => self.look(),
            Theme::Roles => self.filled(words::ROLES),
            Theme::Data => self.filled(words::DATA),
            Theme::Temporary => self.filled(words::TEMPORARY),
            Theme::Locks => self.filled(words::LOCKS),
            Theme::Cursors => self.filled(words::CURSORS),
            Theme::SqlPrepare => self.filled(words::SQL_PREPARE),
            Theme::Tables => self.filled(words::TABLES),
            Theme::Discard => self.filled(words::DISCARD),
            Theme::Errors => self.filled(words::ERRORS),
            Theme::Blocks => self.filled(words::BLOCKS),
            Theme::Sequences => self.filled(words::SEQUENCES),
        }
    }

    /// One of `texts` that this script may use.
    fn allowed<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        loop {
            let text = self.chance.pick(texts);
            let of_other = if self.prepares { "deallocate s" } else { "prepare q" };
            if !text.contains(of_other) {
                return text;
            }
        }
    }

    /// One of `texts`, with its blanks filled: `{n}` a small number, `{c}` a channel, `{s}` a name.
    fn filled(&mut self, texts: &[&str]) -> String {
        let mut sql = self.allowed(texts).to_owned();
        while let Some(at) = sql.find("{n}") {
            let number = (1 + self.chance.below(3)).to_string();
            sql.replace_range(at..at + 3, &number);
        }
        while let Some(at) = sql.find("{c}") {
            let channel = self.chance.pick(words::CHANNELS);
            sql.replace_range(at..at + 3, channel);
        }
        sql
    }

    fn change_setting(&mut self) -> String {
        let (name, value) = self.setting();
        match self.chance.below(20) {
            0..7 => format!("set {name} = {value}"),
            7 => format!("set session {name} to {value}"),
            8..10 => format!("set local {name} = {value}"),
            10..12 => format!("reset {name}"),
            12 => format!("set {name} to default"),
            13 => "reset all".into(),
            14 => format!("select set_config('{name}', {}, false)", quoted(value)),
            15 => format!("select set_config('{name}', {}, true)", quoted(value)),
            16 => format!(
                "do $$ begin perform set_config('{name}', {}, false); end $$",
                quoted(value)
            ),
            17 => self.filled(words::SPECIAL_SETTINGS),
            18 => format!("SET /* now */ {name} TO {value} -- done"),
            _ => format!("show {name}"),
        }
    }

    fn change_custom(&mut self) -> String {
        let name = self.chance.pick(words::CUSTOM);
        let bare = name.replace('"', "");
        let value = self.chance.pick(words::CUSTOM_VALUES).replace('\'', "''");
        match self.chance.below(16) {
            0..5 => format!("set {name} = '{value}'"),
            5 => format!("set local {name} = '{value}'"),
            6 => format!("reset {name}"),
            7 => format!("select set_config('{bare}', '{value}', false)"),
            8 => format!("select set_config('{bare}', '{value}', true)"),
            9 => format!("do $$ begin perform set_config('{bare}', '{value}', false); end $$"),
            10 => format!("do $x$ begin set {name} = '{value}'; end $x$"),
            11 => format!("set {name} to default"),
            _ => format!("select coalesce(current_setting('{bare}', true), '')"),
        }
    }

    fn transaction(&mut self, s: usize) -> String {
        let guess = &mut self.sessions[s];
        if guess.transaction.is_none() && !self.chance.often(8) {
            guess.transaction = Some(0);
            return self.chance.pick(words::BEGIN).to_owned();
        }
        if self.chance.often(35) {
            self.sessions[s].transaction = None;
            return self.chance.pick(words::END).to_owned();
        }
        self.filled(words::SAVEPOINTS)
    }

    fn look(&mut self) -> String {
        if self.chance.often(30) {
            let (name, _) = self.setting();
            return match name {
                "nonsense" | "TIME ZONE" => "show timezone".into(),
                _ => format!("show {name}"),
            };
        }
        self.filled(words::LOOKS)
    }
}

fn bound(portal: &str, statement: &str, values: &[&str]) -> Message {
    Message::Bind {
        portal: portal.into(),
        statement: statement.into(),
        values: values.iter().map(|value| Some((*value).to_owned())).collect(),
        binary: false,
    }
}

/// A value of a setting as a literal.
fn quoted(value: &str) -> String {
    if value.starts_with('\'') { value.to_owned() } else { format!("'{value}'") }
}

fn changes_names(message: &Message) -> bool {
    matches!(message, Message::Parse(..) | Message::CloseStatement(_))
}

fn copies(message: &Message) -> bool {
    match message {
        Message::CopyData(_) | Message::CopyDone | Message::CopyFail => true,
        Message::Parse(_, sql) | Message::Query(sql) => sql.contains("copy"),
        _ => false,
    }
}

fn mentions_changed_table(segment: &Segment) -> bool {
    segment.iter().any(|message| match message {
        Message::Bind { statement, .. } => of_changed_table(statement).is_some(),
        _ => false,
    })
}
