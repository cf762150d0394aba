//! A station at work on one connection: it waits for all keys at once, and ends the call when others are waited for. When it has
//! nothing to do, another station of its hall goes on with the connection.
//!
//! A call is ended with CLIENT UNBLOCK over a lane. Where the server does not allow that, calls are short, and the server is kept
//! awake while one must end (it looks at its clocks when it has something to do).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::ask::{ask, ask_here};
use super::{Elements, Outcome, PAUSE, Spot, Stations, Way, Wish};
use crate::pool::Lease;
use crate::redis::backend::{Key, RedisConnect};
use crate::redis::greeting::Proto;
use crate::redis::incoming::Incoming;
use crate::redis::pop::{Answer, Catch, Class, KeyName, Kind};
use crate::redis::wire::write_command;

/// How long one call waits where it can be ended.
const CALL: Duration = Duration::from_secs(30);
/// How long where it can't.
const SLICE: Duration = Duration::from_millis(30);
/// How long while some keys hold values of another type, which is looked at again then.
const OTHER_TYPES: Duration = Duration::from_millis(50);
/// How long a connection is a station's own before it goes to others who wait for one.
const TURN: Duration = Duration::from_millis(10);
/// So much later than it should the server may answer.
const GRACE: Duration = Duration::from_secs(10);
/// Until what was written must be taken, and what was asked be answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the connection is kept when nobody waits any more.
const LINGER: Duration = Duration::from_millis(100);
/// Errors of a server that takes no writes for a while: who waits already would not see them on a connection of its own.
const PASSING: &[&str] =
    &["LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "MISCONF", "OOM", "TRYAGAIN", "CLUSTERDOWN"];
/// Between two requests to end a call.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// Why the connection is of no more use.
struct Loss(String);

/// A turn on one connection.
pub(super) struct Shift {
    stations: Arc<Stations>,
    /// Whose it is now.
    spot: Spot,
    lease: Lease<RedisConnect>,
    incoming: Incoming,
    interrupt: Interrupt,
    /// Keys that hold values of another type: they can't be in the call.
    others: Vec<KeyName>,
}

/// How a running call is ended.
struct Interrupt {
    /// Ends the call, or keeps the server awake.
    request: Request,
    state: Asking,
    pause: Duration,
    doubt: Doubt,
    /// From then on others may have the connection.
    turn_ends: Instant,
}

#[derive(Clone)]
enum Request {
    /// CLIENT UNBLOCK with the number of our connection.
    Unblock(Vec<u8>),
    /// PING.
    Wake,
}

enum Asking {
    /// Not now.
    No,
    /// Asked over a lane.
    Asked(Pin<Box<dyn Future<Output = Vec<u8>> + Send>>),
    /// Again, if need be, after this.
    Pausing(Pin<Box<Sleep>>),
}

/// Whether a request to end a call may still be on its way to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    Some,
}

impl Interrupt {
    /// One step: asks when the call is stale, again after a while. Given up at any time, it goes on where it was.
    async fn step(&mut self, stations: &Stations, spot: &Spot) {
        match &mut self.state {
            Asking::No => {
                Self::stale(self.turn_ends, stations, spot).await;
                let Some(way) = stations.way(spot) else { return };
                let (mut bytes, backlog) = (Vec::new(), Arc::clone(&stations.backlog));
                self.state = match &self.request {
                    Request::Unblock(id) => {
                        write_command(&[b"CLIENT".as_slice(), b"UNBLOCK", id], &mut bytes);
                        Asking::Asked(Box::pin(ask_here(way, bytes, backlog)))
                    }
                    Request::Wake => {
                        write_command(&["PING"], &mut bytes);
                        Asking::Asked(Box::pin(ask(way, bytes, backlog)))
                    }
                };
            }
            Asking::Asked(reply) => {
                let reply = reply.await;
                if !matches!(reply.first(), Some(b':' | b'+')) {
                    self.doubt = Doubt::Some;
                }
                self.state = Asking::Pausing(Box::pin(sleep(self.pause)));
                if let Request::Unblock(_) = self.request {
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
            }
            Asking::Pausing(pause) => {
                pause.as_mut().await;
                self.state = Asking::No;
            }
        }
    }

    /// Waits until the running call must end: for its keys, or because others wait for a connection.
    async fn stale(turn_ends: Instant, stations: &Stations, spot: &Spot) {
        let others = async {
            sleep_until(turn_ends).await;
            stations.pool.until_asked(&stations.patient).await;
        };
        tokio::select! {
            () = poll_fn(|cx| stations.poll_stale(cx, spot)) => {}
            () = others => {}
        }
    }

    fn is_turn_over(&self, stations: &Stations) -> bool {
        Instant::now() >= self.turn_ends && stations.must_share()
    }

    /// The call has ended. A request on its way may end the next one, which is then made again.
    fn rest(&mut self) {
        self.pause = FIRST_PAUSE;
        if let Asking::Pausing(_) = self.state {
            self.state = Asking::No;
        }
    }

    /// Waits until no request is on its way, for it would hit whoever has the connection then.
    async fn settle(&mut self) {
        if let Asking::Asked(reply) = &mut self.state {
            match timeout(PATIENCE, reply).await {
                Ok(reply) if matches!(reply.first(), Some(b':' | b'+')) => {}
                _ => self.doubt = Doubt::Some,
            }
            self.state = Asking::No;
        }
    }
}

impl Stations {
    /// Whether others than the patient ones wait for a connection.
    fn must_share(&self) -> bool {
        self.pool.waiters() > self.patient.load(Ordering::Relaxed)
    }

