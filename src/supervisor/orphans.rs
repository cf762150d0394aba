//! Who is left when the command has ended: its children that nobody waits for. They come to us instead of to process 1, so that
//! they can be named, and leave no zombies.

use std::fs;

use rustix::process::WaitOptions;

/// Most that are named.
const NAMED: usize = 10;

/// Has the descendants of ours that lose their parent come to us.
pub(super) fn adopt_all() {
    // Without it they go to process 1, unnamed.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "processes that the command leaves behind will not be named");
    }
}

/// The live processes that the ended command has left behind, by number and name, the first ten; none: the empty text.
#[must_use]
pub fn left_behind() -> String {
    reap();
    let ours = rustix::process::getpid().as_raw_nonzero().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let mut left: Vec<_> = stats.filter_map(|stat| child_of(&ours, &stat)).collect();
    let more = left.len().saturating_sub(NAMED);
    left.truncate(NAMED);
    if more > 0 {
        left.push(format!("and {more} more"));
    }
    left.join(", ")
}

/// Number and name of a process, if it lives and that is its parent; from its line in proc(5), `/proc/pid/stat`.
fn child_of(parent: &str, stat: &str) -> Option<String> {
    // The name may hold anything, brackets too.
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut rest = rest.split(' ');
    let lives = rest.next()? != "Z";
    (lives && rest.next()? == parent).then(|| format!("{pid} ({})", name.escape_debug()))
}

/// Waits for all that have ended.
pub(super) fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_names_a_child() {
        let line = "812 (puma: (a) 1) S 7 812 3 0 -1 4194560";
        assert_eq!(child_of("7", line).unwrap(), "812 (puma: (a) 1)");
        assert_eq!(child_of("8", line), None);
        assert_eq!(child_of("7", "812 (gone) Z 7 812 3"), None);
        assert_eq!(child_of("7", "812"), None);
    }
}
