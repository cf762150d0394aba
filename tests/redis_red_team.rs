//! From one namespace against another: whatever its client says, the other's data stays as it is, its subscriber and its waiting
//! client hear nothing, the server's settings stay, and no reply shows what is the other's.
//!
//! What is the other's holds a word that no attack does, so that a reply with it is a breach.
//!
//! ```sh
//! cargo test --test redis_red_team                                      # 50,000 tries
//! TIDEGATE_ATTACKS=1000000 cargo test --test redis_red_team             # by hand; shared out to the tests of this file
//! TIDEGATE_RANDOM_SEED=7 cargo test --test redis_red_team               # others
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are one test's")]

mod support;

#[path = "redis_red_team/attacks.rs"]
mod attacks;
#[path = "random/chance.rs"]
mod chance;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use attacks::{Attack, attack};
use chance::Chance;
use support::redis::{Redis, Version};
use support::resp::{Connection, Value, encode};
use support::tidegate::{Setup, Tidegate};

/// What all tests of this file try together.
const ATTACKS: usize = 50_000;
const TESTS: usize = 3;
/// The victim's state is compared so often.
const BATCH: usize = 100;
/// What no attack says, and everything of the victim's holds.
const MARK: &str = "5ecret";

struct Stage {
    server: Redis,
    gate: Tidegate,
    /// Listens to everything that is the victim's.
    subscriber: Connection,
    /// Waits for what never comes.
    waiting: Connection,
    fingerprint: Vec<String>,
}

impl Stage {
    fn new(mode: &'static str, version: Version) -> Self {
        let server = Redis::of(version);
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "[redis]\nnamespace = \"cache\"\n[[redis.namespaces]]\nname = \"cache\"\nmode = \"{mode}\"\n\
             [[redis.namespaces]]\nname = \"queue\"\nmode = \"prefix\"\npassword = \"p{MARK}\"\n"
        );
        std::fs::write(file.path(), text).unwrap();
        let gate =
            Setup::new().redis(&server).pool_size(8).wait_ms(2_000).config(file.path()).start();
        let mut direct = server.direct();
        let m1 = format!("m1-{MARK}");
        for words in [
            &["CONFIG", "SET", "notify-keyspace-events", "KEA"][..],
            &["SET", "queue:string", &m1],
            &["RPUSH", "queue:list", &m1, "x"],
            &["SADD", "queue:set", &m1, "m1"],
            &["ZADD", "queue:zset", "1", &m1, "2", "m1"],
            &["HSET", "queue:hash", "f", &m1],
            &["XADD", "queue:stream", "1-1", "f", &m1],
            &["XGROUP", "CREATE", "queue:stream", "STREAMS", "0"],
            &["GEOADD", "queue:geo", "13.3", "38.1", &m1],
            &["SET", &format!("queue:{MARK}"), "1"],
            &["SET", &format!("{MARK}:other"), "1"],
        ] {
            assert!(!matches!(direct.command(words), Value::Error(_)), "{words:?}");
        }
        let mut subscriber = server.direct();
        subscriber.command(&["PSUBSCRIBE", "queue:*", "__keyspace@?__:queue:*"]);
        subscriber.reply();
        let mut waiting = gate.redis_client();
        assert_eq!(waiting.command(&["AUTH", "queue", &format!("p{MARK}")]), Value::simple("OK"));
        waiting.send(&encode(&["BRPOP", "wait", "0"]));
        let mut stage = Self { server, gate, subscriber, waiting, fingerprint: Vec::new() };
        stage.fingerprint = stage.look();
        stage
    }

    /// All that must stay as it is.
    fn look(&self) -> Vec<String> {
        let mut direct = self.server.direct();
        let mut seen = Vec::new();
        for database in ["0", "1"] {
            direct.command(&["SELECT", database]);
            let mut keys = direct.command(&["KEYS", "*"]).words();
            keys.retain(|key| !key.starts_with("cache:"));
            keys.sort();
            for key in keys {
                let ttl = direct.command(&["PTTL", &key]).text();
                seen.push(format!("{key} {ttl} {:?}", direct.command(&["DUMP", &key])));
            }
        }
        let mut settings = direct.command(&["CONFIG", "GET", "*"]).words();
        settings.sort();
        seen.push(settings.join(" "));
        seen.push(direct.command(&["ACL", "LIST"]).words().join(" "));
        seen.push(format!("{:?}", direct.command(&["FUNCTION", "LIST"])));
        seen.push(format!("{:?}", direct.command(&["ROLE"])).chars().take(30).collect());
        seen
    }

    /// Runs attacks; the first that breaches, with the ones before it.
    fn run(&mut self, attacks: &[Attack]) -> Result<(), String> {
        let mut attacker = Attacker::new(&self.gate);
        for attack in attacks {
            let replies = attacker.tries(attack);
            if let Some(at) = find(&replies, MARK.as_bytes()) {
                let around = &replies[at.saturating_sub(200)..(at + 50).min(replies.len())];
                return Err(format!(
                    "{} was told {:?}",
                    attack.shown(),
                    String::from_utf8_lossy(around)
                ));
            }
        }
        self.unharmed()
    }

    fn unharmed(&mut self) -> Result<(), String> {
        // What it has made itself would make each look longer than the last.
        assert_eq!(self.gate.redis_client().command(&["FLUSHDB"]), Value::simple("OK"));
        let now = self.look();
        if let Some((before, after)) =
            self.fingerprint.iter().zip(&now).find(|(before, after)| before != after)
        {
            return Err(format!("changed:\n  {before}\n  {after}"));
        }
        if now.len() != self.fingerprint.len() {
            return Err(format!("{} things are {} now", self.fingerprint.len(), now.len()));
        }
        for (who, connection) in
            [("the subscriber", &mut self.subscriber), ("the waiting client", &mut self.waiting)]
        {
            let stream = connection.stream();
            stream.set_nonblocking(true).unwrap();
            let heard = stream.peek(&mut [0; 1]);
            stream.set_nonblocking(false).unwrap();
            match heard {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                other => {
                    return Err(format!(
                        "{who} heard something: {other:?} {:?}",
                        connection.try_reply()
                    ));
                }
            }
        }
        Ok(())
    }
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

