//! Decoding with DSpark drafts.
//!
//! The modules, in the order in which a request passes through them: [`text`] turns words into token ids,
//! [`checkpoint`] reads weights, [`model`] computes hidden states and logits (on a [`device`], with dedicated
//! [`kernels`] on the CPU), [`speculate`] drafts and verifies, [`schedule`] decides how much to verify, and [`engine`]
//! serves many requests concurrently. `ARCHITECTURE.md` lists the modules that each of them may use.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use dspark_runtime::device::DeviceChoice;
//! use dspark_runtime::engine::{Engine, EngineConfig, Event, Request, Sampling};
//! use dspark_runtime::model::{Draft, Target};
//! use dspark_runtime::text::Tokenizer;
//! use serde_json::{Map, json};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = Path::new("checkpoints/quickstart-target");
//! let target = Target::load(folder, &DeviceChoice::Cpu.open()?)?;
//! let draft = Draft::load(Path::new("runs/quickstart/draft"), &target)?;
//! let tokenizer = Tokenizer::of_model(folder)?;
//! let template = tokenizer.chat_template().ok_or("the target has no chat template")?;
//! let messages = [json!({"role": "user", "content": "What is 347 + 86?"})];
//! let request = Request {
//!     prompt: tokenizer.encode(&template.render(&messages, &Map::new(), true)?, false)?,
//!     max_new_tokens: 128,
//!     sampling: Sampling { temperature: 0.0, ..Sampling::default() },
//!     stop_token_ids: tokenizer.stop_token_ids().to_vec(),
//!     stop_strings: Vec::new(),
//!     include_stop_string: false,
//!     logprobs: None,
//! };
//!
//! let (engine, handle) = Engine::start(target, Some(draft), tokenizer, EngineConfig::default())?;
//! let mut answer = handle.submit(request)?;
//! // In a task of an async runtime: `answer.next().await`.
//! while let Some(event) = answer.wait() {
//!     match event {
//!         Event::Delta(delta) => print!("{}", delta.text),
//!         Event::Finished(finished) => println!("\n{:?}", finished.usage),
//!         Event::Failed(failure) => return Err(failure.into()),
//!     }
//! }
//! // The engine ends with its last handle.
//! drop(handle);
//! engine.join();
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! * `cli` (default): [`commands`], the verbs of the `dspark` binary; implies `server` and `plot`.
//! * `server`: [`server`], the OpenAI API over HTTP.
//! * `plot`: [`plot`], charts as SVG files.
//! * `cuda`: NVIDIA GPUs as devices.
//! * `cubecl-cpu`: CubeCL's CPU runtime as a device, to test GPU code without a GPU.
//! * `hub`: Hugging Face names in place of target folders.
//!
//! A library needs none of them:
//!
//! ```toml
//! dspark-runtime = { git = "...", default-features = false }
//! ```

pub mod bench;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod commands;
#[cfg(feature = "cube")]
pub mod cube;
pub mod device;
pub mod engine;
pub mod gradient;
pub mod kernels;
pub mod model;
mod normals;
pub mod numbers;
pub mod panics;
#[cfg(feature = "plot")]
pub mod plot;
pub mod profile;
pub mod schedule;
#[cfg(feature = "server")]
pub mod server;
pub mod speculate;
pub mod tensors;
pub mod text;

pub use normals::Normals;
