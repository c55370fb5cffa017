//! Compares the rooms of a crate, the modules of its `lib.rs`, with the table of rooms in `ARCHITECTURE.md`.
//!
//! Paths are found by a scan of the text, so paths in dead code and under features count too. Test modules do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms in the order of the table, with the names in backticks of every cell behind the second.
type Table = Vec<(String, Vec<BTreeSet<String>>)>;

/// A name that a file of a room uses: a room of the crate, `dspark_runtime::ROOM`, or another crate.
#[derive(Debug)]
pub struct Use {
    pub room: String,
    pub file: PathBuf,
    pub name: String,
}

/// What is wrong with a crate; nothing when its table is true.
pub fn faults(crate_folder: &Path, crate_name: &str) -> Vec<String> {
    let document = fs::read_to_string(crate_folder.join("../ARCHITECTURE.md")).unwrap();
    let table = table(&document, crate_name);
    assert!(!table.is_empty(), "ARCHITECTURE.md has no table under `## Rooms of `{crate_name}``");
    let (rooms, uses) = scan(&crate_folder.join("src"));
    compare(&table, &rooms, &uses)
}

/// Reads the table under `## Rooms of NAME`.
fn table(document: &str, crate_name: &str) -> Table {
    let heading = format!("## Rooms of `{crate_name}`");
    let section =
        document.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with("## "));
    let rows = section.filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let names = |cell: &&str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<String>>();
        let allowed = cells.iter().skip(2).map(names).collect();
        (cells[0].trim().trim_matches('`').to_owned(), allowed)
    };
    rows.map(row).collect()
}

/// The crate's rooms and everything they use.
fn scan(src: &Path) -> (BTreeSet<String>, Vec<Use>) {
    let root = code(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let (mut rooms, mut aliases, mut before) = (BTreeSet::new(), BTreeMap::new(), "");
    for line in root.lines().map(|line| line.trim().trim_end_matches(';')) {
        // Rooms that only tests have do not count.
        let module = line.split_once("mod ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
        let module = module.map(|(_, name)| name);
        rooms.extend(module.filter(|_| before != "#[cfg(test)]").map(str::to_owned));
        // `pub use normals::Normals;` makes `crate::Normals` mean `normals`.
        if let Some((room, names)) = line.strip_prefix("pub use ").and_then(|path| path.split_once("::")) {
            let names = names.split(|c| !is_name(c)).filter(|name| !name.is_empty());
            aliases.extend(names.map(|name| (name.to_owned(), room.to_owned())));
        }
        before = line;
    }

    let mut uses = Vec::new();
    for file in files(src) {
        let module = file.strip_prefix(src).unwrap().with_extension("");
        let mut path: Vec<String> = module.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if path.last().is_some_and(|last| last == "mod") {
            path.pop();
        }
        let room = path[0].clone();
        if !rooms.contains(&room) {
            continue;
        }
        for (root, next) in paths(&code(&fs::read_to_string(&file).unwrap())) {
            let supers = root.matches("super").count();
            let names: Vec<String> = match root.as_str() {
                // As many `super`s as there are modules lead to the root of the crate.
                _ if root == "crate" || (supers > 0 && supers == path.len()) => {
                    next.iter().map(|name| aliases.get(name).unwrap_or(name).clone()).collect()
                }
                _ if supers > 0 => Vec::new(),
                "dspark_runtime" => next.iter().map(|name| format!("dspark_runtime::{name}")).collect(),
                // Without `crate` in front, the name of a room is that of a module beside it.
                _ => Some(root).filter(|root| !rooms.contains(root)).into_iter().collect(),
            };
            let file = file.strip_prefix(src).unwrap();
            uses.extend(names.into_iter().map(|name| Use { room: room.clone(), file: file.to_owned(), name }));
        }
    }
    uses.retain(|used| used.name != used.room);
    (rooms, uses)
}

/// All Rust files below a folder, but tests.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.file_stem().and_then(|stem| stem.to_str()) {
            Some("tests" | "testing") => {}
            _ if path.is_dir() => files.extend(self::files(&path)),
            _ if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            _ => {}
        }
    }
    files.sort();
    files
}

