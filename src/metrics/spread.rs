//! How times are spread: histograms over cells of our own, which cost a plain store where only one writes them, and are added up
//! when they are read.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Error, Registry};

use super::loans::add_alone;
use super::seconds;

/// Room for the limits below and what is beyond.
const CELLS: usize = 16;

/// Upper bounds in nanoseconds, ascending; fewer than there are cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits(pub(super) &'static [u64]);

impl Limits {
    fn cell(self, ns: u64) -> usize {
        self.0.iter().position(|limit| ns <= *limit).unwrap_or(self.0.len())
    }
}

/// Counts by size.
#[derive(Debug, Default)]
pub(super) struct Cells {
    counts: [AtomicU64; CELLS],
    sum_ns: AtomicU64,
}

impl Cells {
    /// One more, from any thread.
    pub(super) fn add(&self, limits: Limits, ns: u64) {
        self.counts[limits.cell(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// One more, where nobody else writes at the same time.
    pub(super) fn add_alone(&self, limits: Limits, ns: u64) {
        add_alone(&self.counts[limits.cell(ns)], 1);
        add_alone(&self.sum_ns, ns);
    }
}

/// Cells added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    counts: [u64; CELLS],
    sum_ns: u64,
}

impl Totals {
    pub(super) fn add(&mut self, cells: &Cells) {
        for (sum, count) in self.counts.iter_mut().zip(&cells.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        self.sum_ns += cells.sum_ns.load(Ordering::Relaxed);
    }

    /// So many that lasted for no time.
    pub(super) fn add_nothings(&mut self, count: u64) {
        self.counts[0] += count;
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn histogram(&self, limits: Limits) -> Histogram {
        let mut below = 0;
        let bucket = |(limit, count): (&u64, &u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(*limit));
            bucket.set_cumulative_count(below);
            bucket
        };
        let buckets = limits.0.iter().zip(&self.counts).map(bucket).collect();
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(self.count());
        histogram.set_sample_sum(seconds(self.sum_ns));
        histogram
    }
}

/// What brings a series up to now.
type Read = Box<dyn Fn() -> Totals + Send + Sync>;

/// A series: its labels, and what brings it up to now.
type Series = (Vec<LabelPair>, Read);

/// A family of histograms. Cheap to clone.
#[derive(Clone)]
pub(super) struct SpreadFamily {
    desc: Desc,
    limits: Limits,
    series: Arc<Mutex<Vec<Series>>>,
}

impl SpreadFamily {
    pub(super) fn register(
        registry: &Registry,
        (name, help): (&str, &str),
        limits: Limits,
        labels: &[&str],
    ) -> Result<Self, Error> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())?;
        let family = Self { desc, limits, series: Arc::default() };
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    /// One more series; once for the same values, which are in the order of the labels.
    pub(super) fn add(&self, values: &[&str], read: Read) {
        let pair = |(name, value): (&String, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut labels: Vec<_> = self.desc.variable_labels.iter().zip(values).map(pair).collect();
        labels.sort_by(|one, other| one.name().cmp(other.name()));
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.push((labels, read));
    }
}

impl Collector for SpreadFamily {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let metric = |(labels, read): &Series| {
            let mut metric = Metric::from_label(labels.clone());
            metric.set_histogram(read().histogram(self.limits));
            metric
        };
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(series.iter().map(metric).collect());
        vec![family]
    }
}

impl fmt::Debug for SpreadFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpreadFamily").field("name", &self.desc.fq_name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_any_histogram() {
        let registry = Registry::new();
        let limits = Limits(&[1_000_000, 2_000_000_000]);
        let family =
            SpreadFamily::register(&registry, ("t_seconds", "T."), limits, &["pool", "outcome"])
                .unwrap();
        let cells = Arc::new(Cells::default());
        let shared = Arc::clone(&cells);
        family.add(
            &["p", "ok"],
            Box::new(move || {
                let mut totals = Totals::default();
                totals.add(&shared);
                totals.add_nothings(2);
                totals
            }),
        );
        for ns in [1_000_000, 1_000_001, 3_000_000_000] {
            cells.add(limits, ns);
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let labels = "outcome=\"ok\",pool=\"p\"";
        let expected = format!(
            "# HELP t_seconds T.\n# TYPE t_seconds histogram\n\
             t_seconds_bucket{{{labels},le=\"0.001\"}} 3\n\
             t_seconds_bucket{{{labels},le=\"2\"}} 4\n\
             t_seconds_bucket{{{labels},le=\"+Inf\"}} 5\n\
             t_seconds_sum{{{labels}}} 3.002000001\n\
             t_seconds_count{{{labels}}} 5\n"
        );
        assert_eq!(text, expected);
    }
}
