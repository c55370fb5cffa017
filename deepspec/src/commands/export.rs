//! `deepspec export`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use dspark_runtime::checkpoint::gguf::BlockType;
use dspark_runtime::checkpoint::{FolderLock, WeightDtype};
use dspark_runtime::commands::{Named, check_outputs, count, print};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig, DraftVocabulary, FolderLayout, Target, Verifier, write_target_gguf};
use dspark_runtime::schedule::StsTable;
use dspark_runtime::text::Tokenizer;
use serde_json::{Map, Value};

use super::data_files::data_files;
use super::described::print_accounting;
use super::draft_folder::{FolderOptions, prompt_limits, write_draft_folder};
use super::inspect::heads;
use super::model_card::{CardFacts, last_name};
use super::setup::{count_supervised, load_target};
use crate::cards::dataset_folders;
use crate::conversation::{Format, ReadOptions, read_samples};
use crate::replay::{default_prompts, file_prompts};

/// Rank of the head that `--zero-markov-head` adds: one that vLLM was run with.
const ZERO_HEAD_RANK: usize = 32;

/// Arguments of `deepspec export`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Checkpoint folder of the draft
    #[arg(long, value_name = "DIR")]
    draft: PathBuf,
    /// Target model that the draft was trained for: a folder in Hugging Face layout, a GGUF file or, with the `hub`
    /// feature, a Hugging Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// Output folder, or output file with `--layout gguf`. An existing draft in the folder is replaced; other files are
    /// kept
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Checkpoint layout: `deepspec` is a folder as read by this project and DeepSpec, `speculators` is a folder for
    /// the speculators package and vLLM, `specforge` is a folder as written by SpecForge, `gguf` is a file for llama.cpp
    #[arg(long, value_enum, default_value = "deepspec")]
    layout: Layout,
    /// Also write the target with its tokeniser and chat template to this file (with `--layout gguf`)
    #[arg(long, value_name = "FILE")]
    target_out: Option<PathBuf>,
    /// Number type of the weights; `f16` and `q8_0` need `--layout gguf`
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeArgument,
    /// Omit the frozen embedding and output head; programs that read the draft take them from the target
    #[arg(long)]
    without_embeddings: bool,
    /// Restrict the draft to the N most frequent answer tokens of `--vocabulary-data`. Drafting becomes cheaper; other
    /// tokens are never proposed. Not all engines can load such drafts
    #[arg(long, value_name = "N", requires = "vocabulary_data", value_parser = count)]
    draft_vocab_size: Option<usize>,
    /// Conversation files to count answer tokens in, in the formats of a recipe's `data.train`
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "draft_vocab_size")]
    vocabulary_data: Vec<PathBuf>,
    /// Add a Markov head of zeros to a DFlash draft (not with `--layout gguf`). The draft proposes the
    /// same tokens. vLLM does not load such a draft without a head; with one, use its method `dspark`
    #[arg(long)]
    zero_markov_head: bool,
    /// Target name to record in the draft, so that programs can load the target from it (with `--layout speculators`;
    /// default: `--target` if it is a Hugging Face name, else none)
    #[arg(long, value_name = "NAME")]
    verifier: Option<String>,
    /// Prompts for the replay bundle, in the formats of `deepspec evaluate --task`; the first eight are used (default:
    /// three built-in prompts)
    #[arg(long, value_name = "FILE")]
    replay_prompts: Option<PathBuf>,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    Deepspec,
    Speculators,
    Specforge,
    Gguf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeArgument {
    Bf16,
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl DtypeArgument {
    fn block_type(self) -> BlockType {
        match self {
            Self::Bf16 => BlockType::Bf16,
            Self::F32 => BlockType::F32,
            Self::F16 => BlockType::F16,
            Self::Q8_0 => BlockType::Q8_0,
        }
    }

    fn weight_dtype(self) -> Result<WeightDtype> {
        match self {
            Self::Bf16 => Ok(WeightDtype::Bf16),
            Self::F32 => Ok(WeightDtype::F32),
            Self::F16 | Self::Q8_0 => {
                bail!(
                    "--dtype {}: only with --layout gguf; expected bf16 or f32",
                    self.block_type().to_string().to_lowercase()
                )
            }
        }
    }
}

/// Reads the draft, checks it against the target and writes it.
pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.layout {
        Layout::Deepspec | Layout::Speculators | Layout::Specforge => write_folder(arguments),
        Layout::Gguf => write_gguf(arguments),
    }
}

fn write_folder(arguments: &Arguments) -> Result<()> {
    let dtype = arguments.dtype.weight_dtype()?;
    if arguments.target_out.is_some() {
        bail!("--target-out: only with --layout gguf; other engines read the target's own folder");
    }
    if arguments.verifier.is_some() && arguments.layout != Layout::Speculators {
        bail!("--verifier: only with --layout speculators; other layouts do not record the target's name");
    }
    check_out(&arguments.out)?;
    let _lock = FolderLock::around(&arguments.out)?;
    let (folder, target, tokenizer) = load_target(&arguments.target, &arguments.device.open()?)?;
    let mut draft = Draft::load(&arguments.draft, &target)?;
    if let Some(size) = arguments.draft_vocab_size {
        draft = with_fewer_tokens(draft, size, arguments, &target, &tokenizer)?;
    }
    if arguments.zero_markov_head {
        let has = heads(&draft.config().kind).unwrap_or_else(|| draft.config().drafter().name().to_owned());
        draft = draft.with_zero_markov_head(ZERO_HEAD_RANK).with_context(|| {
            format!(
                "--zero-markov-head: expected a DFlash draft without a Markov head, found one of another kind: {has}"
            )
        })?;
    }
    let limits = prompt_limits(&target);
    let prompts = match &arguments.replay_prompts {
        Some(file) => file_prompts(file, &tokenizer, limits).context("--replay-prompts")?,
        None => default_prompts(&tokenizer, limits).context("the replay bundle's own prompts")?,
    };
    let layout = match arguments.layout {
        Layout::Speculators => FolderLayout::Speculators(verifier(arguments, &target)),
        Layout::Specforge => FolderLayout::SpecForge,
        Layout::Deepspec | Layout::Gguf => FolderLayout::Native,
    };
    let source = arguments.draft.clone();
    let named = arguments.verifier.as_deref().unwrap_or(&arguments.target);
    let card = CardFacts::new(&last_name(&arguments.out), named, &folder, target.config());
    let options = FolderOptions { dtype, with_embeddings: !arguments.without_embeddings, source, layout, card };
    write_draft_folder(&draft, &arguments.out, &options, &target, tokenizer.stop_token_ids(), &prompts)?;
    Ok(print(format_args!("wrote {}", arguments.out.display()))?)
}

