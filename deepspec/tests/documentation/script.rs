//! A page as one bash script, run in a copy of what it reads.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::commands::{Call, calls, joined_lines};
use crate::page::{Block, Page, Purpose};

/// The port of the documentation's servers.
const PORT: &str = "8000";

/// The name of the quickstart's run.
const QUICKSTART: &str = "quickstart";

/// Defined before a page's first line. The trap names the line of the page: a script has its blocks on the lines that they have there.
const PREAMBLE: &str = r#"
set -eE -o pipefail
trap 'echo "FAILED at line $LINENO: $BASH_COMMAND" >&2' ERR
trap 'set +e; trap - ERR; jobs -p | xargs -r kill 2> /dev/null; wait' EXIT
# Waits until the server that was started last answers.
server_is_up() {
    until (exec 3<> /dev/tcp/127.0.0.1/$PORT) 2> /dev/null; do
        kill -0 $! 2> /dev/null || { echo "the server ended" >&2; return 1; }
        sleep 0.1
    done
}
"#;

/// Stands for cargo: builds are done, and `cargo run` starts what was built.
const CARGO: &str = r#"#!/usr/bin/env bash
case "$*" in
    "build --release"*) ;;
    "run --release -p deepspec -- "*) shift 5; exec deepspec "$@" ;;
    "run --release -p dspark-runtime -- "*) shift 5; exec dspark "$@" ;;
    "run --release -p "*" --example "*) example=$6; shift 6; [ "${1-}" = -- ] && shift; exec "$EXAMPLES/$example" "$@" ;;
    *) echo "cargo $*: only builds and runs are tested; mark the block \`sh manual\`" >&2; exit 1 ;;
esac
"#;

/// Everything that the documentation reads, copied, and a home directory.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Copies what the pages read from the repository.
    pub fn new(root: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["recipes", "datasets", "checkpoints", "docs"] {
            copy(&root.join(name), &folder.path().join(name));
        }
        let binaries = Path::new(env!("CARGO_BIN_EXE_deepspec")).parent().unwrap();
        let release = folder.path().join("target/release");
        fs::create_dir_all(&release).unwrap();
        for name in ["deepspec", "dspark"] {
            let binary = binaries.join(name);
            assert!(binary.is_file(), "{} is missing: run `cargo test --workspace`", binary.display());
            symlink(binary, release.join(name)).unwrap();
        }
        let tools = folder.path().join("home/bin");
        fs::create_dir_all(&tools).unwrap();
        fs::write(tools.join("cargo"), CARGO).unwrap();
        fs::set_permissions(tools.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// Runs a script of bash with the binaries in its path.
    pub fn run(&self, script: &str, port: &str) -> Output {
        let (folder, home) = (self.0.path(), self.0.path().join("home"));
        let search = std::env::var_os("PATH").unwrap_or_default();
        let own = [home.join("bin"), folder.join("target/release")];
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&search))).unwrap();
        fs::write(home.join("preamble"), PREAMBLE).unwrap();
        fs::write(home.join("page"), script).unwrap();
        let examples = Path::new(env!("CARGO_BIN_EXE_deepspec")).with_file_name("examples");
        let mut bash = Command::new("bash");
        bash.arg(home.join("page")).current_dir(folder).env("PATH", path).env("HOME", &home);
        bash.env("EXAMPLES", examples).env("PORT", port).env_remove("XDG_CACHE_HOME").env_remove("DSPARK_API_KEY");
        bash.stdin(Stdio::null()).output().unwrap()
    }

    /// Copies the quickstart's run of `other` into this folder, also under the names of other runs.
    fn take_quickstart(&self, other: &Self, names: &BTreeSet<&str>) {
        for name in names.iter().chain([&QUICKSTART]) {
            copy(&other.0.path().join("runs").join(QUICKSTART), &self.0.path().join("runs").join(name));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied: PathBuf = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &copied);
        } else {
            fs::copy(&path, &copied).unwrap();
        }
    }
}

