//! `dspark profile`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::models::{ModelArguments, warn_unkept};
use super::output::{MOST_REQUESTS, count, count_to, print};
use super::outputs::check_outputs;
use crate::checkpoint::cache_folder;
use crate::profile::{PROFILES, ProfileOptions, Progress, Unkept, keep, load_or_measure, verify_seconds};
use crate::schedule::StepCost;

/// Arguments of `dspark profile`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    models: ModelArguments,
    /// Maximum tokens per forward pass
    #[arg(long, value_name = "TOKENS", default_value_t = ProfileOptions::default().max_batch_tokens, value_parser = count)]
    max_batch_tokens: usize,
    /// Maximum number of requests that draft in one batch
    #[arg(long, value_name = "COUNT", default_value_t = ProfileOptions::default().max_requests, value_parser = count_to::<MOST_REQUESTS>)]
    max_requests: usize,
    /// Context lengths to measure in tokens, separated by commas; the first one is used for the speed table (default: 256,1024 as
    /// far as the target's context allows)
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    contexts: Vec<usize>,
    /// Number of timed passes per measurement; the median is used
    #[arg(long, value_name = "COUNT", default_value_t = ProfileOptions::default().repeats, value_parser = count)]
    repeats: usize,
    /// Ignore the cached measurement, and measure again
    #[arg(long)]
    again: bool,
    /// Also write the speed table to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the speed table and the pass times per context length as JSON
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(out) = &arguments.out {
        check_outputs(&[("--out", out)], &arguments.models.inputs())?;
    }
    let models = arguments.models.open()?;
    let (target, draft) = (&models.target, models.draft.as_ref());
    let longest = target.config().max_position_embeddings;
    let rows = draft.map_or(8, |draft| draft.config().block_size + 1);
    let contexts = contexts(&arguments.contexts, longest.saturating_sub(rows))?;
    let Some(&context) = contexts.first() else { bail!("--contexts: expected at least one number") };
    let options = ProfileOptions {
        max_batch_tokens: arguments.max_batch_tokens,
        max_requests: arguments.max_requests,
        context,
        repeats: arguments.repeats,
    };
    let identity = models.identity(&options);
    let cache = cache_folder(PROFILES);
    let from = cache.as_deref().filter(|_| !arguments.again);
    let observe = |progress: Progress| match progress {
        Progress::Begun { seconds } => eprintln!("measuring: about {seconds:.0} s"),
        Progress::Probed { kind, count, seconds } => {
            let unit = if kind == "verify" { "tokens" } else { "requests" };
            eprintln!("{kind} {count} {unit}: {:.2} ms", seconds * 1e3);
        }
    };
    let mut disturbed = false;
    let unkept = |why: Unkept| match why {
        Unkept::Failed(error) => warn_unkept(error.into()),
        Unkept::Disturbed { spread } => {
            disturbed = true;
            eprintln!(
                "warning: other programs ran while this was measured (times of one pass differ by a factor of {spread:.1}): \
                 `scheduled` will decide by a distorted table; repeat with --again when the machine is idle"
            );
        }
    };
    let table = load_or_measure(target, draft, &options, &identity, from, observe, unkept);
    // Who measures expressly gets what was measured.
    if let (true, Some(cache)) = (arguments.again || disturbed, &cache)
        && let Err(error) = keep(&table, &identity, cache)
    {
        warn_unkept(error.into());
    }
    if let Some(path) = &arguments.out {
        table.write(path)?;
    }
    let mut behind = Vec::new();
    for &context in &contexts {
        for tokens in [1, rows] {
            let seconds = verify_seconds(target, draft, tokens, context, options.repeats);
            behind.push(json!({"context": context, "tokens": tokens, "seconds": seconds}));
        }
    }
    for rise in table.rises() {
        eprintln!("warning: {rise}");
    }
    if arguments.json {
        return Ok(print(serde_json::to_string_pretty(&json!({"table": table.to_json(), "contexts": behind}))?)?);
    }
    if let StepCost::Probes { batch_tokens, steps_per_second, .. } = table.cost() {
        print("tokens  ms per pass  tokens/s")?;
        for (tokens, speed) in batch_tokens.iter().zip(steps_per_second) {
            print(format!("{tokens:>6}  {:>11.2}  {:>8.0}", 1e3 / speed, *tokens as f64 * speed))?;
        }
    }
    if let Some(cost) = table.draft() {
        let slots: String = cost.slots.iter().map(|slots| format!("{slots:>8}")).collect();
        print(format!("\nms of drafting by requests and slots\n        {slots}"))?;
        for (index, requests) in cost.requests.iter().enumerate() {
            let row: String = cost.seconds.iter().map(|row| format!("{:>8.2}", row[index] * 1e3)).collect();
            print(format!("{requests:>8}{row}"))?;
        }
    }
    Ok(())
}

/// Returns the context lengths to measure: those given, or the default ones that fit.
///
/// # Errors
/// Returns an error if a given length exceeds the limit.
fn contexts(given: &[usize], limit: usize) -> Result<Vec<usize>> {
    if let Some(context) = given.iter().find(|context| **context > limit) {
        bail!("--contexts: expected at most {limit} for this target, found {context}");
    }
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let mut fitting: Vec<usize> = [ProfileOptions::default().context, 1024].map(|context| context.min(limit)).into();
    fitting.dedup();
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use super::contexts;

    #[test]
    fn default_contexts_fit_the_target() {
        assert_eq!(contexts(&[], 1016).unwrap(), [256, 1016]);
        assert_eq!(contexts(&[], 120).unwrap(), [120]);
        assert_eq!(contexts(&[], 4096).unwrap(), [256, 1024]);
        assert_eq!(contexts(&[512], 1016).unwrap(), [512]);
        assert!(contexts(&[1024], 1016).unwrap_err().to_string().contains("at most 1016"));
    }
}
