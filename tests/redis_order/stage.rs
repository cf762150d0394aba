//! Two servers alike, one behind tidegate, and what clients of both get.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::script::Act;
use super::support::redis::{Redis, Version};
use super::support::resp::{Connection, Value};
use super::support::tidegate::{Setup, Tidegate};
use super::{within, words};

/// How long something may take that must come.
const LIMIT: Duration = Duration::from_secs(5);
const LISTS: &[&str] = &["a", "b", "c", "from", "to"];
const SETS: &[&str] = &["x", "y", "z"];

pub struct Stage {
    gate: Tidegate,
    server: Redis,
    direct: Redis,
    pool_size: usize,
}

/// Somebody who waits on both sides.
struct Waiter {
    pooled: Connection,
    direct: Connection,
    line: String,
}

impl Stage {
    pub fn new(version: Version, pool_size: usize, arguments: &[&str]) -> Self {
        let open = || match arguments {
            [] => Redis::of(version),
            _ => Redis::with(arguments),
        };
        let (server, direct) = (open(), open());
        let gate = Setup::new().redis(&server).pool_size(pool_size).wait_ms(5_000).start();
        Self { gate, server, direct, pool_size }
    }

    /// How many were served after a wait; or what differs.
    pub fn run(&mut self, script: &[Act]) -> Result<usize, String> {
        let mut askers = [self.server.direct(), self.direct.direct()];
        for asker in &mut askers {
            asker.command(&["FLUSHALL"]);
        }
        let mut waiters: BTreeMap<usize, Waiter> = BTreeMap::new();
        let mut served = 0;
        for (number, act) in script.iter().enumerate() {
            match act {
                Act::Come(proto, line) => {
                    let waiter = self.come(proto, line);
                    waiters.insert(number, waiter);
                }
                Act::Go(at) => {
                    // What is moved for it before its call is over would be with the next one already.
                    let may_go = |one: &&usize| !waiters[*one].line.starts_with("BLMOVE from");
                    if let Some(number) = waiters.keys().filter(may_go).nth(*at).copied() {
                        waiters.remove(&number);
                        let left = waiters.len();
                        within(LIMIT, "the server notices", || {
                            (blocked(&mut askers[1]) == left).then_some(())
                        });
                    }
                }
                Act::Push(line) => {
                    let [pooled, direct] = askers.each_mut().map(|asker| {
                        let words: Vec<&str> = line.split(' ').collect();
                        asker.command(&words)
                    });
                    // What was there before shows in the answer.
                    same(line, &pooled, &direct)?;
                    served += blocked(&mut askers[1]).abs_diff(waiters.len());
                }
            }
            self.settle(&mut waiters, &mut askers).map_err(|what| format!("{act:?}: {what}"))?;
        }
        drop(waiters);
        // Nor is a call left that was made for one of them.
        within(LIMIT, "nobody waits", || {
            (self.parked() == 0.0 && blocked(&mut askers[0]) == 0).then_some(())
        });
        // The asker is one, too.
        let connections = askers[0].command(&["INFO", "clients"]).text();
        let connections = field(&connections, "connected_clients:") - 1;
        if connections > self.pool_size {
            return Err(format!("{connections} connections"));
        }
        Ok(served)
    }

    fn come(&self, proto: &str, line: &str) -> Waiter {
        let [mut pooled, mut direct] = [self.gate.redis_client(), self.direct.direct()];
        for client in [&mut pooled, &mut direct] {
            client.command(&["HELLO", proto]);
            client.send(&words(line));
        }
        Waiter { pooled, direct, line: line.to_owned() }
    }

    /// The same ones are served on both sides, with the same; then as many wait, and the same is left.
    fn settle(
        &self,
        waiters: &mut BTreeMap<usize, Waiter>,
        askers: &mut [Connection; 2],
    ) -> Result<(), String> {
        // A client that has just come is in one of two states.
        within(LIMIT, "the server has read all", || {
            let answered = waiters.values().filter(|one| has_reply(&one.direct)).count();
            (blocked(&mut askers[1]) + answered == waiters.len()).then_some(())
        });
        let began = Instant::now();
        loop {
            let mut missing = None;
            for (number, waiter) in &*waiters {
                let [pooled, direct] = [&waiter.pooled, &waiter.direct].map(has_reply);
                if pooled && !direct {
                    return Err(format!("{number}, {}, is served before its turn", waiter.line));
                }
                if direct && !pooled {
                    missing = Some(format!("{number}, {}, is not served", waiter.line));
                }
            }
            match missing {
                None => break,
                Some(what) if began.elapsed() > LIMIT => return Err(what),
                Some(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        let done: Vec<usize> = waiters
            .iter()
            .filter(|(_, waiter)| has_reply(&waiter.direct))
            .map(|(number, _)| *number)
            .collect();
        for number in done {
            let Some(mut waiter) = waiters.remove(&number) else { continue };
            let (pooled, direct) = (waiter.pooled.reply(), waiter.direct.reply());
            same(&format!("{number}, {}", waiter.line), &pooled, &direct)?;
        }
        let began = Instant::now();
        loop {
            let [pooled, direct] = askers.each_mut().map(content);
            let differs = if self.parked() != waiters.len() as f64 {
                format!("{} wait, not {}", self.parked(), waiters.len())
            } else if pooled != direct {
                format!("left over a pool:\n{pooled}directly:\n{direct}")
            } else {
                return Ok(());
            };
            if began.elapsed() > LIMIT {
                return Err(differs);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn parked(&self) -> f64 {
        self.gate.redis_metric("tidegate_parked_clients", &[])
    }
}

fn same(what: &str, pooled: &Value, direct: &Value) -> Result<(), String> {
    if pooled == direct {
        return Ok(());
    }
    Err(format!("{what}\n  pooled: {pooled:?}\n  direct: {direct:?}"))
}

fn has_reply(client: &Connection) -> bool {
    let stream = client.stream();
    stream.set_nonblocking(true).unwrap();
    let there = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(there, Ok(1..))
}

fn field(info: &str, name: &str) -> usize {
    info.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

fn blocked(asker: &mut Connection) -> usize {
    field(&asker.command(&["INFO", "clients"]).text(), "blocked_clients:")
}

fn content(asker: &mut Connection) -> String {
    let lists = LISTS.iter().map(|key| vec!["LRANGE", key, "0", "-1"]);
    let sets = SETS.iter().map(|key| vec!["ZRANGE", key, "0", "-1", "WITHSCORES"]);
    let all: Vec<Vec<&str>> = lists.chain(sets).collect();
    let commands: Vec<&[&str]> = all.iter().map(Vec::as_slice).collect();
    let replies = asker.pipeline(&commands);
    all.iter()
        .zip(&replies)
        .map(|(words, reply)| format!("  {}: {}\n", words[1], reply.words().join(" ")))
        .collect()
}