/// The quickstart's run, for pages that read it: a short training, or with `all` the whole one.
fn quickstart(root: &Path, all: bool) -> &'static Scratch {
    static MADE: OnceLock<Scratch> = OnceLock::new();
    MADE.get_or_init(|| {
        let scratch = Scratch::new(root);
        let short = "--set train.steps=8 --set train.validate_every=0 --set evaluate.samples=1 \
                     --set evaluate.max_new_tokens=8";
        let command = format!("deepspec run recipes/quickstart.toml {}", if all { "" } else { short });
        let output = scratch.run(&command, PORT);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        scratch
    })
}

/// Runs the blocks of a page in order, the slow ones only with `all`.
///
/// # Errors
/// Page, line and command that failed, with the end of the output.
pub fn run(page: &Page, root: &Path, all: bool) -> Result<(), String> {
    let runs = |block: &&Block| block.purpose == Purpose::Run || (all && block.purpose == Purpose::Slow);
    let blocks: Vec<&Block> = page.blocks.iter().filter(runs).collect();
    if blocks.is_empty() {
        return Ok(());
    }
    // The port is the documentation's own: one page at a time.
    static RUNNING: Mutex<()> = Mutex::new(());
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let port = free_port();
    let script = script(page, &blocks)?.replace(PORT, &port);
    let scratch = Scratch::new(root);
    let makes = |call: &Call| call.words.get(1..3).is_some_and(|words| words == ["run", "recipes/quickstart.toml"]);
    let reads = read_runs(&script);
    let made = blocks.iter().flat_map(|block| calls(block)).any(|call| makes(&call));
    if !made && (script.contains("--example") || !reads.is_empty()) {
        // Runs of slow blocks are not made: the quickstart's takes their place.
        let none = BTreeSet::new();
        scratch.take_quickstart(quickstart(root, all), if all { &none } else { &reads });
    }
    let output = scratch.run(&script, &port);
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let [stdout, stderr] = text.each_ref().map(|text| {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    });
    Err(format!("{}: {}\n--- output\n{stdout}\n--- errors\n{stderr}", page.name, output.status))
}

/// Names of the runs of which a script reads the draft, `runs/NAME/draft`.
fn read_runs(script: &str) -> BTreeSet<&str> {
    let after = script.split("runs/").skip(1);
    after
        .filter_map(|rest| rest.split_once("/draft").map(|(name, _)| name))
        .filter(|name| !name.contains(char::is_whitespace))
        .collect()
}

/// The script of a page's blocks. Its lines are those of the page.
///
/// # Errors
/// Names a server that the script would wait for.
pub fn script(page: &Page, blocks: &[&Block]) -> Result<String, String> {
    let last = blocks.last().map_or(1, |block| block.line + block.lines.len());
    let mut lines = vec![String::new(); last];
    lines[0] = ". \"$HOME/preamble\"".to_owned();
    for block in blocks {
        lines[block.line - 1..][..block.lines.len()].clone_from_slice(&block.lines);
        let starts = joined_lines(block);
        for call in calls(block).iter().filter(|call| call.words.get(1).is_some_and(|verb| verb == "serve")) {
            // The last line of the call, where it is continued over several.
            let next = starts.iter().map(|(line, _)| *line).find(|line| *line > call.line);
            let end = next.unwrap_or(block.line + block.lines.len()) - 1;
            if !lines[end - 1].trim_end().ends_with('&') {
                return Err(format!(
                    "{}:{}: the server never ends: end the line with `&`, or mark the block `sh manual`",
                    page.name, call.line
                ));
            }
            lines[end - 1].push_str(" server_is_up");
        }
    }
    Ok(lines.join("\n") + "\n")
}

/// The documentation's port, or another one where that is taken.
fn free_port() -> String {
    match TcpListener::bind(("127.0.0.1", 8000)) {
        Ok(_) => PORT.to_owned(),
        Err(_) => TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port().to_string(),
    }
}