/// A client of the attacking namespace, and whatever it is told.
struct Attacker<'a> {
    gate: &'a Tidegate,
    stream: TcpStream,
}

impl<'a> Attacker<'a> {
    fn new(gate: &'a Tidegate) -> Self {
        Self { gate, stream: open(gate) }
    }

    /// Says it, and what ends every state of it; all that comes back.
    fn tries(&mut self, attack: &Attack) -> Vec<u8> {
        let mut bytes = attack.bytes();
        // Whatever it has begun ends here, and the last word is known.
        bytes.extend(encode(&["DISCARD"]));
        bytes.extend(encode(&["RESET"]));
        let mut heard = Vec::new();
        if self.stream.write_all(&bytes).is_err() || !self.hear(&mut heard) {
            self.stream = open(self.gate);
        }
        heard
    }

    /// Whether the last word has come.
    fn hear(&mut self, heard: &mut Vec<u8>) -> bool {
        let begun = Instant::now();
        let mut buffer = [0; 16 * 1024];
        while !heard.ends_with(b"+RESET\r\n") {
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return false,
                Ok(n) => heard.extend_from_slice(&buffer[..n]),
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "no end: {:?}",
                String::from_utf8_lossy(heard)
            );
        }
        true
    }
}

fn open(gate: &Tidegate) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", gate.redis_port())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn number(variable: &str) -> Option<usize> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value}: give a number")))
}

/// This test's share of them.
fn share() -> usize {
    number("TIDEGATE_ATTACKS").unwrap_or(ATTACKS) / TESTS + 1
}

