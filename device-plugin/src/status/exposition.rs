//! The text format of Prometheus (exposition format 0.0.4).

use std::fmt::{Display, Write};
use std::time::Duration;

/// Content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of a [`Histogram`]'s buckets, in seconds.
const BOUNDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Names and values.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// How long something took, each time.
#[derive(Debug, Clone, Default)]
pub(super) struct Histogram {
    /// How many there are between one bound and the next.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    pub(super) fn record(&mut self, took: Duration) {
        let bucket = self.buckets.iter_mut().zip(BOUNDS).find(|(_, bound)| took.as_secs_f64() <= *bound);
        if let Some((bucket, _)) = bucket {
            *bucket += 1;
        }
        self.count += 1;
        self.sum += took;
    }
}

/// A text being written, family after family.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

/// A metric and its samples.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Exposition {
    pub(super) fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "counter", help)
    }

    pub(super) fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "gauge", help)
    }

    pub(super) fn histogram<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "histogram", help)
    }

    fn family<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Family<'a> {
        // Writing to a text cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.line("", labels, None, value);
    }

    pub(super) fn distribution(&mut self, labels: Labels<'_>, histogram: &Histogram) {
        let mut below = 0;
        for (count, bound) in histogram.buckets.iter().zip(BOUNDS) {
            below += count;
            self.line("_bucket", labels, Some(&bound.to_string()), below);
        }
        self.line("_bucket", labels, Some("+Inf"), histogram.count);
        self.line("_sum", labels, None, histogram.sum.as_secs_f64());
        self.line("_count", labels, None, histogram.count);
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let labels: Vec<String> = all.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_labels() {
        let mut text = Exposition::default();
        text.gauge("pools", "How many.").sample(&[], 2);
        let mut family = text.counter("seen", "Which.");
        family.sample(&[("name", "a\"b\\c\nd"), ("n", "1")], 7);
        let expected = "# HELP pools How many.\n# TYPE pools gauge\npools 2\n\
            # HELP seen Which.\n# TYPE seen counter\nseen{name=\"a\\\"b\\\\c\\nd\",n=\"1\"} 7\n";
        assert_eq!(text.into_text(), expected);
    }

    #[test]
    fn buckets_add_up() {
        let mut histogram = Histogram::default();
        for milliseconds in [0, 1, 2, 9000] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        let mut text = Exposition::default();
        text.histogram("took", "Time.").distribution(&[("of", "x")], &histogram);
        let text = text.into_text();
        for line in [
            "took_bucket{of=\"x\",le=\"0.0001\"} 1",
            "took_bucket{of=\"x\",le=\"0.001\"} 2",
            "took_bucket{of=\"x\",le=\"2.5\"} 3",
            "took_bucket{of=\"x\",le=\"+Inf\"} 4",
            "took_sum{of=\"x\"} 9.003",
            "took_count{of=\"x\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
