//! One byte stream, whatever carries it: TCP, a unix socket, or TLS over TCP.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, recv};
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::Address;
use super::socket::{Registered, poll_recv, poll_send};

/// The type of the first record of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// How a peer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With a TLS handshake.
    Tls,
    /// With something else.
    Plain,
    /// It has left without a word.
    None,
}

/// A connected byte stream to a client or a server.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS over TCP; boxed because its state is some hundred bytes and most streams have none.
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>),
}

impl Stream {
    /// Reads what is there into `buf`: the number of bytes, 0 at the peer's end of stream (or for an
    /// empty `buf`). A read shorter than `buf` clears the socket's readiness, so that the next call
    /// costs no syscall until new bytes come.
    ///
    /// # Errors
    /// As the socket or TLS reports it.
    pub fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_on(cx, buf, &mut Registered::No)
    }

    /// As [`Stream::poll_read_into`], for a stream that is read in this way alone and by one task alone, which keeps `registered`
    /// with it, from [`Registered::at_first`] on: what it is registered for already is not registered again.
    ///
    /// # Errors
    /// As the socket or TLS reports it.
    pub fn poll_read_on(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        registered: &mut Registered,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => poll_recv(tcp, cx, buf, registered),
            Self::Unix(unix) => poll_recv(unix, cx, buf, registered),
            Self::Tls(tls) => read_tls(tls, cx, buf),
        }
    }

    /// Writes a part of `buf`: the number of bytes taken. With TLS, bytes taken may still wait to be
    /// sent: before going to sleep call [`Stream::poll_flushed`] until it is ready.
    ///
    /// # Errors
    /// As the socket or TLS reports it.
    pub fn poll_write_from(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => poll_send(tcp, cx, buf),
            Self::Unix(unix) => poll_send(unix, cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        }
    }

    /// Ready when every byte taken by [`Stream::poll_write_from`] is with the kernel. Free of cost
    /// for TCP and unix sockets.
    ///
    /// # Errors
    /// As the socket or TLS reports it.
    #[inline]
    pub fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => flush_tls(tls, cx),
        }
    }

    /// The end of the stream in TLS's own words (`close_notify`), so that the peer knows it from an accident; sent if the
    /// socket takes it at once. Nothing for others, who close.
    pub fn say_goodbye(&mut self, cx: &mut Context<'_>) {
        if let Self::Tls(tls) = self {
            let _said = Pin::new(tls.as_mut()).poll_shutdown(cx);
        }
    }

    /// Ready when the peer has closed the stream or it broke; reads nothing.
    ///
    /// While bytes lie unread in the socket this is `Pending` without a wake-up: a caller that must
    /// know reads on, or asks again by a clock of its own.
    pub fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_hangup_on(cx, &mut Registered::No)
    }

    /// As [`Stream::poll_hangup`], where [`Stream::poll_read_on`] reads.
    pub fn poll_hangup_on(
        &mut self,
        cx: &mut Context<'_>,
        registered: &mut Registered,
    ) -> Poll<()> {
        registered.lapse();
        let readable = match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(tls) => tls.get_ref().0.poll_read_ready(cx),
            Self::Unix(unix) => unix.poll_read_ready(cx),
        };
        if ready!(readable).is_err() {
            return Poll::Ready(());
        }
        match self.peek_one() {
            Ok(0) => Poll::Ready(()),
            Ok(_bytes_wait) if self.is_shut() => Poll::Ready(()),
            Ok(_bytes_wait) => Poll::Pending,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.rearm_read(cx),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(_broken) => Poll::Ready(()),
        }
    }

    /// The peer's address; `None` for a unix socket or when the peer is already gone.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.tcp().and_then(|tcp| tcp.peer_addr().ok())
    }

    /// Our end, as a client reaches it; `None` when the peer is already gone.
    #[must_use]
    pub fn local(&self) -> Option<Address> {
        match self {
            Self::Unix(unix) => {
                let address = unix.local_addr().ok()?;
                address.as_pathname().map(|path| Address::Unix(path.into()))
            }
            _ => self.tcp()?.local_addr().ok().map(Address::Tcp),
        }
    }

    /// The peer's address and ours; `None` for a unix socket or when the peer is already gone.
    #[must_use]
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let tcp = self.tcp()?;
        Some((tcp.peer_addr().ok()?, tcp.local_addr().ok()?))
    }

    /// Version and cipher of the encryption; empty if there is none.
    #[must_use]
    pub fn encryption(&self) -> String {
        let Self::Tls(tls) = self else { return String::new() };
        let (_, state) = tls.get_ref();
        let version = state.protocol_version().map(|version| format!("{version:?}"));
        let suite = state.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
        format!("{}/{}", version.unwrap_or_default().replace('_', "."), suite.unwrap_or_default())
    }

    /// The certificate that the peer showed in the handshake, if any.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        let Self::Tls(tls) = self else { return None };
        tls.get_ref().1.peer_certificates()?.first()
    }

    /// The number of the user that the peer of a unix socket runs as; `None` for any other.
    #[must_use]
    pub fn peer_user(&self) -> Option<u32> {
        let Self::Unix(unix) = self else { return None };
        unix.peer_cred().ok().map(|peer| peer.uid())
    }

    /// Waits for the peer's first byte, which stays unread: whether it begins a TLS handshake (RFC 8446 section 5.1: the
    /// record's type). Inside of TLS nobody may, and nothing is waited for. Cancel safe.
    ///
    /// # Errors
    /// As the socket reports it.
    pub async fn opening(&self) -> io::Result<Opening> {
        let mut byte = [0];
        let peeked = match self {
            Self::Tls(_) => return Ok(Opening::Plain),
            Self::Tcp(tcp) => tcp.peek(&mut byte).await?,
            Self::Unix(unix) => {
                let peek = || Ok(recv(unix, &mut byte, RecvFlags::PEEK)?.0);
                unix.async_io(tokio::io::Interest::READABLE, peek).await?
            }
        };
        Ok(match peeked {
            0 => Opening::None,
            _ if byte[0] == TLS_HANDSHAKE => Opening::Tls,
            _ => Opening::Plain,
        })
    }

    /// The TCP socket below, if there is one.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref().0),
            Self::Unix(_) => None,
        }
    }

    /// Whether the peer has shut its side, be there bytes unread before the end or not. Asks the kernel each time.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let looked = |mut fd: PollFd<'_>| {
            poll(std::slice::from_mut(&mut fd), Some(&at_once)).is_ok()
                && fd.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
        };
        match self {
            Self::Tcp(tcp) => looked(PollFd::new(tcp, PollFlags::RDHUP)),
            Self::Tls(tls) => looked(PollFd::new(tls.get_ref().0, PollFlags::RDHUP)),
            Self::Unix(unix) => looked(PollFd::new(unix, PollFlags::RDHUP)),
        }
    }

    fn peek_one(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit(); 1];
        match self {
            Self::Tcp(tcp) => SockRef::from(tcp).peek(&mut byte),
            Self::Tls(tls) => SockRef::from(tls.get_ref().0).peek(&mut byte),
            Self::Unix(unix) => SockRef::from(unix).peek(&mut byte),
        }
    }

    /// Readiness was stale: clears it, so that the next event wakes the task.
    fn rearm_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stale = || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into());
        let readable = tokio::io::Interest::READABLE;
        let (_stale, again) = match self {
            Self::Tcp(tcp) => (tcp.try_io(readable, stale), tcp.poll_read_ready(cx)),
            Self::Tls(tls) => {
                let tcp = tls.get_ref().0;
                (tcp.try_io(readable, stale), tcp.poll_read_ready(cx))
            }
            Self::Unix(unix) => (unix.try_io(readable, stale), unix.poll_read_ready(cx)),
        };
        if again.is_ready() {
            // Something came in between: look again on the next turn.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

// Apart, so that what most streams do stays small.
#[inline(never)]
fn read_tls(
    tls: &mut tokio_rustls::TlsStream<TcpStream>,
    cx: &mut Context<'_>,
    buf: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut read = ReadBuf::new(buf);
    ready!(Pin::new(tls).poll_read(cx, &mut read))?;
    Poll::Ready(Ok(read.filled().len()))
}

#[inline(never)]
fn flush_tls(
    tls: &mut tokio_rustls::TlsStream<TcpStream>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    Pin::new(tls).poll_flush(cx)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Unix(unix) => unix.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp_pair() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::Tcp(client), Stream::Tcp(listener.accept().await.unwrap().0))
    }

    fn unix_pair() -> (Stream, Stream) {
        let (one, other) = UnixStream::pair().unwrap();
        (Stream::Unix(one), Stream::Unix(other))
    }

    async fn read(stream: &mut Stream) -> Vec<u8> {
        let mut buf = [0; 16];
        let read = poll_fn(|cx| stream.poll_read_into(cx, &mut buf)).await.unwrap();
        buf[..read].to_vec()
    }

    /// One look.
    async fn hangup(stream: &mut Stream) -> Poll<()> {
        poll_fn(|cx| Poll::Ready(stream.poll_hangup(cx))).await
    }

    #[tokio::test]
    async fn bytes_and_the_end_arrive() {
        for (mut one, mut other) in [tcp_pair().await, unix_pair()] {
            let wrote = poll_fn(|cx| one.poll_write_from(cx, b"word")).await.unwrap();
            poll_fn(|cx| one.poll_flushed(cx)).await.unwrap();
            assert_eq!((wrote, read(&mut other).await), (4, b"word".to_vec()));
            one.shutdown().await.unwrap();
            assert_eq!(read(&mut other).await, b"");
        }
    }

    #[tokio::test]
    async fn a_hangup_wakes_who_watches_for_it() {
        for (one, mut other) in [tcp_pair().await, unix_pair()] {
            let watch = tokio::spawn(async move {
                poll_fn(|cx| other.poll_hangup(cx)).await;
            });
            tokio::task::yield_now().await;
            assert!(!watch.is_finished(), "a live peer has not hung up");
            drop(one);
            watch.await.unwrap();
        }
    }

    #[tokio::test]
    async fn watching_for_a_hangup_loses_no_bytes() {
        for (mut one, mut other) in [tcp_pair().await, unix_pair()] {
            one.write_all(b"first").await.unwrap();
            assert_eq!(read(&mut other).await, b"first");
            // Nothing to read: the watch lies down; then bytes come, which are no hang-up.
            assert!(hangup(&mut other).await.is_pending());
            one.write_all(b"second").await.unwrap();
            assert!(hangup(&mut other).await.is_pending());
            assert_eq!(read(&mut other).await, b"second");
            drop(one);
            poll_fn(|cx| other.poll_hangup(cx)).await;
        }
    }
}
