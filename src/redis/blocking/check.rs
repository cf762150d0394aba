//! Keys that somebody waits for without having tried them, because others wait for them already: what is of another type is refused.
//!
//! Where elements come all the time nobody waits long enough to be looked at.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::ask::ask_all;
use super::{Floor, Outcome, Stations};
use crate::redis::pop::{KeyName, Kind};
use crate::redis::roster::Ticket;
use crate::redis::wire::write_command;

/// How long somebody waits before its keys are looked at.
const PAUSE: Duration = Duration::from_millis(10);

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// Looks at the keys of those who come, until nobody has come of late.
pub(super) async fn look_at_untried(stations: Arc<Stations>, floor: Floor) {
    loop {
        sleep(PAUSE).await;
        let look = stations.look(floor, |hall| (hall.take_untried(), hall.way.clone()));
        let Some((waiters, way)) = look.filter(|(waiters, _)| !waiters.is_empty()) else { return };
        let distinct: HashSet<&KeyName> = waiters.values().flatten().collect();
        let keys: Vec<KeyName> = distinct.into_iter().cloned().collect();
        let mut bytes = Vec::new();
        for key in &keys {
            write_command(&[b"TYPE".as_slice(), key], &mut bytes);
        }
        let Ok(count) = u32::try_from(keys.len()) else { continue };
        let types = ask_all(way, bytes, count, Arc::clone(&stations.backlog)).await;
        tell(&stations, floor, &waiters, &of_other_type(floor.kind, &keys, &types));
    }
}

/// Whoever waits for one of `wrong` is told so.
fn tell(
    stations: &Stations,
    floor: Floor,
    waiters: &BTreeMap<Ticket, Vec<KeyName>>,
    wrong: &HashSet<&KeyName>,
) {
    stations.look(floor, |hall| {
        for (ticket, keys) in waiters {
            if keys.iter().any(|key| wrong.contains(key)) {
                hall.give_up(*ticket, Outcome::Failed(WRONG_TYPE.to_owned()));
            }
        }
    });
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
