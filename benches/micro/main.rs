//! What the pieces of the hot path cost, each by itself: nanoseconds, and instructions where callgrind is installed,
//! beside those of the committed baseline (`baseline.tsv`), so that a regression shows.
//!
//! ```text
//! cargo bench --bench micro                      all of them
//! cargo bench --bench micro -- redis             those whose name contains this
//! cargo bench --bench micro -- --keep            and the instructions become the baseline
//! ```
//!
//! Nanoseconds are of one machine, and of the moment. Instructions are the same each time with the same compiler, but where the
//! allocator, the clock or a map with a random seed takes part: those move by up to two per cent.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark"
)]

mod baseline;
mod counting;
mod pool;
mod postgres;
mod redis;
mod scram;

use std::time::Instant;

use tokio::runtime::Runtime;

/// The program's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Of which the median is shown.
const SAMPLES: usize = 25;
const SAMPLE_NS: u128 = 4_000_000;

/// Does its work once each time it is called.
pub(crate) type Operation = Box<dyn FnMut()>;

/// Something that is measured.
pub(crate) struct Case {
    /// Its room, and what is done.
    pub(crate) name: &'static str,
    /// All that is not to be measured.
    pub(crate) prepare: fn(&Runtime) -> Operation,
}

/// What was asked for.
#[derive(Default)]
struct Wishes {
    filter: String,
    keeping: Keeping,
}

#[derive(Default, PartialEq, Eq)]
enum Keeping {
    #[default]
    No,
    Yes,
}

fn main() {
    let wishes = wishes();
    let cases: Vec<Case> = all().filter(|case| case.name.contains(&wishes.filter)).collect();
    assert!(!cases.is_empty(), "no case's name contains {:?}", wishes.filter);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    if counting::is_child() {
        return counting::run(&cases, &runtime);
    }
    let before = baseline::read();
    let counts = counting::count(&cases, &wishes.filter);
    println!("{:<58} {:>10} {:>13} {:>9}", "", "ns", "instructions", "baseline");
    for (number, case) in cases.iter().enumerate() {
        let time_ns = time_ns(&mut (case.prepare)(&runtime));
        let count = counts.as_ref().map(|counts| counts[number]);
        let shown = count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let change = baseline::change(&before, case.name, count);
        println!("{:<58} {time_ns:>10.1} {shown:>13} {change:>9}", case.name);
    }
    match (&counts, wishes.keeping) {
        (None, _) => println!("\nno valgrind here: instructions are not counted"),
        (Some(counts), Keeping::Yes) => baseline::keep(before, &cases, counts),
        (Some(counts), Keeping::No) => baseline::tell_of_rises(&before, &cases, counts),
    }
}

fn all() -> impl Iterator<Item = Case> {
    postgres::CASES.into_iter().chain(scram::CASES).chain(redis::CASES).chain(pool::CASES)
}

fn wishes() -> Wishes {
    let mut wishes = Wishes::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // What cargo says to any benchmark.
            "--bench" => {}
            "--keep" => wishes.keeping = Keeping::Yes,
            option if option.starts_with('-') => panic!("there is no option {option}"),
            word => word.clone_into(&mut wishes.filter),
        }
    }
    wishes
}

/// The median of what one operation takes.
fn time_ns(operation: &mut Operation) -> f64 {
    let mut times = 1_u32;
    let elapsed_ns = |operation: &mut Operation, times| {
        let begin = Instant::now();
        for _ in 0..times {
            operation();
        }
        begin.elapsed().as_nanos()
    };
    while elapsed_ns(operation, times) < SAMPLE_NS {
        times *= 2;
    }
    let mut samples: Vec<u128> = (0..SAMPLES).map(|_| elapsed_ns(operation, times)).collect();
    samples.sort_unstable();
    samples[SAMPLES / 2] as f64 / f64::from(times)
}
