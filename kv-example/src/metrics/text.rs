//! The text format of Prometheus (version 0.0.4), which every system of its kind reads.
//!
//! A family of numbers with one name has two lines that describe it, and one line for each number. That is all of the format, and what is
//! exposed is a snapshot that is made anew for each question, so a registry of live counters would be in the way.

use std::fmt::Write;
use std::time::Duration;

/// What the format is called in HTTP.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text to be.
#[derive(Debug, Default)]
pub(super) struct Text(String);

/// What a number is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Only grows, and begins at 0 when the process does.
    Counter,
    /// Goes up and down.
    Gauge,
    Histogram,
}

/// How long things took: how many up to each bound, without those up to the one before; the rest; and all together.
#[derive(Debug)]
pub(super) struct Latencies<'a> {
    pub(super) bounds: &'a [Duration],
    /// One more than there are bounds.
    pub(super) counts: &'a [u64],
    pub(super) sum: Duration,
}

impl Text {
    /// A family is about to come.
    pub(super) fn family(&mut self, kind: Kind, name: &str, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A family of one number.
    pub(super) fn one(&mut self, kind: Kind, name: &str, help: &str, value: u64) {
        self.family(kind, name, help);
        self.number(name, &[], value);
    }

    /// A family of numbers that differ in one label.
    pub(super) fn by(&mut self, kind: Kind, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        self.family(kind, name, help);
        for (which, value) in values {
            self.number(name, &[(label, which)], *value);
        }
    }

    /// A number of the present family.
    pub(super) fn number(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (n, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            _ = write!(self.0, "{}{label}=\"{value}\"", if n == 0 { '{' } else { ',' });
        }
        _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A histogram of the present family, in seconds.
    pub(super) fn latencies(&mut self, name: &str, label: Option<(&str, &str)>, latencies: &Latencies<'_>) {
        let bucket = format!("{name}_bucket");
        let bounds = latencies.bounds.iter().map(|bound| bound.as_secs_f64().to_string());
        let mut total = 0;
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(latencies.counts) {
            total += count;
            let labels: Vec<_> = label.into_iter().chain([("le", &*bound)]).collect();
            self.number(&bucket, &labels, total);
        }
        let labels: Vec<_> = label.into_iter().collect();
        self.number(&format!("{name}_sum"), &labels, latencies.sum.as_secs_f64());
        self.number(&format!("{name}_count"), &labels, total);
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_and_numbers_with_labels() {
        let mut text = Text::default();
        text.one(Kind::Gauge, "a", "One \\ line\nor two.", 7);
        text.by(Kind::Counter, "b_total", "Many.", "kind", &[("x", 1), ("y \"z\"\\\n", 2)]);
        assert_eq!(
            text.into_string(),
            "# HELP a One \\\\ line\\nor two.\n# TYPE a gauge\na 7\n# HELP b_total Many.\n# TYPE b_total counter\n\
             b_total{kind=\"x\"} 1\nb_total{kind=\"y \\\"z\\\"\\\\\\n\"} 2\n"
        );
    }

    #[test]
    fn a_histogram_adds_up() {
        let mut text = Text::default();
        let bounds = [Duration::from_micros(50), Duration::from_secs(1)];
        let latencies = Latencies { bounds: &bounds, counts: &[3, 0, 2], sum: Duration::from_millis(2500) };
        text.latencies("t_seconds", Some(("method", "Put")), &latencies);
        assert_eq!(
            text.into_string(),
            "t_seconds_bucket{method=\"Put\",le=\"0.00005\"} 3\nt_seconds_bucket{method=\"Put\",le=\"1\"} 3\n\
             t_seconds_bucket{method=\"Put\",le=\"+Inf\"} 5\nt_seconds_sum{method=\"Put\"} 2.5\nt_seconds_count{method=\"Put\"} 5\n"
        );
    }
}
