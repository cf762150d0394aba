//! What clients do one after another.

use super::chance::Chance;

#[derive(Debug, Clone)]
pub enum Act {
    /// A new client comes, speaks this protocol, and sends this.
    Come(&'static str, String),
    /// The client of so many that wait goes without a word.
    Go(usize),
    /// Somebody else sends this.
    Push(String),
}

const ACTS: usize = 30;
/// Lists that are filled with several elements at a time.
const LISTS: &[&str] = &["a", "b", "c"];
/// What is moved from here goes to one of those. It is filled one by one: of two that are moved at once the second would find
/// those who wait for the first one served already.
const SOURCE: &str = "from";
const SETS: &[&str] = &["x", "y", "z"];

pub fn of(chance: &mut Chance) -> Vec<Act> {
    (0..ACTS)
        .map(|_| match chance.below(100) {
            0..55 => Act::Come(chance.pick(&["2", "3"]), wait(chance)),
            55..62 => Act::Go(chance.below(8)),
            _ => Act::Push(push(chance)),
        })
        .collect()
}

fn wait(chance: &mut Chance) -> String {
    let end = chance.pick(&["LEFT", "RIGHT"]);
    let other = chance.pick(&["LEFT", "RIGHT"]);
    let (lists, sets) = (keys(chance, LISTS), keys(chance, SETS));
    let count = 1 + chance.below(3);
    let [many, many_sets] = [&lists, &sets].map(|keys| keys.split(' ').count());
    let list = chance.pick(LISTS);
    match chance.below(12) {
        0 | 1 => format!("BLPOP {lists} 0"),
        2 | 3 => format!("BRPOP {lists} 0"),
        4 => format!("BLMPOP 0 {many} {lists} {end} COUNT {count}"),
        5 => format!("BLMPOP 0 {many} {lists} {end}"),
        6 => format!("BLMOVE {list} to {end} {other} 0"),
        7 => format!("BRPOPLPUSH {list} to 0"),
        8 => match chance.below(3) {
            0 => format!("BLMOVE {SOURCE} {list} {end} {other} 0"),
            1 => format!("BRPOP {list} {SOURCE} 0"),
            _ => format!("BLPOP {SOURCE} 0"),
        },
        9 => format!("BZPOPMIN {sets} 0"),
        10 => format!("BZPOPMAX {sets} 0"),
        _ => format!("BZMPOP 0 {many_sets} {sets} {} COUNT {count}", chance.pick(&["MIN", "MAX"])),
    }
}

/// One or several of `from`, in any order.
fn keys(chance: &mut Chance, from: &[&str]) -> String {
    let mut left = from.to_vec();
    let mut keys = Vec::new();
    while keys.is_empty() || (!left.is_empty() && chance.often(40)) {
        keys.push(left.remove(chance.below(left.len())));
    }
    keys.join(" ")
}

fn push(chance: &mut Chance) -> String {
    let name = chance.below(100_000);
    let count = 1 + chance.below(4);
    let side = chance.pick(&["LPUSH", "RPUSH"]);
    match chance.below(10) {
        0..6 => {
            let elements: Vec<String> = (0..count).map(|n| format!("e{name}-{n}")).collect();
            format!("{side} {} {}", chance.pick(LISTS), elements.join(" "))
        }
        6 => format!("{side} {SOURCE} e{name}"),
        _ => {
            let members: Vec<String> =
                (0..count).map(|n| format!("{} m{name}-{n}", chance.below(9))).collect();
            format!("ZADD {} {}", chance.pick(SETS), members.join(" "))
        }
    }
}
