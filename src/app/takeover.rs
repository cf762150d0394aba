//! The listeners of one `serve` go to the next one, so that nobody is refused while tidegate is replaced.
//!
//! Two processes talk over the unix socket that `control_socket` names, in lines:
//!
//! ```text
//! successor                         predecessor
//! tidegate takeover 2           →
//!                               ←   from <pid>
//!                               ←   tcp tidegate postgres / unix <inode> redis / ... and an empty line; with them the sockets
//!                                   (SCM_RIGHTS)
//! ready                         →   (by now nothing can go wrong any more; until now everything is as it was)
//!                               ←   yours
//!                                   (the predecessor accepts nobody any more)
//! cancel <pid> <secret>         →   (as long as the predecessor lives)
//!                               ←   heard
//! also                          →   (beside it a socket: another conversation like this one, for who comes next)
//! ```
//!
//! The sockets themselves are passed, with the queues of clients that nobody has accepted yet: none is lost. A predecessor that is
//! told to stop says `yours` at once; one that goes on by itself after all says `no`; and if it ends without a word, its sockets
//! are the successor's, too.

mod earlier;
mod predecessor;
mod sockets;
mod words;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;

use super::listeners::{Bound, Taken, is_listened_on};
use super::passed::{Keeper, Kind, Passed};
use crate::lifecycle::DrainTrigger;
use crate::net::{SocketFile, listen_on_socket};
use crate::postgres::service::Service;

pub(super) use earlier::Earlier;
pub(super) use predecessor::Predecessor;
pub(super) use sockets::line;
use words::{NO, Talk, Word};

/// The mode of the control socket: whoever can open it can take the listeners away.
const MODE: u32 = 0o600;
/// Who talks to each other over it is few.
const BACKLOG: i32 = 16;
/// Longest time for the other process to say what is due at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time for one that is here already to say what it wants when we are told to stop.
const LAST_PATIENCE: Duration = Duration::from_millis(250);
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
    /// Who served before us, and lives.
    earlier: Option<Earlier>,
    guest: Option<Guest>,
}

/// A process that is about to take over: here, and not where it is waited for, so that it is found when we are told to stop.
struct Guest {
    talk: Talk,
    pid: i32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not said what it wants.
    Come,
    /// It wants the sockets.
    Asked,
    /// It has the sockets, and gets ready.
    Offered,
}

/// The process that has taken over.
pub(super) struct Successor {
    talk: Talk,
    pid: i32,
}

impl Control {
    /// Takes the place of the predecessor's that was passed, or listens anew; for what is `bound`. Call it inside the runtime.
    pub(super) async fn open(
        path: &Path,
        taken: Taken,
        passed: &mut Passed,
        bound: &Bound,
    ) -> anyhow::Result<Self> {
        let own = passed.take_unix("control", Some(path));
        let (listener, file) = match own.map(|own| (own.socket, own.keeper)) {
            Some((Kind::Unix(listener, path), Keeper::PredecessorAndFile(inode))) => {
                (listener, SocketFile::of_another(&path, inode))
            }
            _ => {
                let listen = async || listen_on_socket(path, MODE, BACKLOG);
                taken.bear(is_listened_on, listen).await.with_context(|| {
                    format!("cannot listen on the unix socket {} (control_socket)", path.display())
                })?
            }
        };
        let listener = UnixListener::from_std(listener)?;
        let (sockets, files) = (bound.duplicates()?, bound.socket_files());
        let (earlier, guest) = (None, None);
        Ok(Self { listener, file: Arc::new(file), sockets, files, earlier, guest })
    }

    /// The predecessor has left everything to us: the files are ours, with `mode` for those of the listeners, and whoever comes
    /// next is introduced to it and to those before it.
    pub(super) fn claim(&mut self, mode: u32, earlier: Earlier) {
        self.earlier = Some(earlier);
        let files = self.files.iter().filter_map(Weak::upgrade).map(|file| (file, mode));
        for (file, mode) in files.chain([(Arc::clone(&self.file), MODE)]) {
            if let Err(error) = file.claim(mode) {
                tracing::warn!(%error, "the file of a unix socket that was taken over can't be found or changed");
            }
        }
    }

