//! Scripts that clients have given the server, to be given to a server that does not know them: after a restart or a failover
//! EVALSHA would fail, and a client that shares its connection can't see that it was replaced.
//!
//! Source: Redis documentation, "Scripting with Lua", script cache.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most scripts remembered, and most bytes of them. The oldest are forgotten.
const SCRIPTS: usize = 256;
const SCRIPT_BYTES: usize = 2 * 1024 * 1024;

/// The scripts of one server.
#[derive(Debug, Default)]
pub struct Scripts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    texts: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

impl Scripts {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from a command that goes to the server: EVAL and SCRIPT LOAD bring a script, SCRIPT FLUSH takes all away.
    pub fn note<'a>(&self, mut words: impl Iterator<Item = &'a [u8]>) {
        let Some(name) = words.next() else { return };
        if name.eq_ignore_ascii_case(b"EVAL") || name.eq_ignore_ascii_case(b"EVAL_RO") {
            words.next().into_iter().for_each(|text| self.learn(text));
            return;
        }
        if !name.eq_ignore_ascii_case(b"SCRIPT") {
            return;
        }
        match words.next() {
            Some(word) if word.eq_ignore_ascii_case(b"LOAD") => {
                words.next().into_iter().for_each(|text| self.learn(text));
            }
            Some(word) if word.eq_ignore_ascii_case(b"FLUSH") => *self.lock() = Known::default(),
            _ => {}
        }
    }

    fn learn(&self, text: &[u8]) {
        let mut known = self.lock();
        if text.len() > SCRIPT_BYTES || known.texts.iter().any(|one| **one == *text) {
            return;
        }
        known.bytes += text.len();
        known.texts.push_back(text.into());
        while known.texts.len() > SCRIPTS || known.bytes > SCRIPT_BYTES {
            let Some(oldest) = known.texts.pop_front() else { break };
            known.bytes -= oldest.len();
        }
    }

    /// All of them, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<[u8]>> {
        self.lock().texts.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Vec<String> {
        let scripts = Scripts::default();
        for line in lines {
            scripts.note(line.split(' ').map(str::as_bytes));
        }
        let text = |text: &Arc<[u8]>| String::from_utf8(text.to_vec()).unwrap();
        scripts.all().iter().map(text).collect()
    }

    #[test]
    fn scripts_are_learnt_once_and_flushed() {
        let lines = ["EVAL a 0", "eval a 1 k", "Script Load b", "SET EVAL x", "SCRIPT EXISTS c"];
        assert_eq!(told(&lines), ["a", "b"]);
        assert_eq!(told(&["EVAL a 0", "SCRIPT FLUSH ASYNC", "EVAL_RO b 0"]), ["b"]);
        assert!(told(&["EVAL", "SCRIPT", "SCRIPT LOAD"]).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let scripts = Scripts::default();
        for n in 0..SCRIPTS + 10 {
            scripts.learn(format!("return {n}").as_bytes());
        }
        assert_eq!(scripts.all().len(), SCRIPTS);
        assert_eq!(&*scripts.all()[0], b"return 10");
        scripts.learn(&vec![b'x'; SCRIPT_BYTES]);
        assert_eq!(scripts.all().len(), 1);
        scripts.learn(&vec![b'y'; SCRIPT_BYTES + 1]);
        assert_eq!(scripts.all().len(), 1);
    }
}
