//! Code blocks of a Markdown page.

use std::fs;
use std::path::{Path, PathBuf};

/// Purpose of a code block, as its info string names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `sh`: commands that take seconds.
    Run,
    /// `sh slow`: commands that take minutes. Run with `DEEPSPEC_DOCS=all`.
    Slow,
    /// `sh manual`: commands that need a GPU, a network or another program. Never run.
    Manual,
    /// Output, or a file of another language.
    Other,
}

/// Info strings of blocks that are no commands.
const OTHERS: [&str; 9] = ["text", "toml", "json", "rust", "python", "ini", "yaml", "xml", "dockerfile"];

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its purpose.
    pub purpose: Purpose,
    /// 1-based line of the page that holds its first line.
    pub line: usize,
    /// Its lines.
    pub lines: Vec<String>,
}

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Path below the repository.
    pub name: String,
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// Code spans outside of blocks, each with its line.
    pub spans: Vec<(usize, String)>,
}

/// Paths of the pages below the repository: `README.md`, then `docs/*.md` by name.
pub fn pages(root: &Path) -> Vec<PathBuf> {
    let mut guides: Vec<PathBuf> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| Path::new("docs").join(entry.unwrap().file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    guides.sort();
    guides.insert(0, PathBuf::from("README.md"));
    guides
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// Names the line of a block whose info string is unknown, or of commands outside of a block.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut page = Self { name: name.to_owned(), blocks: Vec::new(), spans: Vec::new() };
        let mut open: Option<(String, Block)> = None;
        for (line, text) in (1..).zip(text.lines()) {
            let (content, place) = (text.trim_start(), format!("{name}:{line}"));
            if let Some((fence, block)) = &mut open {
                if content.trim_end() == fence {
                    page.blocks.extend(open.take().map(|(_, block)| block));
                } else {
                    block.lines.push(text.to_owned());
                }
            } else if content.starts_with("```") {
                let info = content.trim_start_matches('`');
                let fence = "`".repeat(content.len() - info.len());
                open = Some((fence, Block { purpose: purpose(info, &place)?, line: line + 1, lines: Vec::new() }));
            } else if text.starts_with("    ") && is_command(content) {
                return Err(format!("{place}: an indented command: put it into a block ```sh"));
            } else {
                page.spans.extend(text.split('`').skip(1).step_by(2).map(|span| (line, span.to_owned())));
            }
        }
        match open {
            Some((_, block)) => Err(format!("{name}:{}: a block without an end", block.line)),
            None => Ok(page),
        }
    }
}

fn purpose(info: &str, place: &str) -> Result<Purpose, String> {
    match info.trim() {
        "sh" => Ok(Purpose::Run),
        "sh slow" => Ok(Purpose::Slow),
        "sh manual" => Ok(Purpose::Manual),
        other if OTHERS.contains(&other) => Ok(Purpose::Other),
        other => Err(format!(
            "{place}: unknown info string {other:?}: expected `sh`, `sh slow` or `sh manual` for commands, `text` for output, or \
             one of {OTHERS:?}"
        )),
    }
}

/// Returns true if a line starts one of the two binaries.
pub fn is_command(line: &str) -> bool {
    let first = line.split_whitespace().next().unwrap_or_default();
    matches!(first.rsplit('/').next(), Some("deepspec" | "dspark"))
}
