//! How many drafted tokens of each request the target verifies (paper, section 3.2). Plain numbers in and out.
//!
//! Every step, each request has a drafted block and its calibrated confidences ([`Confidences`], [`StsTable`]); a measured
//! table ([`SpsTable`]) says how long a step takes by the tokens in it. A [`Schedule`] makes prefix lengths of them
//! in one of four [`Mode`]s, and its [`BreakEven`] guard says whether drafting pays at all; it tries nothing of which the
//! [`Experience`] with the draft so far says that it cannot pay.
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
mod mode;
mod plan;
mod prefix;
mod sps_table;
mod sts_table;

pub use asynchronous::Asynchronous;
pub use break_even::{BreakEven, BreakEvenSettings};
pub use confidences::Confidences;
pub use costs::{AdditiveCost, DraftCost, PerRequest, RequestCost, StepCost};
pub use experience::Experience;
pub use mode::{Mode, ModeError};
pub use plan::{Schedule, round_gain};
pub use prefix::{Admission, PrefixScheduler, SpeedCurve};
pub use sps_table::{Identity, Rise, SpsTable, StepCurve};
pub use sts_table::StsTable;
