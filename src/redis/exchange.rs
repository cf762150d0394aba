//! Who is owed the next replies of a lane, in order.
//!
//! A lane writes the commands of many sessions one after another, and the server answers in that order. Each
//! debt is so many replies owed to one creditor. A creditor that has gone keeps its place: its replies still come
//! and must be skipped, or the next creditor would get them.

use std::collections::VecDeque;

/// So many replies owed to one creditor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt<T> {
    /// Who gets the replies.
    pub creditor: T,
    /// How many are still owed.
    pub replies: u32,
    /// Where its bytes begin in the stream written to the server, bytes since it was opened.
    pub begins: u64,
}

/// The replies a server owes, oldest first.
#[derive(Debug)]
pub struct Exchange<T> {
    debts: VecDeque<Debt<T>>,
}

impl<T> Default for Exchange<T> {
    fn default() -> Self {
        Self { debts: VecDeque::new() }
    }
}

impl<T> Exchange<T> {
    /// Whether nothing is owed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.debts.is_empty()
    }

    /// Notes that `debt.replies` replies will follow all that are owed so far.
    pub fn owe(&mut self, debt: Debt<T>) {
        if debt.replies > 0 {
            self.debts.push_back(debt);
        }
    }

    /// The creditor of the next reply and how many in a row are its.
    #[must_use]
    pub fn front(&self) -> Option<(&T, u32)> {
        self.debts.front().map(|debt| (&debt.creditor, debt.replies))
    }

    /// Whether anybody is owed something for whom `is_it` does not hold.
    #[must_use]
    pub fn owes_other_than(&self, is_it: impl Fn(&T) -> bool) -> bool {
        self.debts.iter().any(|debt| !is_it(&debt.creditor))
    }

    /// Pays `replies` of the first creditor's, at most as many as [`Self::front`] said.
    pub fn pay(&mut self, replies: u32) {
        if let Some(debt) = self.debts.front_mut() {
            debt.replies = debt.replies.saturating_sub(replies);
            if debt.replies == 0 {
                self.debts.pop_front();
            }
        }
    }

    /// Takes everything apart at the death of the server: debts of which a byte was written before `written`
    /// may have been applied (`Fate::Ambiguous`), the others were never sent.
    pub fn settle(&mut self, written: u64) -> impl Iterator<Item = (Fate, Debt<T>)> + use<T> {
        std::mem::take(&mut self.debts).into_iter().map(move |debt| {
            let fate = if debt.begins < written { Fate::Ambiguous } else { Fate::Unsent };
            (fate, debt)
        })
    }
}

/// What may have become of a command whose server went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Some of it was sent: it may or may not have been applied.
    Ambiguous,
    /// No byte was sent: it can be sent elsewhere.
    Unsent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pays_in_order_and_settles_by_what_was_written() {
        let mut exchange = Exchange::default();
        exchange.owe(Debt { creditor: 'a', replies: 2, begins: 0 });
        exchange.owe(Debt { creditor: 'b', replies: 0, begins: 5 });
        exchange.owe(Debt { creditor: 'b', replies: 1, begins: 10 });
        exchange.owe(Debt { creditor: 'a', replies: 1, begins: 20 });
        assert_eq!(exchange.front(), Some((&'a', 2)));
        exchange.pay(1);
        assert_eq!(exchange.front(), Some((&'a', 1)));
        exchange.pay(1);
        assert_eq!(exchange.front(), Some((&'b', 1)));
        let fates: Vec<_> = exchange.settle(20).map(|(fate, debt)| (fate, debt.creditor)).collect();
        assert_eq!(fates, [(Fate::Ambiguous, 'b'), (Fate::Unsent, 'a')]);
        assert!(exchange.is_empty());
    }
}
