//! Two server connections, and two clients that can hold both: so a test can move a session from one to the other.

use super::eventually;
use super::pg::Connection;
use super::postgres::Postgres;
use super::tidegate::Tidegate;

pub struct Stage {
    pub server: Postgres,
    pub gate: Tidegate,
    pub blockers: [Connection; 2],
}

impl Stage {
    pub fn new() -> Self {
        let server = Postgres::start();
        let gate = Tidegate::before(&server, 2);
        Self::with(server, gate)
    }

    /// With a gate that has two connections to the server.
    pub fn with(server: Postgres, gate: Tidegate) -> Self {
        let blockers = [gate.client(), gate.client()];
        Self { server, gate, blockers }
    }

    pub fn pinned(&self) -> f64 {
        self.gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")])
    }

    pub fn until_pinned(&self, count: f64) {
        eventually("so many connections are pinned", || (self.pinned() == count).then_some(()));
    }

    /// Has the session's next transaction begin on another server connection than its last; gives its pid.
    pub fn moves(&mut self, session: &mut Connection, last: &str) -> String {
        let (_, now) = self.elsewhere(last, || session.backend());
        assert_ne!(now, last, "another server connection serves it");
        now
    }

    /// Runs `work` where only the server connection other than `last` is to be had, which proves that the session holds
    /// none; gives that connection's pid.
    pub fn elsewhere<T>(&mut self, last: &str, work: impl FnOnce() -> T) -> (String, T) {
        for blocker in &mut self.blockers {
            blocker.query("begin").expect_no_error();
        }
        let pids = self.blockers.each_mut().map(Connection::backend);
        assert_ne!(pids[0], pids[1]);
        let kept = usize::from(pids[1] == last);
        self.blockers[1 - kept].query("commit").expect_no_error();
        let done = work();
        self.blockers[kept].query("commit").expect_no_error();
        (pids[1 - kept].clone(), done)
    }
}
