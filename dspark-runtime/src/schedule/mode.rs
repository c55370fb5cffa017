//! The ways to choose prefix lengths.

use std::fmt;
use std::str::FromStr;

/// A way to choose prefix lengths, as a person names it: `off`, `fixed:N`, `threshold:P` or `scheduled`.
///
/// ```
/// use dspark_runtime::schedule::Mode;
///
/// assert_eq!("fixed:4".parse(), Ok(Mode::Fixed(4)));
/// assert_eq!(Mode::Scheduled.to_string(), "scheduled");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Mode {
    /// No drafting.
    Off,
    /// The first N drafted tokens of every request, at least one.
    Fixed(usize),
    /// All tokens before the first position whose confidence is below this.
    Threshold(f64),
    /// The number of tokens that is worth its cost on this machine.
    #[default]
    Scheduled,
}

/// Error of an unknown mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown mode `{0}`: expected `off`, `fixed:N` with a whole number N >= 1, `threshold:P` with a number P from 0 to 1, or `scheduled`"
)]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(name: &str) -> Result<Self, ModeError> {
        let mode = match name.split_once(':') {
            None if name == "off" => Some(Self::Off),
            None if name == "scheduled" => Some(Self::Scheduled),
            Some(("fixed", count)) => count.parse().ok().filter(|count| *count >= 1).map(Self::Fixed),
            Some(("threshold", share)) => {
                share.parse().ok().filter(|share| (0.0..=1.0).contains(share)).map(Self::Threshold)
            }
            _ => None,
        };
        mode.ok_or_else(|| ModeError(name.to_owned()))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Fixed(count) => write!(f, "fixed:{count}"),
            Self::Threshold(share) => write!(f, "threshold:{share}"),
            Self::Scheduled => f.write_str("scheduled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_parsed_and_printed_alike() {
        for name in ["off", "fixed:1", "fixed:7", "threshold:0.5", "threshold:0", "scheduled"] {
            assert_eq!(name.parse::<Mode>().unwrap().to_string(), name);
        }
        for name in ["", "on", "off:1", "fixed", "fixed:0", "fixed:-1", "fixed:1.5", "threshold:1.5", "threshold:NaN"]
        {
            let error = name.parse::<Mode>().unwrap_err().to_string();
            assert!(error.contains("expected `off`") && error.contains(&format!("`{name}`")), "{error}");
        }
    }
}