fn assault(test: usize, mode: &'static str, version: Version, wanted: usize) {
    let seed = number("TIDEGATE_RANDOM_SEED").unwrap_or(0);
    let mut stage = Stage::new(mode, version);
    let mut done = 0;
    while done < wanted {
        let mut chance =
            Chance::new(u64::try_from(seed * 1_000_000_007 + test * 100_000_007 + done).unwrap());
        let batch: Vec<Attack> = (0..BATCH).map(|_| attack(&mut chance)).collect();
        if let Err(breach) = stage.run(&batch) {
            panic!("{}", report((mode, version), batch, &breach));
        }
        done += batch.len();
    }
    let page = stage.gate.page();
    let refused = page.sum("tidegate_namespace_refusals_total", &[("namespace", "cache")]);
    println!("{mode}: {done} tries, {refused} commands refused, no breach");
    let least = f64::from(u32::try_from(wanted).unwrap()) / 4.0;
    assert!(refused > least, "only {refused} were refused");
    stage.gate.assert_alive();
}

/// The fewest attacks of the batch that breach a stage of their own.
fn report((mode, version): (&'static str, Version), batch: Vec<Attack>, breach: &str) -> String {
    let fails = |attacks: &[Attack]| Stage::new(mode, version).run(attacks).err();
    let mut short = batch;
    let mut last = breach.to_owned();
    let begun = Instant::now();
    let mut at = 0;
    while at < short.len() && begun.elapsed() < Duration::from_secs(60) {
        let mut fewer = short.clone();
        let size = (fewer.len() / 8).max(1).min(fewer.len() - at);
        fewer.drain(at..at + size);
        match fails(&fewer) {
            Some(breach) => (short, last) = (fewer, breach),
            None => at += size,
        }
    }
    let shown: Vec<String> = short.iter().map(Attack::shown).collect();
    format!("{mode}: {breach}\nin short: {last}\n{}", shown.join("\n"))
}

#[test]
fn who_says_full_names_gets_no_further() {
    assault(1, "enforce", Version::Systems, share());
}

#[test]
fn who_knows_of_no_names_gets_no_further() {
    assault(2, "prefix", Version::Systems, share());
}

#[test]
fn a_second_one_in_another_order_gets_no_further() {
    assault(3, "enforce", Version::Systems, share());
}

/// Beyond the shares of all, on a server that knows more commands: fewer of them.
#[test]
fn nobody_gets_further_on_a_newer_server() {
    assault(4, "enforce", Version::Newest, share() / 6);
    assault(5, "prefix", Version::Newest, share() / 6);
}

/// The attacks are ones: without a namespace they do harm.
#[test]
fn without_a_namespace_they_do_harm() {
    let mut stage = Stage::new("enforce", Version::Systems);
    let harmless = |stage: &Stage, words: &[&str]| {
        let mut direct = stage.server.direct();
        direct.command(words);
    };
    harmless(&stage, &["SET", "cache:string", "x"]);
    stage.unharmed().unwrap();
    harmless(&stage, &["RENAME", "queue:string", "cache:stolen"]);
    assert!(stage.unharmed().is_err());
    let mut chance = Chance::new(1);
    let read = (0..2_000).map(|_| attack(&mut chance)).any(|attack| {
        let mut direct = TcpStream::connect(("127.0.0.1", stage.server.port())).unwrap();
        direct.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let plain = attack.commands.len() == 1
            && ["GET", "DUMP", "KEYS", "LRANGE", "SMEMBERS", "MGET"]
                .iter()
                .any(|name| attack.commands[0][0].eq_ignore_ascii_case(name.as_bytes()));
        if !plain {
            return false;
        }
        direct.write_all(&attack.bytes()).unwrap();
        let mut buffer = [0; 16 * 1024];
        let read = direct.read(&mut buffer).unwrap_or(0);
        find(&buffer[..read], MARK.as_bytes()).is_some()
    });
    assert!(read, "no attack reads anything");
}
