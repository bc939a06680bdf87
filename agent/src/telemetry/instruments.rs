//! What the agent counts about its own work.

use std::time::Duration;

use anyhow::{Context, Result};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::names::{self, MetricFamily};
use crate::{
    model::{ReadinessKind, Rule},
    view::events::EventKind,
};

/// Bounds of the times of changes, in seconds.
const BOUNDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Bounds of the times of drains, in seconds.
const DRAIN_BOUNDS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// Where a document or change came from, as the label `source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Api,
    File,
}

/// Why a drain closed a connection, as the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    Idle,
    Deadline,
    Inbound,
}

/// The agent's own metrics: one value, shared by reference.
pub struct Instruments {
    registry: Registry,
    apply: Histogram,
    zero: Histogram,
    drain: Histogram,
    closed: IntCounterVec,
    errors: IntCounterVec,
    health: IntCounterVec,
    ejections: IntCounterVec,
    kernel: IntCounter,
    attachments: IntCounterVec,
    probes: IntCounterVec,
    probe_times: HistogramVec,
    late_probes: IntCounter,
    watchers: IntGauge,
    decisions: IntCounter,
    lost_decisions: IntCounter,
}

impl Instruments {
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let apply = histogram(names::CONFIG_APPLY_DURATION_SECONDS)?;
        let zero = histogram(names::ZERO_DURATION_SECONDS)?;
        let drain = names::DRAIN_DURATION_SECONDS;
        let drain = Histogram::with_opts(HistogramOpts::new(drain.name, drain.help).buckets(DRAIN_BOUNDS.to_vec()))
            .context("the histogram of drains")?;
        let closed =
            IntCounterVec::new(opts(names::DRAIN_CLOSED_CONNECTIONS_TOTAL), &["reason"]).context("a counter")?;
        for reason in [Closed::Idle, Closed::Deadline, Closed::Inbound] {
            closed.with_label_values(&[reason.name()]);
        }
        let errors = IntCounterVec::new(opts(names::CONFIG_ERRORS_TOTAL), &["source"]).context("a counter")?;
        let probes = IntCounterVec::new(opts(names::PROBES_TOTAL), &["kind", "result"]).context("a counter")?;
        let times = names::PROBE_DURATION_SECONDS;
        let times = HistogramOpts::new(times.name, times.help).buckets(BOUNDS.to_vec());
        let probe_times = HistogramVec::new(times, &["kind"]).context("the histogram of probes")?;
        for kind in [ReadinessKind::Tcp, ReadinessKind::Http, ReadinessKind::Exec].map(ReadinessKind::name) {
            ["success", "failure"].iter().for_each(|result| drop(probes.with_label_values(&[kind, result])));
        }
        let late_probes = IntCounter::with_opts(opts(names::PROBES_LATE_TOTAL)).context("a counter")?;
        let build = IntGaugeVec::new(opts(names::BUILD_INFO), &["version"]).context("a gauge")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for source in [Source::Api, Source::File] {
            errors.with_label_values(&[source.name()]);
        }
        registry.register(Box::new(apply.clone()))?;
        registry.register(Box::new(zero.clone()))?;
        registry.register(Box::new(drain.clone()))?;
        registry.register(Box::new(closed.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        registry.register(Box::new(probes.clone()))?;
        registry.register(Box::new(probe_times.clone()))?;
        registry.register(Box::new(late_probes.clone()))?;
        registry.register(Box::new(build))?;
        let health =
            IntCounterVec::new(opts(names::HEALTH_CHANGES_TOTAL), &["service", "reason"]).context("a counter")?;
        registry.register(Box::new(health.clone()))?;
        let ejections = IntCounterVec::new(opts(names::EJECTIONS_TOTAL), &["service", "rule"]).context("a counter")?;
        registry.register(Box::new(ejections.clone()))?;
        let kernel = IntCounter::with_opts(opts(names::KERNEL_ERRORS_TOTAL)).context("a counter")?;
        registry.register(Box::new(kernel.clone()))?;
        let attachments = IntCounterVec::new(opts(names::ATTACHMENTS_LOST_TOTAL), &["kind"]).context("a counter")?;
        for kind in ["program", "pin"] {
            attachments.with_label_values(&[kind]);
        }
        registry.register(Box::new(attachments.clone()))?;
        let watchers = IntGauge::with_opts(opts(names::MONITOR_WATCHERS)).context("a gauge")?;
        registry.register(Box::new(watchers.clone()))?;
        let decisions = IntCounter::with_opts(opts(names::MONITOR_DECISIONS_TOTAL)).context("a counter")?;
        registry.register(Box::new(decisions.clone()))?;
        let lost_decisions = IntCounter::with_opts(opts(names::MONITOR_LOST_TOTAL)).context("a counter")?;
        registry.register(Box::new(lost_decisions.clone()))?;
        Ok(Self {
            registry,
            apply,
            zero,
            drain,
            closed,
            errors,
            health,
            ejections,
            kernel,
            attachments,
            probes,
            probe_times,
            late_probes,
            watchers,
            decisions,
            lost_decisions,
        })
    }

    /// Records a change in force, with the time from its request to the kernel's acknowledgement.
    pub fn applied(&self, programmed_in: Duration) {
        self.apply.observe(programmed_in.as_secs_f64());
    }

    /// Records a zero in force, with the time from its request to the kernel's acknowledgement.
    pub fn zeroed(&self, programmed_in: Duration) {
        self.zero.observe(programmed_in.as_secs_f64());
    }

    /// Records the end of a drain, with the time from its request.
    pub fn drained(&self, took: Duration) {
        self.drain.observe(took.as_secs_f64());
    }

    /// Counts connections that a drain has closed.
    pub fn closed(&self, reason: Closed, connections: u64) {
        self.closed.with_label_values(&[reason.name()]).inc_by(connections);
    }

    /// Begins the counts of a service with rules at 0, so that its first ejection is seen as a growth.
    pub fn may_eject(&self, service: &str) {
        for rule in Rule::ALL {
            self.ejections.with_label_values(&[service, rule.name()]);
        }
    }

    /// Counts an ejection.
    pub fn ejected(&self, service: &str, rule: Rule) {
        self.ejections.with_label_values(&[service, rule.name()]).inc();
    }

    /// Counts a change or document that could not be used.
    pub fn refused(&self, source: Source) {
        self.errors.with_label_values(&[source.name()]).inc();
    }

    /// Counts a write to the tables or the store that failed.
    pub fn kernel_failed(&self) {
        self.kernel.inc();
    }

    /// Counts programs that were found detached, and pins that were found missing.
    pub fn lost_attachments(&self, programs: usize, pins: usize) {
        self.attachments.with_label_values(&["program"]).inc_by(programs as u64);
        self.attachments.with_label_values(&["pin"]).inc_by(pins as u64);
    }

    /// Counts backends whose health changed in this way, or a change of their service's panic.
    pub fn health_changed(&self, service: &str, change: EventKind, many: usize) {
        self.health.with_label_values(&[service, change.name()]).inc_by(many as u64);
    }

    /// Records a probe of this kind that has ended.
    pub fn probed(&self, kind: &str, succeeded: bool, took: Duration) {
        self.probes.with_label_values(&[kind, if succeeded { "success" } else { "failure" }]).inc();
        self.probe_times.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    /// Counts a probe that had to wait for others.
    pub fn late_probe(&self) {
        self.late_probes.inc();
    }

    /// Sets the number of watchers of decisions.
    pub fn watched_by(&self, watchers: usize) {
        self.watchers.set(i64::try_from(watchers).unwrap_or(i64::MAX));
    }

    /// Counts decisions that the programs told, and those that found no room.
    pub fn decided(&self, told: u64, lost: u64) {
        self.decisions.inc_by(told);
        self.lost_decisions.inc_by(lost);
    }

    /// Everything in the text format of Prometheus.
    ///
    /// # Errors
    /// When a metric cannot be written.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).context("writing the agent's own metrics")
    }
}

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::File => "file",
        }
    }
}

impl Closed {
    const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Deadline => "deadline",
            Self::Inbound => "inbound",
        }
    }
}

fn opts(family: MetricFamily) -> Opts {
    Opts::new(family.name, family.help)
}

fn histogram(family: MetricFamily) -> Result<Histogram> {
    let opts = HistogramOpts::new(family.name, family.help).buckets(BOUNDS.to_vec());
    Histogram::with_opts(opts).with_context(|| format!("the histogram {}", family.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_observed_is_written() {
        let instruments = Instruments::new().unwrap();
        instruments.applied(Duration::from_micros(300));
        instruments.zeroed(Duration::from_micros(80));
        instruments.refused(Source::Api);
        let text = instruments.text().unwrap();
        for line in [
            "sluice_config_apply_duration_seconds_bucket{le=\"0.0005\"} 1",
            "sluice_zero_duration_seconds_count 1",
            "sluice_config_errors_total{source=\"api\"} 1",
            "sluice_config_errors_total{source=\"file\"} 0",
            concat!("sluice_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
