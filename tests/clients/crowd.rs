//! The other clients of the pool, for the Rust clients beside this file: what crowd.py is for the Python ones.
//!
//! The pool has two server connections. The crowd takes both and gives one back, so that the next transaction of the
//! client under test has to run where its last one did not.

use std::time::{Duration, Instant};

use crate::support::DEADLINE;
use crate::support::pg::Connection;
use crate::support::postgres::Postgres;
use crate::support::tidegate::Tidegate;

pub(super) struct Crowd {
    holders: Vec<Connection>,
    observer: Connection,
}

impl Crowd {
    pub(super) fn new(server: &Postgres, gate: &Tidegate) -> Self {
        let holders = (0..super::SERVER_CONNECTIONS).map(|_| gate.client()).collect();
        Self { holders, observer: server.superuser() }
    }

    /// Until [`Crowd::release`], no transaction can run on the backend `pid`, and one can on the other.
    pub(super) fn occupy(&mut self, pid: i32) {
        self.release();
        // That both can be held proves that no client keeps one for itself.
        for holder in &mut self.holders {
            holder.query("begin").expect_no_error();
        }
        let mut held = 0;
        for holder in &mut self.holders {
            if holder.backend() == pid.to_string() {
                held += 1;
            } else {
                holder.query("rollback").expect_no_error();
            }
        }
        assert_eq!(held, 1, "{pid} is one of the pool's");
    }

    pub(super) fn release(&mut self) {
        for holder in &mut self.holders {
            holder.query("rollback");
        }
    }

    /// Until a statement with `part` in it runs on the server; what else is asked meanwhile goes on.
    pub(super) async fn wait_until_running(&mut self, part: &str) {
        let count = format!(
            "select count(*) from pg_stat_activity where usename = 'app' and state = 'active' \
             and strpos(query, '{part}') > 0"
        );
        let deadline = Instant::now() + DEADLINE;
        while self.observer.one(&count) != "1" {
            assert!(Instant::now() < deadline, "waited in vain for: {part}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
