//! What chat templates expect of Python: its values, its string methods, and the functions that the
//! `transformers` package gives to Jinja. `tojson` has a file of its own.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};

use super::tojson::python_float;

/// A JSON value as a template sees it. Objects keep the order of their keys.
pub(super) fn to_template_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_template_value).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), to_template_value(value))))
        }
    }
}

/// How `{{ value }}` is printed. The engine prints as Python does, but for very small and very large floats.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.is_number() && !value.is_integer() {
        return out.write_str(&python_float(f64::try_from(value.clone())?)).map_err(Error::from);
    }
    escape_formatter(out, state, value)
}

/// `value is sequence`: whatever has a length and can be indexed, strings and dictionaries included.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// `raise_exception(message)`: how a template refuses a conversation.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python methods that templates call and the engine does not have: first the ones below, then those of
/// minijinja's own collection.
pub(super) fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "partition" => {
                let (separator,): (&str,) = from_args(args)?;
                let parts = match text.split_once(separator) {
                    Some((before, after)) => [before, separator, after],
                    None => [text, "", ""],
                };
                return Ok(Value::from(Tuple::from(parts.map(Value::from))));
            }
            "rpartition" => {
                let (separator,): (&str,) = from_args(args)?;
                let parts = match text.rsplit_once(separator) {
                    Some((before, after)) => [before, separator, after],
                    None => ["", "", text],
                };
                return Ok(Value::from(Tuple::from(parts.map(Value::from))));
            }
            "rsplit" => {
                let (separator, limit): (&str, Option<i64>) = from_args(args)?;
                let mut parts: Vec<&str> = match limit.and_then(|limit| usize::try_from(limit).ok()) {
                    Some(limit) => text.rsplitn(limit.saturating_add(1), separator).collect(),
                    None => text.rsplit(separator).collect(),
                };
                parts.reverse();
                return Ok(parts.into_iter().collect());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `strftime_now(format)`: the moment of rendering. Python uses the local time zone; here it is UTC, since
/// the standard library knows no other. A template that shows a date takes `date_string` as an argument,
/// which is how a run stays reproducible.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    strftime(format, seconds)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From the weekday of the first of January 1970.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    let (days, second_of_day) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (year, month, day) = civil_date(days);
    let (month_name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[(days % 7) as usize]);
    let hour_of_12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = characters.next();
        // Writing to a string cannot fail.
        let _ = match directive {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b') => write!(out, "{}", &month_name[..3]),
            Some('d') => write!(out, "{day:02}"),
            Some('A') => write!(out, "{weekday}"),
            Some('a') => write!(out, "{}", &weekday[..3]),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{hour_of_12:02}"),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('%') => write!(out, "%"),
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: the directive `%{shown}` is not known; known are YymBbdAaHIpMS%"),
                ));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01. Years are counted from March, so
/// that the leap day is the last one of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_MARCH_0000: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days + DAYS_FROM_MARCH_0000;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, written) in [
            (0, "Thu 01 Jan 1970 12:00:00 AM"),
            (951_782_400, "Tue 29 Feb 2000 12:00:00 AM"),
            (1_709_251_199, "Thu 29 Feb 2024 11:59:59 PM"),
            (1_735_689_599, "Tue 31 Dec 2024 11:59:59 PM"),
            (4_102_444_800, "Fri 01 Jan 2100 12:00:00 AM"),
        ] {
            assert_eq!(strftime("%a %d %b %Y %I:%M:%S %p", seconds).unwrap(), written);
        }
        assert_eq!(strftime("%A, %B %d, %y %H%% %m", 1_709_251_199).unwrap(), "Thursday, February 29, 24 23% 02");
    }

    #[test]
    fn an_unknown_date_directive_is_named() {
        let message = strftime("%Q", 0).unwrap_err().to_string();
        assert!(message.contains("`%Q`"), "{message}");
    }
}
