//! Speculative decoding that leaves the target's distribution as it is.
//!
//! A round ([`Decoder`]) drafts a block from the last committed token, verifies anchor and drafts in one pass of the
//! target, keeps the longest prefix that survives the acceptance test and adds one token of the target's own. The
//! acceptance test divides by exactly the [`Distribution`] that the draft token was sampled from.
//!
//! **Accepted length** (tau) is defined here and nowhere else: the tokens that rounds committed, divided by the number of
//! rounds ([`RoundRecord::counted`], [`Generation::accepted_length`]). A round commits its accepted draft tokens and one
//! token of the target. When an accepted draft token is a stop token, the round ends with it and has no token of the
//! target. Tokens beyond the limit of new tokens do not count. A round whose proposal was empty commits one token. The
//! token sampled at prefill belongs to no round. See `round.rs` for the cases and their tests.

mod batch;
mod coupling;
mod decoder;
mod device;
mod distribution;
mod filters;
mod proposal;
mod round;
mod sampler;
mod uniforms;

pub use batch::{Block, Drafted, Stopping, propose_batch};
pub use coupling::{PositionNoise, judge_coupled};
pub use decoder::{Decoder, Generation, GenerationOptions, RoundDetail};
pub use device::{DeviceDistributions, Judged, JudgedRow, judge_rows};
pub use distribution::Distribution;
pub use filters::Filters;
pub use proposal::{Proposal, propose};
pub use round::{JudgedShares, RoundRecord, Verdict, judge};
pub use sampler::{Randomness, Sampler};
pub use uniforms::{SeededUniforms, Uniforms};