    /// Waits until another process has taken all over; `trigger` hears of it first. Until then everything is as it was,
    /// whatever others do. Cancel safe: who is about to take over stays, for [`Control::hand_over_at_once`].
    pub(super) async fn handed_over(&mut self, trigger: &DrainTrigger) -> Successor {
        loop {
            let handed_over = async {
                self.receive().await?;
                self.offer(PATIENCE).await?;
                self.wait_for_ready().await?;
                self.give().await
            };
            match handed_over.await {
                Ok(successor) => {
                    trigger.hand_over();
                    return successor;
                }
                Err(error) => self.send_away(&error).await,
            }
        }
    }

    /// We were told to stop: who is about to take over has all at once, as soon as it has asked.
    pub(super) async fn hand_over_at_once(&mut self) -> Option<Successor> {
        // Who knocks now is waiting.
        let _nobody = tokio::time::timeout(Duration::ZERO, self.receive()).await;
        self.guest.as_ref()?;
        let handed_over = async {
            self.offer(LAST_PATIENCE).await?;
            self.give().await
        };
        match handed_over.await {
            Ok(successor) => Some(successor),
            Err(error) => {
                self.send_away(&error).await;
                None
            }
        }
    }

    /// Waits for a guest, if none is here. Cancel safe.
    async fn receive(&mut self) -> anyhow::Result<()> {
        while self.guest.is_none() {
            match self.listener.accept().await {
                Ok((stream, _nameless)) => {
                    let talk = Talk::with(stream);
                    let pid = talk.check_peer()?;
                    self.guest = Some(Guest { talk, pid, stage: Stage::Come });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket now");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    /// Gives the guest all sockets, if it asks for them in time.
    async fn offer(&mut self, patience: Duration) -> anyhow::Result<()> {
        let guest = self.guest.as_mut().context("nobody is here")?;
        if guest.stage == Stage::Offered {
            return Ok(());
        }
        if guest.stage == Stage::Come {
            if guest.talk.word_within(patience).await? != Word::Takeover {
                bail!("process {} does not ask for what this version can give", guest.pid);
            }
            guest.stage = Stage::Asked;
        }
        let mut more = match &self.earlier {
            // Without them the new one is better than none.
            Some(earlier) => {
                tokio::time::timeout(patience, earlier.introduce()).await.unwrap_or_default()
            }
            None => Vec::new(),
        };
        if let Some(inode) = self.file.inode() {
            let own = self.listener.as_fd().try_clone_to_owned()?;
            more.push((line("unix", Keeper::PredecessorAndFile(inode), "control"), own));
        }
        let sockets: Vec<&(String, OwnedFd)> = self.sockets.iter().chain(&more).collect();
        // Told to stop meanwhile, we find the guest as one that has all: it has, or it can't go on.
        guest.stage = Stage::Offered;
        tokio::time::timeout(patience, guest.talk.offer(&sockets))
            .await
            .context("it does not read")??;
        tracing::info!(
            pid = guest.pid,
            sockets = sockets.len(),
            "another process gets ready to take over"
        );
        Ok(())
    }

    async fn wait_for_ready(&mut self) -> anyhow::Result<()> {
        let guest = self.guest.as_mut().context("nobody is here")?;
        if guest.talk.word_within(PREPARATION).await? != Word::Ready {
            bail!("process {} is not ready", guest.pid);
        }
        Ok(())
    }

    /// Leaves all to the guest.
    async fn give(&mut self) -> anyhow::Result<Successor> {
        let guest = self.guest.as_mut().context("nobody is here")?;
        // Before anything changes: if it has gone meanwhile, nothing has.
        let said = tokio::time::timeout(PATIENCE, guest.talk.say("yours")).await;
        said.context("it does not read")?
            .with_context(|| format!("process {} has gone", guest.pid))?;
        // Before any thread hears that its listener is over: with it goes a file that is still ours.
        self.files.iter().filter_map(Weak::upgrade).for_each(|file| file.leave());
        self.file.leave();
        let Guest { talk, pid, .. } = self.guest.take().context("nobody is here")?;
        Ok(Successor { talk, pid })
    }

    async fn send_away(&mut self, error: &anyhow::Error) {
        if let Some(mut guest) = self.guest.take() {
            // It may be gone: that is what most of them are sent away for.
            let _gone = tokio::time::timeout(LAST_PATIENCE, guest.talk.say(NO)).await;
        }
        tracing::warn!(
            error = format!("{error:#}"),
            "another process has not taken over: everything goes on as before"
        );
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

    /// Hears of cancel requests for sessions that are still here, from it and from those after it, as long as we live.
    pub(super) async fn pass_cancels(self, postgres: Option<Arc<Service>>) {
        earlier::pass_cancels(self, postgres).await;
    }
}
