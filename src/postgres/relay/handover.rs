//! How the hub takes over what a session listens to, on the session's side of it.
//!
//! A marker is notified that both hear: what the connection brings before it goes to the client, what it brings behind it
//! the hub brings, too. Then the connection listens no more.

use super::super::exchange::Owed;
use super::super::message;
use super::super::wire;
use super::{Ledger, Line, News};

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Handover {
    /// Not begun.
    None,
    /// The marker is sent: this channel and payload.
    Marked(Box<[u8]>),
    /// The marker has come.
    Heard,
    /// The connection is told to listen no more.
    Ending,
}

impl Line {
    /// Notifies the marker. Nothing of the client's passes until all is over: see [`Line::end_handover`].
    pub fn hand_over(&mut self, channel: &str, payload: &str, out: &mut Vec<u8>) {
        let words = format!("LISTEN {channel}; NOTIFY {channel}, '{payload}'");
        out.extend_from_slice(&message::query(&words));
        self.sent_ours(Owed::HandOver);
        self.handover = Handover::Marked(format!("{channel}\0{payload}\0").into_bytes().into());
    }

    /// Listens no more, once the marker has come; tells whether that is on the line and must be flushed.
    pub fn end_handover(&mut self, out: &mut Vec<u8>) -> bool {
        if self.handover != Handover::Heard || self.exchange.owed() > 0 {
            return false;
        }
        out.extend_from_slice(&message::query("UNLISTEN *"));
        self.sent_ours(Owed::HandOver);
        self.handover = Handover::Ending;
        true
    }

    /// A notification: whether it is for the client.
    pub(super) fn is_for_client(&mut self, ledger: Option<&Ledger>, body: &[u8]) -> bool {
        match &self.handover {
            Handover::Marked(marker) => {
                let told = body.get(4..).unwrap_or_default();
                if told == &**marker {
                    self.handover = Handover::Heard;
                    return false;
                }
                // Another session's marker.
                let channel = marker.split_inclusive(|byte| *byte == 0).next();
                if channel.is_some_and(|channel| told.starts_with(channel)) {
                    return false;
                }
            }
            Handover::Heard | Handover::Ending => return false,
            Handover::None => {}
        }
        let channel = body.get(4..).and_then(wire::cstr).map(|(channel, _)| channel);
        // What the hub brings it need not bring, too.
        let twice =
            channel.zip(ledger).is_some_and(|(name, ledger)| ledger.channels().contains(name));
        !twice
    }

    /// A query of the handover has its end.
    pub(super) fn handover_answered(&mut self) {
        if self.handover == Handover::Ending {
            self.handover = Handover::None;
            self.news = Some(News::HandedOver);
        }
    }

    /// The server refused it.
    pub(super) fn handover_failed(&mut self) {
        self.handover = Handover::None;
        self.news = Some(News::Kept);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::statements::ServerStatements;
    use super::*;

    #[test]
    fn no_marker_reaches_a_client() {
        let mut line = Line::new(ServerStatements::new(1, 8));
        line.hand_over("tidegate_x", "1:1", &mut Vec::new());
        assert!(!line.is_for_client(None, b"\0\0\0\x01tidegate_x\x002:1\0"), "another session's");
        assert!(line.is_for_client(None, b"\0\0\0\x01news\0before\0"));
        assert!(!line.is_for_client(None, b"\0\0\0\x01tidegate_x\x001:1\0"));
        assert!(!line.is_for_client(None, b"\0\0\0\x01news\0behind\0"), "the hub brings it");
    }
}