/// An export replaces a draft, or goes into a folder that is new or empty.
fn check_out(out: &Path) -> Result<()> {
    let empty = || out.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    if out.exists() && !empty() && DraftConfig::read(out).is_err() {
        bail!("--out {}: exists and is not a draft; choose another folder", out.display());
    }
    Ok(())
}

/// The target as the `speculators` layout names it. A folder on this machine is no name for others.
fn verifier(arguments: &Arguments, target: &Target) -> Verifier {
    let is_name = !Path::new(&arguments.target).exists();
    let named = arguments.verifier.clone().or_else(|| is_name.then(|| arguments.target.clone()));
    let architectures = target.config().fields.get("architectures").and_then(Value::as_array);
    let architectures = architectures.into_iter().flatten().filter_map(Value::as_str);
    Verifier { name_or_path: named, architectures: architectures.map(str::to_owned).collect() }
}

/// The draft with the tokens alone that the data have most of.
fn with_fewer_tokens(
    draft: Draft,
    size: usize,
    arguments: &Arguments,
    target: &Target,
    tokenizer: &Tokenizer,
) -> Result<Draft> {
    let rows = target.config().vocab_size;
    let has = draft.config().draft_vocab_size;
    if draft.vocabulary().is_some() || size >= rows {
        bail!(
            "--draft-vocab-size {size}: expected fewer than {rows}, and a draft with the whole vocabulary; this \
               draft proposes {has} tokens"
        );
    }
    let options = ReadOptions {
        format: Format::Chat,
        max_length: target.config().max_position_embeddings,
        minimum_supervised_tokens: 1,
        template_arguments: Map::new(),
        strict: false,
        cut_answers: false,
        vocabulary_size: rows,
    };
    let files = data_files(&arguments.vocabulary_data, &dataset_folders()).context("--vocabulary-data")?;
    let mut counts = vec![0; rows];
    let report = read_samples(&files, tokenizer, &options, |sample| {
        count_supervised(&mut counts, &sample);
        Ok(())
    })?;
    print_accounting("vocabulary data", &report);
    Ok(draft.with_vocabulary(DraftVocabulary::most_frequent(&counts, size)))
}

fn write_gguf(arguments: &Arguments) -> Result<()> {
    let Arguments { out, target_out, .. } = arguments;
    if arguments.verifier.is_some() {
        bail!("--verifier: only with --layout speculators; other layouts do not record the target's name");
    }
    if arguments.replay_prompts.is_some() {
        bail!("--replay-prompts: not with --layout gguf; a GGUF file has no replay bundle");
    }
    if arguments.draft_vocab_size.is_some() {
        bail!("--draft-vocab-size: only with --layout deepspec; drafts for llama.cpp propose every token");
    }
    if arguments.zero_markov_head {
        bail!("--zero-markov-head: not with --layout gguf; llama.cpp was never run with such a draft");
    }
    check_gguf_path("--out", out)?;
    target_out.as_deref().map_or(Ok(()), |path| check_gguf_path("--target-out", path))?;
    let outputs = [("--out", Some(out)), ("--target-out", target_out.as_ref())];
    let outputs: Vec<Named<'_>> =
        outputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_ref()?.as_path()))).collect();
    check_outputs(&outputs, &[("--target", Path::new(&arguments.target)), ("--draft", &arguments.draft)])?;
    let (source, target, tokenizer) = load_target(&arguments.target, &arguments.device.open()?)?;
    if arguments.draft.join(StsTable::FILE).is_file() {
        eprintln!("note: {} is not exported: a GGUF file cannot hold a calibration table", StsTable::FILE);
    }
    let draft = Draft::load(&arguments.draft, &target)?;
    let metadata = tokenizer.gguf_metadata(target.config().vocab_size)?;
    let block_type = arguments.dtype.block_type();
    let name = out.file_stem().map_or_else(|| "draft".into(), |name| name.to_string_lossy());
    draft.write_gguf(&name, &metadata, block_type, !arguments.without_embeddings, out)?;
    print(format_args!("wrote {}", out.display()))?;
    if let Some(path) = target_out {
        write_target_gguf(&source, &metadata, block_type, path)?;
        print(format_args!("wrote {}", path.display()))?;
    }
    Ok(())
}

fn check_gguf_path(flag: &str, path: &Path) -> Result<()> {
    if path.is_dir() || path.extension().is_none_or(|extension| extension != "gguf") {
        bail!("{flag} {}: expected a file name that ends in .gguf", path.display());
    }
    Ok(())
}
