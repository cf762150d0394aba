//! The metrics in the form that Prometheus remote write 1.0 has: a protobuf message, packed with snappy.

use prometheus::proto::{Metric, MetricFamily, MetricType};
use prost::Message as _;

/// Everything at one moment.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) timeseries: Vec<TimeSeries>,
}

/// One series, with the one value that it has now.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TimeSeries {
    /// By name, in order; the metric's own name is that of `__name__`.
    #[prost(message, repeated, tag = "1")]
    pub(super) labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sample {
    #[prost(double, tag = "1")]
    pub(super) value: f64,
    /// Milliseconds since 1970.
    #[prost(int64, tag = "2")]
    pub(super) timestamp: i64,
}

/// The body of a request: every sample of `families`, taken at `at_ms`, with the labels `external` besides its own.
pub(super) fn packed(
    families: &[MetricFamily],
    at_ms: i64,
    external: &[(&str, &str)],
) -> Result<Vec<u8>, snap::Error> {
    let request = request(families, at_ms, external);
    snap::raw::Encoder::new().compress_vec(&request.encode_to_vec())
}

fn request(families: &[MetricFamily], at_ms: i64, external: &[(&str, &str)]) -> WriteRequest {
    let mut series = Series { timeseries: Vec::new(), at_ms, external };
    for family in families {
        for metric in family.get_metric() {
            series.add(family.name(), family.get_field_type(), metric);
        }
    }
    WriteRequest { timeseries: series.timeseries }
}

struct Series<'a> {
    timeseries: Vec<TimeSeries>,
    at_ms: i64,
    external: &'a [(&'a str, &'a str)],
}

impl Series<'_> {
    fn add(&mut self, name: &str, kind: MetricType, metric: &Metric) {
        match kind {
            MetricType::COUNTER => self.push(name, metric, None, metric.get_counter().get_value()),
            MetricType::GAUGE => self.push(name, metric, None, metric.get_gauge().get_value()),
            MetricType::HISTOGRAM => self.add_histogram(name, metric),
            // There are none of these.
            MetricType::SUMMARY | MetricType::UNTYPED => {}
        }
    }

    fn add_histogram(&mut self, name: &str, metric: &Metric) {
        let histogram = metric.get_histogram();
        let buckets = format!("{name}_bucket");
        for bucket in histogram.get_bucket().iter().filter(|one| one.upper_bound().is_finite()) {
            let bound = bucket.upper_bound().to_string();
            self.push(&buckets, metric, Some(&bound), count(bucket.cumulative_count()));
        }
        let all = count(histogram.get_sample_count());
        self.push(&buckets, metric, Some("+Inf"), all);
        self.push(&format!("{name}_sum"), metric, None, histogram.get_sample_sum());
        self.push(&format!("{name}_count"), metric, None, all);
    }

    fn push(&mut self, name: &str, metric: &Metric, bound: Option<&str>, value: f64) {
        let own = metric.get_label().iter().map(|label| (label.name(), label.value()));
        let others = [("__name__", name)].into_iter().chain(bound.map(|bound| ("le", bound)));
        let mut labels: Vec<Label> = own
            .chain(others)
            .chain(self.external.iter().copied())
            .map(|(name, value)| Label { name: name.to_owned(), value: value.to_owned() })
            .collect();
        labels.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let samples = vec![Sample { value, timestamp: self.at_ms }];
        self.timeseries.push(TimeSeries { labels, samples });
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles, too")]
fn count(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, Outcome, Protocol, Reader};

    const EXTERNAL: [(&str, &str); 2] = [("instance", "web.1"), ("job", "tidegate")];

    fn shown(series: &TimeSeries) -> String {
        let labels = series.labels.iter();
        let labels: Vec<_> =
            labels.map(|label| format!("{}={}", label.name, label.value)).collect();
        format!("{} {} @{}", labels.join(","), series.samples[0].value, series.samples[0].timestamp)
    }

    #[test]
    fn every_sample_of_the_page_is_sent() {
        let metrics = Metrics::new().unwrap();
        let pool = metrics.pool(Protocol::Postgres, "p");
        pool.checkouts.inc_by(3);
        pool.times.wait_ended(0, 2_000_000_000, Outcome::Timeout);
        let body = packed(&metrics.gather(Reader::Push), 1_700_000_000_123, &EXTERNAL).unwrap();
        let bytes = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
        let request = WriteRequest::decode(bytes.as_slice()).unwrap();
        let shown: Vec<String> = request.timeseries.iter().map(shown).collect();
        let page = metrics.render().unwrap();
        let samples = page.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(shown.len(), samples);
        let base = "instance=web.1,job=tidegate";
        for wanted in [
            format!(
                "__name__=tidegate_checkouts_total,{base},pool=p,protocol=postgres 3 @1700000000123"
            ),
            format!(
                "__name__=tidegate_checkout_wait_seconds_bucket,{base},le=2.5,outcome=timeout,pool=p,protocol=postgres 1 @1700000000123"
            ),
            format!(
                "__name__=tidegate_checkout_wait_seconds_bucket,{base},le=1,outcome=timeout,pool=p,protocol=postgres 0 @1700000000123"
            ),
            format!(
                "__name__=tidegate_checkout_wait_seconds_bucket,{base},le=+Inf,outcome=timeout,pool=p,protocol=postgres 1 @1700000000123"
            ),
            format!(
                "__name__=tidegate_checkout_wait_seconds_sum,{base},outcome=timeout,pool=p,protocol=postgres 2 @1700000000123"
            ),
            format!(
                "__name__=tidegate_pool_exhaustion_seconds,{base},pool=p,protocol=postgres inf @1700000000123"
            ),
        ] {
            assert!(shown.contains(&wanted), "{wanted} is not in\n{}", shown.join("\n"));
        }
        for series in &request.timeseries {
            let names: Vec<&str> = series.labels.iter().map(|label| label.name.as_str()).collect();
            assert!(names.is_sorted(), "{names:?}");
        }
    }

    /// The bytes of a message, written by hand from the definition of the format.
    #[test]
    fn a_message_has_the_fields_that_others_read() {
        let label = Label { name: "a".to_owned(), value: "b".to_owned() };
        let samples = vec![Sample { value: 1.0, timestamp: 5 }];
        let series = TimeSeries { labels: vec![label], samples };
        let bytes = WriteRequest { timeseries: vec![series] }.encode_to_vec();
        let sample = [0x12, 11, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 5];
        let label = [0x0a, 6, 0x0a, 1, b'a', 0x12, 1, b'b'];
        let wanted = [&[0x0a, 21][..], &label, &sample].concat();
        assert_eq!(bytes, wanted);
    }
}
