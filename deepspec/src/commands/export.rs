//! `deepspec export`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig};

use super::setup::load_target;

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
    let (_, target, _) = load_target(&arguments.target, &arguments.device.open()?)?;
    let draft = Draft::load(&arguments.draft, &target)?;
    let dtype = match arguments.dtype {
        DtypeArgument::Bf16 => WeightDtype::Bf16,
        DtypeArgument::F32 => WeightDtype::F32,
    };
    draft.save(&arguments.out, dtype, !arguments.without_embeddings)?;
    Ok(print(format_args!("wrote {}", arguments.out.display()))?)
}
