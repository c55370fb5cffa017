//! Trains, measures and exports DSpark drafts from recipe files.

pub mod objective;
