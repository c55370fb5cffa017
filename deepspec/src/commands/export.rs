//! `deepspec export`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::Draft;

use super::setup::load_target;

/// Arguments of `deepspec export`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The draft: a checkpoint folder
    #[arg(long)]
    draft: PathBuf,
    /// The target that it was made for: a folder in Hugging Face layout
    #[arg(long)]
    target: String,
    /// The folder to write; replaced if it is there
    #[arg(long)]
    out: PathBuf,
    /// Number type of the weights
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeArgument,
    /// Leave out the frozen embedding and head; readers take them from the target
    #[arg(long)]
    without_embeddings: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeArgument {
    Bf16,
    F32,
}

/// Reads the draft, checks it against the target and writes it.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.out.exists() && !arguments.out.join("config.json").is_file() {
        bail!(
            "--out {}: exists and is not a checkpoint folder; choose another",
            arguments.out.display()
        );
    }
    let (_, target, _) = load_target(&arguments.target, &DeviceChoice::Cpu.open()?)?;
    let draft = Draft::load(&arguments.draft, &target)?;
    let dtype = match arguments.dtype {
        DtypeArgument::Bf16 => WeightDtype::Bf16,
        DtypeArgument::F32 => WeightDtype::F32,
    };
    draft.save(&arguments.out, dtype, !arguments.without_embeddings)?;
    println!("wrote {}", arguments.out.display());
    Ok(())
}
