//! Lengths of time and decimal numbers of documents, held as whole numbers so that documents can be compared.

use std::{fmt, str::FromStr, time::Duration};

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

use super::{Refusal, quiet};

/// A length of time in milliseconds, up to [`Span::MOST`]. Written `30s`, `500ms` or `2m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u32);

impl Span {
    pub const ZERO: Self = Self(0);
    /// Seven days.
    pub const MOST: Self = Self(7 * 24 * 3_600_000);

    pub const fn millis(millis: u32) -> Self {
        Self(millis)
    }

    pub const fn seconds(seconds: u32) -> Self {
        Self(seconds * 1000)
    }

    pub const fn as_millis(self) -> u32 {
        self.0
    }

    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }

    /// So many times this, up to [`Span::MOST`].
    pub fn times(self, times: u32) -> Self {
        Self(self.0.saturating_mul(times)).min(Self::MOST)
    }

    /// # Errors
    /// A refusal that names `field`, unless it is within `least..=most`.
    pub(super) fn within(self, field: &str, least: Self, most: Self) -> Result<(), Refusal> {
        if (least..=most).contains(&self) {
            return Ok(());
        }
        Err(Refusal::invalid(field, format!("{self}: write a time from {least} to {most}")))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quiet::text(self.0))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time: Option<SignedDuration> = text.parse().ok();
        let millis = time.and_then(|time| u32::try_from(time.as_millis()).ok());
        let span = millis.map(Self).filter(|span| *span <= Self::MOST);
        span.ok_or_else(|| format!("{text:?} is no time: write one such as 500ms, 30s or 2m, at most 168h"))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as 500ms, 30s or 2m")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl PartialSchema for Span {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A length of time, at most 168h."))
            .examples(["30s", "500ms", "2m"])
            .into()
    }
}

impl ToSchema for Span {}

/// A number with up to three decimal places, from 0 to 1000, held in thousandths. Written `2` or `1.9`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal(u32);

impl Decimal {
    pub const fn thousandths(thousandths: u32) -> Self {
        Self(thousandths)
    }

    pub fn value(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value())
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 1000 {
            0 => serializer.serialize_u32(self.0 / 1000),
            _ => serializer.serialize_f64(self.value()),
        }
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const MOST: f64 = 1000.0;
        let value = f64::deserialize(deserializer)?;
        let thousandths = (value * 1000.0).round();
        // Some decimals have no exact binary form: a billionth is no fourth place.
        if !(0.0..=MOST).contains(&value) || (thousandths - value * 1000.0).abs() > 1e-6 {
            let message = format!("{value}: write a number from 0 to 1000 with at most three decimal places");
            return Err(de::Error::custom(message));
        }
        Ok(Self(thousandths as u32))
    }
}

impl PartialSchema for Decimal {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Number)
            .minimum(Some(0.0))
            .maximum(Some(1000.0))
            .description(Some("At most three decimal places."))
            .into()
    }
}

impl ToSchema for Decimal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, millis) in [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("0s", 0), ("168h", 604_800_000)] {
            let span: Span = serde_json::from_value(text.into()).unwrap();
            assert_eq!(span.as_millis(), millis);
            assert_eq!(serde_json::from_value::<Span>(serde_json::to_value(span).unwrap()).unwrap(), span);
        }
        for wrong in ["", "-1s", "169h", "5", "soon"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        let error = serde_json::from_value::<Span>(5.into()).unwrap_err().to_string();
        assert!(error.contains("such as 500ms"), "{error}");
    }

    #[test]
    fn decimals_are_read_and_written() {
        for text in ["2", "1.9", "0.001", "1000"] {
            let read: Decimal = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        for wrong in ["-1", "1000.5", "0.0001", "\"2\""] {
            assert!(serde_json::from_str::<Decimal>(wrong).is_err(), "{wrong}");
        }
    }
}
