//! When a backend is taken out because of what the kernel counts of its connections.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Refusal,
    span::{Decimal, Span},
};

/// Rules by which a backend that misbehaves is ejected for a while. Names and meanings are Envoy's where Envoy has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outlier {
    /// Connections in a row that were refused, unreachable or unanswered; 0 is off.
    pub consecutive_failures: u32,
    /// Established connections in a row that the backend reset before its first byte; 0 is off.
    pub consecutive_early_resets: u32,
    /// Time for which connections have gone unanswered, with none answered in between; 0s is off.
    pub unanswered: Span,
    /// Length of a window, in which the following rules count.
    pub interval: Span,
    /// Percent of a window's connections that may fail; 0 is off.
    pub failure_percentage: u8,
    /// A window's success rate may lie so many standard deviations below the mean of the service; 0 is off.
    pub success_rate_stdev_factor: Decimal,
    /// A window's mean connect time may be so many times the median of the service's other backends; 0 is off.
    pub connect_time_factor: Decimal,
    /// Connections of a backend in a window below which the window says nothing about it.
    pub minimum_volume: u32,
    /// Backends with enough volume below which they are not compared with each other.
    pub minimum_backends: u32,
    /// Time out for the first ejection; each one that follows soon is longer by as much.
    pub base_ejection_time: Span,
    /// Longest time out.
    pub max_ejection_time: Span,
    /// Most percent of the service's backends that may be out at once, rounded down.
    pub max_ejection_percent: u8,
    /// Time on trial with a small part of its weight, after the time out.
    pub trial: Span,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 3,
            consecutive_early_resets: 5,
            unanswered: Span::seconds(2),
            interval: Span::seconds(10),
            failure_percentage: 85,
            success_rate_stdev_factor: Decimal::thousandths(1900),
            connect_time_factor: Decimal::thousandths(0),
            minimum_volume: 100,
            minimum_backends: 5,
            base_ejection_time: Span::seconds(30),
            max_ejection_time: Span::seconds(300),
            max_ejection_percent: 50,
            trial: Span::seconds(10),
        }
    }
}

impl Outlier {
    /// # Errors
    /// A refusal that names the field at fault.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        for (field, percent) in
            [("failurePercentage", self.failure_percentage), ("maxEjectionPercent", self.max_ejection_percent)]
        {
            if percent > 100 {
                return Err(Refusal::invalid(field, "a percentage is at most 100"));
            }
        }
        self.unanswered.within("unanswered", Span::ZERO, Span::seconds(60))?;
        self.interval.within("interval", Span::seconds(1), Span::seconds(3600))?;
        self.base_ejection_time.within("baseEjectionTime", Span::millis(100), Span::seconds(24 * 3600))?;
        self.max_ejection_time.within("maxEjectionTime", self.base_ejection_time, Span::seconds(24 * 3600))?;
        self.trial.within("trial", Span::ZERO, Span::seconds(3600))
    }
}
