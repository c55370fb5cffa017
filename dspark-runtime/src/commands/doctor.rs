//! `dspark doctor`: facts about this machine and this build, and their problems.

use std::path::Path;
use std::{env, fs, thread};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::output::print;
use crate::checkpoint::{cache_folder, expand_home};
use crate::device::{DeviceChoice, has_libdevice};
use crate::kernels::instruction_sets;
use crate::profile::PROFILES;
use crate::text::ChatTemplate;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Something that makes the program unusable on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// Facts, and problems with what to do about them.
#[derive(Debug, Default, Serialize)]
pub struct Diagnosis {
    /// Facts in the order of printing.
    facts: Map<String, Value>,
    /// Warnings, each with advice.
    problems: Vec<String>,
    /// Faults that make the program unusable, each with advice.
    failures: Vec<String>,
}

impl Diagnosis {
    /// Checks the machine and this build of a program.
    pub fn of_machine(program: &str, version: &str) -> Self {
        let mut found = Self::default();
        found.fact("version", format!("{program} {version}"));
        found.processor();
        found.memory();
        found.cuda();
        let hub = if cfg!(feature = "hub") { "built in" } else { "not built in (`--features hub`)" };
        found.fact("hugging_face_downloads", hub);
        found.hub_cache();
        found.profiles();
        found.templates();
        found
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Adds a problem, with advice.
    pub fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn processor(&mut self) {
        let info = DeviceChoice::Cpu.info();
        self.fact("processor", info.name.unwrap_or_else(|| env::consts::ARCH.to_owned()));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = rayon::current_num_threads();
        let variable = env::var("RAYON_NUM_THREADS").ok();
        let set = variable.as_ref().map_or_else(|| "not set".to_owned(), |value| format!("{value:?}"));
        self.fact("threads", format!("{threads} of {cores} cores (RAYON_NUM_THREADS is {set})"));
        if threads > cores {
            self.problem(format!(
                "{threads} threads on {cores} cores wait for each other: set RAYON_NUM_THREADS to {cores}, or leave it unset"
            ));
        }
        if variable.is_some_and(|value| value.parse::<usize>().is_err()) {
            self.problem(
                "RAYON_NUM_THREADS is not a number and has no effect: set it to a number of threads, or unset it",
            );
        }
        let sets = instruction_sets();
        let word = |available: bool| if available { "yes" } else { "no" };
        let listed: Vec<String> =
            sets.iter().map(|(name, available)| format!("{name} {}", word(*available))).collect();
        self.fact("instruction_sets", listed.join(", "));
        if sets.iter().any(|(name, available)| *name == "AVX2" && !available) {
            self.problem("this processor has no AVX2: matrix products use plain code and are several times slower");
        }
    }

    fn memory(&mut self) {
        let info = DeviceChoice::Cpu.info();
        if let (Some(all), Some(free)) = (info.memory, info.free_memory) {
            self.fact("memory", format!("{} available of {}", bytes(free as u64), bytes(all as u64)));
        }
    }

    fn cuda(&mut self) {
        let built = cfg!(feature = "cuda");
        let gpu = DeviceChoice::Cuda(0).info();
        let libdevice = has_libdevice(env::var_os("CUDA_PATH").map(Into::into));
        self.fact("cuda", if built { "built in" } else { "not built in (`cargo build --release --features cuda`)" });
        self.fact(
            "gpu",
            match (gpu.name, gpu.driver) {
                (Some(name), Some(driver)) => format!("{name}, driver {driver}"),
                _ => "none found (nvidia-smi does not answer)".to_owned(),
            },
        );
        self.fact("libdevice", if libdevice { "found" } else { "not found" });
        if built && !libdevice {
            self.problem(
                "CUDA's libdevice was not found, so `--device cuda` is refused: set CUDA_PATH to a folder with \
                 nvvm/libdevice/libdevice.10.bc (from the CUDA toolkit, or from the Python package nvidia-cuda-nvcc-cu12)",
            );
        }
    }

    fn hub_cache(&mut self) {
        let home = env::var_os("HF_HOME").map_or_else(|| expand_home(Path::new("~/.cache/huggingface")), Into::into);
        let folder = env::var_os("HF_HUB_CACHE").map_or_else(|| home.join("hub"), Into::into);
        let models = fs::read_dir(&folder).map(|entries| {
            let folders = entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
            folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("models--")).count()
        });
        let found = match models {
            Ok(models) => format!("{}, {}", folder.display(), counted(models, "model")),
            Err(_) => format!("{}, not there", folder.display()),
        };
        self.fact("hugging_face_cache", found);
    }

    fn profiles(&mut self) {
        let Some(folder) = cache_folder(PROFILES) else {
            self.fact("speed_tables", "no folder");
            return self.problem(
                "neither HOME nor XDG_CACHE_HOME names a folder: speed tables are not kept, and each start of `dspark serve` with a \
                 draft measures again; set one of them",
            );
        };
        let files = fs::read_dir(&folder).map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.metadata().ok())
                .filter(fs::Metadata::is_file)
                .map(|file| file.len())
        });
        let (count, size) =
            files.map_or((0, 0), |sizes| sizes.fold((0, 0), |(count, size), more| (count + 1, size + more)));
        self.fact("speed_tables", format!("{}, {}, {}", folder.display(), counted(count, "table"), bytes(size)));
    }

    fn templates(&mut self) {
        let rendered = ChatTemplate::new("a trial", "{{ messages[0].content }}", &Map::new())
            .and_then(|template| template.render(&[json!({"role": "user", "content": "works"})], &Map::new(), true));
        match rendered {
            Ok(text) if text == "works" => self.fact("chat_templates", "work"),
            other => {
                let reason = other.map_or_else(|error| error.to_string(), |text| format!("rendered {text:?}"));
                self.fact("chat_templates", "do not work");
                self.failures.push(format!(
                    "chat templates do not work ({reason}): they run in child processes; allow this program to start processes, and \
                     check the limits of memory and processes (`ulimit -a`)"
                ));
            }
        }
    }

    /// Prints everything.
    ///
    /// # Errors
    /// Returns an error if something makes the program unusable, or standard output is gone.
    pub fn report(&self, arguments: &DoctorArguments) -> Result<()> {
        if arguments.json {
            print(serde_json::to_string_pretty(self)?)?;
        } else {
            for (name, value) in &self.facts {
                let name = name.replace('_', " ");
                match value {
                    Value::Array(values) => {
                        for (index, value) in values.iter().enumerate() {
                            print(format_args!("{:<24} {}", if index == 0 { &name } else { "" }, plain(value)))?;
                        }
                    }
                    value => print(format_args!("{name:<24} {}", plain(value)))?,
                }
            }
            let problems = self.failures.iter().chain(&self.problems);
            for problem in problems.clone() {
                print(format_args!("\nproblem: {problem}"))?;
            }
            if problems.count() == 0 {
                print("\nno problems found")?;
            }
        }
        match self.failures.first() {
            Some(failure) => Err(Unusable(failure.clone()).into()),
            None => Ok(()),
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Formats a number of things.
fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Formats a number of bytes.
fn bytes(count: u64) -> String {
    match count {
        0..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", count as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}

/// Runs `dspark doctor`.
pub(super) fn run(arguments: &DoctorArguments) -> Result<()> {
    Diagnosis::of_machine("dspark", env!("CARGO_PKG_VERSION")).report(arguments)
}
