//! Trains, measures and exports DSpark drafts from recipe files.

pub mod calibration;
pub mod cards;
pub mod commands;
pub mod compatibility;
pub mod console;
pub mod conversation;
pub mod digest;
pub mod estimate;
pub mod evaluation;
pub mod logging;
pub mod objective;
pub mod objects;
pub mod preparation;
pub mod process;
pub mod recipe;
pub mod regeneration;
pub mod replay;
pub mod simulation;
pub mod teacher;
#[cfg(test)]
mod testing;
pub mod trainer;