    pub(super) fn way(&self, spot: &Spot) -> Option<Way> {
        self.look(spot.floor, |hall| hall.way.clone())
    }
}

impl Shift {
    pub(super) fn new(stations: Arc<Stations>, spot: Spot, mut lease: Lease<RedisConnect>) -> Self {
        lease.pin("blocking");
        let _since = lease.turn(crate::metrics::Phase::Pinned);
        let interrupt = Interrupt {
            request: Request::Wake,
            state: Asking::No,
            pause: FIRST_PAUSE,
            doubt: Doubt::None,
            turn_ends: Instant::now() + TURN,
        };
        let incoming = Incoming::default();
        Self { stations, spot, lease, incoming, interrupt, others: Vec::new() }
    }

    /// Works until nobody waits, or the connection's time is over.
    pub(super) async fn run(mut self) {
        match self.work().await {
            Ok(()) => {
                self.stations.lay_down(&self.spot);
                self.interrupt.settle().await;
                match self.interrupt.doubt {
                    Doubt::None => self.lease.give_back(),
                    Doubt::Some => self.lease.close("state unknown"),
                }
            }
            Err(Loss(reason)) => {
                self.stations.end_call(&self.spot, None);
                let inside = self.incoming.is_inside();
                let elements = if inside { Elements::Lost } else { Elements::NotSeen };
                self.lease.close("connection lost");
                self.stations.note_loss(&self.spot, &reason, elements);
                // Not before that is another one taken.
                sleep(PAUSE).await;
                self.stations.lay_down(&self.spot);
            }
        }
    }

    async fn work(&mut self) -> Result<(), Loss> {
        self.prepare().await?;
        loop {
            match self.stations.wish(&self.spot) {
                Wish::PutBack(catches) => {
                    let keys: Vec<_> = catches.iter().map(|one| KeyName::clone(&one.key)).collect();
                    let put_back = self.put_back(catches).await;
                    self.stations.end_return(&self.spot, &keys);
                    put_back?;
                }
                Wish::Call if self.interrupt.is_turn_over(&self.stations) => return Ok(()),
                Wish::Call if self.lease.has_expired() || self.lease.is_outdated() => return Ok(()),
                Wish::Call => self.call().await?,
                Wish::Nothing => {
                    if let Some(class) = self.stations.change_over(&self.spot) {
                        self.spot.class = class;
                        continue;
                    }
                    tokio::select! {
                        () = poll_fn(|cx| self.stations.poll_work(cx, &self.spot)) => {}
                        () = self.stations.pool.until_asked(&self.stations.patient) => return Ok(()),
                        () = sleep(LINGER) => return Ok(()),
                    }
                }
            }
        }
    }

