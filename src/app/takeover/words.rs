//! What two processes of tidegate say to each other over the control socket: lines, and sockets beside them.

use std::fmt::Write as _;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use crate::postgres::message::BackendKey;

/// How a successor begins; the number is this language's.
pub(super) const TAKEOVER: &str = "tidegate takeover 2";
/// Before the process number of who offers.
const FROM: &str = "from ";
/// Introduces another, whose socket comes with it.
pub(super) const ALSO: &str = "also";
/// Instead of an offer, or after it: everything goes on as before.
pub(super) const NO: &str = "no";
/// Most sockets in one message: the kernel takes 253 (unix(7)).
const SOCKETS_MOST: usize = 250;
/// Longest text that is waited for: a line for each socket, and no line is long.
const TEXT_BYTES: usize = 64 * 1024;

/// A line that stands for itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// [`TAKEOVER`].
    Takeover,
    Ready,
    Yours,
    /// [`NO`].
    No,
    Heard,
    /// [`ALSO`].
    Also,
    Cancel(BackendKey),
    Unknown,
}

impl Word {
    fn of(line: &str) -> Self {
        match line {
            TAKEOVER => Self::Takeover,
            "ready" => Self::Ready,
            "yours" => Self::Yours,
            NO => Self::No,
            "heard" => Self::Heard,
            ALSO => Self::Also,
            _ => cancel(line).map_or(Self::Unknown, Self::Cancel),
        }
    }
}

fn cancel(line: &str) -> Option<BackendKey> {
    let (pid, secret) = line.strip_prefix("cancel ")?.split_once(' ')?;
    let digits = secret.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Some(BackendKey { pid: pid.parse().ok()?, secret: digits.map(byte).collect::<Option<_>>()? })
}

/// The line that asks another process to cancel.
pub(super) fn cancel_line(key: &BackendKey) -> String {
    let mut line = format!("cancel {} ", key.pid);
    for byte in &key.secret {
        // Writing to a String cannot fail.
        let _unfailing = write!(line, "{byte:02x}");
    }
    line
}

/// Whether the other process has closed the conversation.
pub(super) fn is_gone(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe))
}

/// One conversation.
pub(super) struct Talk {
    stream: UnixStream,
    /// Received, and not a whole line yet.
    received: Vec<u8>,
    /// Received beside it.
    sockets: Vec<OwnedFd>,
}

impl Talk {
    pub(super) fn with(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), sockets: Vec::new() }
    }

    /// Only the same user, or root, is spoken to: what is said here moves clients. Its process number.
    pub(super) fn check_peer(&self) -> anyhow::Result<i32> {
        let peer = self.stream.peer_cred()?;
        let pid = peer.pid().unwrap_or_default();
        if peer.uid() != rustix::process::geteuid().as_raw() && peer.uid() != 0 {
            bail!("process {pid} at the control socket belongs to another user");
        }
        Ok(pid)
    }

    pub(super) async fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).await
    }

    /// The next line as a word. Cancel safe.
    pub(super) async fn word(&mut self) -> io::Result<Word> {
        Ok(Word::of(&self.line().await?))
    }

    pub(super) async fn word_within(&mut self, time: Duration) -> anyhow::Result<Word> {
        let word = tokio::time::timeout(time, self.word()).await;
        word.context("the other process says nothing")?.context("the other process has gone")
    }

    /// Our process number, a line for each socket, an empty one, and the sockets, in one piece.
    pub(super) async fn offer(&mut self, sockets: &[&(String, OwnedFd)]) -> anyhow::Result<()> {
        if sockets.len() > SOCKETS_MOST {
            bail!("more than {SOCKETS_MOST} listeners can't be handed over");
        }
        let lines: String = sockets.iter().map(|(line, _)| format!("{line}\n")).collect();
        let text = format!("{FROM}{}\n{lines}\n", std::process::id());
        let files: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        Ok(self.say_with(&text, &files).await?)
    }

    /// Text, and sockets beside it.
    pub(super) async fn say_with(
        &mut self,
        text: &str,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SOCKETS_MOST))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let text = [IoSlice::new(text.as_bytes())];
            Ok(sendmsg(&self.stream, &text, &mut beside, SendFlags::NOSIGNAL)?)
        });
        let sent = sent.await?;
        self.stream.write_all(&text.as_bytes()[sent..]).await
    }

    /// What [`Talk::offer`] says: the other's process number, and the sockets with their lines.
    pub(super) async fn offered(&mut self) -> anyhow::Result<(i32, Vec<(String, OwnedFd)>)> {
        let first = self.line().await?;
        if first == NO {
            bail!("it does not hand over what this version asks for");
        }
        let pid = first.strip_prefix(FROM).and_then(|pid| pid.parse().ok());
        let pid = pid.context("it does not say who it is")?;
        let mut lines = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let sockets = std::mem::take(&mut self.sockets);
        if lines.len() != sockets.len() {
            bail!("{} sockets came and {} were named", sockets.len(), lines.len());
        }
        Ok((pid, lines.into_iter().zip(sockets).collect()))
    }

    /// A socket that came beside the last word.
    pub(super) fn take_socket(&mut self) -> Option<OwnedFd> {
        self.sockets.pop()
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.truncate(end);
                return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into());
            }
            if self.received.len() > TEXT_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut piece = [0; 4096];
            let stream = &self.stream;
            let (bytes, sockets) =
                stream.async_io(Interest::READABLE, || receive(stream, &mut piece)).await?;
            self.sockets.extend(sockets);
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&piece[..bytes]);
        }
    }
}

fn receive(stream: &UnixStream, piece: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SOCKETS_MOST))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut text = [IoSliceMut::new(piece)];
    let received = recvmsg(stream, &mut text, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            sockets.extend(files);
        }
    }
    Ok((received.bytes, sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_arrive_with_their_names_and_lines_after_them() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Talk::with(one), Talk::with(other));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets: Vec<(String, OwnedFd)> = (0..200)
            .map(|index| (format!("tcp {index}"), listener.try_clone().unwrap().into()))
            .collect();
        one.offer(&sockets.iter().collect::<Vec<_>>()).await.unwrap();
        one.say("yours").await.unwrap();
        let (pid, offered) = other.offered().await.unwrap();
        assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
        assert_eq!(offered.len(), 200);
        for (index, (name, socket)) in offered.into_iter().enumerate() {
            assert_eq!(name, format!("tcp {index}"));
            assert_eq!(std::net::TcpListener::from(socket).local_addr().unwrap(), address);
        }
        assert_eq!(other.word().await.unwrap(), Word::Yours);
        drop(one);
        assert!(other.word().await.is_err());
    }

    #[test]
    fn a_key_comes_back_as_it_went() {
        for secret in [vec![], vec![0, 255, 16, 1], vec![7; 32]] {
            let key = BackendKey { pid: 42, secret };
            assert_eq!(Word::of(&cancel_line(&key)), Word::Cancel(key));
        }
        for nonsense in ["cancel", "cancel x 00", "cancel 1 0g", "cancel 1", "", "hello"] {
            assert_eq!(Word::of(nonsense), Word::Unknown, "{nonsense}");
        }
    }
}
