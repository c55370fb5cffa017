//! `deepspec export`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::commands::{count, print};
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig};
use serde_json::Map;

use super::data_files::data_files;
use super::setup::{load_target, most_frequent};
use crate::cards::dataset_folders;
use crate::conversation::{Format, ReadOptions, read_samples};

/// Arguments of `deepspec export`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The draft: a checkpoint folder
    #[arg(long, value_name = "DIR")]
    draft: PathBuf,
    /// The target that it was made for: a folder in Hugging Face layout
    #[arg(long, value_name = "DIR")]
    target: String,
    /// The folder to write; replaced if it is a draft
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeArgument,
    /// Leave out the frozen embedding and head; readers take them from the target
    #[arg(long)]
    without_embeddings: bool,
    /// Leave the draft so many tokens to propose, those that the data of `--vocabulary-data` have most of in their answers:
    /// drafting is cheaper, and what it cannot propose it never gets accepted. Not all engines read such drafts
    #[arg(long, value_name = "TOKENS", requires = "vocabulary_data", value_parser = count)]
    draft_vocab_size: Option<usize>,
    /// Conversations, as `data.train` of a recipe names them
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "draft_vocab_size")]
    vocabulary_data: Vec<PathBuf>,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeArgument {
    Bf16,
    F32,
}

/// Reads the draft, checks it against the target and writes it.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.out.exists() && DraftConfig::read(&arguments.out).is_err() {
        bail!("--out {}: exists and is not a draft; choose another folder", arguments.out.display());
    }
    let (_, target, tokenizer) = load_target(&arguments.target, &arguments.device.open()?)?;
    let mut draft = Draft::load(&arguments.draft, &target)?;
    if let Some(size) = arguments.draft_vocab_size {
        let rows = target.config().vocab_size;
        let has = draft.config().draft_vocab_size;
        if draft.vocabulary().is_some() || size >= rows {
            bail!("--draft-vocab-size {size}: expected fewer than {rows}, and a draft that has all; it has {has}");
        }
        let options = ReadOptions {
            format: Format::Chat,
            max_length: target.config().max_position_embeddings,
            minimum_supervised_tokens: 1,
            template_arguments: Map::new(),
            strict: false,
            vocabulary_size: rows,
        };
        let files = data_files(&arguments.vocabulary_data, &dataset_folders()).context("--vocabulary-data")?;
        let (samples, report) = read_samples(&files, &tokenizer, &options)?;
        eprintln!("vocabulary data: {report}");
        draft = draft.with_vocabulary(most_frequent(&samples, size, rows));
    }
    let dtype = match arguments.dtype {
        DtypeArgument::Bf16 => WeightDtype::Bf16,
        DtypeArgument::F32 => WeightDtype::F32,
    };
    draft.save(&arguments.out, dtype, !arguments.without_embeddings)?;
    Ok(print(format_args!("wrote {}", arguments.out.display()))?)
}
