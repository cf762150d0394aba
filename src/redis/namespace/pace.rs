//! How many commands a second the clients of a namespace may send together. Who is over it waits, in the order of coming.
//!
//! Commands have times, one behind the other; a second's worth of them may be taken ahead of time. Leave is taken for some commands
//! at once, and what of it was not used is given back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// Most commands that leave is taken for at once.
const BATCH: u64 = 256;
/// Who has to wait takes leave for what may be sent in this part of a second, so that it need not wait for each command.
const PART: u64 = 100;

/// A namespace's pace.
#[derive(Debug)]
pub struct Pace {
    /// From one command to the next, nanoseconds.
    interval: u64,
    /// For who has to wait.
    batch: u64,
    /// The time of the next command, nanoseconds.
    next: Mutex<u64>,
}

/// Leave for some commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    /// So long it is to be waited for.
    pub wait: Duration,
    /// For so many.
    pub commands: u32,
}

impl Pace {
    /// So many commands a second; nought is taken for one.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let rate = u64::from(per_second).clamp(1, SECOND);
        let batch = (rate / PART).clamp(1, BATCH);
        Self { interval: SECOND / rate, batch, next: Mutex::new(0) }
    }

    /// Takes leave for as many commands as may go `now`, or for the next ones.
    pub fn take(&self, now: Duration) -> Leave {
        let now = nanoseconds(now);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(now);
        let left = (now + SECOND).saturating_sub(*next) / self.interval;
        let commands = if left > 0 { left.min(BATCH) } else { self.batch };
        *next = next.saturating_add(commands * self.interval);
        let wait = next.saturating_sub(now + SECOND);
        Leave {
            wait: Duration::from_nanos(wait),
            commands: u32::try_from(commands).unwrap_or(u32::MAX),
        }
    }

    /// So many commands will not be sent, after all.
    pub fn give_back(&self, commands: u32) {
        self.shift(|next, time| next.saturating_sub(time), commands);
    }

    /// So many were sent without leave.
    pub fn overrun(&self, commands: u32) {
        self.shift(|next, time| next.saturating_add(time), commands);
    }

    fn shift(&self, by: impl Fn(u64, u64) -> u64, commands: u32) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = by(*next, u64::from(commands).saturating_mul(self.interval));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(1_000_000 + millis)
    }

    /// How many commands go until then, if each takes what it may.
    fn sent(pace: &Pace, until: u64, waiting: &mut Vec<(u64, u32)>) -> u32 {
        let mut sent = 0;
        for millis in 0..until {
            waiting.retain(|(when, commands)| {
                let due = *when <= millis;
                sent += if due { *commands } else { 0 };
                !due
            });
            while waiting.len() < 3 {
                let leave = pace.take(at(millis));
                if leave.wait.is_zero() {
                    sent += leave.commands;
                } else {
                    let when = millis + u64::try_from(leave.wait.as_millis()).unwrap() + 1;
                    waiting.push((when, leave.commands));
                }
            }
        }
        sent
    }

    #[test]
    fn a_second_may_be_taken_ahead_and_then_the_pace_holds() {
        for rate in [1, 7, 100, 5_000, 100_000] {
            let pace = Pace::new(rate);
            let sent = sent(&pace, 10_000, &mut Vec::new());
            assert!((rate * 10..=rate * 11 + 1).contains(&sent), "{rate}: {sent}");
        }
    }

    #[test]
    fn what_is_given_back_is_there_again() {
        let pace = Pace::new(100);
        let first = pace.take(at(0));
        assert_eq!(first, Leave { wait: Duration::ZERO, commands: 100 });
        assert_eq!(pace.take(at(0)), Leave { wait: Duration::from_millis(10), commands: 1 });
        pace.give_back(51);
        assert_eq!(pace.take(at(0)).commands, 50);
        pace.overrun(100);
        assert_eq!(pace.take(at(0)).wait, Duration::from_millis(1_010));
        // Long unused it is not worth more than a second.
        assert_eq!(pace.take(at(1_000_000)).commands, 100);
    }

    #[test]
    fn who_has_to_wait_waits_for_those_before() {
        let pace = Pace::new(2);
        pace.take(at(0));
        let waits: Vec<u128> = (0..4).map(|_| pace.take(at(0)).wait.as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 1_500, 2_000]);
    }
}
