//! Where clients stand that have not shown yet who they are: so many and no more, and who has stood there for longest makes room.
//!
//! Turning away whoever comes last would let a crowd that says nothing keep everybody else out. Who has just come is left time for
//! its login, so that a crowd of honest clients, after a restart, say, is let in as fast as they prove themselves, and nobody is lost.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// For so long nobody has to make room.
const PATIENCE: Duration = Duration::from_secs(1);

/// The clients of one service that are not logged in.
#[derive(Debug)]
pub struct Porch {
    limit: AtomicUsize,
    strangers: Mutex<Strangers>,
    /// Somebody has left.
    room: Notify,
}

/// By number, so that the first came first.
#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    here: BTreeMap<u64, Stranger>,
}

#[derive(Debug)]
struct Stranger {
    since: Instant,
    /// Dropped to have it go.
    _stay: oneshot::Sender<()>,
}

/// A client's place; gone with it, or when somebody else needs it.
#[derive(Debug)]
pub struct PorchPlace {
    porch: Arc<Porch>,
    number: u64,
    /// `None`: somebody else has it.
    stay: Option<oneshot::Receiver<()>>,
}

impl Porch {
    /// With room for `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let (strangers, room) = (Mutex::default(), Notify::new());
        Arc::new(Self { limit: AtomicUsize::new(limit), strangers, room })
    }

    /// With room for so many from now on.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.room.notify_one();
    }

    /// A place for one who comes; at once, or as soon as somebody has left or has been there for long enough.
    pub async fn enter(self: &Arc<Self>) -> PorchPlace {
        loop {
            let patience = match self.try_enter() {
                Ok(place) => return place,
                Err(until) => tokio::time::sleep_until(until),
            };
            tokio::select! {
                () = patience => {}
                () = self.room.notified() => {}
            }
        }
    }

    /// Or when somebody would make room.
    fn try_enter(self: &Arc<Self>) -> Result<PorchPlace, Instant> {
        let mut strangers = self.strangers();
        if strangers.here.len() >= self.limit.load(Ordering::Relaxed)
            && let Some(first) = strangers.here.first_entry()
        {
            let until = first.get().since + PATIENCE;
            if Instant::now() < until {
                return Err(until);
            }
            first.remove();
        }
        let (sender, stay) = oneshot::channel();
        let stay = Some(stay);
        let number = strangers.next;
        strangers.next += 1;
        strangers.here.insert(number, Stranger { since: Instant::now(), _stay: sender });
        drop(strangers);
        Ok(PorchPlace { porch: Arc::clone(self), number, stay })
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PorchPlace {
    /// Ready when somebody else has the place.
    pub fn poll_crowded_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(stay) = &mut self.stay {
            let _dropped = ready!(Pin::new(stay).poll(cx));
            self.stay = None;
        }
        Poll::Ready(())
    }

    /// Ends when somebody else has the place; never without one.
    pub async fn crowded_out(place: &mut Option<Self>) {
        poll_fn(|cx| match place {
            Some(place) => place.poll_crowded_out(cx),
            None => Poll::Pending,
        })
        .await;
    }
}

impl Drop for PorchPlace {
    fn drop(&mut self) {
        self.porch.strangers().here.remove(&self.number);
        self.porch.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    /// What a future says when it is asked once.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_stood_for_longest_makes_room() {
        let porch = Porch::new(2);
        let (mut first, mut second) = (now(porch.enter()), now(porch.enter()));
        assert!(now(porch.enter()).is_none(), "both have just come");
        tokio::time::advance(PATIENCE).await;
        let mut third = now(porch.enter());
        let out = |place: &mut Option<PorchPlace>| now(PorchPlace::crowded_out(place)).is_some();
        assert!(
            out(&mut first)
                && out(&mut first)
                && !out(&mut second)
                && third.is_some()
                && !out(&mut third)
        );
        drop(first);
        assert_eq!(porch.strangers().here.len(), 2, "its place was another's already");
        drop((second, third));
        assert_eq!(porch.strangers().here.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_waits_no_longer_than_until_somebody_has_left() {
        let porch = Porch::new(1);
        let place = porch.enter().await;
        let entering = tokio::spawn({
            let porch = Arc::clone(&porch);
            async move { porch.enter().await }
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        drop(place);
        let place = entering.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        porch.set_limit(2);
        assert!(now(porch.enter()).is_some());
        drop(place);
    }
}
