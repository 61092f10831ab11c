//! Durations as people write them: `90s`, `5m`, `1h30m`, a bare number of seconds, `none`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Error;

/// The longest duration taken: beyond a year a number is a slip of the keyboard.
pub const MAX: Duration = Duration::from_hours(365 * 24);

/// Parses `90s`, `5m`, `1h30m`, `250ms`, `1.5s` or a bare number of seconds.
pub fn parse(text: &str) -> Result<Duration, Error> {
    let trimmed = text.trim();
    let invalid =
        || Error::Invalid(format!("'{text}' is not a duration: write 90s, 5m, 1h30m, or a number of seconds"));
    if trimmed.is_empty() {
        return Err(invalid());
    }
    let nanos = if trimmed.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        decimal_nanos(trimmed, 1_000_000_000).ok_or_else(invalid)?
    } else {
        parts_nanos(trimmed).ok_or_else(invalid)?
    };
    if nanos > MAX.as_nanos() {
        return Err(Error::Invalid(format!("'{text}' is longer than a year: write none for no limit at all")));
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| invalid())?;
    Ok(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
}

/// Parses a duration, or `none` for no limit.
pub fn parse_limit(text: &str) -> Result<Option<Duration>, Error> {
    if text.trim().eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|error| match error {
        Error::Invalid(message) if message.contains("is not a duration") => {
            Error::Invalid(format!("{message}, or none"))
        }
        other => other,
    })
}

/// Writes a duration the way [`parse`] reads it, to the millisecond: `1h30m`, `90ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let mut rest_ms = duration.as_millis();
    let mut text = String::new();
    for (unit, unit_ms) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let count = rest_ms / unit_ms;
        rest_ms %= unit_ms;
        if count > 0 {
            text.push_str(&count.to_string());
            text.push_str(unit);
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

/// `1h30m`: each part a number and a unit, units descending and each at most once.
fn parts_nanos(text: &str) -> Option<u128> {
    let mut rest = text;
    let mut total: u128 = 0;
    let mut last_unit = u128::MAX;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_nanos = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" | "min" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return None,
        };
        if unit_nanos >= last_unit {
            return None;
        }
        last_unit = unit_nanos;
        total = total.checked_add(decimal_nanos(number, unit_nanos)?)?;
        rest = tail;
    }
    Some(total)
}

/// A decimal number of units in nanoseconds, without going through floating point.
fn decimal_nanos(number: &str, unit_nanos: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') || fraction.len() > 9 {
        return None;
    }
    let mut nanos = whole.parse::<u128>().ok()?.checked_mul(unit_nanos)?;
    if !fraction.is_empty() {
        let scale = 10_u128.pow(fraction.len() as u32);
        nanos = nanos.checked_add(fraction.parse::<u128>().ok()?.checked_mul(unit_nanos)? / scale)?;
    }
    Some(nanos)
}

/// A duration that travels as a number of seconds; a string as people write it is read too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(pub Duration);

/// A limit that travels as a number of seconds, or as `null` where there is none; `"none"` and durations in words are read too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limit(pub Option<Duration>);

impl Seconds {
    /// Whole seconds.
    pub const fn new(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl Limit {
    /// No limit.
    pub const NONE: Self = Self(None);

    /// Whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Some(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format(self.0))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(duration) => f.write_str(&format(duration)),
            None => f.write_str("none"),
        }
    }
}

impl FromStr for Seconds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map(Self)
    }
}

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse_limit(text).map(Self)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_nanos() == 0 {
            serializer.serialize_u64(self.0.as_secs())
        } else {
            // Milliseconds are what people read; more digits would only be the float's noise.
            let whole_ms = Duration::from_millis(self.0.as_millis() as u64);
            serializer.serialize_f64(whole_ms.as_secs_f64())
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(duration) => Seconds(duration).serialize(serializer),
            None => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(LimitVisitor)?.0 {
            Some(duration) => Ok(Self(duration)),
            None => Err(de::Error::custom("a duration is needed here: none is not possible")),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LimitVisitor)
    }
}

/// Numbers are what is written; words are read too.
fn schema(generator: &mut SchemaGenerator, what: &str, none: bool) -> Schema {
    let seconds = json_schema!({ "type": "number", "minimum": 0, "maximum": MAX.as_secs() });
    let mut forms = vec![seconds];
    if none {
        forms.push(json_schema!({ "type": "null" }));
    }
    if generator.contract().is_deserialize() {
        forms.push(json_schema!({ "type": "string", "examples": ["90s", "1h30m"] }));
    }
    json_schema!({ "description": what, "anyOf": forms })
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema(generator, "A duration in seconds.", false)
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema(generator, "A duration in seconds, or null for no limit.", true)
    }
}

struct LimitVisitor;

impl de::Visitor<'_> for LimitVisitor {
    type Value = Limit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of seconds or a duration such as 5m")
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Limit, E> {
        self.visit_str(&seconds.to_string())
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Limit, E> {
        self.visit_str(&seconds.to_string())
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Limit, E> {
        let duration = Duration::try_from_secs_f64(seconds)
            .map_err(|_| E::custom(format!("{seconds} is not a duration: write a number of seconds, 0 or more")))?;
        if duration > MAX {
            return Err(E::custom(format!("{seconds} seconds is longer than a year: write none for no limit at all")));
        }
        Ok(Limit(Some(duration)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Limit, E> {
        parse_limit(text).map(Limit).map_err(E::custom)
    }

    fn visit_none<E: de::Error>(self) -> Result<Limit, E> {
        Ok(Limit::NONE)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Limit, E> {
        Ok(Limit::NONE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, ms) in [
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("300", 300_000),
            ("0", 0),
            ("0s", 0),
            ("1.5s", 1_500),
            ("0.25", 250),
            ("250ms", 250),
            ("1d", 86_400_000),
            (" 7s ", 7_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_limit("none"), Ok(None));
    }

    #[test]
    fn nonsense_is_refused_with_advice() {
        for text in ["", "abc", "-5", "5x", "m", "5m5h", "5s5s", "1..2s", ".5s", "1.s", "1h 30m", "inf", "NaN", "1e9"] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("write 90s, 5m, 1h30m"), "{text}: {error}");
        }
        assert!(parse("400d").expect_err("too long").to_string().contains("longer than a year"));
        assert!(parse("99999999999999999999999999999999999999999s").is_err());
        assert!(parse_limit("nome").expect_err("no number").to_string().ends_with("or none"));
    }

    #[test]
    fn they_travel_as_numbers() {
        let json = serde_json::to_string(&(Seconds::new(300), Limit::NONE, Seconds(Duration::from_millis(1500))));
        assert_eq!(json.expect("serializes"), "[300,null,1.5]");
        let read: (Seconds, Limit, Limit, Limit) =
            serde_json::from_str(r#"["1h30m", null, "none", 0.25]"#).expect("all are durations");
        assert_eq!(read, (Seconds::new(5400), Limit::NONE, Limit::NONE, Limit(Some(Duration::from_millis(250)))));
        assert!(serde_json::from_str::<Seconds>("null").is_err());
        assert!(serde_json::from_str::<Seconds>("-1").is_err());
        assert!(serde_json::from_str::<Seconds>("1e300").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in 0..31_536_000_000_u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_limit(&text);
        }
    }
}
