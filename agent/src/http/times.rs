//! Times and choices in the bodies of actions. Each refusal says what to write.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error},
};
use serde_json::Value;

use crate::model::{CloseInbound, Drain, IdleClose, OnDeadline};

/// # Errors
/// It is no time, or more than [`Drain::MAX_DEADLINE`].
pub fn deadline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let read = |text: &str| {
        let time: SignedDuration = text.parse().ok()?;
        Duration::try_from(time).ok().filter(|_| time <= Drain::MAX_DEADLINE)
    };
    said(deserializer, "write a time from now such as \"60s\", at most 7 days (\"168h\")", read)
}

/// # Errors
/// It is no time, or not in the future.
pub fn expires<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SignedDuration>, D::Error> {
    let read = |text: &str| text.parse().ok().filter(|time: &SignedDuration| time.is_positive());
    said(deserializer, "write a time from now such as \"15m\" or \"2h\"", read)
}

/// # Errors
/// It is no time.
pub fn uptime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let read = |text: &str| text.parse().ok().and_then(|time: SignedDuration| Duration::try_from(time).ok());
    said(deserializer, "write a time before now such as \"90s\" or \"2h\"", read)
}

/// # Errors
/// It is no time.
pub fn started_at<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    said(deserializer, "write a time such as \"2026-11-21T10:00:00Z\"", |text| text.parse().ok())
}

/// `null`, unlike nothing, is never.
///
/// # Errors
/// It is no time of quiet.
pub fn idle_close<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IdleClose>, D::Error> {
    let advice = "write a time from 100ms to 1h, \"usual\" or \"never\"";
    let said = said(deserializer, advice, |text| text.parse().ok())?;
    Ok(Some(said.unwrap_or(IdleClose::Never)))
}

/// # Errors
/// It is something else.
pub fn on_deadline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OnDeadline>, D::Error> {
    said(deserializer, "write \"keep\" or \"close\"", choice)
}

/// # Errors
/// It is something else.
pub fn close_inbound<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CloseInbound>, D::Error> {
    said(deserializer, "write \"never\" or \"idle\"", choice)
}

fn choice<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(text.into()).ok()
}

/// What a text says; nothing for `null`.
fn said<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    advice: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match value.as_str() {
        None if value.is_null() => Ok(None),
        text => text.and_then(read).map(Some).ok_or_else(|| Error::custom(format!("{value}: {advice}"))),
    }
}
