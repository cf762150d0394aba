//! The latest statement of a connection: kept as bytes, since few are ever looked at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::sql;

/// Bytes kept of a statement: more than enough for what is shown of it.
const WORDS_BYTES: usize = 256;

/// What a session last had its connection do. Written by the relay, read by whoever wants to know who holds it.
#[derive(Debug, Default)]
pub struct Words {
    /// Whether they are those of the session that has the connection now.
    theirs: AtomicBool,
    bytes: Mutex<Vec<u8>>,
}

impl Words {
    /// A statement is sent: a Query's text, or what follows the name in a Parse.
    pub fn note(&self, text: &[u8]) {
        let text = &text[..text.len().min(WORDS_BYTES)];
        let end = memchr::memchr(0, text).unwrap_or(text.len());
        let mut words = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        words.clear();
        words.extend_from_slice(&text[..end]);
        self.theirs.store(true, Ordering::Release);
    }

    /// Another session begins.
    pub fn clear(&self) {
        self.theirs.store(false, Ordering::Release);
    }

    /// Its shape, without literals; empty if there was none.
    #[must_use]
    pub fn shape(&self) -> String {
        let words = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.theirs.load(Ordering::Acquire) { sql::shape(&words) } else { String::new() }
    }
}
