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

    /// Where the bytes begin for which the next reply comes.
    #[must_use]
    pub fn begins(&self) -> Option<u64> {
        self.debts.front().map(|debt| debt.begins)
    }

    /// Where the bytes begin of whoever is owed something behind the first.
    #[must_use]
    pub fn next_begins(&self) -> Option<u64> {
        self.debts.get(1).map(|debt| debt.begins)
    }

    /// Takes all debts: the server has gone.
    pub fn take(&mut self) -> VecDeque<Debt<T>> {
        std::mem::take(&mut self.debts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pays_in_order() {
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
        assert_eq!((exchange.begins(), exchange.next_begins()), (Some(10), Some(20)));
        let left: Vec<_> = exchange.take().into_iter().map(|debt| debt.creditor).collect();
        assert_eq!(left, ['b', 'a']);
        assert!(exchange.is_empty());
    }
}
