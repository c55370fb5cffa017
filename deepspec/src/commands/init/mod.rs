//! `deepspec init`

mod rules;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use dspark_runtime::checkpoint::{expand_home, resolve_model, write_file};
use dspark_runtime::commands::{print, read_tokenizer, warn_of};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{TargetConfig, target_shapes};

use self::rules::{LAYERS, MaskToken, layer_ids, length, mask_token, reads, scale};
use self::text::{Choices, DATA, PROMPTS};
use super::data_files::data_files;
use super::described::Described;
use super::estimate::{Need, memory_need};
use super::evaluate::find_task;
use crate::cards::dataset_folders;
use crate::conversation::{Sample, SampleSet};

/// Arguments of `deepspec init`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The target: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// Conversations to train on: JSONL, JSON or Parquet files, folders of them, or names of dataset cards (default: a placeholder)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Prompts to measure the draft with: files, or names of dataset cards (default: a placeholder)
    #[arg(long = "task", value_name = "FILE", num_args = 1..)]
    tasks: Vec<String>,
    /// The recipe to write (default: the target's name and the architecture, in the working directory)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Architecture of the draft
    #[arg(long, value_enum, default_value = "dspark")]
    algorithm: Kind,
    /// Device that will train: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Architecture of a draft, by its usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Blocks with a Markov head and a confidence head
    Dspark,
    /// One layer that drafts token by token
    Eagle3,
    /// Blocks without heads
    Dflash,
}

impl Kind {
    fn with_article(self) -> &'static str {
        match self {
            Self::Dspark => "A DSpark",
            Self::Eagle3 => "An Eagle3",
            Self::Dflash => "A DFlash",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Dspark => "dspark",
            Self::Eagle3 => "eagle3",
            Self::Dflash => "dflash",
        }
    }
}

/// Smallest maximum length of a conversation that is tried to save memory, in tokens.
const SHORTEST: usize = 256;

/// Chooses settings, checks what fits into memory and writes the recipe.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.device.open()?;
    let folder = resolve_model(&arguments.target)?;
    let config = TargetConfig::read(&folder)?;
    warn_of(&config);
    let tokenizer = read_tokenizer(&folder)?;
    let model = model_name(&arguments.target, &folder);
    let name = format!("{}-{}", folder_name(&model), arguments.algorithm.name());
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    // A broken link also counts as existing.
    if out.symlink_metadata().is_ok() {
        bail!("--out {}: this file exists already; name another file with --out, or delete this one", out.display());
    }
    let files = data_files(&arguments.data, &dataset_folders()).context("--data")?;
    let data = arguments.data.iter().map(|path| utf8("--data", path)).collect::<Result<_>>()?;
    let tasks = tasks(arguments)?;

    let parameters: usize = target_shapes(&config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let needs_mask = arguments.algorithm != Kind::Eagle3;
    let mask = |samples: &SampleSet| {
        let mask = || mask_token(&tokenizer, config.vocab_size, samples);
        needs_mask.then(mask).transpose().with_context(|| folder.display().to_string())
    };
    let on_gpu = matches!(arguments.device, DeviceChoice::Cuda(_));
    let mut choices = Choices {
        name,
        target: arguments.target.clone(),
        model: model.clone(),
        kind: arguments.algorithm,
        device: arguments.device,
        layer_ids: layer_ids(&config)?,
        layer_rule: if config.layers.iter().any(|layer| layer.window().is_some()) {
            "four that attend to all earlier tokens, and the second last."
        } else if config.num_hidden_layers <= LAYERS + 1 {
            "all but the last, because the target has few."
        } else {
            "at most five, in equal steps from layer 1 to the third last."
        },
        mask: mask(&SampleSet::default())?,
        scale: scale(parameters),
        length: None,
        micro_batch_tokens: if on_gpu { 8192 } else { 2048 },
        max_length: config.max_position_embeddings.min(if on_gpu { 4096 } else { 1024 }),
        thinking: tokenizer.chat_template().is_some_and(|template| reads(template, "enable_thinking")),
        data,
        tasks,
    };
    let (_, recipe) = choices.text(&out)?;
    let (target_config, tokenizer) = (config.clone(), tokenizer.clone());
    let mut described =
        Described { recipe, file: out.clone(), target_folder: folder.clone(), target_config, tokenizer };
    let need = fit(&mut choices, &mut described, &files, &mask)?;

    let (text, _) = choices.text(&out)?;
    write_file(&out, text.as_bytes())?;
    report(&choices, parameters, &need, &out)
}

