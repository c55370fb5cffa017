//! Makes the files of the quickstart: the conversations in `datasets/quickstart/` and the target in
//! `checkpoints/quickstart-target/`.
//!
//! ```sh
//! cargo run --release -p deepspec --example quickstart -- data    # writes the conversations
//! cargo run --release -p deepspec --example quickstart -- target  # trains the target
//! cargo run --release -p deepspec --example quickstart -- check   # counts the target's good answers
//! ```
//!
//! Rules make the conversations, in three domains that differ in how predictable they are:
//!
//! * `sums`: additions and subtractions, worked out digit by digit in one fixed form. Nearly every token follows from those
//!   before it;
//! * `code`: short Python functions. The request settles what to compute, but not how it is written (names, loop or
//!   comprehension, docstring);
//! * `chat`: small talk and advice. Every phrase is one of many that would do as well.
//!
//! So a draft of a model that learned them guesses best on `sums` and worst on `chat`, which is the effect that the
//! quickstart shows.

mod chat;
mod check;
mod code;
mod conversation;
mod data;
mod dice;
mod judge;
mod split;
mod sums;
mod target;
mod tokenizer;

use anyhow::Result;
use clap::Parser;

/// Make the files of the quickstart.
#[derive(Debug, Parser)]
enum Verb {
    /// Write the conversations
    Data(data::Arguments),
    /// Train the tiny target from random weights
    Target(target::Arguments),
    /// Count the target's good answers: correct sums, code that parses, complete sentences
    Check(check::Arguments),
}

fn main() -> Result<()> {
    let verb = Verb::parse();
    // Parallel operations that start on a worker of the pool do not wait for a hand-over to another thread.
    rayon::scope(|_| match verb {
        Verb::Data(arguments) => data::run(&arguments),
        Verb::Target(arguments) => target::run(&arguments),
        Verb::Check(arguments) => check::run(&arguments),
    })
}
