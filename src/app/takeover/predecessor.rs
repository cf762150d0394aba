//! The successor's side: the process that serves now is asked for its listeners.

use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::net::UnixStream;

use super::super::passed::PassedSocket;
use super::PATIENCE;
use super::sockets::{Offered, offered};
use super::words::{TAKEOVER, Talk, Word, is_gone};

/// The process that serves until we do, or one that did so before it.
pub(in crate::app) struct Predecessor {
    pub(super) talk: Talk,
    pid: i32,
    /// Those before it that still live.
    earlier: Vec<Self>,
}

impl Predecessor {
    /// Asks it for its listeners. `None` if nobody is there, or goes away before it has given them.
    pub(in crate::app) async fn call(
        path: &Path,
    ) -> anyhow::Result<Option<(Self, Vec<PassedSocket>)>> {
        let connected = UnixStream::connect(path).await;
        let nobody = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        };
        if connected.as_ref().is_err_and(nobody) {
            return Ok(None);
        }
        let asked = async { Self::ask(Talk::with(connected?)).await };
        match asked.await {
            Err(error) if is_gone(&error) => {
                tracing::info!("the process that served before is on its way out: starting afresh");
                Ok(None)
            }
            asked => asked.map(Some),
        }
    }

    async fn ask(mut talk: Talk) -> anyhow::Result<(Self, Vec<PassedSocket>)> {
        talk.check_peer()?;
        talk.say(TAKEOVER).await?;
        let came = tokio::time::timeout(PATIENCE, talk.offered()).await;
        let (pid, came) =
            came.context("it does not answer; another takeover may be under way")??;
        let (mut sockets, mut earlier) = (Vec::new(), Vec::new());
        for one in came {
            match offered(one)? {
                Offered::Listening(socket) => sockets.push(socket),
                Offered::Earlier(stream, pid) => {
                    stream.set_nonblocking(true)?;
                    let talk = Talk::with(UnixStream::from_std(stream)?);
                    earlier.push(Self { talk, pid, earlier: Vec::new() });
                }
            }
        }
        Ok((Self { talk, pid, earlier }, sockets))
    }

    /// Its process number, as it says.
    pub(in crate::app) fn pid(&self) -> i32 {
        self.pid
    }

    /// Says that we can serve; from its answer on all is ours.
    pub(in crate::app) async fn relieve(&mut self) -> anyhow::Result<()> {
        // Who was told to stop has left all to us before we ask, and may be gone.
        let asked = self.talk.say("ready").await;
        match self.talk.word_within(PATIENCE).await {
            Ok(Word::Yours) => Ok(()),
            Ok(Word::No) => bail!("it goes on by itself"),
            Ok(_) => bail!("it has not understood"),
            Err(error) if is_gone(&error) => {
                tracing::warn!(
                    pid = self.pid,
                    "the process that served before has ended without a word: its listeners are ours"
                );
                Ok(())
            }
            Err(error) => asked.map_err(Into::into).and(Err(error)),
        }
    }

    /// It, and all before it.
    pub(in crate::app) fn with_earlier(mut self) -> Vec<Self> {
        let mut all = std::mem::take(&mut self.earlier);
        all.push(self);
        all
    }
}
