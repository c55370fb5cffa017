//! `deepspec export`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::checkpoint::gguf::BlockType;
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Draft, DraftConfig, write_target_gguf};

use super::setup::load_target;

/// Arguments of `deepspec export`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The draft: a checkpoint folder
    #[arg(long, value_name = "DIR")]
    draft: PathBuf,
    /// The target that it was made for: a folder in Hugging Face layout, a GGUF file or, with the `hub` feature, a Hugging
    /// Face name
    #[arg(long, value_name = "DIR")]
    target: String,
    /// What to write: the folder, replaced if it is a draft; with `--layout gguf` the file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// What the checkpoint is for: `deepspec`, a folder as this project and the reference have it, or `gguf`, a file for
    /// llama.cpp
    #[arg(long, value_enum, default_value = "deepspec")]
    layout: Layout,
    /// Write the target too, with tokeniser and chat template (`--layout gguf`)
    #[arg(long, value_name = "FILE")]
    target_out: Option<PathBuf>,
    /// Number type of the weights; `f16` and `q8_0` with `--layout gguf`
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeArgument,
    /// Leave out the frozen embedding and head; readers take them from the target
    #[arg(long)]
    without_embeddings: bool,
    /// cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    Deepspec,
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
        Layout::Deepspec => write_folder(arguments),
        Layout::Gguf => write_gguf(arguments),
    }
}

fn write_folder(arguments: &Arguments) -> Result<()> {
    let dtype = arguments.dtype.weight_dtype()?;
    if arguments.target_out.is_some() {
        bail!("--target-out: only with --layout gguf; other engines read the target's own folder");
    }
    if arguments.out.exists() && DraftConfig::read(&arguments.out).is_err() {
        bail!("--out {}: exists and is not a draft; choose another folder", arguments.out.display());
    }
    let (_, target, _) = load_target(&arguments.target, &arguments.device.open()?)?;
    let draft = Draft::load(&arguments.draft, &target)?;
    draft.save(&arguments.out, dtype, !arguments.without_embeddings)?;
    Ok(print(format_args!("wrote {}", arguments.out.display()))?)
}

fn write_gguf(arguments: &Arguments) -> Result<()> {
    let Arguments { out, target_out, .. } = arguments;
    check_gguf_path("--out", out)?;
    target_out.as_deref().map_or(Ok(()), |path| check_gguf_path("--target-out", path))?;
    let (source, target, tokenizer) = load_target(&arguments.target, &arguments.device.open()?)?;
    if target_out.as_ref() == Some(out)
        || [Some(out), target_out.as_ref()].into_iter().flatten().any(|to| same(to, &source))
    {
        bail!("--out and --target-out: expected two files, neither of them the target that is read");
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

/// Whether both are there and one file.
fn same(a: &Path, b: &Path) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

fn check_gguf_path(flag: &str, path: &Path) -> Result<()> {
    if path.is_dir() || path.extension().is_none_or(|extension| extension != "gguf") {
        bail!("{flag} {}: expected a file name that ends in .gguf", path.display());
    }
    Ok(())
}
