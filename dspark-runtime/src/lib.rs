//! Decoding with DSpark drafts.
//!
//! The rooms, in the order a request walks them: [`text`] turns words into token ids, [`checkpoint`] reads weights,
//! [`model`] computes hidden states and logits (on a [`device`], with [`kernels`] of its own on the CPU), [`speculate`]
//! drafts and verifies, [`schedule`] says how much; [`commands`] are the verbs of the `dspark` binary. `ARCHITECTURE.md`
//! says what each must never know.

pub mod bench;
pub mod checkpoint;
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
pub mod plot;
pub mod profile;
pub mod schedule;
pub mod server;
pub mod speculate;
pub mod tensors;
pub mod text;

pub use normals::Normals;
