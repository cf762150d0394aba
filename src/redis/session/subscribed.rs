//! A session that has subscribed to channels at the hub.
//!
//! A SUBSCRIBE stays in the inbox until the server has confirmed all of it. Messages are written between two replies only. In
//! RESP2 a client that has subscribed may say little else; what the server would refuse then is refused here. Source: Redis
//! documentation, "Redis Pub/sub", "RESP protocol specification".

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{
    Carriage, End, Gate, Moved, Purpose, Reason, Session, Special, State, Tail, UNREAD_LIMIT, Word,
};
use crate::redis::command::{Command, look_up};
use crate::redis::greeting::{Proto, Subscriptions, write_error};
use crate::redis::namespace::IsPattern;
use crate::redis::pubsub::{Hub, Kind, Letters, Name, Settled};
use crate::redis::wire::{Arguments, write_command};

/// What a session has subscribed to; all of it is given up when this is dropped.
pub(in crate::redis) struct Subscribed {
    hub: Arc<Hub>,
    session: u64,
    letters: Arc<Letters>,
    names: [BTreeSet<Name>; 3],
    /// What the SUBSCRIBE in the inbox has asked for, and was not subscribed before.
    asked: Option<(Kind, Vec<Name>)>,
}

impl Subscribed {
    fn new(hub: &Arc<Hub>, session: u64) -> Self {
        let letters = hub.letters();
        Self { hub: Arc::clone(hub), session, letters, names: Default::default(), asked: None }
    }

    /// What the client is told behind the name: shard channels are counted apart.
    fn count(&self, kind: Kind) -> usize {
        let [channels, patterns, shards] = [0, 1, 2].map(|kind: usize| self.names[kind].len());
        match kind {
            Kind::Channel | Kind::Pattern => channels + patterns,
            Kind::Shard => shards,
        }
    }

    /// How many of each kind.
    pub(super) fn counts(&self) -> Subscriptions {
        Subscriptions([0, 1, 2].map(|kind: usize| self.names[kind].len()))
    }

    fn is_empty(&self) -> bool {
        self.names.iter().all(BTreeSet::is_empty)
    }

    fn of(&mut self, kind: Kind) -> &mut BTreeSet<Name> {
        &mut self.names[kind.place()]
    }

    fn ask(&mut self, kind: Kind, names: &[&[u8]]) {
        let mut fresh: Vec<Name> = Vec::new();
        for name in names {
            if !self.names[kind.place()].contains(*name) && !fresh.iter().any(|one| **one == **name)
            {
                fresh.push(Name::from(*name));
            }
        }
        for name in &fresh {
            self.hub.join(kind, name, self.session, &self.letters);
        }
        self.asked = Some((kind, fresh));
    }

    fn give_up_asked(&mut self) {
        if let Some((kind, names)) = self.asked.take() {
            names.iter().for_each(|name| self.hub.leave(kind, name, self.session));
            self.letters.forget(kind, &names);
        }
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.give_up_asked();
        for kind in Kind::ALL {
            for name in std::mem::take(self.of(kind)) {
                self.hub.leave(kind, &name, self.session);
            }
        }
    }
}

/// One of the six commands.
fn read_command(word: &[u8]) -> Option<(Kind, bool)> {
    Kind::ALL.into_iter().find_map(|kind| {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let joins = is(kind.subscribe());
        (joins || is(kind.unsubscribe())).then_some((kind, joins))
    })
}

