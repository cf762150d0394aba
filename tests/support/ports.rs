//! Free ports below the ephemeral range, so that no outgoing connection can sit on one.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

/// A port of 127.0.0.1 that could be bound a moment ago. Each test process starts looking at a
/// place of its own, so that tests running beside each other seldom try the same one.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = (std::process::id().wrapping_mul(61) % COUNT + step) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
