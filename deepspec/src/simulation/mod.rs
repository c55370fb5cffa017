//! Estimates throughput under load: traced rounds, replayed against a measured speed table.
//!
//! Each simulated request goes through the rounds of one traced prompt; when they end, the next prompt begins. Every decision is made by the code that the engine runs ([`dspark_runtime::schedule::Policy`]): whether
//! a step drafts, which requests join, how far blocks are drafted and how much of them is verified. A step commits what
//! would have been accepted and takes the time that the table says. A traced round was judged whole, so it is known how many
//! tokens any shorter prefix would have had accepted.
//!
//! **What is exact and what is not.** Given its context, a round's tokens are exact: `min(accepted, verified) + 1`. But a
//! request that verified less would go on from an earlier token than the trace does, and a plain step moves on by one
//! token while the request goes on to the next traced round. So the rounds that are met are those of full verification, which
//! tend to begin where drafting failed; the shares of easy and hard places are the trace's. Prompts, arrivals and departures
//! are not part of it: the load is constant.

mod replay;
mod report;

pub use replay::{Prompts, Workload, simulate};
pub use report::{PLOTS, SimulationPoint, SimulationReport, table, write_plots};
