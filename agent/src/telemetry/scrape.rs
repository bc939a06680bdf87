//! One scrape: the kernel's counters under the names of the configuration, then the agent's own metrics.
//!
//! Each family reads the counters anew: reading is a copy from mapped memory, and to hold the counters of 100,000
//! backends for the length of a scrape would cost more than to read them ten times.

use std::io::Write;

use anyhow::Result;
use sluice_common::{
    streak::FailureStreak,
    tables::{CONNECT_BUCKETS, Counters, DURATION_BUCKETS},
    verdict::Program,
};

use super::{
    Instruments,
    names::{self, MetricFamily},
    text::{Labels, head, histogram, sample},
};
use crate::{
    control::warmup::WHOLE,
    kernel::{
        gauges::{Gauges, REASONS},
        readings::Readings,
    },
    model::{Backend, Service},
    view::{
        batches,
        health::HealthStatus,
        published::{ProgrammedService, Published},
        share::{Observed, WindowPicks},
    },
};

/// What a scrape reads.
pub struct Scrape<'a> {
    pub published: &'a Published,
    pub readings: &'a dyn Readings,
    pub instruments: &'a Instruments,
}

impl Scrape<'_> {
    /// Writes all metrics.
    ///
    /// # Errors
    /// When the counters cannot be read, or when nobody takes what is written.
    pub fn write(&self, out: &mut dyn Write) -> Result<()> {
        self.traffic(out)?;
        self.failures(out)?;
        self.quality(out)?;
        self.durations(out)?;
        self.weights(out)?;
        self.shares(out)?;
        self.health(out)?;
        self.kernel(out)?;
        out.write_all(self.instruments.text()?.as_bytes())?;
        Ok(())
    }

    fn traffic(&self, out: &mut dyn Write) -> Result<()> {
        head(out, names::CONNECTIONS_TOTAL)?;
        self.each_backend(|service, backend, counters| {
            let group = service.groups.get(backend.group as usize).map_or("", |group| group.name.as_str());
            let labels: Labels<'_> =
                &[("service", service.name.as_str()), ("group", group), ("backend", backend.name.as_str())];
            Ok(sample(out, names::CONNECTIONS_TOTAL, "", labels, counters.picked)?)
        })?;
        head(out, names::CONNECTIONS)?;
        self.each_backend(|service, backend, counters| {
            let gauges = Gauges::of(counters);
            let [service, backend] = labels(service, backend);
            for (state, value) in [("connecting", gauges.connecting), ("active", gauges.active)] {
                sample(out, names::CONNECTIONS, "", &[service, backend, ("state", state)], value)?;
            }
            Ok(())
        })
    }

    fn failures(&self, out: &mut dyn Write) -> Result<()> {
        head(out, names::CONNECT_FAILURES_TOTAL)?;
        for service in self.published.state.services() {
            let labels: Labels<'_> = &[("service", service.name.as_str()), ("backend", ""), ("reason", "no_backend")];
            sample(out, names::CONNECT_FAILURES_TOTAL, "", labels, self.readings.no_backend(service.id)?)?;
        }
        self.each_used_backend(|service, backend, counters| {
            let [service, backend] = labels(service, backend);
            for (reason, count) in REASONS.iter().zip(counters.failed) {
                sample(out, names::CONNECT_FAILURES_TOTAL, "", &[service, backend, ("reason", reason.1)], count)?;
            }
            Ok(())
        })
    }

    fn quality(&self, out: &mut dyn Write) -> Result<()> {
        for (family, figure) in [
            (names::RESETS_TOTAL, (|counters| counters.resets) as fn(&Counters) -> u64),
            (names::RETRANSMITS_TOTAL, |counters| counters.retransmits),
        ] {
            head(out, family)?;
            self.each_used_backend(|service, backend, counters| {
                Ok(sample(out, family, "", &labels(service, backend), figure(counters))?)
            })?;
        }
        let early_resets =
            (names::EARLY_RESETS_TOTAL, (|streak| streak.early_resets_total) as fn(&FailureStreak) -> u64);
        for (family, figure) in [early_resets, (names::UNANSWERED_TOTAL, |watch| watch.unanswered)] {
            head(out, family)?;
            self.each_used_backend(|service, backend, _| {
                let streaks = self.readings.streaks(&[backend.id]);
                let total = streaks.first().map_or(0, figure);
                Ok(sample(out, family, "", &labels(service, backend), total)?)
            })?;
        }
        head(out, names::TURN_SECONDS)?;
        for service in self.published.state.services().filter(|service| service.health_policy.turn_time) {
            let ids: Vec<_> = service.backends.iter().map(|backend| backend.id).collect();
            for (backend, turns) in service.backends.iter().zip(self.readings.turns(&ids)) {
                let bound = |i: usize| (64_u64 << i) as f64 / 1e6;
                let buckets = turns.buckets.map(u64::from);
                let labels = labels(service, backend);
                histogram(out, names::TURN_SECONDS, &labels, &buckets, bound, turns.sum as f64 / 1e6)?;
            }
        }
        head(out, names::RTT_SECONDS)?;
        self.each_used_backend(|service, backend, counters| {
            let labels = labels(service, backend);
            sample(out, names::RTT_SECONDS, "_sum", &labels, counters.rtt_sum as f64 / 1e6)?;
            Ok(sample(out, names::RTT_SECONDS, "_count", &labels, counters.rtt_samples)?)
        })
    }

    /// Histograms by service: by backend they would be forty samples each.
    fn durations(&self, out: &mut dyn Write) -> Result<()> {
        let connect = |counters: &Counters| (counters.connect_time, counters.connect_sum as f64 / 1e6);
        let connect_bound = |i: usize| (64_u64 << i) as f64 / 1e6;
        self.histograms(out, names::CONNECT_DURATION_SECONDS, connect, connect_bound)?;
        let duration = |counters: &Counters| (counters.duration, counters.duration_sum as f64 / 1e3);
        let duration_bound = |i: usize| (1_u64 << (2 * i)) as f64 / 1e3;
        self.histograms(out, names::CONNECTION_DURATION_SECONDS, duration, duration_bound)
    }

    fn histograms(
        &self,
        out: &mut dyn Write,
        family: MetricFamily,
        read: impl Fn(&Counters) -> ([u32; BUCKETS], f64),
        bound: impl Fn(usize) -> f64 + Copy,
    ) -> Result<()> {
        head(out, family)?;
        self.each_service(|service, counters| {
            let (mut buckets, mut sum) = ([0_u64; BUCKETS], 0.0);
            for counters in counters {
                let (counts, seconds) = read(counters);
                sum += seconds;
                for (bucket, count) in buckets.iter_mut().zip(counts) {
                    *bucket += u64::from(count);
                }
            }
            if buckets.iter().any(|count| *count != 0) {
                histogram(out, family, &[("service", service.name.as_str())], &buckets, bound, sum)?;
            }
            Ok(())
        })
    }

    fn weights(&self, out: &mut dyn Write) -> Result<()> {
        head(out, names::BACKEND_WEIGHT)?;
        for service in self.published.state.services() {
            for backend in &service.backends {
                sample(out, names::BACKEND_WEIGHT, "", &labels(service, backend), backend.weight)?;
            }
        }
        head(out, names::BACKEND_EFFECTIVE_WEIGHT)?;
        for service in self.published.state.services() {
            let Some(table) = self.table(service) else { continue };
            for (backend, programmed) in service.backends.iter().zip(&table.backends) {
                let weight = programmed.effective_weight;
                sample(out, names::BACKEND_EFFECTIVE_WEIGHT, "", &labels(service, backend), weight)?;
            }
        }
        Ok(())
    }

    fn shares(&self, out: &mut dyn Write) -> Result<()> {
        const FAMILY: MetricFamily = names::TRAFFIC_SHARE_RATIO;
        head(out, FAMILY)?;
        self.each_service(|service, counters| {
            let Some(table) = self.table(service) else { return Ok(()) };
            let picked = counters.iter().map(|counters| counters.picked);
            let picks = WindowPicks::of(table.backends.iter().zip(picked));
            let total = WindowPicks::total(&picks);
            for ((backend, programmed), picks) in service.backends.iter().zip(&table.backends).zip(picks) {
                let [service, backend] = labels(service, backend);
                sample(out, FAMILY, "", &[service, backend, ("kind", "desired")], programmed.desired_share)?;
                sample(out, FAMILY, "", &[service, backend, ("kind", "programmed")], programmed.programmed_share)?;
                if let (Some(observed), Some(expected)) =
                    (Observed::of(picks.made, total).share, picks.expected_share(total))
                {
                    sample(out, FAMILY, "", &[service, backend, ("kind", "observed")], observed)?;
                    sample(out, FAMILY, "", &[service, backend, ("kind", "expected")], expected)?;
                }
            }
            Ok(())
        })
    }

    fn health(&self, out: &mut dyn Write) -> Result<()> {
        let state = &self.published.state;
        let backends = || state.services().flat_map(|service| service.backends.iter().map(move |b| (&**service, b)));
        head(out, names::BACKEND_HEALTHY)?;
        for (service, backend) in backends() {
            let healthy = u8::from(backend.is_healthy());
            sample(out, names::BACKEND_HEALTHY, "", &labels(service, backend), healthy)?;
        }
        head(out, names::BACKEND_UNHEALTHY)?;
        for (service, backend) in backends().filter(|(_, backend)| !backend.is_healthy()) {
            let [service, name] = labels(service, backend);
            for reason in HealthStatus::of(backend).into_iter().flat_map(|health| health.reasons) {
                let labels = [service, name, ("reason", reason.author.name())];
                sample(out, names::BACKEND_UNHEALTHY, "", &labels, 1)?;
            }
        }
        head(out, names::SERVICE_PANIC)?;
        for service in state.services() {
            let labels: Labels<'_> = &[("service", service.name.as_str())];
            sample(out, names::SERVICE_PANIC, "", labels, u8::from(state.panics(service)))?;
        }
        head(out, names::BACKEND_WARMUP_RATIO)?;
        for (service, backend) in backends() {
            if let Some(ramp) = self.published.ramps.get(backend.id) {
                let ratio = f64::from(ramp.part) / f64::from(WHOLE);
                sample(out, names::BACKEND_WARMUP_RATIO, "", &labels(service, backend), ratio)?;
            }
        }
        head(out, names::EJECTIONS_ACTIVE)?;
        for service in state.services().filter(|service| service.health_policy.outlier.is_some()) {
            let is_ejected = |backend: &&Backend| backend.health.as_ref().is_some_and(|h| h.ejection.is_some());
            let ejected = service.backends.iter().filter(is_ejected).count();
            sample(out, names::EJECTIONS_ACTIVE, "", &[("service", service.name.as_str())], ejected)?;
        }
        Ok(())
    }

    fn kernel(&self, out: &mut dyn Write) -> Result<()> {
        head(out, names::SIGNALS_LOST_TOTAL)?;
        sample(out, names::SIGNALS_LOST_TOTAL, "", &[], self.readings.signals_lost())?;
        head(out, names::PROGRAM_ATTACHED)?;
        for program in Program::ALL.iter().filter(|program| program.is_of_cgroup()) {
            let is_attached = !self.published.missing.programs.contains(program);
            sample(out, names::PROGRAM_ATTACHED, "", &[("program", program.name())], u8::from(is_attached))?;
        }
        head(out, names::VERDICTS_TOTAL)?;
        for (program, verdict, count) in self.readings.verdicts()? {
            let labels: Labels<'_> = &[("program", program.name()), ("verdict", verdict.name())];
            sample(out, names::VERDICTS_TOTAL, "", labels, count)?;
        }
        let state = &self.published.state;
        let limits = state.limits();
        // Node 0 is taken: it is the node of backends that name none.
        let tables = [
            ("services", state.service_count(), limits.services),
            ("backends", state.backend_count(), limits.backends),
            ("nodes", state.nodes().count() + 1, limits.nodes),
            ("frontends", state.frontend_count(), limits.frontends),
        ];
        head(out, names::MAP_ENTRIES)?;
        for (map, entries, _) in tables {
            sample(out, names::MAP_ENTRIES, "", &[("map", map)], entries)?;
        }
        head(out, names::MAP_MAX_ENTRIES)?;
        for (map, _, most) in tables {
            sample(out, names::MAP_MAX_ENTRIES, "", &[("map", map)], most)?;
        }
        head(out, names::CONFIG_GENERATION)?;
        Ok(sample(out, names::CONFIG_GENERATION, "", &[], state.revision())?)
    }

    /// The kernel's table of a service, if it was built from the service's current document.
    fn table(&self, service: &Service) -> Option<&ProgrammedService> {
        let table = self.published.programmed.get(&service.id)?;
        (table.generation == service.generation).then_some(table)
    }

    fn each_service(&self, act: impl FnMut(&Service, &[Counters]) -> Result<()>) -> Result<()> {
        batches::each_service(self.readings, self.published.state.services(), act)
    }

    fn each_backend(&self, mut act: impl FnMut(&Service, &Backend, &Counters) -> Result<()>) -> Result<()> {
        self.each_service(|service, counters| {
            service.backends.iter().zip(counters).try_for_each(|(backend, counters)| act(service, backend, counters))
        })
    }

    /// Hands backends that were ever used to `act`: the others have nothing to show, and may be many.
    fn each_used_backend(&self, mut act: impl FnMut(&Service, &Backend, &Counters) -> Result<()>) -> Result<()> {
        self.each_backend(
            |service, backend, counters| {
                if counters.opened == 0 { Ok(()) } else { act(service, backend, counters) }
            },
        )
    }
}

const BUCKETS: usize = CONNECT_BUCKETS;
const _: () = assert!(CONNECT_BUCKETS == DURATION_BUCKETS);

fn labels<'a>(service: &'a Service, backend: &'a Backend) -> [(&'static str, &'a str); 2] {
    [("service", service.name.as_str()), ("backend", backend.name.as_str())]
}
