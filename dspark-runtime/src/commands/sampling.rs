//! Command-line arguments of sampling.

use clap::Args;

use super::output::temperature;
use crate::engine::Sampling;

/// Temperature, filters and seed.
#[derive(Debug, Args)]
pub struct SamplingArguments {
    /// Sampling temperature; 0 is greedy (default: 0)
    #[arg(long, value_parser = temperature)]
    temperature: Option<f64>,
    /// Sample from the smallest set of most likely tokens whose total probability reaches P; 1 keeps all tokens
    /// (default: 1)
    #[arg(long, value_name = "P", value_parser = top_p)]
    top_p: Option<f64>,
    /// Sample from the COUNT most likely tokens; 0 keeps all tokens (default: 0)
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Sample from tokens at least P times as likely as the most likely one; 0 keeps all tokens (default: 0)
    #[arg(long, value_name = "P", value_parser = min_p)]
    min_p: Option<f64>,
    /// Sampling seed. The same seed gives the same text with any draft or none, in `generate`, `chat` and `serve`
    /// (default: random)
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