    /// Brings the connection to the station's database, and finds out how calls can be ended.
    async fn prepare(&mut self) -> Result<(), Loss> {
        let key = Key { db: self.spot.floor.db, proto: Proto::Resp2 };
        let mut bytes = Vec::new();
        let switches = self.lease.write_switch(key, &mut bytes);
        write_command(&["CLIENT", "ID"], &mut bytes);
        // No connection has this number.
        write_command(&["CLIENT", "UNBLOCK", "0"], &mut bytes);
        self.send(&bytes).await?;
        for _ in 0..switches {
            let reply = self.reply().await?;
            if reply.starts_with(b"-") {
                return Err(Loss(text(&reply)));
            }
        }
        self.lease.key = key;
        let (id, ended) = (self.reply().await?, self.reply().await?);
        if let (Some(id), b":0\r\n") = (id.strip_prefix(b":"), ended.as_slice()) {
            self.interrupt.request = Request::Unblock(id.trim_ascii_end().to_vec());
        }
        Ok(())
    }

    /// Waits for any of `keys` until something comes, the call is stale or its time is over.
    async fn call(&mut self) -> Result<(), Loss> {
        if !self.others.is_empty() {
            let keys = self.stations.keys(&self.spot);
            self.others = self.of_other_type(&keys).await?;
        }
        let keys = self.stations.begin_call(&self.spot, &self.others);
        let wait = match self.interrupt.request {
            _ if !self.others.is_empty() => OTHER_TYPES,
            Request::Unblock(_) => CALL,
            Request::Wake => SLICE,
        };
        if keys.is_empty() {
            if !self.others.is_empty() {
                let stale = poll_fn(|cx| self.stations.poll_stale(cx, &self.spot));
                // There is no key that can be asked for now; soon it is looked at again.
                let _soon = timeout(wait, stale).await;
            }
            self.stations.end_call(&self.spot, None);
            return Ok(());
        }
        let mut bytes = Vec::new();
        self.spot.class.write_call(&keys, wait, &mut bytes);
        self.send(&bytes).await?;
        let reply = self.answer(Instant::now() + wait + GRACE).await?;
        self.interrupt.rest();
        let answer = self.spot.class.read_answer(&reply);
        let Some(answer) = answer else { return Err(Loss("an answer of another kind".into())) };
        let (catch, refusal) = match answer {
            Answer::Nothing => (None, None),
            Answer::Caught(catch) => (Some(catch), None),
            Answer::Refused(line) => (None, Some(line)),
        };
        self.stations.end_call(&self.spot, catch);
        match refusal {
            Some(line) => self.refused(line, &keys).await,
            None => Ok(()),
        }
    }

    async fn answer(&mut self, deadline: Instant) -> Result<Vec<u8>, Loss> {
        loop {
            tokio::select! {
                biased;
                reply = self.incoming.reply(&mut self.lease.stream) => return reply.map_err(Loss),
                () = self.interrupt.step(&self.stations, &self.spot) => {}
                () = sleep_until(deadline) => {
                    return Err(Loss("the server does not answer".into()));
                }
            }
        }
    }

    /// The call was refused.
    async fn refused(&mut self, line: String, keys: &[KeyName]) -> Result<(), Loss> {
        let spot = &self.spot;
        let moves = matches!(*spot.class, Class::Move { .. });
        match line.split(' ').next() {
            Some("WRONGTYPE") if !moves => {
                // A value of another type does not disturb who waits already.
                let others = self.of_other_type(keys).await?;
                self.others.extend(others);
                if self.others.is_empty() {
                    sleep(FIRST_PAUSE).await;
                }
            }
            Some("WRONGTYPE") => self.stations.fail_first(spot, Outcome::Failed(line)),
            Some("NOPERM") => self.stations.refuse(spot),
            Some(code) if PASSING.contains(&code) => sleep(PAUSE).await,
            // The server is a replica now, or somebody has ended the call.
            Some("UNBLOCKED") => return Err(Loss(line)),
            Some("READONLY") => {
                self.stations.fail_all(spot, &Outcome::Failed(line.clone()));
                return Err(Loss(line));
            }
            _ if line.starts_with("ERR unknown command") => self.stations.refuse(spot),
            _ => self.stations.fail_all(spot, &Outcome::Failed(line)),
        }
        Ok(())
    }

    /// Those of `keys` that hold a value of another type.
    async fn of_other_type(&mut self, keys: &[KeyName]) -> Result<Vec<KeyName>, Loss> {
        let mut bytes = Vec::new();
        for key in keys {
            write_command(&[b"TYPE".as_slice(), key], &mut bytes);
        }
        self.send(&bytes).await?;
        let right: &[u8] = match self.spot.floor.kind {
            Kind::List => b"+list\r\n",
            Kind::Sorted => b"+zset\r\n",
        };
        let mut others = Vec::new();
        for key in keys {
            let reply = self.reply().await?;
            if reply != right && reply != b"+none\r\n" {
                others.push(KeyName::clone(key));
            }
        }
        Ok(others)
    }

