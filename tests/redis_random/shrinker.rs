//! Makes a script that shows a difference as short as it gets.

use super::script::{Act, Script};

/// Leaves out steps, then commands, first many at once, such that `fails` still holds.
pub fn shrink(script: &Script, mut fails: impl FnMut(&Script) -> bool) -> Script {
    let mut best = script.clone();
    loop {
        let before = best.commands();
        let count = best.steps.len();
        cut(&mut best, count, &mut fails, |script, from, to| {
            script.steps.drain(from..to);
        });
        for n in 0..best.steps.len() {
            let Act::Say { commands, .. } = &best.steps[n].act else { continue };
            // The last two end what holds a connection.
            let count = commands.len().saturating_sub(2);
            cut(&mut best, count, &mut fails, |script, from, to| {
                if let Act::Say { commands, .. } = &mut script.steps[n].act {
                    commands.drain(from..to);
                }
            });
        }
        if best.commands() == before {
            return best;
        }
    }
}

fn cut(
    best: &mut Script,
    mut count: usize,
    fails: &mut impl FnMut(&Script) -> bool,
    leave_out: impl Fn(&mut Script, usize, usize),
) {
    let mut chunk = count.div_ceil(2).max(1);
    loop {
        let mut end = count;
        while end > 0 {
            let start = end.saturating_sub(chunk);
            let mut candidate = best.clone();
            leave_out(&mut candidate, start, end);
            if fails(&candidate) {
                *best = candidate;
                count -= end - start;
            }
            end = start;
        }
        if chunk == 1 {
            return;
        }
        chunk = chunk.div_ceil(2);
    }
}
