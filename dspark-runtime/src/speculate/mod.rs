//! Speculative decoding that preserves the target's distribution.
//!
//! A round ([`Rounds`]) drafts a block from the last committed token, verifies anchor and drafts in one pass of the
//! target, keeps the longest prefix that passes the acceptance test and adds one token of the target. The acceptance
//! test divides by exactly the [`Distribution`] that the draft token was sampled from. The engine runs rounds of many
//! sequences, the [`Decoder`] rounds of one.
//!
//! **Randomness is an argument** ([`Randomness`]). With a seed, the noise depends on seed and position only: the text
//! is then the same with and without a draft, alone and under load, and with every command. Without a seed, tokens are
//! drawn by rejection sampling, which accepts more draft tokens.
//!
//! **Accepted length** (tau) is [`accepted_length`]: the tokens that rounds committed, divided by the number of rounds. A round
//! is a step of a sequence for which a block was drafted, whether or not any of it was verified. It commits its accepted draft
//! tokens and one token of the target. When an accepted draft token is a stop token, the round ends with it and has no
//! token of the target. Tokens beyond the limit of new tokens do not count. A round of which nothing was verified commits
//! one token. The token sampled at prefill belongs to no round. See `round.rs` for the cases and their tests.

mod block;
mod coupling;
mod decoder;
mod device;
mod distribution;
mod filters;
mod lane;
mod policy_step;
mod round;
mod rounds;
mod sampler;
mod scores;
mod uniforms;

pub use block::{Block, DraftObserver};
pub use coupling::{PositionNoise, judge_coupled};
pub use decoder::{Decoder, Generation, GenerationOptions, RoundDetail};
pub use device::{DeviceDistributions, JudgedRow, JudgedRows, judge_rows};
pub use distribution::{Distribution, NotFinite};
pub use filters::Filters;
pub use lane::{Lane, SequenceState};
pub(crate) use policy_step::PolicyStep;
pub use round::{JudgedShares, RoundRecord, Verdict, accepted_length, judge};
pub use rounds::{Judged, Outcome, Part, Rounds, Verified};
pub use sampler::{Randomness, Sampler};
pub use uniforms::{SeededUniforms, Uniforms};
