//! What `currval()` and `lastval()` would say on a connection that many sessions use: never another session's value.
//!
//! The server keeps, for each of its sessions, the value each sequence gave last. Nobody pays for that until a session of
//! the pool asks for such a value; from then on DISCARD SEQUENCES rides ahead where the connection changes hands.

/// What is known of a connection's sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sequences {
    /// Whose transactions the connection ran last.
    session: Option<i32>,
    whose: Whose,
    draw: Draw,
}

/// Whose values the server may give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Whose {
    /// The session's own, if any.
    #[default]
    Own,
    /// Perhaps those of sessions before it.
    Foreign,
}

/// Who had the connection before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nobody else, since it was as after login.
    Nobody,
    Another,
}

/// What a session did with sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Draw {
    /// Nothing.
    #[default]
    None,
    /// It may have drawn from one, and may ask which value it got.
    Drawn,
    /// It has asked.
    Read,
}

impl Sequences {
    /// A session takes the connection.
    pub(super) fn begin(&mut self, session: i32) -> Before {
        self.draw = Draw::None;
        match self.session.replace(session) {
            Some(other) if other != session => {
                self.whose = Whose::Foreign;
                Before::Another
            }
            _ => Before::Nobody,
        }
    }

    /// The session may draw a value.
    pub(super) fn draws(&mut self) {
        self.draw = Draw::Drawn;
    }

    /// The session asks for its latest value; tells whether others' must be discarded before. Not once it has drawn in
    /// the same transaction: its own would go, too.
    pub(super) fn reads(&mut self) -> bool {
        let drawn = std::mem::replace(&mut self.draw, Draw::Read) == Draw::Drawn;
        !drawn && self.whose == Whose::Foreign
    }

    /// Whether the session would be told what was given to another, if it asked now.
    pub(super) fn would_leak(&self) -> bool {
        self.draw != Draw::Drawn && self.whose == Whose::Foreign
    }

    /// Others' values are discarded; tells whether there may have been any.
    pub(super) fn clean(&mut self) -> bool {
        std::mem::take(&mut self.whose) == Whose::Foreign
    }

    pub(super) fn take_draw(&mut self) -> Draw {
        std::mem::take(&mut self.draw)
    }
}
