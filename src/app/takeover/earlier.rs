//! The processes before us that still serve somebody. Each hears of cancel requests for sessions that are not ours, and is
//! introduced to whoever takes over from us: it may outlive us.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::sync::mpsc::{self, Receiver};
use tokio::sync::oneshot;

use super::super::services::Serving;
use super::predecessor::Predecessor;
use super::sockets::earlier_line;
use super::words::{ALSO, Talk, Word, cancel_line};
use super::{PATIENCE, Successor};
use crate::postgres::cancel::ForeignCancel;
use crate::postgres::message::BackendKey;
use crate::postgres::service::Service;

/// Most words that may wait for one process; more are let go.
const JOBS: usize = 16;

/// Cheap to clone.
#[derive(Clone)]
pub(in crate::app) struct Earlier {
    processes: Arc<[mpsc::Sender<Job>]>,
}

/// What one of them is to hear, and who is told that it has.
enum Job {
    Cancel(BackendKey, oneshot::Sender<()>),
    /// A conversation of its own for our successor.
    Introduce(oneshot::Sender<(String, OwnedFd)>),
}

impl Earlier {
    /// Of all these. `serving` is told when one has ended, and with it its connections to the servers.
    pub(in crate::app) fn of(all: Vec<Predecessor>, serving: &Serving) -> Self {
        let processes = all.into_iter().map(|predecessor| {
            let (jobs, heard) = mpsc::channel(JOBS);
            let serving = serving.clone();
            tokio::spawn(async move {
                keep(predecessor, heard).await;
                serving.room_made();
            });
            jobs
        });
        Self { processes: processes.collect() }
    }

    /// Passes on what is asked of sessions that are not ours.
    pub(in crate::app) async fn pass_cancels(self, mut asked: Receiver<ForeignCancel>) {
        while let Some(ForeignCancel { key, heard }) = asked.recv().await {
            for told in self.tell(|told| Job::Cancel(key.clone(), told)) {
                // Dropped when that process has gone.
                let _told = told.await;
            }
            // Its client may have gone.
            let _gone = heard.send(());
        }
    }

    /// A conversation with each of them, for our successor, and the line that says so.
    pub(super) async fn introduce(&self) -> Vec<(String, OwnedFd)> {
        let mut all = Vec::new();
        for introduced in self.tell(Job::Introduce) {
            all.extend(introduced.await.ok());
        }
        all
    }

    fn tell<Answer>(
        &self,
        job: impl Fn(oneshot::Sender<Answer>) -> Job,
    ) -> Vec<oneshot::Receiver<Answer>> {
        let tell = |process: &mpsc::Sender<Job>| {
            let (answer, answered) = oneshot::channel();
            process.try_send(job(answer)).ok().map(|()| answered)
        };
        self.processes.iter().filter_map(tell).collect()
    }
}

/// Speaks with one of them until it has ended, or doesn't answer in time: then its answers could be to anything.
async fn keep(mut process: Predecessor, mut jobs: Receiver<Job>) {
    loop {
        tokio::select! {
            Some(job) = jobs.recv() => {
                let done = tokio::time::timeout(PATIENCE, process.hear(job)).await;
                if !matches!(done, Ok(Ok(()))) {
                    break;
                }
            }
            // It says nothing unasked: this is its end.
            _end = process.talk.word() => break,
        }
    }
    tracing::info!(pid = process.pid(), "the process that served before has ended");
}

impl Predecessor {
    async fn hear(&mut self, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Cancel(key, told) => {
                self.talk.say(&cancel_line(&key)).await?;
                if self.talk.word().await? != Word::Heard {
                    bail!("it has not understood");
                }
                let _gone = told.send(());
            }
            Job::Introduce(introduced) => {
                let (ours, its) = UnixStream::pair()?;
                for end in [&ours, &its] {
                    end.set_nonblocking(true)?;
                }
                self.talk.say_with(&format!("{ALSO}\n"), &[its.as_fd()]).await?;
                let _gone = introduced.send((earlier_line(self.pid()), ours.into()));
            }
        }
        Ok(())
    }
}

/// Hears of cancel requests for sessions that are still here, as long as both live; and of those who come after.
pub(super) async fn pass_cancels(successor: Successor, postgres: Option<Arc<Service>>) {
    let (introduce, mut introduced) = mpsc::channel(JOBS);
    let hear = |talk| tokio::spawn(hear(talk, postgres.clone(), introduce.clone()));
    hear(successor.talk);
    while let Some(talk) = introduced.recv().await {
        hear(talk);
    }
}

async fn hear(
    mut talk: Talk,
    postgres: Option<Arc<Service>>,
    introduce: mpsc::Sender<Talk>,
) -> anyhow::Result<()> {
    loop {
        match talk.word().await? {
            Word::Cancel(key) => {
                if let Some(postgres) = &postgres {
                    postgres.cancel(&key);
                }
                talk.say("heard").await?;
            }
            Word::Also => {
                let socket = talk.take_socket().context("it introduces nobody")?;
                let stream = tokio::net::UnixStream::from_std(UnixStream::from(socket))?;
                introduce.try_send(Talk::with(stream)).context("too many are introduced")?;
            }
            _ => bail!("it says what this version doesn't know"),
        }
    }
}
