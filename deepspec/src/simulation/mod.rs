//! What a draft is worth under load, before there is any: traced rounds, replayed against a measured speed table.
//!
//! Each simulated request is a cursor in the rounds of one traced prompt; when they end, the next prompt begins. A step
//! takes the next round of every request, lets the scheduler itself choose how much to verify
//! ([`dspark_runtime::schedule::Schedule`], history and guard included), commits what would have been accepted of it and
//! takes the time that the table says. A traced round was judged whole, so it is known how many tokens any shorter prefix
//! would have had accepted.
//!
//! **What is exact and what is not.** Given its context, a round's tokens are exact: `min(accepted, verified) + 1`. But a
//! request that verified less would go on from an earlier token than the trace does, and a plain step moves on by one
//! token while its cursor moves on by a round. So the rounds that are met are those of full verification, which tend to
//! begin where drafting failed; the shares of easy and hard places are the trace's. Prefill, arrivals and departures are
//! not part of it: the load is constant.

mod replay;
mod report;

pub use replay::{Prompts, Workload, simulate};
pub use report::{SimulationPoint, SimulationReport, table, write_plots};
