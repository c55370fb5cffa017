//! Commands of `README.md` and `docs/*.md`: all are valid, and those that take seconds are run as printed.
//!
//! The info string of a block says what becomes of it:
//!
//! * `sh`: run in every test;
//! * `sh slow`: run with `DEEPSPEC_DOCS=all`;
//! * `sh manual`: never run, because it needs a GPU, a network or another program;
//! * `text`: output, which is not compared; `toml`, `json` and the like: files.
//!
//! The verbs, options and values of `deepspec` and `dspark` are checked in all of them. A page is one bash script. Servers that it
//! starts with `&` are waited for and ended after it. Where a page reads `runs/quickstart` and does not make it, the test
//! does: with a short training, or with the whole one where slow blocks are run.

#![cfg(unix)]
#![allow(missing_docs)]

mod commands;
#[path = "../common/mod.rs"]
mod common;
mod page;
mod script;
mod tests;

use std::fs;

use common::workspace;
use page::{Page, Purpose};

fn read_pages() -> Vec<Page> {
    let root = workspace();
    let read = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(root.join(path)).unwrap();
        Page::parse(&path.display().to_string(), &text).unwrap_or_else(|error| panic!("{error}"))
    };
    page::pages(&root).iter().map(read).collect()
}

#[test]
fn every_command_is_valid() {
    let mut wrong = Vec::new();
    for page in read_pages() {
        let blocks = page.blocks.iter().filter(|block| block.purpose != Purpose::Other);
        let calls = blocks.flat_map(commands::calls).map(|call| (call, false));
        // A name of a verb in a sentence needs no arguments.
        let spans = page.spans.iter().flat_map(|(line, span)| {
            commands::commands(span).into_iter().filter_map(|words| commands::call(*line, words))
        });
        let spans = spans.filter(|call| call.words.len() > 1).map(|call| (call, true));
        for (call, abbreviated) in calls.chain(spans) {
            if let Err(error) = commands::check(&call.words, abbreviated) {
                wrong.push(format!("{}:{}: `{}`\n{error}", page.name, call.line, call.words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_run_as_printed() {
    let all = std::env::var("DEEPSPEC_DOCS").is_ok_and(|value| value == "all");
    let mut failed = Vec::new();
    for page in read_pages() {
        println!("{}", page.name);
        failed.extend(script::run(&page, &workspace(), all).err());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
