//! Choosing the device that computes: `cpu`, `cuda` or `cuda:1`, and for tests of what GPUs compute, `cubecl-cpu`.
//! [`checks`] and [`time_product`] try it out.

mod check;

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::{env, fmt, fs};

use burn::tensor::Device;

pub use check::{Check, Product, Verdict, checks, number_types, time_product};

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

/// Reasons a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not one of the known forms.
    #[error("unknown device `{0}`: expected `cpu`, `cuda` or `cuda:INDEX`")]
    Unknown(String),
    /// The binary was built without the device's feature.
    #[error("this binary cannot compute on `{device}`: build it with `cargo build --release --features {feature}`")]
    NotBuilt {
        /// The requested device.
        device: DeviceChoice,
        /// The feature that the build needs.
        feature: &'static str,
    },
    /// The index is beyond the GPUs found.
    #[error(
        "device `cuda:{index}` was requested, but {found} CUDA devices were found (is the NVIDIA driver loaded?)"
    )]
    NotFound {
        /// The requested index.
        index: usize,
        /// Number of GPUs found.
        found: usize,
    },
    /// The functions that kernels call are not installed.
    #[error(
        "CUDA's libdevice was not found: set CUDA_PATH to a folder with nvvm/libdevice/libdevice.10.bc (from the CUDA toolkit, \
         or from the Python package nvidia-cuda-nvcc-cu12)"
    )]
    NoLibdevice,
    /// The device failed while it computed.
    #[error("the device failed: {reason}")]
    Failed {
        /// The error reported by the framework.
        reason: String,
    },
}

/// Information that the system reports about a device; `None` where it reports none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The processor's or the GPU's name.
    pub name: Option<String>,
    /// Version of the GPU's driver.
    pub driver: Option<String>,
    /// Bytes of memory.
    pub memory: Option<usize>,
    /// Bytes of memory that a new process could use.
    pub free_memory: Option<usize>,
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
    /// Returns an error if the binary lacks the feature, or the machine lacks the GPU. Opening CUDA without a driver would abort the
    /// process, so the devices are listed first.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(index) => open_cuda(index),
            Self::CubeCpu => open_cube_cpu(),
        }
    }

    /// Asks the system about the device: `/proc` about a processor, `nvidia-smi` about a GPU.
    pub fn info(self) -> DeviceInfo {
        match self {
            Self::Cpu | Self::CubeCpu => {
                let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
                let (processor, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
                DeviceInfo {
                    name: proc_field(&processor, "model name").map(str::to_owned),
                    driver: None,
                    memory: proc_field(&memory, "MemTotal").and_then(kibibytes),
                    free_memory: proc_field(&memory, "MemAvailable").and_then(kibibytes),
                }
            }
            Self::Cuda(index) => ask_nvidia_smi(index).unwrap_or_default(),
        }
    }

    /// Returns the bytes of device memory available to a new process; `None` where the system does not report them.
    pub fn free_memory(self) -> Option<usize> {
        self.info().free_memory
    }
}

/// The first value of a name in a file of `NAME : VALUE` lines.
fn proc_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let pair = |line: &'a str| line.split_once(':').filter(|(key, _)| key.trim() == name);
    text.lines().find_map(pair).map(|(_, value)| value.trim())
}

fn kibibytes(value: &str) -> Option<usize> {
    Some(value.strip_suffix(" kB")?.trim().parse::<usize>().ok()? << 10)
}

fn ask_nvidia_smi(index: usize) -> Option<DeviceInfo> {
    let id = gpu_id(index, env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())?;
    let mut command = Command::new("nvidia-smi");
    command.arg("--query-gpu=driver_version,memory.total,memory.free,name");
    command.arg("--format=csv,noheader,nounits").arg(format!("--id={id}"));
    let answer = command.output().ok().filter(|answer| answer.status.success())?;
    Some(gpu_info(str::from_utf8(&answer.stdout).ok()?))
}

/// Parses a line of driver, total MiB, free MiB and name, separated by commas.
fn gpu_info(line: &str) -> DeviceInfo {
    let mut fields = line.trim().splitn(4, ',').map(str::trim);
    let mut text = || fields.next().filter(|field| !field.is_empty()).map(str::to_owned);
    let mebibytes = |field: Option<String>| Some(field?.parse::<usize>().ok()? << 20);
    let (driver, memory, free_memory) = (text(), mebibytes(text()), mebibytes(text()));
    DeviceInfo { name: text(), driver, memory, free_memory }
}

/// Returns the driver's name of the GPU that has this index among the visible ones.
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
    if !has_libdevice(env::var_os("CUDA_PATH").map(PathBuf::from)) {
        return Err(DeviceError::NoLibdevice);
    }
    Ok(Device::cuda(index))
}

/// Returns whether CubeCL finds CUDA's libdevice, under the folder `CUDA_PATH` where that is set. The first kernel that needs it
/// panics otherwise.
pub fn has_libdevice(cuda_path: Option<PathBuf>) -> bool {
    let usual = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"].map(PathBuf::from);
    let roots = cuda_path.map_or_else(|| usual.to_vec(), |path| vec![path]);
    roots.iter().any(|root| root.join("nvvm/libdevice/libdevice.10.bc").is_file())
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
    fn answers_of_the_system_are_read() {
        let meminfo = "MemTotal:  9 kB\nMemFree:  5 kB\nMemAvailable:       7 kB\n";
        assert_eq!(proc_field(meminfo, "MemAvailable").and_then(kibibytes), Some(7 << 10));
        assert_eq!(proc_field(meminfo, "Mem"), None);
        assert_eq!(kibibytes("7 MB"), None);
        let gpu = gpu_info("570.1, 143771, 143200, NVIDIA H200, SXM\n");
        assert_eq!(gpu.name.as_deref(), Some("NVIDIA H200, SXM"));
        assert_eq!((gpu.memory, gpu.free_memory), (Some(143_771 << 20), Some(143_200 << 20)));
        assert_eq!(gpu_info("").driver, None);
        assert_eq!(gpu_info("570.1, [N/A], [N/A], x").memory, None);
        assert_eq!(gpu_id(1, None), Some("1".to_owned()));
        assert_eq!(gpu_id(1, Some("3, GPU-a")), Some("GPU-a".to_owned()));
        assert_eq!(gpu_id(1, Some("3")), None);
    }
    #[test]
    fn libdevice_is_looked_for_under_cuda_path_alone_where_it_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let cuda_path = || Some(folder.path().to_owned());
        assert!(!has_libdevice(cuda_path()));
        fs::create_dir_all(folder.path().join("nvvm/libdevice")).unwrap();
        fs::write(folder.path().join("nvvm/libdevice/libdevice.10.bc"), "").unwrap();
        assert!(has_libdevice(cuda_path()));
    }
}
