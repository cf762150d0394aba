//! Where a session waits on a connection of its own, so that another client's CLIENT UNBLOCK can end that, and nothing else.
//!
//! The server knows the session by its connection, which is somebody else's as soon as it is given back. So it is asked only
//! while the session is in its call, and the connection is kept until it has answered: a late request finds nobody who waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How a waiting is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As if its time were over.
    Timeout,
    /// With an error.
    Error,
}

/// What one session waits for.
#[derive(Debug, Default)]
pub struct Wait(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    stage: Stage,
    /// That are on their way to the server.
    requests: usize,
    doubt: Doubt,
    session: Option<Waker>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// For nothing.
    #[default]
    Nothing,
    /// For a connection.
    Queued,
    /// It did so, until another client ended it.
    Ended(How),
    /// For the server, over the connection with this number.
    Calling(u64),
}

/// Whether a request may still reach the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Doubt {
    /// All are answered.
    #[default]
    None,
    /// One got no answer: the connection must not be anybody's any more.
    Some,
}

/// Whom an end of waiting has met.
#[derive(Debug)]
pub enum Reached {
    /// A session that does not wait.
    Nobody,
    /// One that waited for a connection, and waits no more.
    Queued,
    /// One that waits for the server, which must be asked.
    Calling(Request),
}

/// A request to the server to end a call; while it lives the connection stays with its session.
#[derive(Debug)]
pub struct Request {
    wait: Arc<Wait>,
    id: u64,
    doubt: Doubt,
}

impl Wait {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session waits for a connection.
    pub fn queue(&self) {
        self.lock().stage = Stage::Queued;
    }

    /// The session's call is on its way over the connection with the number `id`.
    pub fn call(&self, id: u64) {
        self.lock().stage = Stage::Calling(id);
    }

    /// The session waits no more.
    pub fn rest(&self) {
        self.lock().stage = Stage::Nothing;
    }

    /// Whether another client has ended the waiting for a connection. The task is woken when one does.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Option<How> {
        let mut inner = self.lock();
        inner.session = Some(cx.waker().clone());
        match inner.stage {
            Stage::Ended(how) => Some(how),
            Stage::Nothing | Stage::Queued | Stage::Calling(_) => None,
        }
    }

    /// Ready when no request is on its way, so that somebody else may have the connection.
    pub fn poll_settled(&self, cx: &Context<'_>) -> Poll<Doubt> {
        let mut inner = self.lock();
        if inner.requests > 0 {
            inner.session = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut inner.doubt))
    }

    /// Another client ends the waiting.
    pub fn end(self: &Arc<Self>, how: How) -> Reached {
        let mut inner = self.lock();
        match inner.stage {
            Stage::Nothing | Stage::Ended(_) => Reached::Nobody,
            Stage::Queued => {
                inner.stage = Stage::Ended(how);
                inner.wake();
                Reached::Queued
            }
            Stage::Calling(id) => {
                inner.requests += 1;
                Reached::Calling(Request { wait: Arc::clone(self), id, doubt: Doubt::Some })
            }
        }
    }
}

impl Inner {
    fn wake(&mut self) {
        if let Some(session) = self.session.take() {
            session.wake();
        }
    }
}

impl Request {
    /// The connection's number at the server.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The server has answered with `reply`, or nobody has asked it: nothing is on its way any more.
    pub fn answered(mut self, reply: &[u8]) {
        if reply.starts_with(b":") {
            self.doubt = Doubt::None;
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut inner = self.wait.lock();
        inner.requests -= 1;
        if self.doubt == Doubt::Some {
            inner.doubt = Doubt::Some;
        }
        inner.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(wait: &Wait) -> Poll<Doubt> {
        wait.poll_settled(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_does_not_wait_is_not_reached() {
        let wait = Arc::<Wait>::default();
        assert!(matches!(wait.end(How::Error), Reached::Nobody));
        wait.call(7);
        wait.rest();
        assert!(matches!(wait.end(How::Timeout), Reached::Nobody));
    }

    #[test]
    fn who_waits_for_a_connection_is_ended_once() {
        let wait = Arc::<Wait>::default();
        let cx = &Context::from_waker(Waker::noop());
        wait.queue();
        assert_eq!(wait.poll_ended(cx), None);
        assert!(matches!(wait.end(How::Error), Reached::Queued));
        assert!(matches!(wait.end(How::Timeout), Reached::Nobody));
        assert_eq!(wait.poll_ended(cx), Some(How::Error));
    }

    #[test]
    fn a_connection_is_kept_until_all_requests_are_answered() {
        let wait = Arc::<Wait>::default();
        wait.call(7);
        let [Reached::Calling(one), Reached::Calling(other)] =
            [(); 2].map(|()| wait.end(How::Timeout))
        else {
            panic!("not reached")
        };
        assert_eq!(one.id(), 7);
        wait.rest();
        one.answered(b":1\r\n");
        assert_eq!(settled(&wait), Poll::Pending);
        other.answered(b":0\r\n");
        assert_eq!(settled(&wait), Poll::Ready(Doubt::None));
    }

    #[test]
    fn one_without_an_answer_leaves_a_doubt_behind() {
        let wait = Arc::<Wait>::default();
        for how in [How::Timeout, How::Error] {
            wait.call(7);
            let Reached::Calling(request) = wait.end(how) else { panic!("not reached") };
            match how {
                How::Timeout => drop(request),
                How::Error => request.answered(b"-ERR tidegate: lost\r\n"),
            }
            assert_eq!(settled(&wait), Poll::Ready(Doubt::Some));
            assert_eq!(settled(&wait), Poll::Ready(Doubt::None));
        }
    }
}
