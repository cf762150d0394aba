//! How connections lie in deadpool: each together with its permit.
//!
//! deadpool keeps them (create, recycle, retain); it is only called under the pool's lock and never waits: an opener
//! has brought the connection before `create` is called, and `recycle` looks whether the server has closed it.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Waker};

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};

use super::budget::{Account, Permit};
use super::{Backend, Connect};
use crate::metrics::{LoanAccount, PoolMetrics};

/// One open connection. The backend is dropped, and so closed, before its permit.
pub(super) struct Held<B> {
    pub(super) backend: B,
    pub(super) permit: Permit,
    /// Why it stays with one session, if it does.
    pub(super) pin: Option<&'static str>,
    pub(super) loan: LoanAccount,
    pub(super) term: Term,
    pub(super) era: Era,
}

/// Connections opened since the pool was told last to replace all it had. Who keeps a clone is waited for.
#[derive(Clone, Debug, Default)]
pub(super) struct Era(Arc<()>);

impl Era {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// To know it again without being waited for.
    pub(super) fn mark(&self) -> EraMark {
        EraMark(Arc::downgrade(&self.0))
    }

    /// Clones beside this one.
    pub(super) fn others(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// Which era it was.
pub(super) struct EraMark(Weak<()>);

impl EraMark {
    pub(super) fn is_of(&self, era: &Era) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&era.0))
    }
}

/// When a connection must be closed; in milliseconds of its pool's age.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term {
    pub(super) expires_ms: u64,
    pub(super) idle_limit_ms: u64,
    pub(super) idle_since_ms: u64,
}

impl Term {
    /// Why it must not be used any more, if so.
    pub(super) fn ended(&self, now_ms: u64) -> Option<&'static str> {
        (now_ms >= self.expires_ms).then_some("lifetime")
    }

    /// Why it must not lie idle any more, if so.
    pub(super) fn ended_idle(&self, now_ms: u64) -> Option<&'static str> {
        let idle_ms = now_ms.saturating_sub(self.idle_since_ms);
        self.ended(now_ms).or_else(|| (idle_ms >= self.idle_limit_ms).then_some("idle"))
    }
}

/// deadpool's manager.
pub(super) struct Holder<C: Connect> {
    /// What the next `create` returns.
    brought: Mutex<Option<Box<Held<C::Backend>>>>,
    account: Arc<Account>,
    metrics: Arc<PoolMetrics>,
    connect: PhantomData<fn() -> C>,
}

impl<C: Connect> Holder<C> {
    pub(super) fn new(account: Arc<Account>, metrics: Arc<PoolMetrics>) -> Self {
        Self { brought: Mutex::new(None), account, metrics, connect: PhantomData }
    }

    /// Lays a connection ready for `create`.
    pub(super) fn bring(&self, held: Box<Held<C::Backend>>) {
        *self.brought.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// What was brought and not created, if anything.
    pub(super) fn take_brought(&self) -> Option<Box<Held<C::Backend>>> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn has_brought(&self) -> bool {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Nothing was brought.
#[derive(Debug)]
pub(super) struct NothingBrought;

impl<C: Connect> Manager for Holder<C> {
    type Type = Box<Held<C::Backend>>;
    type Error = NothingBrought;

    async fn create(&self) -> Result<Self::Type, NothingBrought> {
        self.take_brought().ok_or(NothingBrought)
    }

    async fn recycle(&self, held: &mut Self::Type, _: &Metrics) -> RecycleResult<NothingBrought> {
        // Nobody waits for the idle backend; the next round looks again.
        if held.backend.poll_idle(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(());
        }
        self.account.idle_removed(1);
        self.metrics.servers_idle.dec();
        self.metrics.server_closed("server");
        Err(RecycleError::message("closed by the server"))
    }
}
