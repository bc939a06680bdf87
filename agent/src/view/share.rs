//! How much of the traffic a backend really got, how sure that figure is, and how much it should have got.

use super::published::ProgrammedBackend;

/// Picks that shares are observed over, while fewer were made from the current table: a warm-up changes the table every
/// few seconds.
const WINDOW: f64 = 1000.0;

/// Picks of one backend within the window: those of the current table, and of tables before it that had the same backends
/// open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowPicks {
    pub made: f64,
    /// What the tables' shares would have given it of the same picks.
    pub expected: f64,
}

impl WindowPicks {
    /// Of each backend of a table, with what it has counted by now.
    pub fn of<'a>(backends: impl Iterator<Item = (&'a ProgrammedBackend, u64)> + Clone) -> Vec<Self> {
        let made = |(backend, picked): &(&ProgrammedBackend, u64)| picked.saturating_sub(backend.picked_before) as f64;
        let now: f64 = backends.clone().map(|backend| made(&backend)).sum();
        let earlier: f64 = backends.clone().map(|(backend, _)| backend.earlier.made).sum();
        let kept = if earlier > 0.0 { ((WINDOW - now) / earlier).clamp(0.0, 1.0) } else { 0.0 };
        let picks = |(backend, picked): (&ProgrammedBackend, u64)| Self {
            made: made(&(backend, picked)) + kept * backend.earlier.made,
            expected: backend.programmed_share * now + kept * backend.earlier.expected,
        };
        backends.map(picks).collect()
    }

    pub fn total(picks: &[Self]) -> f64 {
        picks.iter().map(|picks| picks.made).sum()
    }

    /// Share of `total` that the tables' shares would have given; `None` while nothing was picked.
    pub fn expected_share(&self, total: f64) -> Option<f64> {
        (total > 0.0).then(|| (self.expected / total).min(1.0))
    }
}

/// Share of the picks within the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// 0..=1; `None` while nothing was picked.
    pub share: Option<f64>,
    /// Lower and upper end of the 95 % confidence interval of the share, within 0..=1.
    pub confidence95: [f64; 2],
}

/// Two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

impl Observed {
    /// `picks` of `total` went to the backend.
    ///
    /// The interval is Wilson's score interval (E. B. Wilson, "Probable inference, the law of succession, and
    /// statistical inference", Journal of the American Statistical Association 22, 1927, pp. 209-212): unlike the
    /// textbook's normal interval it holds for shares near 0 and 1 and for few picks, which is what a canary has.
    /// It supposes independent draws (`balance: random`); `spread` deviates less, so that the interval is wide there.
    pub fn of(picks: f64, total: f64) -> Self {
        if total <= 0.0 {
            return Self { share: None, confidence95: [0.0, 1.0] };
        }
        let n = total;
        let p = (picks / n).min(1.0);
        let z2 = Z * Z;
        let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        Self { share: Some(p), confidence95: [(middle - half).clamp(0.0, p), (middle + half).clamp(p, 1.0)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values: R, `prop.test(x, n, correct = FALSE)$conf.int`, which is Wilson's interval.
    #[test]
    fn intervals_are_wilsons() {
        for (picks, total, low, high) in [
            (0, 10, 0.0, 0.277_533),
            (5, 100, 0.021_543_7, 0.111_750_5),
            (10, 10, 0.722_467, 1.0),
            (50, 1000, 0.038_130, 0.065_314),
        ] {
            let (picks, total) = (f64::from(picks), f64::from(total));
            let Observed { share, confidence95 } = Observed::of(picks, total);
            assert_eq!(share, Some(picks / total));
            assert!((confidence95[0] - low).abs() < 1e-5, "{picks}/{total}: {confidence95:?}");
            assert!((confidence95[1] - high).abs() < 1e-5, "{picks}/{total}: {confidence95:?}");
        }
    }

    #[test]
    fn nothing_picked_says_nothing() {
        assert_eq!(Observed::of(0.0, 0.0), Observed { share: None, confidence95: [0.0, 1.0] });
    }

    #[test]
    fn the_share_is_inside_its_interval() {
        for (picks, total) in [(1.0, 1.0), (1.0, 3.0), (7.0, 5.0), (1e19, 1e19), (0.0, 1e19), (0.2, 0.3)] {
            let Observed { share, confidence95: [low, high] } = Observed::of(picks, total);
            let share = share.unwrap();
            assert!((0.0..=1.0).contains(&low) && low <= share && share <= high && high <= 1.0, "{picks}/{total}");
        }
    }

    fn backend(id: u32, programmed_share: f64, picked_before: u64, earlier: WindowPicks) -> ProgrammedBackend {
        let (id, effective_weight, desired_share) = (crate::model::BackendId(id), 1, programmed_share);
        ProgrammedBackend { id, effective_weight, desired_share, programmed_share, picked_before, earlier }
    }

    #[test]
    fn earlier_picks_fill_the_window_and_leave_it_as_others_come() {
        let earlier = [WindowPicks { made: 850.0, expected: 900.0 }, WindowPicks { made: 150.0, expected: 100.0 }];
        let table = [backend(0, 0.5, 100, earlier[0]), backend(1, 0.5, 100, earlier[1])];
        let after = |counted: u64| WindowPicks::of(table.iter().zip([100 + counted, 100 + counted]));
        assert_eq!(after(0), earlier);
        for (counted, made, expected) in [(100, 780.0, 820.0), (500, 500.0, 500.0), (9000, 9000.0, 9000.0)] {
            let picks = after(counted);
            assert!((picks[0].made - made).abs() < 1e-6 && (picks[0].expected - expected).abs() < 1e-6, "{picks:?}");
            let total = WindowPicks::total(&picks);
            assert!((total - (2 * counted) as f64).abs() < 1e-6 || (total - 1000.0).abs() < 1e-6, "{total}");
        }
    }
}
