//! Two servers alike: one behind tidegate, one that sessions reach directly.

use super::Profile;
use super::support::eventually;
use super::support::redis::Redis;
use super::support::tidegate::{Setup, Tidegate};

pub struct Stage {
    pub gate: Tidegate,
    pub server: Redis,
    pub direct: Redis,
    pool: usize,
}

impl Stage {
    pub fn new(profile: &Profile) -> Self {
        let (server, direct) = (Redis::start(), Redis::start());
        let gate = Setup::new().redis(&server).pool_size(profile.pool).wait_ms(9_000).start();
        Self { gate, server, direct, pool: profile.pool }
    }

    /// Nothing left of the last script, on either server.
    pub fn clear(&self) {
        for server in [&self.server, &self.direct] {
            let all = [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FUNCTION", "FLUSH"]];
            server.direct().pipeline(&all);
        }
    }

    /// One client waits on each server.
    pub fn until_blocked(&self) {
        for server in [&self.server, &self.direct] {
            let mut asks = server.direct();
            eventually("a client is blocked", || {
                let text = asks.command(&["INFO", "clients"]).text();
                (!text.contains("blocked_clients:0")).then_some(())
            });
        }
    }

    /// Fewer connections than sessions, now that all of these are open.
    pub fn assert_shared(&self, sessions: usize) {
        let connections = self.server.connections();
        assert!(connections <= self.pool && connections < sessions, "{connections} for {sessions}");
    }
}
