//! The scheduler decides which requests run, how much of a drafted block the target verifies, and when nothing is
//! drafted (DSpark paper, section 3.2). Its inputs and outputs are plain numbers; the engine and the simulator run the
//! same code.
//!
//! **Which requests run.** Requests are admitted in the order of arrival, as long as there is cache memory and a free
//! slot. The latest is preempted when memory runs out (`engine::step`). Every admitted request takes part in every
//! step: a decoding one with its last token and its drafted tokens, the others with parts of their prompts
//! ([`prompt_rows`]), so a long prompt does not delay running answers.
//!
//! **When nothing is drafted.** A [`Policy`] decides for each step whether it drafts, in one of four [`Mode`]s. `off`
//! never drafts; `fixed:N` and `threshold:P` always do. `scheduled` drafts while that pays: the [`BreakEven`] guard
//! keeps an account of the gain of drafting over plain steps timed on this machine under the current load, falls back
//! to plain decoding when the account is empty, and tries again later. It skips tries that cannot pay according to the
//! [`Experience`] with the draft. A request whose draft has a long context to catch up with joins only if the time is
//! expected to be won back before its answer ends.
//!
//! **How much is verified.** Each drafting request has a block and its calibrated confidences ([`Confidences`],
//! [`StsTable`]). A measured table ([`SpsTable`]) gives the time of a step by its number of tokens. Of all drafted
//! tokens, the most likely to survive are verified first, as many as increase the expected tokens per second (Algorithm
//! 1, [`PrefixScheduler`]). Their number comes from the confidences of two steps earlier ([`Asynchronous`]), and a
//! block is drafted only as far as its tokens may be verified ([`Stopping`]).
//!
//! **What keeps this lossless.** Whether position `j` of a request is verified must not depend on anything sampled at or
//! after `j`. The confidence of position `j` depends on the tokens before `j` only, so what may be looked at is: the
//! confidences up to `j` of the same request, and everything about the other requests. The rules here keep to that:
//!
//! * [`PrefixScheduler::early_stop`] (Algorithm 1) visits the candidates in order of survival, which never rises along
//!   a block, and decides on them one after the other. It stops at the first that does not pay.
//! * [`PrefixScheduler::top`] admits a number of candidates that was fixed before this step's tokens were sampled.
//!   [`Asynchronous`] takes that number from the confidences of two steps earlier.
//! * A threshold ends a prefix before the first position below it.
//! * The guard and the experience decide before a block is drafted, from finished rounds.
//!
//! [`PrefixScheduler::search`] looks past a drop, so its decision on `j` depends on later tokens. On confidences of the
//! current step this biases the output (DSpark paper, appendix A); it is used on those of earlier steps only.

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
