//! The listeners of one `serve` go to the next one, so that nobody is refused while tidegate is replaced.
//!
//! Two processes talk over the unix socket that `control_socket` names, in lines:
//!
//! ```text
//! successor                         predecessor
//! tidegate takeover 1           →
//!                               ←   tcp postgres / file redis / ... and an empty line; with them the sockets (SCM_RIGHTS)
//! ready                         →   (by now nothing can go wrong any more; until now everything is as it was)
//!                               ←   yours
//!                                   (the predecessor accepts nobody any more)
//! cancel <pid> <secret>         →   (as long as the predecessor lives)
//!                               ←   heard
//! ```
//!
//! The sockets themselves are passed, with the queues of clients that nobody has accepted yet: none is lost.

mod predecessor;
mod words;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::{UnixListener, UnixStream};

use super::listeners::Bound;
use super::passed::{Kind, Passed};
use crate::lifecycle::DrainTrigger;
use crate::net::{SocketFile, listen_on_socket};
use crate::postgres::service::Service;

pub(super) use predecessor::Predecessor;
use words::{Talk, Word};

/// The mode of the control socket: whoever can open it can take the listeners away.
const MODE: u32 = 0o600;
/// Who talks to each other over it is few.
const BACKLOG: i32 = 16;
/// Longest time for the other process to say what is due at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before the next look after an accept that failed, for lack of file descriptors.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest time for a successor to get ready. Nothing waits for it but another successor.
const PREPARATION: Duration = Duration::from_secs(60);

/// Who was before us, as far as `control_socket` says where to ask; its sockets are added to `passed`.
///
/// # Errors
/// When somebody is there who does not hand over.
pub(super) async fn predecessor(
    control: Option<&Path>,
    passed: &mut Passed,
) -> anyhow::Result<Option<Predecessor>> {
    let Some(path) = control else { return Ok(None) };
    let called = Predecessor::call(path).await.with_context(|| {
        let path = path.display();
        format!(
            "cannot take over from the process at {path} (control_socket); stop it, or try again"
        )
    })?;
    Ok(called.map(|(predecessor, sockets)| {
        tracing::info!(pid = predecessor.pid(), sockets = sockets.len(), "taking over");
        passed.add(sockets);
        predecessor
    }))
}

/// Where a successor asks for the listeners.
pub(super) struct Control {
    listener: UnixListener,
    file: Arc<SocketFile>,
    /// Copies of the listening sockets, for the successor.
    sockets: Vec<(String, OwnedFd)>,
    /// The files that go with them.
    files: Vec<Weak<SocketFile>>,
}

/// The process that has taken over.
pub(super) struct Successor {
    talk: Talk,
    pid: i32,
}

impl Control {
    /// Takes the place of the predecessor's that was passed, or listens anew; for what is `bound`. Call it inside the runtime.
    pub(super) fn open(path: &Path, passed: &mut Passed, bound: &Bound) -> anyhow::Result<Self> {
        let own = passed.take_unix("control", Some(path));
        let (listener, file) = match own.map(|own| own.socket) {
            Some(Kind::Unix(listener, path)) => (listener, SocketFile::of_another(&path)),
            _ => listen_on_socket(path, MODE, BACKLOG).with_context(|| {
                format!("cannot listen on the unix socket {} (control_socket)", path.display())
            })?,
        };
        let listener = UnixListener::from_std(listener)?;
        let (sockets, files) = (bound.duplicates()?, bound.socket_files());
        Ok(Self { listener, file: Arc::new(file), sockets, files })
    }

    /// The predecessor has left everything to us: the files are ours, with `mode` for those of the listeners.
    pub(super) fn claim(&self, mode: u32) {
        let files = self.files.iter().filter_map(Weak::upgrade).map(|file| (file, mode));
        for (file, mode) in files.chain([(Arc::clone(&self.file), MODE)]) {
            if let Err(error) = file.claim(mode) {
                tracing::warn!(%error, "the file of a unix socket that was taken over can't be found or changed");
            }
        }
    }

    /// Waits until another process has taken all over; `trigger` hears of it first. Until then everything is as it was,
    /// whatever others do. Cancel safe: who is about to take over is left alone.
    pub(super) async fn handed_over(&mut self, trigger: &DrainTrigger) -> Successor {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _nameless)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket now");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match self.offer(stream, trigger).await {
                Ok(successor) => return successor,
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "another process has not taken over: everything goes on as before"
                ),
            }
        }
    }

    async fn offer(
        &mut self,
        stream: UnixStream,
        trigger: &DrainTrigger,
    ) -> anyhow::Result<Successor> {
        let mut talk = Talk::with(stream);
        let pid = talk.check_peer()?;
        if talk.word_within(PATIENCE).await? != Word::Takeover {
            bail!("process {pid} does not ask for what this version can give");
        }
        let own = ("file control".to_owned(), self.listener.as_fd().try_clone_to_owned()?);
        let sockets: Vec<&(String, OwnedFd)> = self.sockets.iter().chain([&own]).collect();
        tokio::time::timeout(PATIENCE, talk.offer(&sockets))
            .await
            .context("it does not read")??;
        tracing::info!(pid, sockets = sockets.len(), "another process gets ready to take over");
        if talk.word_within(PREPARATION).await? != Word::Ready {
            bail!("process {pid} is not ready");
        }
        // Before anything changes: if it has gone meanwhile, nothing has.
        talk.say("yours").await.with_context(|| format!("process {pid} has gone"))?;
        // Before any thread hears that its listener is over: with it goes a file that is still ours.
        self.files.iter().filter_map(Weak::upgrade).for_each(|file| file.leave());
        self.file.leave();
        trigger.hand_over();
        Ok(Successor { talk, pid })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.file.remove();
    }
}

impl Successor {
    /// Its process number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Hears of cancel requests for sessions that are still here, as long as both live.
    pub(super) async fn pass_cancels(mut self, postgres: Option<Arc<Service>>) {
        while let Ok(Word::Cancel(key)) = self.talk.word().await {
            if let Some(postgres) = &postgres {
                postgres.cancel(&key).await;
            }
            if self.talk.say("heard").await.is_err() {
                return;
            }
        }
    }
}
