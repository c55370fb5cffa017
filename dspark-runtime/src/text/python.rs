//! The Python features that chat templates use: values, string methods, and the functions that the `transformers`
//! package adds to Jinja. `tojson` has a separate file.

use jiff::ZonedDateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
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

/// Prints a value for `{{ value }}`. The engine prints like Python, except for very small and very large floats.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.is_number() && !value.is_integer() {
        return out.write_str(&python_float(f64::try_from(value.clone())?)).map_err(Error::from);
    }
    escape_formatter(out, state, value)
}

/// Implements `value is sequence`: true for everything with a length and an index, including strings and dictionaries.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// `raise_exception(message)`: how a template refuses a conversation.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Calls Python methods that the engine lacks: first the ones below, then those of minijinja's own collection.
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

/// `strftime_now(format)`: the local date and time, as `transformers` writes it. A template that shows a date takes
/// `date_string` as an argument, which keeps a run reproducible.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, &ZonedDateTime::now())
}

/// Implements Python's `datetime.strftime` in the C locale. Directives for time zones and fractions of a second are
/// errors: a `datetime.now()` has no zone, and Python has its own format for fractions.
fn strftime(format: &str, now: &ZonedDateTime) -> Result<String, Error> {
    let config = Config::new().custom(PosixCustom::new());
    let mut time = BrokenDownTime::from(now.datetime());
    let written = time.set_subsec_nanosecond(None).and_then(|()| time.to_string_with_config(&config, format));
    written.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now('{format}'): {error}")))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::civil::DateTime;
    use jiff::tz::TimeZone;

    use super::*;

    /// A moment by the clocks of Berlin.
    fn berlin(unix_seconds: i64) -> ZonedDateTime {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        Timestamp::from_second(unix_seconds).unwrap().to_zoned_datetime(zone)
    }

    #[test]
    fn dates_are_local() {
        for (seconds, written) in [
            (0, "Thu 01 Jan 1970 01:00:00 AM"),
            (951_782_400, "Tue 29 Feb 2000 01:00:00 AM"),
            // The last second of the year in London.
            (1_735_689_599, "Wed 01 Jan 2025 12:59:59 AM"),
            // The clocks go forward from 2 to 3 and back from 3 to 2.
            (1_711_846_799, "Sun 31 Mar 2024 01:59:59 AM"),
            (1_711_846_800, "Sun 31 Mar 2024 03:00:00 AM"),
            (1_729_990_800, "Sun 27 Oct 2024 02:00:00 AM"),
        ] {
            assert_eq!(strftime("%a %d %b %Y %I:%M:%S %p", &berlin(seconds)).unwrap(), written);
        }
    }

    /// A second process renders, in a time zone 14 hours before UTC.
    #[test]
    fn now_is_local_time() {
        const ZONE: &str = "ABC-14";
        if std::env::var("TZ").is_ok_and(|zone| zone == ZONE) {
            println!("<{}>", strftime_now("%Y-%m-%dT%H:%M:%S").unwrap());
            return;
        }
        let before = Timestamp::now().as_second();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "text::python::tests::now_is_local_time", "--nocapture"])
            .env("TZ", ZONE)
            .output()
            .unwrap();
        let after = Timestamp::now().as_second();
        let output = String::from_utf8(output.stdout).unwrap();
        let (_, rest) = output.split_once('<').unwrap_or_else(|| panic!("{output}"));
        let local: DateTime = rest.split_once('>').unwrap().0.parse().unwrap();
        let found = local.to_zoned_datetime(TimeZone::UTC).unwrap().timestamp().as_second() - 14 * 3600;
        assert!((before..=after).contains(&found), "{before} {found} {after}");
    }

    #[test]
    fn directives_are_those_of_python() {
        // `datetime(2024, 2, 5, 9, 3, 7).strftime(...)`
        let now = berlin(1_707_120_187);
        for (format, written) in [
            ("%d %b %Y", "05 Feb 2024"),
            ("%B %d, %Y", "February 05, 2024"),
            ("%A, %-d %B %Y", "Monday, 5 February 2024"),
            ("%Y-%m-%d %H:%M:%S", "2024-02-05 09:03:07"),
            ("%y %j %I%p %% %e|%F|%T", "24 036 09AM %  5|2024-02-05|09:03:07"),
            ("%c|%x|%X", "Mon Feb  5 09:03:07 2024|02/05/24|09:03:07"),
        ] {
            assert_eq!(strftime(format, &now).unwrap(), written, "{format}");
        }
    }

    #[test]
    fn a_directive_that_is_not_pythons_is_named() {
        for (format, named) in
            [("%d %J", "directive `J`"), ("%Q", "%Q failed"), ("%Z", "%Z failed"), ("%f", "%f failed")]
        {
            let message = strftime(format, &berlin(0)).unwrap_err().to_string();
            assert!(message.contains(&format!("strftime_now('{format}')")) && message.contains(named), "{message}");
        }
    }
}
