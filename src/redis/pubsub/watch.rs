//! The hub at work on one connection: it asks for what sessions want, and hands on what comes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Change, Hub, Kind, Name, PAUSE, Refusal};
use crate::pool::Lease;
use crate::redis::backend::{Key, RedisConnect};
use crate::redis::greeting::Proto;
use crate::redis::incoming::Incoming;
use crate::redis::wire::{Arguments, write_command};

/// How long the connection is kept when nothing is subscribed any more.
const LINGER: Duration = Duration::from_millis(100);
/// A silent server is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(30);
/// Until then what was asked must be answered, and what was written be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the use of a connection ended.
pub(super) enum Ending {
    /// Nothing is subscribed: it is the pool's again.
    Over,
    /// It broke; why, for people.
    Lost(String),
}

/// A question that the server owes the answer to.
enum Asked {
    Change(Kind, Name, Change),
    Ping,
}

pub(super) struct Watch {
    hub: Arc<Hub>,
    lease: Lease<RedisConnect>,
    incoming: Incoming,
    asked: VecDeque<Asked>,
    /// When the server was last heard.
    heard: Instant,
    /// When it is asked again for what it has refused for a while.
    again: Option<Instant>,
}

impl Watch {
    pub(super) fn new(hub: Arc<Hub>, mut lease: Lease<RedisConnect>) -> Self {
        lease.pin("subscription");
        let _since = lease.turn(crate::metrics::Phase::Pinned);
        let incoming = Incoming::default();
        Self { hub, lease, incoming, asked: VecDeque::new(), heard: Instant::now(), again: None }
    }

    /// Works until nothing is subscribed, or the connection breaks.
    pub(super) async fn run(mut self) -> Ending {
        match self.work().await {
            Ok(()) => {
                self.lease.give_back();
                Ending::Over
            }
            Err(reason) => {
                self.lease.close("connection lost");
                Ending::Lost(reason)
            }
        }
    }

    async fn work(&mut self) -> Result<(), String> {
        self.prepare().await?;
        loop {
            let (ends, what) = self.deadline();
            let hub = Arc::clone(&self.hub);
            tokio::select! {
                reply = self.incoming.reply(&mut self.lease.stream) => {
                    self.heard = Instant::now();
                    self.take(reply?)?;
                }
                changes = poll_fn(|cx| hub.poll_changes(cx)) => self.ask(changes).await?,
                () = sleep_until(ends) => match what {
                    Due::Leave if hub.is_empty() => return Ok(()),
                    Due::Leave => {}
                    Due::Again => {
                        self.again = None;
                        self.hub.ask_again();
                    }
                    Due::Ping => self.ping().await?,
                    Due::Answer => return Err("the server does not answer".into()),
                },
            }
        }
    }

    /// What is to be done next if nothing comes, and when.
    fn deadline(&self) -> (Instant, Due) {
        match (self.asked.is_empty(), self.again) {
            (false, _) => (self.heard + PATIENCE, Due::Answer),
            (true, Some(again)) => (again, Due::Again),
            (true, None) if self.hub.is_empty() => (Instant::now() + LINGER, Due::Leave),
            (true, None) => (self.heard + SILENCE, Due::Ping),
        }
    }

    async fn prepare(&mut self) -> Result<(), String> {
        let key = Key { db: self.lease.key.db, proto: Proto::Resp2 };
        let mut bytes = Vec::new();
        let switches = self.lease.write_switch(key, &mut bytes);
        if switches == 0 {
            return Ok(());
        }
        self.send(&bytes).await?;
        for _ in 0..switches {
            let reply = timeout(PATIENCE, self.incoming.reply(&mut self.lease.stream)).await;
            let reply = reply.map_err(|_late| "the server does not answer".to_owned())??;
            if reply.starts_with(b"-") {
                return Err(String::from_utf8_lossy(&reply).trim().to_owned());
            }
        }
        self.lease.key = key;
        Ok(())
    }

    async fn ask(&mut self, changes: Vec<(Kind, Name, Change)>) -> Result<(), String> {
        let mut bytes = Vec::new();
        if self.asked.is_empty() {
            self.heard = Instant::now();
        }
        for (kind, name, change) in changes {
            let word = match change {
                Change::Join => kind.subscribe(),
                Change::Leave => kind.unsubscribe(),
            };
            write_command(&[word.as_bytes(), &name], &mut bytes);
            self.asked.push_back(Asked::Change(kind, name, change));
        }
        self.send(&bytes).await
    }

    async fn ping(&mut self) -> Result<(), String> {
        let mut bytes = Vec::new();
        write_command(&["PING"], &mut bytes);
        self.heard = Instant::now();
        self.asked.push_back(Asked::Ping);
        self.send(&bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let stream = &mut self.lease.stream;
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        match timeout(PATIENCE, written).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_late) => Err("the server takes no more bytes".into()),
        }
    }

    fn take(&mut self, frame: Vec<u8>) -> Result<(), String> {
        let received = u64::try_from(frame.len()).unwrap_or(0);
        self.lease.pool().metrics().bytes_received_server.inc_by(received);
        let mut words = Arguments::new(&frame);
        let (word, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if frame.first() == Some(&b'*')
            && let Some(kind) = Kind::ALL.into_iter().find(|kind| word == kind.message().as_bytes())
        {
            let name = Name::from(name);
            self.hub.publish(kind, &name, frame);
            return Ok(());
        }
        match (self.asked.pop_front(), frame.first()) {
            (Some(Asked::Ping), _) => Ok(()),
            (Some(Asked::Change(kind, name, Change::Join)), Some(b'-')) => {
                let text = String::from_utf8_lossy(&frame[1..]).trim().to_owned();
                let refusal = Refusal::of(&text);
                if refusal == Refusal::Passing {
                    self.again = Some(Instant::now() + PAUSE);
                }
                self.hub.refused(kind, &name, &text.into(), refusal);
                Ok(())
            }
            (Some(Asked::Change(kind, asked, change)), Some(b'*')) if *asked == *name => {
                self.hub.done(kind, &asked, change);
                Ok(())
            }
            _ => {
                let said = String::from_utf8_lossy(&frame).trim().to_owned();
                Err(format!("an answer that nobody asked for: {said:.200}"))
            }
        }
    }
}

/// What a deadline is for.
enum Due {
    /// Nothing is subscribed.
    Leave,
    /// Something was refused for a while.
    Again,
    /// Nothing was heard for long.
    Ping,
    /// The server owes an answer.
    Answer,
}
