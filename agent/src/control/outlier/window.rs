//! The rules that compare what the backends of a service did in a window.

use crate::model::{BackendId, Outlier, Rule};

/// Counts of one backend; every field only grows while the id is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub established: u64,
    /// Refused and timed out. What a caller abandoned says nothing of the backend.
    pub failed: u64,
    /// Among the established: reset by the backend before its first byte.
    pub early_resets: u64,
    /// Sum of the connect times of established connections, us.
    pub connect_us: u64,
}

/// What one backend did in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowFigures {
    pub backend: BackendId,
    pub totals: Totals,
}

/// A rule, and the figures that broke it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub backend: BackendId,
    pub rule: Rule,
    pub message: String,
}

/// Least distance from the mean of an outlying success rate, in percent: where nearly everything succeeds the standard
/// deviation is next to nothing, and one failure in ten thousand would lie outside.
const RATE_MARGIN: f64 = 1.0;
/// The same for mean connect times, in us above the median: less is noise or another rack.
const CONNECT_MARGIN: f64 = 1000.0;

impl Totals {
    /// What was added since `before`; `None`: the id has another backend now.
    pub fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            established: self.established.checked_sub(before.established)?,
            failed: self.failed.checked_sub(before.failed)?,
            early_resets: self.early_resets.checked_sub(before.early_resets)?,
            connect_us: self.connect_us.checked_sub(before.connect_us)?,
        })
    }

    fn volume(&self) -> u64 {
        self.established + self.failed
    }

    fn failures(&self) -> u64 {
        // A reset connection may have been established in the window before.
        (self.failed + self.early_resets).min(self.volume())
    }

    /// Percent.
    fn success_rate(&self) -> f64 {
        100.0 - 100.0 * self.failures() as f64 / self.volume().max(1) as f64
    }

    /// Mean, us.
    fn connect_time(&self) -> f64 {
        self.connect_us as f64 / self.established.max(1) as f64
    }
}

/// The backends that break a rule, the worst first, each once.
pub fn broken(rules: &Outlier, figures: &[WindowFigures]) -> Vec<Broken> {
    let with_volume = |figures: &&WindowFigures| figures.totals.volume() >= u64::from(rules.minimum_volume.max(1));
    let figures: Vec<WindowFigures> = figures.iter().filter(with_volume).copied().collect();
    let mut found = failing(rules, &figures);
    if figures.len() >= rules.minimum_backends.max(2) as usize {
        found.extend(unlike_the_others(rules, &figures));
        found.extend(slow(rules, &figures));
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|broken| seen.insert(broken.backend));
    found
}

fn failing(rules: &Outlier, figures: &[WindowFigures]) -> Vec<Broken> {
    let most = u64::from(rules.failure_percentage);
    let mut failing: Vec<&WindowFigures> = figures
        .iter()
        .filter(|figures| most != 0 && figures.totals.failures() * 100 >= most * figures.totals.volume())
        .collect();
    failing.sort_by(|a, b| a.totals.success_rate().total_cmp(&b.totals.success_rate()));
    let broken = |figures: &&WindowFigures| {
        let (failures, volume) = (figures.totals.failures(), figures.totals.volume());
        let message = format!("{failures} of {volume} connections failed in {}: {most} % or more", rules.interval);
        Broken { backend: figures.backend, rule: Rule::FailurePercentage, message }
    };
    failing.iter().map(broken).collect()
}

/// Success rates below the mean minus a multiple of the standard deviation (of the population), as in Envoy's outlier
/// detection: <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier#success-rate>. As
/// there, the worst of n backends is at most (n - 1) / sqrt(n) deviations below the mean: with 5 backends a factor of
/// 1.79 or more never ejects.
fn unlike_the_others(rules: &Outlier, figures: &[WindowFigures]) -> Vec<Broken> {
    let factor = rules.success_rate_stdev_factor.value();
    if factor == 0.0 {
        return Vec::new();
    }
    let rates = || figures.iter().map(|figures| figures.totals.success_rate());
    let count = figures.len() as f64;
    let mean = rates().sum::<f64>() / count;
    let deviation = (rates().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count).sqrt();
    let threshold = (mean - factor * deviation).min(mean - RATE_MARGIN);
    let mut below: Vec<&WindowFigures> = figures.iter().filter(|one| one.totals.success_rate() < threshold).collect();
    below.sort_by(|a, b| a.totals.success_rate().total_cmp(&b.totals.success_rate()));
    let broken = |figures: &&WindowFigures| {
        let rate = figures.totals.success_rate();
        let message = format!(
            "{rate:.1} % of its connections succeeded in {}; below {threshold:.1} % it is unlike the {count} backends, \
             whose mean is {mean:.1} %",
            rules.interval
        );
        Broken { backend: figures.backend, rule: Rule::SuccessRate, message }
    };
    below.iter().map(broken).collect()
}

