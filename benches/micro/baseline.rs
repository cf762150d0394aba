//! The instructions that each case took when that was last committed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Case;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/micro/baseline.tsv");

/// By the cases' names.
pub(crate) type Baseline = BTreeMap<String, u64>;

pub(crate) fn read() -> Baseline {
    let text = std::fs::read_to_string(PATH).unwrap_or_default();
    let row = |line: &str| {
        let (name, count) = line.split_once('\t')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

/// What the count is more than the baseline's, in per cent.
pub(crate) fn change(baseline: &Baseline, name: &str, count: Option<u64>) -> String {
    match (baseline.get(name), count) {
        (Some(&before), Some(count)) => {
            format!("{:+.1} %", (count as f64 / before as f64 - 1.0) * 100.0)
        }
        (None, Some(_)) => "new".to_owned(),
        (_, None) => String::new(),
    }
}

/// More than chance makes of a count.
const RISE: f64 = 1.03;

/// Says which cases take more than they did.
pub(crate) fn tell_of_rises(baseline: &Baseline, cases: &[Case], counts: &[u64]) {
    let rose = |name: &str, count: u64| {
        baseline.get(name).is_some_and(|&before| count as f64 > before as f64 * RISE)
    };
    let risen = cases.iter().zip(counts).filter(|(case, count)| rose(case.name, **count)).count();
    if risen > 0 {
        println!("\n{risen} of {} take more than 3 % more than the baseline", cases.len());
    }
}

/// The counts become the baseline; of cases that were not run it stays as it is.
pub(crate) fn keep(mut baseline: Baseline, cases: &[Case], counts: &[u64]) {
    baseline.retain(|name, _| super::all().any(|case| case.name == name));
    for (case, count) in cases.iter().zip(counts) {
        baseline.insert(case.name.to_owned(), *count);
    }
    let rows = super::all().filter_map(|case| Some((case.name, baseline.get(case.name)?)));
    let mut text = String::new();
    for (name, count) in rows {
        writeln!(text, "{name}\t{count}").unwrap();
    }
    std::fs::write(PATH, text).unwrap();
}
