//! Estimates throughput under load: traced rounds, replayed against a measured speed table.
//!
//! Each simulated request follows the rounds of one traced prompt; when they end, the next prompt begins. Every
//! decision is made by the code of the engine ([`dspark_runtime::schedule::Policy`]): whether a step drafts, which
//! requests join, how far blocks are drafted and how much of them is verified. A step commits the tokens that would
//! have been accepted and takes the time in the table. A traced round was judged completely, so the accepted tokens of
//! any shorter prefix are known.
//!
//! **What is exact and what is not.** Given its context, a round's tokens are exact: `min(accepted, verified) + 1`. But
//! a request that verified less would continue from an earlier token than the trace does, and a plain step advances by
//! one token while the request moves to the next traced round. The simulated rounds are therefore those of full
//! verification, which tend to begin where drafting failed; the shares of easy and hard positions are the trace's.
//! Prompts, arrivals and departures are not simulated: the load is constant.

mod replay;
mod report;

pub use replay::{Prompts, Workload, simulate};
pub use report::{PLOTS, SimulationPoint, SimulationReport, table, write_plots};