/// The text without comments and without the module of tests at its end.
fn code(text: &str) -> String {
    let text = text.split("\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).fold(String::new(), |code, line| code + line + "\n")
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// First names of all paths, with the names behind them: of `a::{b::c, d}`, `a` with `b` and `d`. Leading `super`s count as
/// one name.
fn paths(code: &str) -> Vec<(String, Vec<String>)> {
    let mut paths = Vec::new();
    let mut rest = code;
    let mut before = ' ';
    while let Some(start) = rest.find(is_name) {
        before = rest[..start].chars().last().unwrap_or(before);
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let mut root = rest[..end].to_owned();
        rest = &rest[end..];
        // Behind `:` a path goes on; behind `.` stands a method, behind `$` a macro's own crate, behind `'` a lifetime.
        let begins = !matches!(before, ':' | '.' | '$' | '\'');
        before = root.chars().last().unwrap();
        while root.ends_with("super") && rest.starts_with("::super") {
            root += "::super";
            rest = &rest["::super".len()..];
        }
        if let Some(behind) = rest.strip_prefix("::").filter(|_| begins) {
            paths.push((root, first_names(behind)));
        }
    }
    paths
}

/// The first name, or those of a group in braces.
fn first_names(behind: &str) -> Vec<String> {
    let name = |text: &str| text.trim().chars().take_while(|c| is_name(*c)).collect::<String>();
    let Some(group) = behind.strip_prefix('{') else { return vec![name(behind)] };
    let (mut depth, mut names, mut begun) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[begun..at]));
                begun = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn compare(table: &Table, rooms: &BTreeSet<String>, uses: &[Use]) -> Vec<String> {
    let mut faults = Vec::new();
    let listed: BTreeSet<String> = table.iter().map(|(room, _)| room.clone()).collect();
    faults.extend(rooms.difference(&listed).map(|room| format!("`{room}` is in the code and not in the table")));
    faults.extend(listed.difference(rooms).map(|room| format!("`{room}` is in the table and not in the code")));
    let mut allowed: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut above = BTreeSet::new();
    for (room, cells) in table {
        let [own, runtime @ ..] = cells.as_slice() else { panic!("the row of `{room}` lacks a cell") };
        for name in own.iter().filter(|name| listed.contains(*name) && !above.contains(*name)) {
            faults.push(format!("`{room}` may use `{name}`, which does not stand above it in the table"));
        }
        above.insert(room.clone());
        let runtime = runtime.iter().flatten().map(|name| format!("dspark_runtime::{name}"));
        allowed.insert(room, own.iter().cloned().chain(runtime).collect());
    }
    // Another crate that one row names is closed to the rooms whose rows do not.
    let closed: BTreeSet<&String> = allowed.values().flatten().collect();
    let mut forbidden: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for Use { room, file, name } in uses {
        let known = listed.contains(name) || rooms.contains(name) || closed.contains(name);
        let runtime = name.strip_prefix("dspark_runtime::").is_some_and(|name| name.starts_with(char::is_lowercase));
        if (known || runtime) && !allowed.get(room.as_str()).is_some_and(|allowed| allowed.contains(name)) {
            forbidden.entry((room, name)).or_default().insert(file.display().to_string());
        }
    }
    for ((room, name), files) in forbidden {
        let files: Vec<String> = files.into_iter().collect();
        faults.push(format!("`{room}` uses `{name}`, and its row does not say so: {}", files.join(", ")));
    }
    faults
}

#[test]
fn paths_are_found_and_comments_and_tests_are_not() {
    let text = "use crate::{a::B, c::{d, e}, f};\nuse super::super::g;\n// use crate::no;\nlet x = crate::h::i(j::K, l.m::<n>());\n#[cfg(test)]\nmod tests {\n    use crate::no;\n}\n";
    let names = |path: &str| {
        let of = paths(&code(text)).into_iter().filter(|(root, _)| root == path);
        of.flat_map(|(_, names)| names).collect::<Vec<_>>()
    };
    assert_eq!(names("crate"), ["a", "c", "f", "h"]);
    assert_eq!(names("super::super"), ["g"]);
    assert_eq!(names("j"), ["K"]);
}

#[test]
fn every_kind_of_fault_is_found() {
    let document = "## Rooms of `x`\n\n| room | owns | may use | of the runtime |\n|---|---|---|---|\n| `low` | | | `text` |\n| `high` | `a`, `b` | `low`, `burn` | |\n\n## More\n| `no` | | | |\n";
    let table = table(document, "x");
    let rooms = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let used = |room: &str, name: &str| Use { room: room.into(), file: "f.rs".into(), name: name.into() };
    let right =
        [used("high", "low"), used("high", "burn"), used("low", "dspark_runtime::text"), used("low", "serde")];
    assert_eq!(compare(&table, &rooms(&["low", "high"]), &right), [""; 0]);
    for (rooms, used, part) in [
        (rooms(&["low", "high"]), used("low", "high"), "`low` uses `high`"),
        (rooms(&["low", "high"]), used("low", "burn"), "`low` uses `burn`"),
        (rooms(&["low", "high"]), used("high", "dspark_runtime::model"), "`high` uses `dspark_runtime::model`"),
        (rooms(&["low", "high", "new"]), used("high", "low"), "`new` is in the code and not in the table"),
        (rooms(&["low"]), used("low", "serde"), "`high` is in the table and not in the code"),
    ] {
        let faults = compare(&table, &rooms, &[used]);
        assert!(faults.len() == 1 && faults[0].contains(part), "{faults:?}");
    }
    let turned: Table = table.into_iter().rev().collect();
    assert!(compare(&turned, &rooms(&["low", "high"]), &[])[0].contains("does not stand above it"));
}
