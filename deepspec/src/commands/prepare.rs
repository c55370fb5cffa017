//! `deepspec prepare`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::{LARGEST_TEXT, expand_home, read_text, resolve_model};
use dspark_runtime::commands::{count, print, read_tokenizer, share, template_arguments};
use dspark_runtime::text::Tokenizer;
use sha2::{Digest, Sha256};

use super::data_files::data_files;
use crate::cards::dataset_folders;
use crate::digest::{hash_ends, hash_file, hex, model_files};
use crate::preparation::{
    Bounds, MANIFEST, Manifest, Prepared, REPETITION, Settings, Shard, Source, SourceReport, TokenBounds, Weight,
    prepare,
};

/// Share of unusable rows above which a warning says so.
const WARNED_SHARE: f64 = 0.05;

/// Arguments of `deepspec prepare`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Data: files, folders or names of dataset cards, as `data.train` of a recipe takes them. NAME=PATH gives a source a
    /// name, and one name may have several paths; otherwise the path is the name
    #[arg(value_name = "SOURCE", required = true, num_args = 1..)]
    sources: Vec<String>,
    /// Folder for the data set: train/*.parquet, validation/*.parquet and manifest.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep conversations with so many user messages
    #[arg(long, value_name = "MIN..MAX")]
    turns: Option<Bounds>,
    /// Keep conversations with so many tokens, counted with the target's tokeniser and chat template
    #[arg(long, value_name = "MIN..MAX", requires = "target")]
    tokens: Option<Bounds>,
    /// Target model: a folder in Hugging Face layout or a GGUF file. Only its tokeniser is read
    #[arg(long, value_name = "MODEL", requires = "tokens")]
    target: Option<String>,
    /// Set a variable of the chat template, for example `enable_thinking=false`. Can be repeated
    #[arg(long = "template-argument", value_name = "NAME=VALUE", requires = "tokens")]
    template_arguments: Vec<String>,
    /// Leave out conversations with an answer of which more than this share of the sequences of four words occurred in it
    /// before; 1 keeps all
    #[arg(long, value_name = "SHARE", default_value_t = REPETITION, value_parser = share)]
    repetition: f64,
    /// Keep answers that their length limit cut off (`finish_reason` "length")
    #[arg(long)]
    cut_answers: bool,
    /// Leave out conversations that resemble an earlier one: they share this much of their sequences of three words, found
    /// with a probability that rises steeply around it
    #[arg(long, value_name = "SIMILARITY", value_parser = similarity)]
    near_duplicates: Option<f64>,
    /// Weight of a source in the mixture; its share of the rows is this divided by the sum of all weights. Without --rows, as
    /// many rows as there can be. Can be repeated
    #[arg(long = "weight", value_name = "NAME=W")]
    weights: Vec<String>,
    /// Number of rows to choose, in all
    #[arg(long, value_name = "COUNT", value_parser = count)]
    rows: Option<usize>,
    /// Seed of the choice of rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Share of prompts to set aside for validation. Which ones does not change when data are added
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = validation_share)]
    validation: f64,
    /// Take one of COUNT parts of the rows, INDEX from 0, for job arrays: together the parts are the whole
    #[arg(long, value_name = "INDEX/COUNT")]
    shard: Option<Shard>,
    /// Print the manifest as JSON instead of the table
    #[arg(long)]
    json: bool,
}

/// A similarity for `--near-duplicates`.
fn similarity(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|similarity| (0.5..=0.95).contains(similarity));
    number.ok_or_else(|| "expected a number from 0.5 to 0.95".to_owned())
}

/// A share for `--validation`.
fn validation_share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    number.ok_or_else(|| "expected a number of at least 0 and below 1".to_owned())
}

/// Prepares the data, and prints what became of the rows.
pub fn run(arguments: &Arguments) -> Result<()> {
    let out = expand_home(&arguments.out);
    let sources = sources(&arguments.sources, &out)?;
    let tokenizer = arguments.tokenizer()?;
    let settings = arguments.settings(tokenizer.as_ref())?;
    let tokenizer = tokenizer.as_ref().map(|(tokenizer, _)| tokenizer);
    match prepare(&sources, &out, &settings, tokenizer)? {
        Prepared::Before => {
            if arguments.json {
                let path = out.join(MANIFEST);
                let text = read_text(&path, LARGEST_TEXT).with_context(|| path.display().to_string())?;
                print(text.trim_end())?;
            }
            eprintln!("{}: prepared before, from the same data with the same settings; nothing to do", out.display());
        }
        Prepared::Written(manifest) => {
            warn(&manifest);
            match arguments.json {
                true => print(manifest.text()?.trim_end())?,
                false => show(&manifest, &out)?,
            }
        }
    }
    Ok(())
}

