//! What the server reports of its settings (ParameterStatus): a report that nothing in a transaction's words explains tells
//! of a setting that a function has changed. Source: PostgreSQL documentation, "Asynchronous Operations".

use super::super::wire;

/// What a server connection has reported.
#[derive(Debug, Default)]
pub(super) struct Reports {
    known: Vec<(Text, Text)>,
    /// What the running transaction has changed, as it was before.
    before: Vec<(Text, Option<Text>)>,
}

type Text = Box<[u8]>;

/// Whose change is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Ours,
    Session,
}

/// Whether a transaction has left a reported setting other than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    AsItWas,
    Changed,
}

impl Reports {
    /// As the server reported at login.
    pub(super) fn at_login(parameters: &[(String, String)]) -> Self {
        let known = parameters.iter().map(|(name, value)| (text(name), text(value))).collect();
        Self { known, before: Vec::new() }
    }

    /// A report: the body of a ParameterStatus.
    pub(super) fn hear(&mut self, body: &[u8], whose: Whose) {
        let parts = wire::cstr(body).and_then(|(name, rest)| Some((name, wire::cstr(rest)?.0)));
        let Some((name, value)) = parts else { return };
        let place = self.known.iter_mut().find(|(known, _)| **known == *name);
        let before = match place {
            Some((_, known)) => Some(std::mem::replace(known, value.into())),
            None => {
                self.known.push((name.into(), value.into()));
                None
            }
        };
        if whose == Whose::Session && !self.before.iter().any(|(known, _)| **known == *name) {
            self.before.push((name.into(), before));
        }
    }

    /// What was reported last of a parameter, if it is text.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let found = self.known.iter().find(|(known, _)| **known == *name.as_bytes());
        found.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// A transaction is over.
    pub(super) fn end(&mut self) -> Left {
        let mut left = Left::AsItWas;
        for (name, before) in self.before.drain(..) {
            let now = self.known.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
            if now != before.as_ref() {
                left = Left::Changed;
            }
        }
        left
    }
}

fn text(text: &str) -> Text {
    text.as_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_no_change() {
        let mut reports = Reports::at_login(&[("TimeZone".to_owned(), "UTC".to_owned())]);
        assert_eq!(reports.end(), Left::AsItWas);
        reports.hear(b"TimeZone\0Asia/Tokyo\0", Whose::Session);
        reports.hear(b"TimeZone\0UTC\0", Whose::Session);
        assert_eq!(reports.end(), Left::AsItWas);
        reports.hear(b"TimeZone\0Asia/Tokyo\0", Whose::Ours);
        assert_eq!(reports.end(), Left::AsItWas);
        reports.hear(b"TimeZone\0UTC\0", Whose::Session);
        assert_eq!(reports.end(), Left::Changed);
        assert_eq!(reports.end(), Left::AsItWas);
        reports.hear(b"search_path\0a\0", Whose::Session);
        assert_eq!(reports.end(), Left::Changed, "nobody knows what it was");
        reports.hear(b"half", Whose::Session);
        assert_eq!(reports.end(), Left::AsItWas);
    }
}
