//! Instructions: this program runs itself once more under callgrind, which counts between entry to and exit from one function.

use std::path::Path;
use std::process::Command;

use tokio::runtime::Runtime;

use super::{Case, Operation};

/// Set for the run under callgrind.
const CHILD: &str = "TIDEGATE_MICRO_CHILD";
/// What callgrind knows [`counted`] by.
const COUNTED: &str = "micro::counting::counted";
const TIMES: u64 = 200;
/// For the memory and the tables that the first calls make.
const WARM_UP: u64 = 100;

/// Whether this is the run under callgrind.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// What the run under callgrind does.
pub(crate) fn run(cases: &[Case], runtime: &Runtime) {
    for case in cases {
        let mut operation = (case.prepare)(runtime);
        for _ in 0..WARM_UP {
            operation();
        }
        counted(&mut operation);
    }
}

#[inline(never)]
fn counted(operation: &mut Operation) {
    for _ in 0..TIMES {
        operation();
    }
}

/// Instructions of one operation of each case; `None` without valgrind.
pub(crate) fn count(cases: &[Case], filter: &str) -> Option<Vec<u64>> {
    Command::new("valgrind").arg("--version").output().ok()?;
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("counts");
    let program = std::env::current_exe().unwrap();
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", report.display()))
        .arg(program)
        .args((!filter.is_empty()).then_some(filter))
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind: {said}");
    Some((1..=cases.len()).map(|number| total(&report, number) / TIMES).collect())
}

/// The reports come in the order of the cases.
fn total(report: &Path, number: usize) -> u64 {
    let path = format!("{}.{number}", report.display());
    let text = std::fs::read_to_string(path).expect("a report for each case");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.and_then(|total| total.trim().parse().ok()).expect("a report has a total")
}
