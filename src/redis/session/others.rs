//! What a session says of its kin: CLIENT INFO, CLIENT LIST, CLIENT KILL.

use super::{Closing, Session, Word};
use crate::redis::clients::Filter;
use crate::redis::greeting::{Subscriptions, write_error};

impl Session {
    /// The list of clients shows what this one has told of itself.
    pub(super) fn note_client(&self) {
        self.upstream.clients.note(&self.identity, self.subscriptions());
    }

    fn subscriptions(&self) -> Subscriptions {
        self.subscribed.as_ref().map_or_else(Subscriptions::default, |one| one.counts())
    }

    /// Answers a command about clients; everything before it is answered.
    pub(super) fn tell_of_clients(&mut self, word: Word, words: &[&[u8]]) {
        let (id, rest) = (self.identity.id, words.get(2..).unwrap_or_default());
        self.upstream.metrics.requests.inc();
        self.note_client();
        match word {
            Word::Kill => self.kill(rest),
            Word::Info if !rest.is_empty() => {
                let text = "ERR wrong number of arguments for 'client|info' command";
                write_error(text, &mut self.out.bytes);
            }
            Word::Info => {
                let own = id.to_string();
                let filter = Filter::of_list(&[b"ID", own.as_bytes()]).unwrap_or_default();
                let text = self.upstream.clients.list(&filter, id, "client|info");
                self.identity.write_text(&text, &mut self.out.bytes);
            }
            _ => match Filter::of_list(rest) {
                Ok(filter) => {
                    let text = self.upstream.clients.list(&filter, id, "client|list");
                    self.identity.write_text(&text, &mut self.out.bytes);
                }
                Err(refusal) => write_error(refusal, &mut self.out.bytes),
            },
        }
    }

    fn kill(&mut self, words: &[&[u8]]) {
        let id = self.identity.id;
        let (filter, old_form) = match words {
            [] => {
                let text = "ERR wrong number of arguments for 'client|kill' command";
                return write_error(text, &mut self.out.bytes);
            }
            [address] => (Ok(Filter::at(address)), true),
            words => (Filter::of_kill(words, id), false),
        };
        let filter = match filter {
            Ok(filter) => filter,
            Err(refusal) => return write_error(refusal, &mut self.out.bytes),
        };
        let (count, own_too) = self.upstream.clients.kill(&filter, id);
        match (old_form, count) {
            (true, 0) => write_error("ERR No such client", &mut self.out.bytes),
            (true, _) => self.out.bytes.extend_from_slice(b"+OK\r\n"),
            (false, _) => self.out.bytes.extend_from_slice(format!(":{count}\r\n").as_bytes()),
        }
        if own_too {
            self.closing = Closing::AfterReplies;
        }
    }
}
