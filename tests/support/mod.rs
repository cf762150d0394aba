//! What the integration tests share: throwaway servers, a tidegate process, and clients that speak
//! raw frames, so that a test can say exactly which bytes travel.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the support")]

pub mod authority;
pub mod kept;
pub mod metrics;
pub mod pg;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod prometheus;
pub mod redis;
pub mod resp;
pub mod script;
pub mod stage;
pub mod tidegate;

use std::time::{Duration, Instant};

/// The longest that any single wait of a test may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Polls `condition` until it gives a value; panics with `what` when the deadline passes.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, condition)
}

/// As [`eventually`], with its own deadline.
pub fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
