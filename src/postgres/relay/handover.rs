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
        let channel = body.get(4..).and_then(wire::cstr).map(|(channel, _)| channel);
        match &self.handover {
            Handover::Marked(marker) => {
                let told = body.get(4..).unwrap_or_default();
                if told == &**marker {
                    self.handover = Handover::Heard;
                    return false;
                }
                // Another session's, which is handed over at the same time.
                if channel.is_some() && channel == wire::cstr(marker).map(|(marker, _)| marker) {
                    return false;
                }
            }
            Handover::Heard | Handover::Ending => return false,
            Handover::None => {}
        }
        // What the hub brings it need not bring, too.
        let twice = channel.zip(ledger).is_some_and(|(name, ledger)| ledger.is_heard_for(name));
        !twice
    }

    /// A query of the handover has its end.
    pub(super) fn handover_answered(&mut self) {
        if self.handover == Handover::Ending {
            self.handover = Handover::None;
            self.news = Some(News::HandedOver);
        }
    }

    /// The server refused it. What came behind the marker is the hub's already: then the server is told again.
    pub(super) fn handover_failed(&mut self) {
        if self.handover == Handover::Ending {
            self.handover = Handover::Heard;
            return;
        }
        self.handover = Handover::None;
        self.news = Some(News::Kept);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::statements::ServerStatements;
    use super::super::Gate;
    use super::*;

    fn body(channel: &str, payload: &str) -> Vec<u8> {
        [&[0, 0, 0, 9], channel.as_bytes(), b"\0", payload.as_bytes(), b"\0"].concat()
    }

    #[test]
    fn between_the_markers_each_notification_has_one_way() {
        let mut line = Line::new(ServerStatements::new(1, 10), &[]);
        let hears =
            |line: &mut Line, channel, payload| line.is_for_client(None, &body(channel, payload));
        assert!(hears(&mut line, "news", "1"));
        line.hand_over("marker", "7:1", &mut Vec::new());
        assert_eq!(line.gate(), Gate::Shut);
        assert!(hears(&mut line, "news", "2"), "the hub does not bring it yet");
        assert!(!hears(&mut line, "marker", "8:1"), "another session's marker");
        assert!(hears(&mut line, "news", "3"), "which is not ours");
        assert!(!hears(&mut line, "marker", "7:1"));
        assert!(!hears(&mut line, "news", "4"), "the hub brings it");
        assert!(!hears(&mut line, "marker", "8:2"));
        // An UNLISTEN of ours must not take what the client asks for meanwhile.
        assert!(!line.end_handover(&mut Vec::new()), "the marker's query has no answer yet");
        line.exchange.replied(b'Z', b'I').unwrap();
        assert_eq!(line.gate(), Gate::Shut);
        assert!(line.end_handover(&mut Vec::new()));
        line.exchange.replied(b'Z', b'I').unwrap();
        assert_eq!(line.gate(), Gate::Shut);
        line.handover_answered();
        assert_eq!(line.gate(), Gate::Open);
    }

    #[test]
    fn a_connection_that_would_not_end_is_told_again() {
        let mut line = Line::new(ServerStatements::new(1, 10), &[]);
        line.hand_over("marker", "7:1", &mut Vec::new());
        assert!(!line.is_for_client(None, &body("marker", "7:1")));
        line.exchange.replied(b'Z', b'I').unwrap();
        assert!(line.end_handover(&mut Vec::new()));
        let error = crate::postgres::message::ErrorFields::error("57014", "canceled");
        let mut answer = crate::postgres::message::error_frame(&error);
        answer.extend_from_slice(b"Z\0\0\0\x05I");
        let given = super::super::replies(&mut line, &mut None, &mut answer).unwrap();
        assert_eq!((given.relay, line.take_news().is_none()), (0, true));
        assert!(!line.is_for_client(None, &body("news", "1")), "the hub brings it");
        let mut out = Vec::new();
        assert!(line.end_handover(&mut out));
        assert_eq!(out, message::query("UNLISTEN *"));
        let given = super::super::replies(
            &mut line,
            &mut None,
            &mut b"C\0\0\0\x0dUNLISTEN\0Z\0\0\0\x05I".to_vec(),
        );
        assert_eq!(given.unwrap().relay, 0);
        assert!(matches!(line.take_news(), Some(News::HandedOver)));
        assert_eq!(line.gate(), Gate::Open);
    }
}