impl Arguments {
    /// The tokeniser that counts tokens, with the digest of its files.
    fn tokenizer(&self) -> Result<Option<(Tokenizer, String)>> {
        let Some(target) = &self.target else { return Ok(None) };
        let folder = resolve_model(target)?;
        let tokenizer = read_tokenizer(&folder)?;
        if tokenizer.chat_template().is_none() {
            bail!("--target {target}: its tokeniser has no chat template, with which --tokens counts");
        }
        let mut hash = Sha256::new();
        for file in model_files(&folder)? {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("json" | "jinja") => hash_file(&mut hash, &file)?,
                Some("safetensors") => {}
                _ => hash_ends(&mut hash, &file)?,
            }
        }
        Ok(Some((tokenizer, hex(hash))))
    }

    fn settings(&self, tokenizer: Option<&(Tokenizer, String)>) -> Result<Settings> {
        let template_arguments = template_arguments(&self.template_arguments)?;
        let tokens = self.tokens.zip(tokenizer).map(|(bounds, (_, digest))| TokenBounds {
            bounds,
            tokenizer: digest.clone(),
            template_arguments,
        });
        let weight = |text: &String| {
            let parsed = text.rsplit_once('=').and_then(|(source, weight)| Some((source, weight.parse().ok()?)));
            match parsed.filter(|(_, weight): &(&str, f64)| weight.is_finite() && *weight > 0.0) {
                Some((source, weight)) => Ok(Weight { source: source.to_owned(), weight }),
                None => bail!("--weight {text}: expected NAME=W with a number above 0"),
            }
        };
        Ok(Settings {
            turns: self.turns,
            tokens,
            repetition: self.repetition,
            cut_answers: self.cut_answers,
            near_duplicates: self.near_duplicates,
            weights: self.weights.iter().map(weight).collect::<Result<_>>()?,
            rows: self.rows,
            seed: self.seed,
            validation: self.validation,
            shard: self.shard,
        })
    }
}

/// Resolves the sources to data files; those of one name are one source.
fn sources(given: &[String], out: &Path) -> Result<Vec<Source>> {
    let folders = dataset_folders();
    let out = std::path::absolute(out).with_context(|| format!("--out {}", out.display()))?;
    let mut sources: Vec<Source> = Vec::new();
    for text in given {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !expand_home(Path::new(text)).exists() => (name, path),
            _ => (text.as_str(), text.as_str()),
        };
        if name.is_empty() || path.is_empty() {
            bail!("{text}: expected PATH or NAME=PATH");
        }
        let path = expand_home(Path::new(path));
        let within = std::path::absolute(&path).is_ok_and(|path| path.is_dir() && out.starts_with(path));
        if within {
            bail!(
                "--out {}: lies in the source {}, of which it would become a part; choose a folder outside",
                out.display(),
                path.display()
            );
        }
        let files = data_files(&[path], &folders)?;
        match sources.iter_mut().find(|source| source.name == name) {
            Some(source) => source.files.extend(files),
            None => sources.push(Source { name: name.to_owned(), files }),
        }
    }
    Ok(sources)
}

/// Prints warnings about what the user may not expect.
fn warn(manifest: &Manifest) {
    for source in &manifest.sources {
        let share = source.unusable as f64 / source.read.max(1) as f64;
        if share > WARNED_SHARE {
            eprintln!(
                "warning: {}: {} of {} rows ({:.1} %) hold no usable conversation",
                source.name,
                source.unusable,
                source.read,
                100.0 * share
            );
        }
    }
    let (training, validation) = totals(&manifest.sources);
    if manifest.settings.validation > 0.0 && validation == 0 {
        eprintln!(
            "warning: --validation {}: no prompt of {training} rows was set aside",
            manifest.settings.validation
        );
    }
    if training == 0 {
        eprintln!("warning: all {validation} rows were set aside for validation; none is left for training");
    }
}

fn totals(sources: &[SourceReport]) -> (usize, usize) {
    sources
        .iter()
        .fold((0, 0), |(training, validation), source| (training + source.training, validation + source.validation))
}

/// Prints what became of the rows of every source.
fn show(manifest: &Manifest, out: &Path) -> Result<()> {
    for source in &manifest.sources {
        let SourceReport { name, read, .. } = source;
        let mut line = format!("{name}: {read} rows read, {} written", source.written());
        for (rows, what) in [(source.not_chosen, "not chosen"), (source.other_shards, "in other shards")] {
            if rows > 0 {
                line += &format!(", {rows} {what}");
            }
        }
        print(line + &source.reasons().to_string())?;
    }
    let (training, validation) = totals(&manifest.sources);
    let files = manifest.outputs.len();
    let noun = if files == 1 { "file" } else { "files" };
    print(format!(
        "wrote {}: {training} rows for training, {validation} for validation, {files} {noun}",
        out.display()
    ))?;
    Ok(())
}