/// Chooses the training's length, a maximum conversation length and a batch that fit into the device's memory, and a mask token that
/// the data do not contain. Returns the memory that they need. If nothing fits, the choices are the smallest ones.
fn fit(
    choices: &mut Choices,
    described: &mut Described,
    files: &[PathBuf],
    mask: &dyn Fn(&SampleSet) -> Result<Option<MaskToken>>,
) -> Result<Need> {
    loop {
        let samples = if files.is_empty() {
            SampleSet::from(vec![longest(choices.max_length); choices.scale.batch])
        } else {
            described.recipe.data.train = files.to_vec();
            described.recipe.data.max_length = choices.max_length;
            let samples = described.samples().context("--data")?.0.training;
            choices.length = Some((length(&choices.scale, samples.len()), samples.len()));
            let mut longest = 0;
            for sample in samples.iter() {
                longest = longest.max(sample?.token_ids.len());
            }
            choices.max_length = choices.max_length.min(longest.next_multiple_of(64));
            choices.mask = mask(&samples)?;
            samples
        };
        choices.micro_batch_tokens = choices.micro_batch_tokens.max(choices.max_length);
        loop {
            described.recipe = choices.text(&described.file)?.1;
            let need = memory_need(described, &samples, choices.device)?;
            let alone = choices.micro_batch_tokens <= choices.max_length;
            if need.check().is_ok() || (alone && choices.max_length <= SHORTEST) {
                return Ok(need);
            }
            if alone {
                break;
            }
            choices.micro_batch_tokens = (choices.micro_batch_tokens / 2).max(choices.max_length);
        }
        choices.max_length = (choices.max_length / 2).max(SHORTEST);
    }
}

/// Returns the sample of this many tokens that needs the most memory.
fn longest(tokens: usize) -> Sample {
    Sample { id: String::new(), token_ids: vec![0; tokens], loss_mask: vec![true; tokens] }
}

/// Prints what was written and what to do next.
fn report(choices: &Choices, parameters: usize, need: &Need, out: &Path) -> Result<()> {
    let kind = choices.kind.with_article();
    print(format_args!(
        "wrote {}: {kind} draft for {} ({:.1} million parameters)",
        out.display(),
        choices.model,
        parameters as f64 / 1e6
    ))?;
    match need.check() {
        Ok(()) => print(format_args!(
            "memory: {need}, with {} tokens per forward pass and at most {} per conversation",
            choices.micro_batch_tokens, choices.max_length
        ))?,
        Err(error) => eprintln!("warning: {error}"),
    }
    let device =
        if choices.device == DeviceChoice::Cpu { String::new() } else { format!(" --device {}", choices.device) };
    print("\nNext:")?;
    if choices.data.is_empty() {
        print(format_args!("  put your conversations into {DATA}, or set data.train to other files"))?;
    }
    if choices.tasks.is_empty() {
        print(format_args!(
            "  put prompts that the draft is not trained on into {PROMPTS}, or set evaluate.tasks to other files"
        ))?;
    }
    print(format_args!("  deepspec train {}{device} --plan   estimate memory and time", out.display()))?;
    Ok(print(format_args!(
        "  deepspec run {}{device}            train, export and measure the draft",
        out.display()
    ))?)
}

/// Returns the tasks: names with files, or names of cards.
fn tasks(arguments: &Arguments) -> Result<Vec<(String, Option<String>)>> {
    let mut tasks: Vec<(String, Option<String>)> = Vec::new();
    for named in &arguments.tasks {
        let task = find_task(named)?;
        let path = Path::new(named).exists().then(|| utf8("--task", &task.path)).transpose()?;
        if tasks.iter().any(|(name, _)| *name == task.name) {
            bail!("--task {named}: another task has the name {:?} too; rename one of the files", task.name);
        }
        tasks.push((task.name, path));
    }
    Ok(tasks)
}

fn utf8(flag: &str, path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{flag} {}: expected a name in UTF-8", path.display()))?;
    Ok(text.to_owned())
}

/// Returns a model's name: that of its folder or file, or the last part of its Hugging Face name.
fn model_name(named: &str, folder: &Path) -> String {
    if !expand_home(Path::new(named)).exists() {
        return named.rsplit('/').next().unwrap_or(named).to_owned();
    }
    let path = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = if folder.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "target".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Returns a run's name for a model: lower case, with `-` in place of characters that folder names may not contain.
fn folder_name(model: &str) -> String {
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    let name: String =
        model.to_lowercase().chars().map(|character| if allowed(character) { character } else { '-' }).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "target".to_owned() } else { name.to_owned() }
}
