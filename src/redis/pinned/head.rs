//! The first bytes of a reply, which tell what it is.

/// First bytes of a reply that are kept to tell what it is.
const HEAD: usize = 40;

/// The first bytes of a reply.
#[derive(Debug)]
pub(super) struct Head {
    bytes: [u8; HEAD],
    length: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self { bytes: [0; HEAD], length: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageKind {
    Message,
    Confirmation,
}

impl Head {
    pub(super) fn feed(&mut self, piece: &[u8]) {
        let take = piece.len().min(HEAD - self.length);
        self.bytes[self.length..self.length + take].copy_from_slice(&piece[..take]);
        self.length += take;
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.bytes.get(..3), Some([b'*' | b'$', b'-', b'1'] | [b'_', ..]))
    }

    /// What kind of pub/sub message begins like this: `*3 $7 message …`.
    pub(super) fn message_kind(&self) -> Option<MessageKind> {
        let text = &self.bytes[..self.length];
        let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
        let (_count, _length) = (lines.next()?, lines.next()?);
        match lines.next()? {
            b"message" | b"pmessage" | b"smessage" => Some(MessageKind::Message),
            b"subscribe" | b"psubscribe" | b"ssubscribe" | b"unsubscribe" | b"punsubscribe"
            | b"sunsubscribe" => Some(MessageKind::Confirmation),
            _ => None,
        }
    }
}
