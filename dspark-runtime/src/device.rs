//! Choosing the device that computes: `cpu`, `cuda` or `cuda:1`, and for tests of what GPUs compute, `cubecl-cpu`.

use std::process::Command;
use std::str::FromStr;
use std::{env, fmt, fs};

use burn::tensor::Device;

/// A device as a person names it on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// All cores of this machine, 32-bit floats.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its index.
    Cuda(usize),
    /// This machine's cores through the kernels that GPUs run: slow, for tests.
    CubeCpu,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not one of the known forms.
    #[error("unknown device `{0}`: expected `cpu`, `cuda` or `cuda:INDEX`")]
    Unknown(String),
    /// The binary was built without the device's feature.
    #[error("this binary cannot compute on `{device}`: build it with `cargo build --release --features {feature}`")]
    NotBuilt {
        /// What was asked for.
        device: DeviceChoice,
        /// What it takes.
        feature: &'static str,
    },
    /// The index is beyond the GPUs found.
    #[error(
        "device `cuda:{index}` was asked for, but {found} CUDA devices were found (is the NVIDIA driver loaded?)"
    )]
    NotFound {
        /// The index asked for.
        index: usize,
        /// How many GPUs there are.
        found: usize,
    },
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(name.to_owned());
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            None if name == "cubecl-cpu" => Ok(Self::CubeCpu),
            Some(("cuda", index)) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::CubeCpu => f.write_str("cubecl-cpu"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// When the binary lacks the feature, or the machine lacks the GPU. Opening CUDA without a driver would abort the
    /// process, so the devices are listed first.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(index) => open_cuda(index),
            Self::CubeCpu => open_cube_cpu(),
        }
    }

    /// Bytes of its memory that are free: on a processor, what the system would give to a new process; on a GPU, what
    /// `nvidia-smi` says. `None` where nothing says so.
    pub fn free_memory(self) -> Option<usize> {
        match self {
            Self::Cpu | Self::CubeCpu => available(&fs::read_to_string("/proc/meminfo").ok()?),
            Self::Cuda(index) => {
                let id = gpu_id(index, env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())?;
                let mut command = Command::new("nvidia-smi");
                command.args(["--query-gpu=memory.free", "--format=csv,noheader,nounits"]).arg(format!("--id={id}"));
                let answer = command.output().ok().filter(|answer| answer.status.success())?;
                let mebibytes: usize = str::from_utf8(&answer.stdout).ok()?.trim().parse().ok()?;
                Some(mebibytes << 20)
            }
        }
    }
}

fn available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

/// The driver's name of a GPU that programs count among those they are shown.
fn gpu_id(index: usize, visible: Option<&str>) -> Option<String> {
    match visible.map(str::trim) {
        None | Some("") => Some(index.to_string()),
        Some(visible) => visible.split(',').nth(index).map(|id| id.trim().to_owned()),
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    use burn::tensor::DeviceType;

    let found = Device::enumerate(DeviceType::Cuda).into_vec().len();
    if index >= found {
        return Err(DeviceError::NotFound { index, found });
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: DeviceChoice::Cuda(index), feature: "cuda" })
}

#[cfg(feature = "cubecl-cpu")]
fn open_cube_cpu() -> Result<Device, DeviceError> {
    Ok(Device::cpu())
}

#[cfg(not(feature = "cubecl-cpu"))]
fn open_cube_cpu() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: DeviceChoice::CubeCpu, feature: "cubecl-cpu" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_printed_alike() {
        for name in ["cpu", "cuda:0", "cuda:3", "cubecl-cpu"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for name in ["gpu", "cuda:", "cuda:x", "cpu:0", ""] {
            assert_eq!(name.parse::<DeviceChoice>(), Err(DeviceError::Unknown(name.to_owned())));
        }
    }
    #[test]
    fn free_memory_is_that_of_the_device() {
        assert_eq!(available("MemTotal:  9 kB\nMemFree:  5 kB\nMemAvailable:       7 kB\n"), Some(7 * 1024));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert_eq!(gpu_id(1, None), Some("1".to_owned()));
        assert_eq!(gpu_id(1, Some("3, GPU-a")), Some("GPU-a".to_owned()));
        assert_eq!(gpu_id(1, Some("3")), None);
    }
}
