//! How the share of a backend grows from cold to warm.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Refusal,
    span::{Decimal, Span},
};

/// A cold backend begins with a small part of its weight, which grows to the whole. The share of its group stays: warm
/// backends of the group take the rest, and backends that began together are equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Warmup {
    /// Time at the minimum before the part begins to grow.
    pub delay: Span,
    /// Time from there to the whole weight.
    pub duration: Span,
    /// How the part grows.
    pub curve: Curve,
    /// Of the curve `power`, from 1 to 10: the larger, the slower at first.
    pub exponent: Decimal,
    /// Least part of the weight, in percent.
    #[schema(minimum = 1, maximum = 100)]
    pub minimum_percent: u8,
    /// From when the time counts.
    pub start: WarmupStart,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Curve {
    /// In proportion to the time: weight x time / duration, at least 1. The formula of Dubbo
    /// (`AbstractLoadBalance.calculateWarmupWeight`).
    #[default]
    Linear,
    /// weight x (time / duration) ^ exponent: slow first, fast later.
    Power,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum WarmupStart {
    /// When the backend begins to take connections: added, ready again, or restored after a zero or drain.
    #[default]
    Ready,
    /// When its process began, as a report of readiness says (`startedAt`); without one, when it was added or became
    /// ready. A restore after a zero warms nothing up: the process has been running.
    Process,
}

impl Default for Warmup {
    fn default() -> Self {
        Self {
            delay: Span::ZERO,
            duration: Span::seconds(120),
            curve: Curve::Linear,
            exponent: Decimal::thousandths(2000),
            minimum_percent: 1,
            start: WarmupStart::Ready,
        }
    }
}

impl Warmup {
    /// # Errors
    /// A refusal that names the field at fault.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let (least, most) = (Span::millis(100), Span::seconds(24 * 3600));
        self.delay.within("delay", Span::ZERO, most)?;
        self.duration.within("duration", least, most)?;
        if !(1.0..=10.0).contains(&self.exponent.value()) {
            return Err(Refusal::invalid("exponent", format!("{}: write a number from 1 to 10", self.exponent)));
        }
        if !(1..=100).contains(&self.minimum_percent) {
            let message = format!("{}: write a percentage from 1 to 100", self.minimum_percent);
            return Err(Refusal::invalid("minimumPercent", message));
        }
        Ok(())
    }
}
