//! `deepspec cache`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use dspark_runtime::checkpoint::{CheckpointError, expand_home};
use dspark_runtime::commands::print;
use serde_json::json;

use super::course::model_digest;
use super::described::{Described, RecipeArguments};
use super::setup::Prepared;
use crate::console::Progress;
use crate::conversation::{ConversationError, Sample, SampleSet, Samples};
use crate::preparation::Shard;
use crate::teacher::{
    Built, CacheBuild, CacheSettings, CachedTokens, Codec, SAMPLES_PER_FILE, StateCache, file_bytes, kept_rows, sizes,
};

/// Samples that `plan` runs through the target, to measure its speed and how well states compress.
const PROBED: usize = 16;
/// Bytes of the block's own length field.
const LENGTH: u64 = 8;

/// The verbs of `deepspec cache`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the size of the cache in each number format, and the time to build it, without writing anything
    Plan(PlanArguments),
    /// Build the cache in the folder that the recipe's `data.cache` names
    ///
    /// Files that are there and intact are kept, so a build that was stopped continues. Damaged files are written again.
    Build(BuildArguments),
    /// Compare every block of a cache with its checksum and name those that are damaged
    Verify(VerifyArguments),
}

/// Arguments of `deepspec cache plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `deepspec cache build`.
#[derive(Debug, Args)]
pub struct BuildArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Number format: bf16, bf16-lossless (the same numbers, compressed), fp8, int8 or int4
    #[arg(long, default_value_t = Codec::Bf16)]
    codec: Codec,
    /// Build a part of the cache, for example 0/8 to 7/8 in eight jobs; all parts go into the same folder
    #[arg(long, value_name = "INDEX/COUNT")]
    shard: Option<Shard>,
}

/// Arguments of `deepspec cache verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Folder of the cache
    cache: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Damaged parts of a cache. The machine is to blame.
#[derive(Debug, thiserror::Error)]
#[error("{}: {count} damaged files or blocks, named above: `deepspec cache build` with the same recipe makes them again", folder.display())]
pub struct Damaged {
    folder: PathBuf,
    count: usize,
}

/// Runs a verb.
pub fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Plan(arguments) => plan(arguments),
        Verb::Build(arguments) => build(arguments),
        Verb::Verify(arguments) => verify(arguments),
    }
}

/// A recipe with its models and all samples to store.
struct Work {
    prepared: Prepared,
    sets: [SampleSet; 2],
    target: String,
}

impl Work {
    fn of(arguments: &RecipeArguments) -> Result<Self> {
        let described = Described::load(arguments)?;
        described.draft_config()?;
        let (Samples { training, validation }, _) = described.samples()?;
        let target = model_digest(&described.target_folder)?;
        let prepared = Prepared::of(described, arguments.device)?;
        Ok(Self { prepared, sets: [training, validation], target })
    }

    fn settings(&self, codec: Codec) -> Result<CacheSettings> {
        let layers = self.prepared.described.draft_config()?.target_layer_ids;
        let hidden_size = self.prepared.target.config().layer.hidden_size;
        Ok(CacheSettings { target: self.target.clone(), layers, hidden_size, codec })
    }

    fn len(&self) -> usize {
        self.sets.iter().map(SampleSet::len).sum()
    }

    /// A sample of the training set or, behind it, of the validation set.
    fn sample(&self, index: usize) -> Result<CachedTokens, ConversationError> {
        let training = self.sets[0].len();
        let sample = if index < training { self.sets[0].get(index) } else { self.sets[1].get(index - training) };
        sample.map(|Sample { token_ids, loss_mask, .. }| (token_ids, loss_mask))
    }
}

