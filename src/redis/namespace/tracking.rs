//! CLIENT TRACKING inside of a namespace: a client is told of keys that it has read, or of all with a prefix, its namespace's.
//!
//! Source: Redis documentation, "Client-side caching reference", "CLIENT TRACKING".

use std::borrow::Cow;

use super::{Ground, Judgement, Mode, Namespace, Refusal};
use crate::redis::command::{Command, Named, Touch};
use crate::redis::namespace::replies::Shape;

const REDIRECT: &str =
    "with REDIRECT tells another connection of changes, and connections are shared";

impl Namespace {
    pub(super) fn track<'a>(
        &self,
        command: &Command,
        words: &[&'a [u8]],
    ) -> Result<Judgement<'a>, Refusal> {
        let mut becomes: Vec<Cow<'a, [u8]>> =
            words.iter().map(|word| Cow::Borrowed(*word)).collect();
        let (mut broadcasts, mut prefixes) = (0, 0);
        let mut at = 3;
        while let Some(word) = words.get(at) {
            let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
            match words.get(at + 1) {
                _ if is("REDIRECT") => {
                    return Err(self.refusal(Some(command), words, Ground::Command, REDIRECT));
                }
                Some(prefix) if is("PREFIX") => {
                    becomes[at + 1] = self.told_prefix(command, prefix)?;
                    prefixes += 1;
                    at += 1;
                }
                _ if is("BCAST") => broadcasts += 1,
                _ => {}
            }
            at += 1;
        }
        if broadcasts > 0 && prefixes == 0 {
            for prefix in self.heads(true) {
                becomes.extend([Cow::Borrowed(&b"PREFIX"[..]), Cow::Owned(prefix.to_vec())]);
            }
        }
        Ok(Judgement::Becomes(becomes, Shape::Plain))
    }

    fn told_prefix<'a>(
        &self,
        command: &Command,
        prefix: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Refusal> {
        match self.mode {
            Mode::Prefix => Ok(Cow::Owned([self.prefix(), prefix].concat())),
            Mode::Enforce if self.sees(prefix) => Ok(Cow::Borrowed(prefix)),
            Mode::Enforce => Err(self.outside(command, prefix, Named::Key(Touch::Read))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::namespace;
    use super::*;

    fn judged(mode: Mode, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        match namespace(mode).judge(&words) {
            Judgement::Becomes(words, _) => String::from_utf8(words.join(&b' ')).unwrap(),
            Judgement::Refused(refusal) => refusal.ground.label().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broadcast_is_of_the_namespace() {
        for (mode, said, becomes) in [
            (Mode::Prefix, "CLIENT TRACKING ON", "CLIENT TRACKING ON"),
            (Mode::Prefix, "client tracking on bcast", "client tracking on bcast PREFIX cache:"),
            (
                Mode::Prefix,
                "CLIENT TRACKING ON BCAST PREFIX a PREFIX PREFIX",
                "CLIENT TRACKING ON BCAST PREFIX cache:a PREFIX cache:PREFIX",
            ),
            (
                Mode::Prefix,
                "CLIENT TRACKING ON PREFIX BCAST",
                "CLIENT TRACKING ON PREFIX cache:BCAST",
            ),
            (
                Mode::Enforce,
                "CLIENT TRACKING ON BCAST",
                "CLIENT TRACKING ON BCAST PREFIX cache: PREFIX shared:",
            ),
            (
                Mode::Enforce,
                "CLIENT TRACKING ON PREFIX cache:a BCAST",
                "CLIENT TRACKING ON PREFIX cache:a BCAST",
            ),
            (Mode::Enforce, "CLIENT TRACKING ON BCAST PREFIX cach", "key"),
            (Mode::Enforce, "CLIENT TRACKING ON BCAST PREFIX queue:", "key"),
            (Mode::Prefix, "CLIENT TRACKING ON redirect 7", "command"),
            (Mode::Prefix, "CLIENT TRACKING ON PREFIX a REDIRECT 7", "command"),
        ] {
            assert_eq!(judged(mode, said), becomes, "{said}");
        }
    }
}