    /// Puts back what nobody waits for, the last one first, so that the first one is in front again.
    async fn put_back(&mut self, catches: Vec<Catch>) -> Result<(), Loss> {
        if let Class::Move { .. } = *self.spot.class {
            for catch in catches.iter().rev() {
                self.move_back(catch).await?;
            }
            return Ok(());
        }
        let mut left = catches;
        while let Some(catch) = left.pop() {
            let mut bytes = Vec::new();
            self.spot.class.write_return(&catch, &mut bytes);
            if let Err(loss) = self.send(&bytes).await {
                // Not all of it was sent, so it was not done.
                left.push(catch);
                self.stations.offer(&self.spot, left);
                return Err(loss);
            }
            match self.reply().await {
                Ok(reply) => self.note_return(&catch, &reply),
                Err(loss) => {
                    self.note_doubt(&catch);
                    self.stations.offer(&self.spot, left);
                    return Err(loss);
                }
            }
        }
        Ok(())
    }

    fn note_return(&self, catch: &Catch, reply: &[u8]) {
        let (pool, key) = (self.pool_name(), text(&catch.key));
        let metrics = self.lease.pool().metrics();
        if reply.first() == Some(&b'-') {
            metrics.elements_lost.inc();
            let error = text(reply);
            tracing::error!(pool, key, error, "an element could not be put back: it is lost");
        } else {
            metrics.elements_returned.inc();
            tracing::debug!(pool, key, "put back what its client left behind");
        }
    }

    /// It was on its way back when the connection broke.
    fn note_doubt(&self, catch: &Catch) {
        self.lease.pool().metrics().elements_lost.inc();
        tracing::error!(
            pool = self.pool_name(),
            key = text(&catch.key),
            "the connection was lost while an element was put back: it may be lost"
        );
    }

    /// Moves an element back if it still lies where it was put. If not, it has been taken, or something has come before it: then
    /// it stays, as it would with a client that leaves behind its BLMOVE.
    async fn move_back(&mut self, catch: &Catch) -> Result<(), Loss> {
        let class = &self.spot.class;
        let Some((list, index)) = class.moved_to() else { return Ok(()) };
        let mut bytes = Vec::new();
        write_command(&[b"WATCH".as_slice(), list], &mut bytes);
        write_command(&[b"LINDEX".as_slice(), list, index.as_bytes()], &mut bytes);
        self.send(&bytes).await?;
        let (_watched, there) = (self.reply().await?, self.reply().await?);
        let wanted = catch.items.first().map(Vec::as_slice).unwrap_or_default();
        let begins = format!("${}\r\n", wanted.len());
        let lies_there = there
            .strip_prefix(begins.as_bytes())
            .is_some_and(|rest| rest.strip_suffix(b"\r\n") == Some(wanted));
        let mut bytes = Vec::new();
        if !lies_there {
            write_command(&["UNWATCH"], &mut bytes);
            self.send(&bytes).await?;
            self.reply().await?;
            return Ok(());
        }
        write_command(&["MULTI"], &mut bytes);
        self.spot.class.write_return(catch, &mut bytes);
        write_command(&["EXEC"], &mut bytes);
        self.send(&bytes).await?;
        for _ in 0..2 {
            self.reply().await?;
        }
        let moved = self.reply().await?;
        // Else it was touched meanwhile, and stays.
        if moved.starts_with(b"*1") {
            self.note_return(catch, &moved);
        }
        Ok(())
    }

    fn pool_name(&self) -> &str {
        &self.lease.pool().settings().name
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Loss> {
        let stream = &mut self.lease.stream;
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        match timeout(PATIENCE, written).await {
            Ok(result) => result.map_err(|error| Loss(error.to_string())),
            Err(_late) => Err(Loss("the server takes no more bytes".into())),
        }
    }

    async fn reply(&mut self) -> Result<Vec<u8>, Loss> {
        match timeout(PATIENCE, self.incoming.reply(&mut self.lease.stream)).await {
            Ok(result) => result.map_err(Loss),
            Err(_late) => Err(Loss("the server does not answer".into())),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned()
}
