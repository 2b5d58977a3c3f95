//! Points in time and spans, as people write them on a command line.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

/// Reads a span such as `500ms`, `30s`, `15m`, `12h` or `7d`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("give a number with a unit: ms, s, m, h or d, such as 30s".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is not a whole number"))?;
    let total = number.checked_mul(milliseconds).filter(|total| *total <= 3_153_600_000_000);
    total.map(Duration::from_millis).ok_or_else(|| "is longer than a hundred years".to_owned())
}

/// Reads a time in the past: a span means that long ago.
pub(crate) fn past(text: &str) -> Result<DateTime<Utc>, String> {
    moment(text, Utc::now(), |now, span| now.checked_sub_signed(span))
}

/// Reads a time to come: a span means that long from now.
pub(crate) fn future(text: &str) -> Result<DateTime<Utc>, String> {
    moment(text, Utc::now(), |now, span| now.checked_add_signed(span))
}

fn moment(
    text: &str,
    now: DateTime<Utc>,
    apply: fn(DateTime<Utc>, TimeDelta) -> Option<DateTime<Utc>>,
) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    if let Ok(day) = text.parse::<NaiveDate>() {
        return day.and_hms_opt(0, 0, 0).map(|time| time.and_utc()).ok_or_else(|| "is no day".to_owned());
    }
    let span = span(text).map_err(|_| {
        "give a span (15m, 12h, 7d), a day (2026-11-25) or a time (2026-11-25T08:30:00Z)".to_owned()
    })?;
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| apply(now, span))
        .ok_or_else(|| "is out of range".to_owned())
}

/// How long ago a time is, in one unit, for tables.
pub(crate) fn age(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - time).num_seconds();
    match seconds {
        ..0 => format!("in {}", age(now, time)),
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_need_a_unit() {
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "5", "s", "-1s", "1w", "1.5h", "99999999999d", "18446744073709551615d"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_spans_days_or_times() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let at = |text| moment(text, now, |now, span| now.checked_sub_signed(span)).map(|t| t.timestamp());
        assert_eq!(at("1h"), Ok(1_799_996_400));
        assert_eq!(at("2026-11-25"), Ok(1_795_564_800));
        assert_eq!(at("2026-11-25T01:00:00+01:00"), Ok(1_795_564_800));
        assert!(at("yesterday").is_err());
    }

    #[test]
    fn ages_have_one_unit() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let ago = |seconds| age(now - TimeDelta::seconds(seconds), now);
        assert_eq!([ago(5), ago(180), ago(7200), ago(200_000), ago(-5)], ["5s", "3m", "2h", "2d", "in 5s"]);
    }
}
