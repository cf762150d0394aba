//! Whole replies of a connection, one after another.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use crate::net::{Stream, with_read_buffer};
use crate::redis::wire::{Reply, ReplyScanner};

/// What has come and is not read yet.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    /// The next reply begins here.
    at: usize,
    /// The scanner has looked at so many of them.
    seen: usize,
    scanner: ReplyScanner,
}

impl Incoming {
    /// The next reply. Nothing is lost when this is given up and asked for again.
    pub(super) async fn reply(&mut self, stream: &mut Stream) -> Result<Vec<u8>, String> {
        poll_fn(|cx| self.poll_reply(stream, cx)).await
    }

    /// Whether a part of a reply is here.
    pub(super) fn is_inside(&self) -> bool {
        self.at < self.bytes.len()
    }

    fn poll_reply(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<u8>, String>> {
        loop {
            match self.cut() {
                Ok(Some(reply)) => return Poll::Ready(Ok(reply)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            self.bytes.drain(..self.at);
            (self.seen, self.at) = (self.seen - self.at, 0);
            let read = with_read_buffer(|buffer| {
                let n = ready!(stream.poll_read_into(cx, buffer))?;
                self.bytes.extend_from_slice(&buffer[..n]);
                Poll::Ready(Ok::<usize, std::io::Error>(n))
            });
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err("closed by the server".to_owned())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error.to_string())),
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Vec<u8>>, String> {
        while self.seen < self.bytes.len() {
            let (used, state) =
                self.scanner.advance(&self.bytes[self.seen..]).map_err(|e| e.to_string())?;
            self.seen += used;
            if state == Reply::Partial {
                continue;
            }
            let frame = self.bytes[self.at..self.seen].to_vec();
            self.at = self.seen;
            if state == Reply::Whole {
                return Ok(Some(frame));
            }
        }
        if self.at == self.bytes.len() {
            (self.bytes, self.at, self.seen) = (Vec::new(), 0, 0);
        }
        Ok(None)
    }
}
