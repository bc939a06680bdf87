//! The text format of Prometheus, written straight to where it goes.
//!
//! A host may have 100,000 backends and with them more than a million samples: the data model of a metrics library, with
//! its strings for every label, would take hundreds of megabytes for the moment of a scrape. The names that are labels
//! here are checked when documents are read; whatever else is a label value is escaped.
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::{
    fmt::Display,
    io::{Result, Write},
};

use super::names::MetricFamily;

/// Label names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Begins a family: everything of it must follow in one piece.
pub fn head(out: &mut dyn Write, family: MetricFamily) -> Result<()> {
    let MetricFamily { name, kind, help } = family;
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name())
}

/// One sample; `suffix` is `_sum` and the like.
pub fn sample(
    out: &mut dyn Write,
    family: MetricFamily,
    suffix: &str,
    labels: Labels<'_>,
    value: impl Display,
) -> Result<()> {
    write!(out, "{}{suffix}", family.name)?;
    for (i, (name, value)) in labels.iter().enumerate() {
        write!(out, "{}{name}=\"", if i == 0 { '{' } else { ',' })?;
        escape(out, value)?;
        out.write_all(b"\"")?;
    }
    writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" })
}

/// A histogram from counts per bucket. `bound` gives the upper bound of a bucket; the last bucket has none.
pub fn histogram(
    out: &mut dyn Write,
    family: MetricFamily,
    labels: Labels<'_>,
    buckets: &[u64],
    bound: impl Fn(usize) -> f64,
    sum: f64,
) -> Result<()> {
    let mut count = 0;
    for (i, in_bucket) in buckets.iter().enumerate() {
        count += in_bucket;
        let le = if i + 1 == buckets.len() { "+Inf".to_owned() } else { bound(i).to_string() };
        let with_bound: Vec<_> = labels.iter().copied().chain([("le", le.as_str())]).collect();
        sample(out, family, "_bucket", &with_bound, count)?;
    }
    sample(out, family, "_sum", labels, sum)?;
    sample(out, family, "_count", labels, count)
}

fn escape(out: &mut dyn Write, value: &str) -> Result<()> {
    if !value.contains(['\\', '"', '\n']) {
        return out.write_all(value.as_bytes());
    }
    for c in value.chars() {
        match c {
            '\\' => out.write_all(b"\\\\")?,
            '"' => out.write_all(b"\\\"")?,
            '\n' => out.write_all(b"\\n")?,
            other => write!(out, "{other}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::names::{CONNECT_DURATION_SECONDS, CONNECTIONS};

    fn text(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn samples_are_escaped() {
        let line = text(|out| sample(out, CONNECTIONS, "", &[("service", "a\"b\\c\nd"), ("state", "active")], 3));
        assert_eq!(line, "sluice_connections{service=\"a\\\"b\\\\c\\nd\",state=\"active\"} 3\n");
        assert_eq!(text(|out| sample(out, CONNECTIONS, "", &[], 0.5)), "sluice_connections 0.5\n");
    }

    #[test]
    fn buckets_add_up() {
        let written = text(|out| {
            histogram(out, CONNECT_DURATION_SECONDS, &[("service", "a")], &[1, 0, 2], |i| 0.5 * (i + 1) as f64, 7.25)
        });
        assert_eq!(
            written.replace("sluice_connect_duration_seconds", "x"),
            "x_bucket{service=\"a\",le=\"0.5\"} 1\nx_bucket{service=\"a\",le=\"1\"} 1\nx_bucket{service=\"a\",le=\"+Inf\"} 3\n\
             x_sum{service=\"a\"} 7.25\nx_count{service=\"a\"} 3\n"
        );
    }
}
