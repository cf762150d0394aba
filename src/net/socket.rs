//! Reading and writing a plain socket: the system call first, where the runtime knows that it may succeed, and a registration only
//! where there is nothing to do. The calls are made without the C library, whose are points where a thread may be cancelled: two
//! locked instructions each, for something that nobody here does.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::coop;

/// Whether the one task that reads a stream is registered for its next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Perhaps not.
    No,
    /// Its waker is called by the next of them, if they are not there already.
    Yes,
    /// That can't be known. Where several threads share the tasks, one may note that a socket is ready, and take the waker only after
    /// another has read all that there was and registered for more.
    Unknowable,
}

impl Registered {
    /// For a task of the runtime that this is called in.
    #[must_use]
    pub fn at_first() -> Self {
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            // One thread notes, takes and reads.
            Ok(RuntimeFlavor::CurrentThread) => Self::No,
            _ => Self::Unknowable,
        }
    }

    /// It may not be any more.
    pub(super) fn lapse(&mut self) {
        if *self == Self::Yes {
            *self = Self::No;
        }
    }

    fn hold(&mut self) {
        if *self == Self::No {
            *self = Self::Yes;
        }
    }
}

/// A socket of the runtime's.
pub(super) trait Socket: AsFd {
    /// Calls `call` if the socket is known to be ready; `WouldBlock` says that it is not any more.
    fn attempt(&self, interest: Interest, call: impl FnOnce() -> io::Result<()>) -> io::Result<()>;
    fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! socket {
    ($socket:ty) => {
        impl Socket for $socket {
            fn attempt(
                &self,
                interest: Interest,
                call: impl FnOnce() -> io::Result<()>,
            ) -> io::Result<()> {
                self.try_io(interest, call)
            }

            fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                if interest.is_readable() {
                    self.poll_read_ready(cx)
                } else {
                    self.poll_write_ready(cx)
                }
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// What came of a system call.
enum Attempt {
    Done(io::Result<usize>),
    /// It was not made: the socket has not become ready since that was looked at last.
    Unready,
    /// The socket was not ready any more.
    Stale,
}

/// Reads what is there: the number of bytes, 0 at the peer's end of stream. A read shorter than `buf` costs no call until new bytes
/// come. `registered` is of this stream's one reader, whose task is always the same: it spares registering anew.
pub(super) fn poll_recv(
    socket: &impl Socket,
    cx: &mut Context<'_>,
    buf: &mut [u8],
    registered: &mut Registered,
) -> Poll<io::Result<usize>> {
    let wanted = buf.len();
    loop {
        // Without it the runtime wants to have its turn, and says so below.
        let may = coop::has_budget_remaining();
        if may {
            let call = || recv(socket, &mut *buf, RecvFlags::empty()).map(|(n, _)| n);
            match attempt(socket, Interest::READABLE, wanted, call) {
                Attempt::Done(result) => {
                    spend(cx);
                    registered.lapse();
                    return Poll::Ready(result);
                }
                Attempt::Unready if *registered == Registered::Yes => return Poll::Pending,
                Attempt::Unready | Attempt::Stale => {}
            }
        }
        registered.lapse();
        if socket.poll_ready(Interest::READABLE, cx)?.is_pending() {
            if may {
                registered.hold();
            }
            return Poll::Pending;
        }
    }
}

/// Writes a part of `buf`: the number of bytes taken.
pub(super) fn poll_send(
    socket: &impl Socket,
    cx: &mut Context<'_>,
    buf: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        if coop::has_budget_remaining() {
            let call = || send(socket, buf, SendFlags::NOSIGNAL);
            if let Attempt::Done(result) = attempt(socket, Interest::WRITABLE, buf.len(), call) {
                spend(cx);
                return Poll::Ready(result);
            }
        }
        ready!(socket.poll_ready(Interest::WRITABLE, cx))?;
    }
}

/// Takes what was done off the task's share of its turn. That nothing may be left shows when it goes on.
fn spend(cx: &mut Context<'_>) {
    if let Poll::Ready(turn) = coop::poll_proceed(cx) {
        turn.made_progress();
    }
}

fn attempt(
    socket: &impl Socket,
    interest: Interest,
    wanted: usize,
    call: impl FnMut() -> rustix::io::Result<usize>,
) -> Attempt {
    let mut outcome = Attempt::Unready;
    let known = socket.attempt(interest, || {
        outcome = match retry_on_intr(call) {
            Err(Errno::AGAIN) => Attempt::Stale,
            result => Attempt::Done(result.map_err(io::Error::from)),
        };
        match outcome {
            // That was all: the runtime is to forget that the socket was ready, until the kernel says so again.
            Attempt::Done(Ok(n)) if n > 0 && n < wanted => Err(io::ErrorKind::WouldBlock.into()),
            Attempt::Stale => Err(io::ErrorKind::WouldBlock.into()),
            Attempt::Done(_) | Attempt::Unready => Ok(()),
        }
    });
    // It is a mere kind, with nothing to be freed; but to find that out takes longer than all else here.
    std::mem::forget(known);
    outcome
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Counts how often it was called.
    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads by one task: `calls` stands for its waker.
    struct Reader {
        socket: UnixStream,
        registered: Registered,
        calls: Arc<Calls>,
    }

    impl Reader {
        fn beside() -> (Self, UnixStream) {
            let (socket, peer) = UnixStream::pair().unwrap();
            let registered = Registered::at_first();
            (Self { socket, registered, calls: Arc::default() }, peer)
        }

        fn read(&mut self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
            let waker = Waker::from(Arc::clone(&self.calls));
            poll_recv(&self.socket, &mut Context::from_waker(&waker), buf, &mut self.registered)
        }

        /// Until it has been called once more than `before`.
        async fn called_after(&self, before: usize) {
            while self.calls.0.load(Ordering::SeqCst) == before {
                tokio::task::yield_now().await;
            }
        }
    }

    fn is(read: Poll<io::Result<usize>>, n: usize) -> bool {
        matches!(read, Poll::Ready(Ok(count)) if count == n)
    }

    #[tokio::test]
    async fn who_is_registered_is_called_however_often_it_asked() {
        let (mut reader, mut peer) = Reader::beside();
        let mut buf = [0; 16];
        for round in 0..3 {
            for _ in 0..4 {
                assert!(reader.read(&mut buf).is_pending());
                assert_eq!(reader.registered, Registered::Yes);
            }
            peer.write_all(b"four").await.unwrap();
            reader.called_after(round).await;
            assert!(is(reader.read(&mut buf), 4));
            assert_eq!(reader.registered, Registered::No);
        }
        assert_eq!(reader.calls.0.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn what_was_read_away_by_the_kernel_s_word_for_more_is_registered_for_again() {
        let (mut reader, mut peer) = Reader::beside();
        let mut buf = [0; 4];
        assert!(reader.read(&mut buf).is_pending());
        peer.write_all(b"four").await.unwrap();
        reader.called_after(0).await;
        // All that there was, but the runtime can't know it.
        assert!(is(reader.read(&mut buf), 4));
        assert!(reader.read(&mut buf).is_pending());
        peer.write_all(b"more and more").await.unwrap();
        reader.called_after(1).await;
        for n in [4, 4, 4, 1] {
            assert!(is(reader.read(&mut buf), n));
        }
        assert!(reader.read(&mut buf).is_pending());
        drop(peer);
        reader.called_after(2).await;
        assert!(is(reader.read(&mut buf), 0));
        assert!(is(reader.read(&mut buf), 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn where_several_threads_share_the_tasks_each_look_registers() {
        let (mut reader, mut peer) = Reader::beside();
        let mut buf = [0; 16];
        assert!(reader.read(&mut buf).is_pending());
        // As if the waker had been taken for bytes that were read long ago.
        let other = Waker::noop();
        assert!(reader.socket.poll_read_ready(&mut Context::from_waker(other)).is_pending());
        assert!(reader.read(&mut buf).is_pending());
        assert_eq!(reader.registered, Registered::Unknowable);
        peer.write_all(b"four").await.unwrap();
        reader.called_after(0).await;
        assert!(is(reader.read(&mut buf), 4));
    }

    #[tokio::test]
    async fn a_full_socket_takes_the_rest_when_it_is_read() {
        let (socket, peer) = UnixStream::pair().unwrap();
        let piece = vec![7; 1 << 20];
        let written = tokio::spawn(async move {
            let mut at = 0;
            while at < piece.len() {
                at += poll_fn(|cx| poll_send(&socket, cx, &piece[at..])).await.unwrap();
            }
            at
        });
        let (mut buf, mut read) = (vec![0; 10_000], 0);
        while read < 1 << 20 {
            let mut registered = Registered::No;
            read += poll_fn(|cx| poll_recv(&peer, cx, &mut buf, &mut registered)).await.unwrap();
        }
        assert_eq!(written.await.unwrap(), read);
        // Nobody reads any more.
        let (socket, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let error = poll_fn(|cx| poll_send(&socket, cx, b"x")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn whoever_always_finds_more_lets_others_have_their_turn() {
        let (mut reader, mut peer) = Reader::beside();
        let mut buf = [0; 1];
        assert!(reader.read(&mut buf).is_pending());
        peer.write_all(&[1; 4096]).await.unwrap();
        reader.called_after(0).await;
        let reads = tokio::spawn(async move {
            let mut reads = 0;
            while reader.read(&mut buf).is_ready() {
                reads += 1;
            }
            reads
        });
        let reads = reads.await.unwrap();
        assert!((1..4096).contains(&reads), "{reads}");
    }
}
