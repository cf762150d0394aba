//! Keys that somebody waits for without having tried them, because others wait for them already: what is of another type is refused.
//!
//! Where elements come all the time nobody waits long enough to be looked at.

use std::collections::{BTreeMap, HashSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::ask::ask_all;
use super::{Outcome, Spot, Station, Stations};
use crate::redis::pop::{KeyName, Kind};
use crate::redis::roster::Ticket;
use crate::redis::wire::write_command;

/// How long somebody waits before its keys are looked at.
const PAUSE: Duration = Duration::from_millis(10);

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// One look at the keys of those who came of late.
#[derive(Default)]
pub(super) enum Check {
    /// Nobody has come.
    #[default]
    Idle,
    /// Somebody has, who may be served any moment.
    Pausing(Pin<Box<Sleep>>),
    /// The server is asked for the types of these keys.
    Asked {
        waiters: BTreeMap<Ticket, Vec<KeyName>>,
        keys: Vec<KeyName>,
        types: Pin<Box<dyn Future<Output = Vec<u8>> + Send>>,
    },
}

impl Check {
    /// One step. Given up at any time, it goes on where it was.
    pub(super) async fn step(&mut self, stations: &Stations, spot: &Spot) {
        *self = match self {
            Self::Idle => {
                poll_fn(|cx| stations.poll(cx, spot, |one| !one.untried.is_empty())).await;
                Self::Pausing(Box::pin(sleep(PAUSE)))
            }
            Self::Pausing(pause) => {
                pause.as_mut().await;
                Self::ask(stations, spot).unwrap_or_default()
            }
            Self::Asked { waiters, keys, types } => {
                let types = types.await;
                let wrong = of_other_type(spot.class.kind(), keys, &types);
                waiters.retain(|_, keys| keys.iter().any(|key| wrong.contains(key)));
                stations.look(spot, |station| {
                    for ticket in waiters.keys() {
                        station.give_up(*ticket, Outcome::Failed(WRONG_TYPE.to_owned()));
                    }
                });
                Self::Idle
            }
        }
    }

    fn ask(stations: &Stations, spot: &Spot) -> Option<Self> {
        let take = |station: &mut Station| std::mem::take(&mut station.untried);
        let waiters = stations.look(spot, take)?;
        let way = stations.way(spot)?;
        let distinct: HashSet<KeyName> = waiters.values().flatten().cloned().collect();
        let keys: Vec<KeyName> = distinct.into_iter().collect();
        let count = u32::try_from(keys.len()).ok().filter(|count| *count > 0)?;
        let mut bytes = Vec::new();
        for key in &keys {
            write_command(&[b"TYPE".as_slice(), key], &mut bytes);
        }
        let types = Box::pin(ask_all(way, bytes, count, Arc::clone(&stations.backlog)));
        Some(Self::Asked { waiters, keys, types })
    }
}

/// Those of `keys` whose line in the answer names another type.
fn of_other_type<'a>(kind: Kind, keys: &'a [KeyName], types: &[u8]) -> HashSet<&'a KeyName> {
    let right: &[u8] = match kind {
        Kind::List => b"+list",
        Kind::Sorted => b"+zset",
    };
    let lines = types.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let wrong = |line: &[u8]| line.starts_with(b"+") && line != right && line != b"+none";
    keys.iter().zip(lines).filter(|(_, line)| wrong(line)).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_to_be_of_another_type_is() {
        let keys: Vec<KeyName> =
            ["a", "b", "c", "d", "e"].map(|key| KeyName::from(key.as_bytes())).to_vec();
        let types = b"+none\r\n+list\r\n-NOPERM no\r\n+string\r\n";
        let wrong = of_other_type(Kind::List, &keys, types);
        assert_eq!(wrong.into_iter().collect::<Vec<_>>(), [&keys[3]]);
    }
}
