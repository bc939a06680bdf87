//! Axes of plots: how far they reach, where their marks are, and how numbers are written at them.

/// A linear or a decimal logarithmic axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    log: bool,
    /// Where it begins, as a value: zero on a linear axis.
    pub low: f64,
    /// Where it ends, as a value.
    pub high: f64,
}

/// Marks on an axis without decades.
const MARKS: f64 = 6.0;

impl Axis {
    /// An axis on which all values have a place. Those that are not finite or, on a logarithmic axis, not above zero do
    /// not count; without any, the axis is a token one.
    pub fn around(values: impl IntoIterator<Item = f64>, log: bool) -> Self {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite() && *value > 0.0).collect();
        let most = values.iter().copied().fold(f64::NAN, f64::max);
        let least = values.iter().copied().fold(f64::NAN, f64::min);
        if most.is_nan() {
            return Self { log, low: if log { 1.0 } else { 0.0 }, high: 10.0 };
        }
        if !log {
            let step = step(most);
            return Self { log, low: 0.0, high: (most / step).ceil() * step };
        }
        // Whole decades, and room to tell a flat line from the frame. The small numbers make up for rounding.
        let low = (least * 1.000_001).log10().floor();
        let high = (most / 1.000_001).log10().ceil().max(low + 1.0);
        Self { log, low: 10_f64.powf(low), high: 10_f64.powf(high) }
    }

    /// Where a value is, between 0 and 1; nowhere where the axis does not reach.
    pub fn place(&self, value: f64) -> Option<f64> {
        let share = if self.log {
            (value.log10() - self.low.log10()) / self.decades()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        (-1e-6..=1.0 + 1e-6).contains(&share).then_some(share.clamp(0.0, 1.0))
    }

    /// The value at a place between 0 and 1.
    pub fn value(&self, place: f64) -> f64 {
        if self.log {
            10_f64.powf(self.low.log10() + place * self.decades())
        } else {
            self.low + place * (self.high - self.low)
        }
    }

    /// Places of the marks that get a number.
    pub fn marks(&self) -> Vec<f64> {
        let values: Vec<f64> = if self.log {
            let decades = self.decades().round() as i32;
            let between: &[f64] = if decades <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let marked = (0..=decades).step_by(decades as usize / 12 + 1);
            marked
                .flat_map(|number| between.iter().map(move |factor| factor * self.low * 10_f64.powi(number)))
                .collect()
        } else {
            let step = step(self.high);
            (0..=(self.high / step).round() as i32).map(|number| f64::from(number) * step).collect()
        };
        values.into_iter().filter_map(|value| self.place(value)).collect()
    }

    /// Of a logarithmic axis. The ends may be so far apart that their ratio is no number.
    fn decades(&self) -> f64 {
        self.high.log10() - self.low.log10()
    }
}

/// The distance of marks on a linear axis: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let raw = most / MARKS;
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| raw <= factor * power * 1.000_001).unwrap_or(10.0);
    factor * power
}

/// A number with three digits that count, and a letter for thousands, millions and so on.
pub fn short(value: f64) -> String {
    if !value.is_finite() {
        return "none".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    // What rounds to a thousand is one of the next letter.
    let units = [(1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")];
    let fits = |(size, _): &(f64, &str)| value.abs() < size * 999.5;
    let (size, letter) = units.into_iter().find(fits).unwrap_or((1e12, "T"));
    let scaled = value / size;
    let whole = scaled.abs().log10().floor() as i32 + 1;
    let decimals = usize::try_from(3 - whole).unwrap_or(0);
    let text = format!("{scaled:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (0.0123, "0.0123"), (1.5, "1.5"), (94.27, "94.3"), (999.6, "1k"), (12_345.0, "12.3k")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!(
            (short(1e6), short(f64::NAN), short(-250.0)),
            ("1M".to_owned(), "none".to_owned(), "-250".to_owned())
        );
    }

    #[test]
    fn everything_above_zero_has_a_place() {
        let values = [0.0, f64::NAN, f64::INFINITY, -3.0, 7.0, 1000.0, 123_456.0];
        for log in [false, true] {
            let axis = Axis::around(values, log);
            for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
                assert!(axis.place(value).is_some(), "{value} on {axis:?}");
            }
            assert!(axis.place(f64::NAN).is_none() && axis.place(f64::INFINITY).is_none());
            assert_eq!(axis.place(0.0), if log { None } else { Some(0.0) });
            assert!(axis.marks().len() >= 3, "{axis:?}");
        }
    }

    #[test]
    fn without_values_there_is_still_an_axis() {
        for log in [false, true] {
            let axis = Axis::around([], log);
            assert!(axis.low < axis.high && !axis.marks().is_empty());
        }
    }

    #[test]
    fn decades_are_whole() {
        let axis = Axis::around([10.0, 100_000.0], true);
        assert_eq!(
            axis.marks().into_iter().map(|place| short(axis.value(place))).collect::<Vec<_>>(),
            ["10", "100", "1k", "10k", "100k"]
        );
    }
}