fn plan(arguments: &PlanArguments) -> Result<()> {
    let work = Work::of(&arguments.recipe)?;
    let all: Vec<CacheSettings> = Codec::ALL
        .into_iter()
        .map(|codec| work.settings(codec))
        .filter(|settings| {
            settings.as_ref().map_or(true, |settings| settings.codec.check_width(settings.hidden_size).is_ok())
        })
        .collect::<Result<_>>()?;
    let (mut tokens, mut kept) = (0, 0);
    for index in 0..work.len() {
        let (ids, loss_mask) = work.sample(index)?;
        tokens += ids.len();
        kept += kept_rows(&loss_mask).into_iter().filter(|keep| *keep).count();
    }
    let probed = work.len().min(PROBED);
    let probes: Vec<CachedTokens> =
        (0..probed).map(|probe| work.sample(probe * work.len() / probed)).collect::<Result<_, _>>()?;
    let begun = Instant::now();
    let probe_sizes = sizes(&all, &probes, &work.prepared.target).map_err(anyhow::Error::msg)?;
    let probe_tokens: usize = probes.iter().map(|(ids, _)| ids.len()).sum();
    let seconds = begun.elapsed().as_secs_f64() * tokens as f64 / probe_tokens.max(1) as f64;
    let probe_kept: usize =
        probes.iter().map(|(_, mask)| kept_rows(mask).into_iter().filter(|keep| *keep).count()).sum();
    let rows = |settings: &CacheSettings, tokens: usize, kept: usize| (tokens * settings.layers.len() + kept) as f64;
    let mut report = Vec::with_capacity(all.len());
    for (settings, probe_size) in all.iter().zip(probe_sizes) {
        let exact = settings.block_bytes(tokens, kept);
        // Each block has its length field; the count of all rows has it once.
        let blocks = exact.map(|bytes| bytes + (work.len() as u64 - 1) * LENGTH).unwrap_or_else(|| {
            (probe_size as f64 * rows(settings, tokens, kept) / rows(settings, probe_tokens, probe_kept)) as u64
        });
        let bytes = file_bytes(blocks, work.len(), SAMPLES_PER_FILE);
        report.push((settings.codec, bytes, exact.is_none()));
    }
    if arguments.json {
        let formats: Vec<serde_json::Value> = report
            .iter()
            .map(|(codec, bytes, estimated)| json!({"codec": codec, "bytes": bytes, "estimated": estimated}))
            .collect();
        let plan = json!({"samples": work.len(), "tokens": tokens, "kept_rows": kept, "seconds": seconds, "formats": formats});
        return Ok(print(serde_json::to_string_pretty(&plan)?)?);
    }
    print(format_args!(
        "{} samples, {tokens} tokens, {kept} rows of last hidden states; about {} to build (measured on {probed} samples)",
        work.len(),
        duration(seconds)
    ))?;
    print("codec                size  bytes per token")?;
    for (codec, bytes, estimated) in report {
        let per_token = bytes as f64 / tokens as f64;
        let note = if estimated { "  estimated from the same samples" } else { "" };
        print(format_args!("{codec:<14} {:>10}  {per_token:>15.0}{note}", size(bytes)))?;
    }
    Ok(())
}

fn build(arguments: &BuildArguments) -> Result<()> {
    let work = Work::of(&arguments.recipe)?;
    let described = &work.prepared.described;
    let Some(folder) = &described.recipe.data.cache else {
        bail!(
            "{}: data.cache is missing: it names the folder of the cache; set it in the recipe or with --set data.cache=DIR",
            described.file.display()
        )
    };
    let shard = arguments.shard.unwrap_or(Shard { index: 0, count: 1 });
    let (index, count) = (shard.index as usize, shard.count as usize);
    let build = CacheBuild::begin(folder, work.settings(arguments.codec)?, index, count).context("data.cache")?;
    let groups: Vec<usize> = (index..work.len().div_ceil(SAMPLES_PER_FILE)).step_by(count).collect();
    let mut progress = Progress::new("cache", groups.len() as u64, 0);
    let (mut written, mut before, mut tokens) = (0, 0, 0);
    let begun = Instant::now();
    for group in groups {
        let samples = group * SAMPLES_PER_FILE..work.len().min((group + 1) * SAMPLES_PER_FILE);
        let samples: Vec<CachedTokens> = samples.map(|sample| work.sample(sample)).collect::<Result<_, _>>()?;
        match build.group(group, &samples, &work.prepared.target)? {
            Built::Before => before += 1,
            Built::Written => written += 1,
            Built::Repaired => {
                written += 1;
                progress.note("a damaged file was written again");
            }
        }
        tokens += samples.iter().map(|(ids, _)| ids.len()).sum::<usize>();
        progress.step(|| format!("files, {:.0} tokens/s", tokens as f64 / begun.elapsed().as_secs_f64()));
    }
    progress.finish();
    Ok(print(format_args!(
        "{}: {written} files written, {before} were there; {tokens} tokens in {:.1} s",
        folder.display(),
        begun.elapsed().as_secs_f64()
    ))?)
}

fn verify(arguments: &VerifyArguments) -> Result<()> {
    let folder = expand_home(&arguments.cache);
    let (blocks, problems) = StateCache::verify(&folder)?;
    if arguments.json {
        let problems: Vec<String> = problems.iter().map(CheckpointError::to_string).collect();
        print(serde_json::to_string_pretty(&json!({"blocks": blocks, "damaged": problems}))?)?;
    } else {
        for problem in &problems {
            print(problem)?;
        }
        if problems.is_empty() {
            print(format_args!("{}: {blocks} blocks, all intact", folder.display()))?;
        }
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(Damaged { folder, count }.into()),
    }
}

/// A size in words.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes if bytes < 1e12 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.1} TB", bytes / 1e12),
    }
}

/// A time in words.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} seconds"),
        seconds if seconds < 7200.0 => format!("{:.0} minutes", seconds / 60.0),
        seconds => format!("{:.0} hours", seconds / 3600.0),
    }
}
