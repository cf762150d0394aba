//! Scripts of a namespace's clients: they run as the namespace has it, and keep the SHA1s that their clients know.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::replies::Shape;
use super::sandbox::{Sandbox, Script};
use super::{Ground, Judgement, Namespace, Refusal, ScriptRule};
use crate::redis::command::{Command, look_up};

/// A server's answer to EVALSHA of what it does not know.
const NOT_KNOWN: &str = "NOSCRIPT No matching script. Please use EVAL.";
/// No script's.
const NO_SHA: [u8; 40] = [b'0'; 40];

impl Namespace {
    /// Judges a command about scripts.
    #[must_use]
    pub fn judge_script<'a>(&self, words: &[&'a [u8]], sandbox: &Sandbox) -> Judgement<'a> {
        let Some(command) = look_up(words).filter(|command| command.takes(words.len())) else {
            // The server says what is wrong with it.
            return Judgement::Passes;
        };
        let judged = match command.name {
            "SCRIPT|EXISTS" => return self.exists(words, sandbox),
            "SCRIPT|LOAD" => self.load(command, words, sandbox),
            _ => self.run(command, words, sandbox),
        };
        judged.unwrap_or_else(Judgement::Refused)
    }

    fn run<'a>(
        &self,
        command: &'static Command,
        words: &[&'a [u8]],
        sandbox: &Sandbox,
    ) -> Result<Judgement<'a>, Refusal> {
        let by_sha = command.name.starts_with("EVALSHA");
        if !has_its_keys(&words[2..]) {
            // The server refuses it, and looks at the script only then.
            let mut becomes: Vec<Cow<'a, [u8]>> = borrowed(words);
            becomes[1] = Cow::Borrowed(if by_sha { &NO_SHA[..] } else { b"return" });
            return Ok(Judgement::Becomes(becomes, Shape::Plain));
        }
        let script = match (&self.scripts, by_sha) {
            (ScriptRule::Deny, _) => return Err(self.denied(command, words)),
            (ScriptRule::Trust, _) => None,
            (ScriptRule::TrustSome(trusted), _) => {
                self.trusted(command, words, trusted, by_sha)?;
                None
            }
            (ScriptRule::Sandbox, true) => {
                let known = sandbox.look_up(words[1]);
                Some(known.ok_or_else(|| told(command, NOT_KNOWN.to_owned()))?)
            }
            (ScriptRule::Sandbox, false) => {
                Some(sandbox.learn(words[1]).map_err(|text| told(command, text))?)
            }
        };
        let mut becomes = match self.by_names(command, words)? {
            Judgement::Becomes(becomes, _) => becomes,
            _ => borrowed(words),
        };
        let Some(script) = script else { return Ok(Judgement::Becomes(becomes, Shape::Plain)) };
        becomes[1] = sent(&script, by_sha);
        Ok(Judgement::Becomes(becomes, Shape::Script(script)))
    }

    fn load<'a>(
        &self,
        command: &'static Command,
        words: &[&'a [u8]],
        sandbox: &Sandbox,
    ) -> Result<Judgement<'a>, Refusal> {
        match &self.scripts {
            ScriptRule::Deny => return Err(self.denied(command, words)),
            ScriptRule::Trust => return Ok(Judgement::Passes),
            ScriptRule::TrustSome(trusted) => {
                self.trusted(command, &words[1..], trusted, false)?;
                return Ok(Judgement::Passes);
            }
            ScriptRule::Sandbox => {}
        }
        let script = sandbox.learn(words[2]).map_err(|text| told(command, text))?;
        let mut becomes = borrowed(words);
        becomes[2] = sent(&script, false);
        let reply = [b"$40\r\n", &script.sha[..], b"\r\n"].concat();
        Ok(Judgement::Becomes(becomes, Shape::Instead(reply)))
    }

    /// Of scripts that others have given the server nothing is told.
    fn exists<'a>(&self, words: &[&'a [u8]], sandbox: &Sandbox) -> Judgement<'a> {
        let mut becomes = borrowed(words);
        for sha in &mut becomes[2..] {
            let known = match &self.scripts {
                ScriptRule::Trust => continue,
                ScriptRule::TrustSome(trusted) if is_in(trusted, sha) => continue,
                ScriptRule::TrustSome(_) | ScriptRule::Deny => None,
                ScriptRule::Sandbox => sandbox.look_up(sha),
            };
            *sha = Cow::Owned(known.map_or(NO_SHA, |script| script.sent_sha).to_vec());
        }
        Judgement::Becomes(becomes, Shape::Plain)
    }

    fn trusted(
        &self,
        command: &'static Command,
        words: &[&[u8]],
        trusted: &BTreeSet<Box<str>>,
        by_sha: bool,
    ) -> Result<(), Refusal> {
        let sha =
            if by_sha { words[1].to_vec() } else { super::sandbox::hexadecimal(words[1]).to_vec() };
        if is_in(trusted, &sha) {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&sha).into_owned();
        let name = &self.name;
        let text = format!(
            "NOPERM the script {} is not trusted in namespace '{name}'",
            shown.escape_default()
        );
        Err(told(command, text))
    }

    fn denied(&self, command: &Command, words: &[&[u8]]) -> Refusal {
        let why = "runs a script, and the namespace has scripts = \"deny\"";
        Refusal {
            ground: Ground::Script,
            ..self.refusal(Some(command), words, Ground::Command, why)
        }
    }
}

fn borrowed<'a>(words: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
    words.iter().map(|word| Cow::Borrowed(*word)).collect()
}

/// Whether the first of these words is a number as the server takes one, and so many follow.
fn has_its_keys(words: &[&[u8]]) -> bool {
    let Some((count, keys)) = words.split_first() else { return false };
    let plain = *count == b"0" || matches!(count.first(), Some(b'1'..=b'9'));
    let number =
        std::str::from_utf8(count).ok().filter(|_| plain).and_then(|text| text.parse().ok());
    number.is_some_and(|number: usize| number <= keys.len())
}

fn sent(script: &Arc<Script>, by_sha: bool) -> Cow<'static, [u8]> {
    Cow::Owned(if by_sha { script.sent_sha.to_vec() } else { script.sent.to_vec() })
}

fn is_in(trusted: &BTreeSet<Box<str>>, sha: &[u8]) -> bool {
    std::str::from_utf8(sha).is_ok_and(|sha| trusted.contains(&*sha.to_ascii_lowercase()))
}

fn told(command: &'static Command, text: String) -> Refusal {
    Refusal { ground: Ground::Script, command: command.name, text }
}
