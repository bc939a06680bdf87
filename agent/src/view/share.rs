//! How much of the traffic a backend really got, and how sure that figure is.

/// Share of the picks since the current table became current.
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
    pub fn of(picks: u64, total: u64) -> Self {
        if total == 0 {
            return Self { share: None, confidence95: [0.0, 1.0] };
        }
        // A reading between two backends can find one pick more than the sum did.
        let n = total as f64;
        let p = (picks as f64 / n).min(1.0);
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
            let Observed { share, confidence95 } = Observed::of(picks, total);
            assert_eq!(share, Some(picks as f64 / total as f64));
            assert!((confidence95[0] - low).abs() < 1e-5, "{picks}/{total}: {confidence95:?}");
            assert!((confidence95[1] - high).abs() < 1e-5, "{picks}/{total}: {confidence95:?}");
        }
    }

    #[test]
    fn nothing_picked_says_nothing() {
        assert_eq!(Observed::of(0, 0), Observed { share: None, confidence95: [0.0, 1.0] });
    }

    #[test]
    fn the_share_is_inside_its_interval() {
        for (picks, total) in [(1, 1), (1, 3), (7, 5), (u64::MAX, u64::MAX), (0, u64::MAX)] {
            let Observed { share, confidence95: [low, high] } = Observed::of(picks, total);
            let share = share.unwrap();
            assert!((0.0..=1.0).contains(&low) && low <= share && share <= high && high <= 1.0, "{picks}/{total}");
        }
    }
}
