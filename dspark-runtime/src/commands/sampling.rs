//! How tokens are chosen, on the command line.

use clap::Args;

use super::output::temperature;
use crate::engine::Sampling;

/// Temperature, filters and seed.
#[derive(Debug, Args)]
pub struct SamplingArguments {
    /// Sampling temperature; 0 is greedy (default: 0)
    #[arg(long, value_parser = temperature)]
    temperature: Option<f64>,
    /// Sample from the most likely tokens up to this share of the probability; 1 keeps all (default: 1)
    #[arg(long, value_name = "SHARE", value_parser = top_p)]
    top_p: Option<f64>,
    /// Sample from this many of the most likely tokens; 0 keeps all (default: 0)
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Sample from tokens at least this fraction as likely as the most likely one; 0 keeps all (default: 0)
    #[arg(long, value_name = "FRACTION", value_parser = min_p)]
    min_p: Option<f64>,
    /// Seed of sampling: the same text again, with any draft or none, whichever command serves it (default: another text
    /// every time)
    #[arg(long)]
    seed: Option<u64>,
}

impl SamplingArguments {
    /// Returns the settings as the engine takes them, those that were not given from `defaults`.
    pub fn sampling(&self, defaults: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed,
        }
    }
}

fn top_p(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and at most 1".into())
}

fn min_p(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|fraction: &f64| (0.0..1.0).contains(fraction));
    fraction.ok_or_else(|| "expected a number of at least 0 and below 1".into())
}