fn slow(rules: &Outlier, figures: &[WindowFigures]) -> Vec<Broken> {
    let factor = rules.connect_time_factor.value();
    if factor == 0.0 {
        return Vec::new();
    }
    let mut times: Vec<(f64, BackendId)> = figures
        .iter()
        .filter(|figures| figures.totals.established > 0)
        .map(|figures| (figures.totals.connect_time(), figures.backend))
        .collect();
    if times.len() < rules.minimum_backends.max(2) as usize {
        return Vec::new();
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let broken = |(place, (time, backend)): (usize, &(f64, BackendId))| {
        let median = median_without(&times, place);
        let is_slow = *time > factor * median && *time > median + CONNECT_MARGIN;
        is_slow.then(|| {
            let (time, median, others) = (time / 1000.0, median / 1000.0, times.len() - 1);
            let message = format!(
                "connects took {time:.1} ms on average in {}: more than {factor} times the {median:.1} ms of the \
                 {others} others (median)",
                rules.interval
            );
            Broken { backend: *backend, rule: Rule::ConnectTime, message }
        })
    };
    times.iter().enumerate().filter_map(broken).rev().collect()
}

/// Median of sorted times without the one at `place`; there are at least two.
fn median_without(times: &[(f64, BackendId)], place: usize) -> f64 {
    let at = |index: usize| times.get(if index < place { index } else { index + 1 }).map_or(0.0, |time| time.0);
    let others = times.len() - 1;
    let upper = at(others / 2);
    if others % 2 == 1 { upper } else { f64::midpoint(at(others / 2 - 1), upper) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::span::Decimal;

    fn figures(rows: &[(u64, u64, u64)]) -> Vec<WindowFigures> {
        let one = |(id, (established, failed, millis)): (u32, &(u64, u64, u64))| {
            let connect_us = established * millis * 1000;
            let totals = Totals { established: *established, failed: *failed, early_resets: 0, connect_us };
            WindowFigures { backend: BackendId(id), totals }
        };
        (0..).zip(rows).map(one).collect()
    }

    fn found(rules: &Outlier, rows: &[(u64, u64, u64)]) -> Vec<(u32, Rule)> {
        broken(rules, &figures(rows)).iter().map(|broken| (broken.backend.0, broken.rule)).collect()
    }

    #[test]
    fn a_share_of_failures_counts_with_enough_volume_only() {
        let rules = Outlier::default();
        assert_eq!(found(&rules, &[(15, 85, 1), (16, 84, 1), (0, 99, 1)]), [(0, Rule::FailurePercentage)]);
        assert!(found(&Outlier { failure_percentage: 0, ..rules }, &[(0, 1000, 1)]).is_empty());
    }

    #[test]
    fn the_worst_comes_first() {
        let rules = Outlier::default();
        let order = found(&rules, &[(10, 90, 1), (0, 100, 1), (5, 95, 1)]);
        assert_eq!(order.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn resets_before_the_first_byte_are_failures() {
        let totals = Totals { established: 100, failed: 0, early_resets: 90, connect_us: 0 };
        let found = broken(&Outlier::default(), &[WindowFigures { backend: BackendId(1), totals }]);
        assert_eq!(found[0].message, "90 of 100 connections failed in 10s: 85 % or more");
    }

    #[test]
    fn a_success_rate_far_below_the_mean_is_an_outlier() {
        let rules = Outlier::default();
        let mut rows = vec![(1000, 0, 1); 9];
        rows.push((700, 300, 1));
        assert_eq!(found(&rules, &rows), [(9, Rule::SuccessRate)]);
        // Mean 97, deviation 9: the threshold lies at 79.9.
        rows[9] = (810, 190, 1);
        assert_eq!(found(&Outlier { minimum_backends: 11, ..rules.clone() }, &rows), []);
        // All the same: nobody stands out, however bad.
        assert_eq!(found(&rules, &[(500, 500, 1); 10]), []);
    }

    #[test]
    fn one_failure_among_many_connections_is_no_outlier() {
        let mut rows = vec![(10_000, 0, 1); 20];
        rows[3] = (9_999, 1, 1);
        assert_eq!(found(&Outlier::default(), &rows), []);
    }

    #[test]
    fn connect_times_are_held_against_the_others() {
        let rules =
            Outlier { connect_time_factor: Decimal::thousandths(3000), minimum_backends: 3, ..Outlier::default() };
        assert_eq!(found(&rules, &[(100, 0, 2), (100, 0, 40), (100, 0, 3)]), [(1, Rule::ConnectTime)]);
        assert_eq!(found(&rules, &[(100, 0, 2), (100, 0, 7), (100, 0, 3)]), []);
        // Too few to compare, and a rule that is off.
        assert_eq!(found(&rules, &[(100, 0, 2), (100, 0, 40), (99, 0, 3)]), []);
        assert_eq!(
            found(&Outlier { minimum_backends: 3, ..Outlier::default() }, &[(100, 0, 2), (100, 0, 90), (100, 0, 2)]),
            []
        );
    }

    #[test]
    fn less_than_a_millisecond_is_noise() {
        let rules =
            Outlier { connect_time_factor: Decimal::thousandths(2000), minimum_backends: 2, ..Outlier::default() };
        let mut rows = figures(&[(100, 0, 0), (100, 0, 0), (100, 0, 0)]);
        for (row, micros) in rows.iter_mut().zip([50, 900, 60]) {
            row.totals.connect_us = micros * 100;
        }
        assert_eq!(broken(&rules, &rows), []);
    }
}
