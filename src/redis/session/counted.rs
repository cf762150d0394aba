//! PUBSUB NUMSUB and SHARDNUMSUB: the server sees one subscriber here, however many there are.
//!
//! Its count is right for all others. While the hub's own subscription to one of the channels is on its way there or back, nobody can
//! tell whether it is in the count: then the server is asked again. Inside MULTI the count stays the server's, and so does PUBLISH's:
//! to correct that would cost every PUBLISH its place in a pipeline.

use std::task::Context;

use super::{Amending, Remark, Session, Special};
use crate::redis::lane::{Submitted, Work};
use crate::redis::pubsub::{Hub, Kind, Presence};
use crate::redis::wire::write_command;

/// How often the server is asked.
const TRIES: u32 = 10;

/// What the server was asked.
pub(super) struct Question {
    kind: Kind,
    names: Vec<Box<[u8]>>,
    command: Vec<u8>,
    /// How the hub stood to each when it was sent.
    before: Vec<Presence>,
    tries: u32,
}

impl Question {
    fn presences(&self, hub: &Hub) -> Vec<Presence> {
        self.names.iter().map(|name| hub.presence(self.kind, name)).collect()
    }

    /// Whether the hub's own subscriptions are in the count, or not, for sure.
    fn is_settled(&self, now: &[Presence]) -> bool {
        let same = |(before, now): (&Presence, &Presence)| before.is_as_steady_as(*now);
        self.before.iter().zip(now).all(same)
    }
}

/// What there is to be done about PUBSUB with this subcommand.
pub(super) fn remark(subcommand: &[u8]) -> Remark {
    if kind(subcommand).is_some() { Remark::Subscribers } else { Remark::None }
}

fn kind(subcommand: &[u8]) -> Option<Kind> {
    match subcommand {
        word if word.eq_ignore_ascii_case(b"NUMSUB") => Some(Kind::Channel),
        word if word.eq_ignore_ascii_case(b"SHARDNUMSUB") => Some(Kind::Shard),
        _ => None,
    }
}

impl Session {
    /// Asks the server, with nothing owed.
    pub(super) fn count_subscribers(&mut self, cx: &Context<'_>, words: &[&[u8]]) -> Special {
        let mut command = Vec::new();
        write_command(words, &mut command);
        let before = self.upstream.hub.as_deref().zip(words.get(1).and_then(|word| kind(word)));
        let names =
            words.get(2..).unwrap_or_default().iter().map(|name| Box::from(*name)).collect();
        let question = before.map(|(hub, kind)| {
            let mut question = Question {
                kind,
                names,
                command: command.clone(),
                before: Vec::new(),
                tries: TRIES,
            };
            question.before = question.presences(hub);
            question
        });
        let work = Work { bytes: &command, silent: 0, replies: 1 };
        if self.room() == 0 || self.send(cx, work) != Submitted::Taken {
            return Special::Blocked;
        }
        self.amending = question.map(|question| Amending::Subscribers(Box::new(question)));
        Special::Taken
    }

    /// The reply is here whole.
    pub(super) fn recount(&mut self, cx: &Context<'_>, mut question: Box<Question>) {
        let Some(hub) = self.upstream.hub.clone() else { return };
        let now = question.presences(&hub);
        if !question.is_settled(&now) && question.tries > 1 && self.ask_again(cx, &question.command)
        {
            (question.before, question.tries) = (now, question.tries - 1);
            self.amending = Some(Amending::Subscribers(question));
            return;
        }
        if let Some(reply) = recounted(&self.out.bytes, &now) {
            self.out.bytes = reply;
        }
    }

    /// Sends the question once more; what was answered is nobody's.
    fn ask_again(&mut self, cx: &Context<'_>, command: &[u8]) -> bool {
        let work = Work { bytes: command, silent: 0, replies: 1 };
        if self.send(cx, work) != Submitted::Taken {
            return false;
        }
        let answered = std::mem::take(&mut self.out.bytes).len();
        self.mailbox.note_taken(answered);
        self.settle_backlog();
        true
    }
}

/// The reply with other counts, one for each name; `None` if it is another kind of reply.
fn recounted(reply: &[u8], presences: &[Presence]) -> Option<Vec<u8>> {
    let (header, mut rest) = line(reply)?;
    if header != format!("*{}", presences.len() * 2).as_bytes() {
        return None;
    }
    let mut out = Vec::with_capacity(reply.len() + presences.len());
    out.extend_from_slice(&reply[..reply.len() - rest.len()]);
    for presence in presences {
        let (length, behind) = line(rest)?;
        let length: usize = number(length.strip_prefix(b"$")?)?;
        let (count, next) = line(behind.get(length + 2..)?)?;
        let count: u64 = number(count.strip_prefix(b":")?)?;
        out.extend_from_slice(&rest[..rest.len() - behind.len() + length + 2]);
        out.extend_from_slice(format!(":{}\r\n", presence.correct(count)).as_bytes());
        rest = next;
    }
    rest.is_empty().then_some(out)
}

/// The first line, and what is behind it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((bytes.get(..end.checked_sub(1)?)?, &bytes[end + 1..]))
}

fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_is_corrected_and_other_replies_stay() {
        let presences = [Presence::Counted(3), Presence::Absent(0), Presence::Absent(2)];
        let told = |reply: &str| recounted(reply.as_bytes(), &presences);
        let reply = "*6\r\n$1\r\na\r\n:2\r\n$3\r\n\r\nb\r\n:1\r\n$0\r\n\r\n:0\r\n";
        let expected = "*6\r\n$1\r\na\r\n:4\r\n$3\r\n\r\nb\r\n:1\r\n$0\r\n\r\n:2\r\n";
        assert_eq!(told(reply), Some(expected.as_bytes().to_vec()));
        for other in ["-ERR no\r\n", "*0\r\n", "*6\r\n$1\r\na", "", &reply[..reply.len() - 4]] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
