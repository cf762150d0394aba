//! Scripts that a seed decides.

use super::Profile;
use super::chance::Chance;
use super::script::{Act, Command, Script, Step};
use super::words;

/// Steps of a script.
const STEPS: usize = 24;
const COMMANDS: usize = 50;

pub fn script(seed: u64, profile: &Profile) -> Script {
    let mut chance = Chance::new(seed);
    let sessions = profile.pool + 1 + chance.below(profile.more_sessions);
    // Sessions that may be inside a transaction: each keeps a server connection.
    let mut open = vec![false; sessions];
    let mut steps = Vec::new();
    for _ in 0..STEPS {
        let session = chance.below(sessions);
        let others_open = (0..sessions).filter(|&n| n != session && open[n]).count();
        // All but one connection may be held, and the steps of others need one of them.
        let may_stay = others_open + 2 < profile.pool;
        let alone = open.iter().all(|open| !open);
        let other = (session + 1 + chance.below(sessions - 1)) % sessions;
        let act = match chance.below(100) {
            0..2 if profile.pool > 1 && alone => {
                let (command, push) = words::wait(&mut chance);
                Act::Wait { command, other, push }
            }
            2..4 if profile.pool > 1 && alone => words_heard(&mut chance, other),
            4..6 => Act::Quit,
            _ => say(&mut chance, may_stay, &mut open[session]),
        };
        if matches!(act, Act::Quit) {
            open[session] = false;
        }
        steps.push(Step { session, act });
    }
    Script { sessions, steps }
}

fn words_heard(chance: &mut Chance, other: usize) -> Act {
    let channels = (0..1 + chance.below(3)).map(|n| words::line(&format!("c{n}"))).collect();
    let messages = (0..1 + chance.below(5))
        .map(|n| words::line(&format!("PUBLISH c{} m{n}", chance.below(4))))
        .collect();
    Act::Hear { channels, other, messages }
}

fn say(chance: &mut Chance, may_stay: bool, open: &mut bool) -> Act {
    let length = 1 + chance.below(COMMANDS);
    let mut commands: Vec<Command> = Vec::new();
    while commands.len() < length {
        match chance.below(100) {
            0..6 => commands.extend(words::transaction(chance)),
            6..8 => commands.extend(words::found_at_once(chance)),
            8..12 => commands.push(words::session(chance)),
            _ => commands.push(words::plain(chance)),
        }
    }
    let stays = may_stay && chance.often(15);
    if stays {
        commands.push(words::line(["MULTI", "WATCH k1", "WATCH k2 k3"][chance.below(3)]));
    } else {
        commands.push(words::line("DISCARD"));
        commands.push(words::line("UNWATCH"));
    }
    *open = stays;
    let piece = if chance.often(10) { 1 + chance.below(200) } else { 0 };
    Act::Say { commands, piece }
}
