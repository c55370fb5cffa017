//! The scheduler: who runs, how much of a drafted block the target verifies, and when nothing is drafted (paper, section
//! 3.2). Plain numbers in and out; the engine and the simulator run the same code.
//!
//! **Who runs.** Requests are admitted in the order of their arrival, as long as there is cache memory and a place, and the
//! latest gives way when memory runs out (`engine::step`). Every admitted request takes part in every step: a decoding one with its
//! last token and what it drafted, the others with parts of their prompts ([`prompt_rows`]), so that a long prompt does not
//! hold up those that are being answered.
//!
//! **When nothing is drafted.** A [`Policy`] decides for each step whether it drafts, in one of four [`Mode`]s. `off` never
//! drafts; `fixed:N` and `threshold:P` always do. `scheduled` drafts while that pays: the [`BreakEven`] guard keeps account of
//! what drafting gained over plain steps that were timed here and now, falls back to plain decoding when the account is empty, and
//! tries again later; nothing is tried of which the [`Experience`] with the draft says that it cannot pay. A request whose draft lacks a
//! long context joins only where catching up will be won back before its answer ends.
//!
//! **How much is verified.** Each drafting request has a block and its calibrated confidences ([`Confidences`], [`StsTable`]); a
//! measured table ([`SpsTable`]) says how long a step takes by the tokens in it. Of all drafted tokens, the likeliest to survive are
//! verified first, as many as raise the expected tokens per second (Algorithm 1, [`PrefixScheduler`]). Their number comes
//! from the confidences of two steps earlier ([`Asynchronous`]), and a block is drafted only as far as its tokens may be
//! verified ([`Stopping`]).
//!
//! **What keeps this lossless.** Whether position `j` of a request is verified must not depend on anything sampled at or
//! after `j`. The confidence of position `j` depends on the tokens before `j` only, so what may be looked at is: the
//! confidences up to `j` of the same request, and everything about the other requests. The rules here keep to that:
//!
//! * [`PrefixScheduler::early_stop`] (Algorithm 1) goes through the candidates in order of survival, which never rises
//!   along a block, and decides on one after the other; it stops for good at the first that does not pay.
//! * [`PrefixScheduler::top`] admits a number of candidates that was fixed before this step's tokens were sampled.
//!   [`Asynchronous`] takes that number from the confidences of two steps earlier.
//! * A threshold ends a prefix before the first position below it.
//! * The guard decides before a block is drafted, from rounds that are over; so does experience.
//!
//! [`PrefixScheduler::search`] looks past a drop and so decides on `j` by what comes after it. On confidences of the present
//! step it biases the output (paper, appendix A); it is for those of earlier steps alone.

mod asynchronous;
mod break_even;
mod confidences;
mod costs;
mod experience;
mod joining;
mod mode;
mod pace;
mod policy;
mod prefix;
mod prompts;
mod sps_table;
mod stopping;
mod sts_table;
mod switches;

pub use asynchronous::Asynchronous;
pub use break_even::{BreakEven, BreakEvenSettings};
pub use confidences::Confidences;
pub use costs::{AdditiveCost, DraftCost, PerRequest, RequestCost, StepCost};
pub use experience::Experience;
pub use joining::Candidate;
pub use mode::{Mode, ModeError};
pub use policy::Policy;
pub use prefix::{Admission, PrefixScheduler, SpeedCurve};
pub use prompts::prompt_rows;
pub use sps_table::{Identity, Rise, SpsTable, StepCurve};
pub use stopping::Stopping;
pub use sts_table::StsTable;
pub use switches::Switch;
