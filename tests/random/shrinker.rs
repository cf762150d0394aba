//! Makes a script that shows a difference as short as it gets.

use super::script::{Act, Script, can_be_cut};

/// Leaves out whatever can be left out of `script` such that `fails` still holds; tries at most `tries` scripts.
pub fn shrink(script: &Script, mut tries: usize, mut fails: impl FnMut(&Script) -> bool) -> Script {
    let mut best = script.clone();
    loop {
        let before = size(&best);
        let mut attempt = |candidate: Script| {
            if tries == 0 {
                return None;
            }
            tries -= 1;
            fails(&candidate).then_some(candidate)
        };
        cut_steps(&mut best, &mut attempt);
        cut_inside(&mut best, &mut attempt);
        calm(&mut best, &mut attempt);
        if size(&best) == before || tries == 0 {
            return best;
        }
    }
}

/// How much there is to a script.
fn size(script: &Script) -> (usize, usize, usize) {
    let messages = script.steps.iter().map(|step| match &step.act {
        Act::Say(segments) => segments.iter().map(Vec::len).sum(),
        _ => 1,
    });
    let shifts = script.steps.iter().filter(|step| step.shift.is_some()).count();
    (script.steps.len(), messages.sum(), shifts)
}

/// Whole steps: first many at once, then fewer, from the end.
fn cut_steps(best: &mut Script, attempt: &mut impl FnMut(Script) -> Option<Script>) {
    let mut chunk = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut end = best.steps.len();
        while end > 0 {
            let start = end.saturating_sub(chunk);
            let mut candidate = best.clone();
            candidate.steps.drain(start..end.min(best.steps.len()));
            if let Some(shorter) = attempt(candidate) {
                *best = shorter;
            }
            end = start;
        }
        if chunk == 1 {
            return;
        }
        chunk = chunk.div_ceil(2);
    }
}

/// Segments of a step, and messages of a segment but its last.
fn cut_inside(best: &mut Script, attempt: &mut impl FnMut(Script) -> Option<Script>) {
    for at in (0..best.steps.len()).rev() {
        let Act::Say(segments) = &best.steps[at].act else { continue };
        for n in (0..segments.len()).rev() {
            let Act::Say(segments) = &best.steps[at].act else { continue };
            if segments.len() > 1 {
                let mut candidate = best.clone();
                if let Act::Say(segments) = &mut candidate.steps[at].act {
                    segments.remove(n);
                }
                if let Some(shorter) = attempt(candidate) {
                    *best = shorter;
                    continue;
                }
            }
            cut_messages(best, at, n, attempt);
        }
    }
}

fn cut_messages(
    best: &mut Script,
    at: usize,
    n: usize,
    attempt: &mut impl FnMut(Script) -> Option<Script>,
) {
    let Act::Say(segments) = &best.steps[at].act else { return };
    if !can_be_cut(&segments[n]) {
        return;
    }
    for m in (0..segments[n].len().saturating_sub(1)).rev() {
        let mut candidate = best.clone();
        if let Act::Say(segments) = &mut candidate.steps[at].act {
            segments[n].remove(m);
        }
        if let Some(shorter) = attempt(candidate) {
            *best = shorter;
        }
    }
}

/// No moves and no special logins where they are not needed.
fn calm(best: &mut Script, attempt: &mut impl FnMut(Script) -> Option<Script>) {
    for at in 0..best.steps.len() {
        if best.steps[at].shift.is_some() {
            let mut candidate = best.clone();
            candidate.steps[at].shift = None;
            if let Some(calmer) = attempt(candidate) {
                *best = calmer;
            }
        }
    }
    for s in 0..best.sessions.len() {
        if best.sessions[s] != 0 {
            let mut candidate = best.clone();
            candidate.sessions[s] = 0;
            if let Some(calmer) = attempt(candidate) {
                *best = calmer;
            }
        }
    }
}