fn write_change(proto: Proto, word: &str, name: Option<&[u8]>, count: usize, out: &mut Vec<u8>) {
    out.push(if proto == Proto::Resp3 { b'>' } else { b'*' });
    out.extend_from_slice(format!("3\r\n${}\r\n{word}\r\n", word.len()).as_bytes());
    match (name, proto) {
        (Some(name), _) => {
            out.extend_from_slice(format!("${}\r\n", name.len()).as_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(b"\r\n");
        }
        (None, Proto::Resp2) => out.extend_from_slice(b"$-1\r\n"),
        (None, Proto::Resp3) => out.extend_from_slice(b"_\r\n"),
    }
    out.extend_from_slice(format!(":{count}\r\n").as_bytes());
}

impl Session {
    /// Whether the client may say little but what is about its subscriptions.
    pub(super) fn listens_only(&self) -> bool {
        self.identity.proto == Proto::Resp2
            && self.subscribed.as_ref().is_some_and(|subscribed| !subscribed.is_empty())
    }

    /// SUBSCRIBE, UNSUBSCRIBE and their kin; everything before it is answered.
    pub(super) fn subscription(&mut self, cx: &mut Context<'_>, words: &[&[u8]]) -> Special {
        let Some(hub) = self.upstream.hub.clone() else {
            if self.gate.is_some() {
                let text = "ERR tidegate: a namespace can't subscribe over a single connection; raise redis.pool_size";
                write_error(text, &mut self.out.bytes);
                return Special::Taken;
            }
            self.hold(cx, Purpose::Hold(Reason::Subscription));
            return Special::Blocked;
        };
        let Some((name, rest)) = words.split_first() else { return Special::Taken };
        match read_command(name) {
            Some((kind, true)) if rest.is_empty() => {
                let name = kind.subscribe();
                let text = format!("ERR wrong number of arguments for '{name}' command");
                write_error(&text, &mut self.out.bytes);
            }
            Some((kind, true)) => return self.subscribe(cx, &hub, kind, rest),
            Some((kind, false)) => self.unsubscribe(cx, kind, rest),
            None => {}
        }
        self.upstream.metrics.requests.inc();
        Special::Taken
    }

    fn subscribe(
        &mut self,
        cx: &mut Context<'_>,
        hub: &Arc<Hub>,
        kind: Kind,
        names: &[&[u8]],
    ) -> Special {
        let (id, proto) = (self.identity.id, self.identity.proto);
        let fresh = || Box::new(Subscribed::new(hub, id));
        let subscribed = self.subscribed.get_or_insert_with(fresh);
        if subscribed.asked.is_none() {
            subscribed.ask(kind, names);
        }
        match subscribed.letters.poll_settled(cx) {
            Poll::Pending => return Special::Blocked,
            Poll::Ready(Settled::Refused(text)) => {
                subscribed.give_up_asked();
                write_error(&text, &mut self.out.bytes);
            }
            Poll::Ready(Settled::Confirmed) => {
                subscribed.asked = None;
                for name in names {
                    subscribed.of(kind).insert(Name::from(*name));
                    let count = subscribed.count(kind);
                    let shown = shown(&self.gate, kind, name);
                    write_change(proto, kind.subscribe(), Some(&shown), count, &mut self.out.bytes);
                }
            }
        }
        self.forget_if_nothing();
        self.upstream.metrics.requests.inc();
        // Messages may be here already.
        cx.waker().wake_by_ref();
        Special::Taken
    }

    fn unsubscribe(&mut self, cx: &mut Context<'_>, kind: Kind, names: &[&[u8]]) {
        let proto = self.identity.proto;
        let Some(subscribed) = &mut self.subscribed else {
            return self.unsubscribe_nothing(kind, names);
        };
        let names: Vec<Name> = match names {
            [] => subscribed.of(kind).iter().cloned().collect(),
            names => names.iter().map(|name| Name::from(*name)).collect(),
        };
        if names.is_empty() {
            let count = subscribed.count(kind);
            return write_change(proto, kind.unsubscribe(), None, count, &mut self.out.bytes);
        }
        for name in names {
            if subscribed.of(kind).remove(&name) {
                subscribed.hub.leave(kind, &name, subscribed.session);
            }
            // What came before is the client's.
            while let Poll::Ready(message) = subscribed.letters.poll_next(cx) {
                write_message(proto, message.frame(), &self.gate, &mut self.out.bytes);
            }
            let count = subscribed.count(kind);
            let out = &mut self.out.bytes;
            write_change(
                proto,
                kind.unsubscribe(),
                Some(&shown(&self.gate, kind, &name)),
                count,
                out,
            );
        }
        self.forget_if_nothing();
    }

    fn unsubscribe_nothing(&mut self, kind: Kind, names: &[&[u8]]) {
        let (proto, word, out) = (self.identity.proto, kind.unsubscribe(), &mut self.out.bytes);
        if names.is_empty() {
            write_change(proto, word, None, 0, out);
        }
        for name in names {
            write_change(proto, word, Some(&shown(&self.gate, kind, name)), 0, out);
        }
    }

    fn forget_if_nothing(&mut self) {
        if self.subscribed.as_ref().is_some_and(|one| one.is_empty() && one.asked.is_none()) {
            self.subscribed = None;
        }
        self.note_client();
    }

    /// A command of a client that may say little; everything before it is answered.
    pub(super) fn say_while_listening(
        &mut self,
        cx: &mut Context<'_>,
        words: &[&[u8]],
        how: Carriage,
    ) -> Special {
        let Some(command) = look_up(words) else {
            self.refuse_unknown(words);
            return Special::Taken;
        };
        match how {
            _ if !command.takes(words.len()) => {
                let name = command.name.to_ascii_lowercase();
                let text = format!("ERR wrong number of arguments for '{name}' command");
                write_error(&text, &mut self.out.bytes);
            }
            Carriage::Pinned(Reason::Subscription) => return self.subscription(cx, words),
            Carriage::Session(word @ (Word::Reset | Word::Quit)) => {
                return self.answer(cx, word, words);
            }
            _ if command.name == "PING" => self.pong(words),
            _ => self.refuse_while_listening(command),
        }
        Special::Taken
    }

    fn pong(&mut self, words: &[&[u8]]) {
        let out = &mut self.out.bytes;
        match words {
            [_] => out.extend_from_slice(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"),
            [_, word] => {
                let begins = format!("*2\r\n$4\r\npong\r\n${}\r\n", word.len());
                out.extend_from_slice(begins.as_bytes());
                out.extend_from_slice(word);
                out.extend_from_slice(b"\r\n");
            }
            _ => write_error("ERR wrong number of arguments for 'ping' command", out),
        }
    }

    fn refuse_while_listening(&mut self, command: &Command) {
        let name = command.name.to_ascii_lowercase();
        let text = format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET \
             are allowed in this context"
        );
        write_error(&text, &mut self.out.bytes);
    }

    fn refuse_unknown(&mut self, words: &[&[u8]]) {
        let shown = |word: &[u8]| {
            String::from_utf8_lossy(&word[..word.len().min(128)]).replace(['\r', '\n'], " ")
        };
        let (name, rest) = words.split_first().map_or((&b""[..], &[][..]), |(a, b)| (*a, b));
        let mut text = format!("ERR unknown command '{}', with args beginning with: ", shown(name));
        for word in rest {
            if text.len() > 160 {
                break;
            }
            text.push_str(&format!("'{}' ", shown(word)));
        }
        write_error(&text, &mut self.out.bytes);
    }

    /// Writes what has come, if the client is between two replies.
    ///
    /// # Errors
    /// When it has left too much unread.
    pub(super) fn read_letters(&mut self, cx: &mut Context<'_>) -> Result<Moved, End> {
        let Some(subscribed) = &self.subscribed else { return Ok(Moved::No) };
        if subscribed.letters.are_flooded() {
            self.upstream.metrics.clients_aborted.inc();
            tracing::warn!(
                pool = self.upstream.name(),
                limit_bytes = self.upstream.limits.reply_bytes_per_client,
                "disconnected a subscriber that does not read its messages, or whose channel is refused now"
            );
            return Err(End("flooded with messages"));
        }
        let between = match &self.state {
            State::Pinned(pinned, _) => pinned.is_between_replies(),
            State::Shared | State::Waiting(_) | State::Parked(_) => true,
        };
        if !between || self.tail == Tail::Partial || subscribed.asked.is_some() {
            return Ok(Moved::No);
        }
        let mut moved = Moved::No;
        while self.out.bytes.len() < UNREAD_LIMIT
            && let Poll::Ready(message) = subscribed.letters.poll_next(cx)
        {
            let before = self.out.bytes.len();
            write_message(self.identity.proto, message.frame(), &self.gate, &mut self.out.bytes);
            // One that is not for its namespace is not written.
            if self.out.bytes.len() > before {
                self.upstream.metrics.messages.inc();
            }
            moved = Moved::Yes;
        }
        Ok(moved)
    }
}

/// In RESP3 a message is a push, in RESP2 an array.
fn write_message(proto: Proto, message: &[u8], gate: &Option<Box<Gate>>, out: &mut Vec<u8>) {
    let kind = if proto == Proto::Resp3 { b'>' } else { b'*' };
    let Some(gate) = gate else {
        out.push(kind);
        return out.extend_from_slice(message.get(1..).unwrap_or_default());
    };
    let words: Vec<&[u8]> = Arguments::new(message).collect();
    let namespace = gate.namespace();
    let (word, pattern, channel, payload) = match words[..] {
        [word, channel, payload] => (word, None, channel, payload),
        [word, pattern, channel, payload] => (word, Some(pattern), channel, payload),
        _ => return,
    };
    let Some((channel, payload)) = namespace.message(channel, payload) else { return };
    let pattern = pattern.map(|pattern| namespace.outward(pattern, IsPattern::Yes));
    let mut shown: Vec<&[u8]> = vec![word];
    shown.extend(pattern.as_deref());
    shown.extend([&*channel, payload]);
    let from = out.len();
    write_command(&shown, out);
    if let Some(first) = out.get_mut(from) {
        *first = kind;
    }
}

/// What was subscribed to, in the client's words.
fn shown<'a>(gate: &Option<Box<Gate>>, kind: Kind, name: &'a [u8]) -> Cow<'a, [u8]> {
    let is_pattern = if kind == Kind::Pattern { IsPattern::Yes } else { IsPattern::No };
    gate.as_ref().map_or(Cow::Borrowed(name), |gate| gate.namespace().outward(name, is_pattern))
}
