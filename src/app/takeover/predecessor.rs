//! The successor's side: the process that serves now is asked for its listeners, and hears what is still for its clients.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::net::UnixStream;
use tokio::sync::mpsc::Receiver;

use super::super::passed::{Keeper, Kind, PassedSocket};
use super::PATIENCE;
use super::words::{TAKEOVER, Talk, Word, cancel_line};
use crate::postgres::cancel::ForeignCancel;

/// The process that serves until we do.
pub(in crate::app) struct Predecessor {
    talk: Talk,
    pid: i32,
}

impl Predecessor {
    /// Asks it for its listeners. `None` if nobody is there.
    pub(in crate::app) async fn call(
        path: &Path,
    ) -> anyhow::Result<Option<(Self, Vec<PassedSocket>)>> {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(None),
                _ => return Err(error.into()),
            },
        };
        let mut talk = Talk::with(stream);
        let pid = talk.check_peer()?;
        talk.say(TAKEOVER).await?;
        let offered = tokio::time::timeout(PATIENCE, talk.offered()).await;
        let offered = offered.context("it does not answer; another takeover may be under way")?;
        let sockets = offered?.into_iter().map(passed).collect::<Result<_, _>>()?;
        Ok(Some((Self { talk, pid }, sockets)))
    }

    /// Its process number.
    pub(in crate::app) fn pid(&self) -> i32 {
        self.pid
    }

    /// Says that we can serve; from its answer on all is ours.
    pub(in crate::app) async fn relieve(&mut self) -> anyhow::Result<()> {
        self.talk.say("ready").await?;
        match self.talk.word_within(PATIENCE).await? {
            Word::Yours => Ok(()),
            _ => bail!("it has not understood"),
        }
    }

    /// Passes on what is asked of sessions that are not ours; ends when it has ended.
    pub(in crate::app) async fn pass_cancels(mut self, mut asked: Receiver<ForeignCancel>) {
        loop {
            tokio::select! {
                Some(ForeignCancel { key, heard }) = asked.recv() => {
                    let said = self.talk.say(&cancel_line(&key)).await;
                    if said.is_err() || !matches!(self.talk.word().await, Ok(Word::Heard)) {
                        break;
                    }
                    // Its client may have gone.
                    let _gone = heard.send(());
                }
                // It says nothing unasked: this is its end.
                _end = self.talk.word() => break,
            }
        }
        tracing::info!(pid = self.pid, "the process that served before has ended");
    }
}

fn passed((line, socket): (String, OwnedFd)) -> anyhow::Result<PassedSocket> {
    let (kind, name) = line.split_once(' ').unwrap_or_default();
    let socket = match kind {
        "tcp" => Kind::Tcp(TcpListener::from(socket)),
        "unix" | "file" => {
            let listener = UnixListener::from(socket);
            let address = listener.local_addr()?;
            let path =
                address.as_pathname().context("it offers a socket without a path")?.to_owned();
            Kind::Unix(listener, path)
        }
        _ => bail!("it offers what this version doesn't know: {line:?}"),
    };
    let keeper = if kind == "file" { Keeper::PredecessorAndFile } else { Keeper::Predecessor };
    Ok(PassedSocket { name: name.to_owned(), socket, keeper })
}
