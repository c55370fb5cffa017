//! Checks of the verbs that both programs have: `doctor`, `completions` and `man`.

#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A program that runs in an empty folder, with caches of its own in it.
pub struct Program {
    binary: &'static str,
    folder: TempDir,
}

impl Program {
    pub fn new(binary: &'static str) -> Self {
        Self { binary, folder: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        Command::new(self.binary)
            .current_dir(self.folder.path())
            .env_remove("RAYON_NUM_THREADS")
            .env_remove("HF_HUB_CACHE")
            .env("HF_HOME", self.path("hf"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .envs(variables.iter().copied())
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What a command prints, which succeeds.
    #[track_caller]
    pub fn prints(&self, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.run(variables, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(&[], arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed something");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    }

    /// The report of `doctor --json`.
    #[track_caller]
    pub fn diagnosis(&self, variables: &[(&str, &str)]) -> Value {
        serde_json::from_str(&self.prints(variables, &["doctor", "--json"])).unwrap()
    }

    /// The verbs that the program's help lists, without `help`.
    fn verbs(&self) -> Vec<String> {
        let help = self.prints(&[], &["--help"]);
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let verbs: Vec<String> = listed
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|verb| *verb != "help")
            .map(str::to_owned)
            .collect();
        assert!(verbs.len() > 5 && verbs.iter().any(|verb| verb == "doctor"), "{help}");
        verbs
    }

    /// The long options that a verb's help lists.
    fn options(&self, verb: &str) -> Vec<String> {
        let help = self.prints(&[], &[verb, "--help"]);
        let long = |line: &str| {
            let words = line.split([' ', ',', '[', '=']);
            words.filter(|word| word.starts_with("--")).map(str::to_owned).next()
        };
        let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let options: Vec<String> = lines.filter_map(long).collect();
        assert!(options.contains(&"--help".to_owned()), "{help}");
        options
    }
}

/// The words of the problems in a diagnosis.
#[track_caller]
pub fn has_problem(diagnosis: &Value, words: &[&str]) {
    let problems = diagnosis["problems"].as_array().unwrap();
    let told = |problem: &Value| words.iter().all(|word| problem.as_str().unwrap().contains(word));
    assert!(problems.iter().any(told), "{words:?} are not in one of {problems:#?}");
}

/// `doctor` describes the machine and its caches, and names what is set wrongly.
pub fn doctor(program: &Program) {
    let found = program.diagnosis(&[]);
    let fact = |found: &Value, name: &str| found["facts"][name].as_str().unwrap_or_default().to_owned();
    let names = ["version", "processor", "threads", "instruction_sets", "memory", "cuda", "gpu", "libdevice"];
    let caches = ["hugging_face_downloads", "hugging_face_cache", "speed_tables", "chat_templates"];
    let text = program.prints(&[], &["doctor"]);
    for name in names.iter().chain(&caches) {
        assert!(!fact(&found, name).is_empty(), "{name} is missing: {found:#}");
        assert!(text.contains(&format!("{:<24} ", name.replace('_', " "))), "{name} is missing: {text}");
    }
    assert!(fact(&found, "threads").ends_with("cores (RAYON_NUM_THREADS is not set)"), "{found:#}");
    assert_eq!(fact(&found, "chat_templates"), "work");
    assert_eq!(fact(&found, "hugging_face_cache"), format!("{}, not there", program.path("hf/hub").display()));
    let tables = program.path("cache/dspark/profiles");
    assert_eq!(fact(&found, "speed_tables"), format!("{}, 0 tables, 0.0 KiB", tables.display()));
    assert!(found["failures"].as_array().unwrap().is_empty(), "{found:#}");

    // Caches with something in them; a file is no model.
    fs::create_dir_all(program.path("hf/hub/models--owner--name")).unwrap();
    fs::write(program.path("hf/hub/models--owner--broken"), "").unwrap();
    fs::create_dir_all(&tables).unwrap();
    fs::write(tables.join("0123456789abcdef.json"), [b' '; 2048]).unwrap();
    let found = program.diagnosis(&[("RAYON_NUM_THREADS", "1")]);
    assert!(fact(&found, "threads").starts_with("1 of "), "{found:#}");
    assert!(fact(&found, "hugging_face_cache").ends_with(", 1 model"), "{found:#}");
    assert!(fact(&found, "speed_tables").ends_with(", 1 table, 2.0 KiB"), "{found:#}");

    has_problem(&program.diagnosis(&[("RAYON_NUM_THREADS", "two")]), &["RAYON_NUM_THREADS is not a number"]);
    has_problem(&program.diagnosis(&[("RAYON_NUM_THREADS", "4096")]), &["4096 threads on", "wait for each other"]);
    let homeless = program.diagnosis(&[("HOME", ""), ("XDG_CACHE_HOME", "")]);
    has_problem(&homeless, &["HOME", "XDG_CACHE_HOME", "speed tables are not kept"]);
}

/// The script of every shell names every verb.
pub fn completions(program: &Program) {
    let refused = program.run(&[], &["completions", "a shell of old"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "{said}");
    let (_, shells) = said.split_once("[possible values: ").unwrap();
    let shells: Vec<&str> = shells.split_once(']').unwrap().0.split(", ").collect();
    assert!(["bash", "fish", "zsh"].iter().all(|shell| shells.contains(shell)), "{shells:?}");
    let verbs = program.verbs();
    for shell in shells {
        let script = program.prints(&[], &["completions", shell]);
        let names =
            |verb: &str| script.split(|letter: char| !letter.is_alphanumeric() && letter != '-').any(|it| it == verb);
        for verb in &verbs {
            assert!(names(verb), "{shell}: {verb} is missing");
        }
        assert!(!names("no-such-verb"), "{shell}");
    }
}

/// Every verb has a page with all its options.
pub fn man(program: &Program, name: &str) {
    let folder = program.path("pages/man1");
    assert!(program.prints(&[], &["man", "pages/man1"]).contains("pages/man1"));
    let page = |name: &str| {
        let path = folder.join(format!("{name}.1"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Pages write a hyphen as `\-`, and name fonts as `\fB`.
        [("\\-", "-"), ("\\fB", ""), ("\\fI", ""), ("\\fR", "")]
            .iter()
            .fold(text, |text, (old, new)| text.replace(old, new))
    };
    let verbs = program.verbs();
    let overview = page(name);
    for verb in &verbs {
        assert!(overview.contains(&format!("{name}-{verb}(1)")), "{verb} is not in {overview}");
        let own = page(&format!("{name}-{verb}"));
        for option in program.options(verb) {
            let named = own.split(|letter: char| !letter.is_alphanumeric() && letter != '-').any(|it| it == option);
            assert!(named, "{verb}: {option} is not in {own}");
        }
    }
    // Verbs of verbs have pages of their own.
    for entry in fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let of = |verb: &String| {
            file == format!("{name}-{verb}.1") || file.starts_with(&format!("{name}-{verb}-")) && file.ends_with(".1")
        };
        assert!(file == format!("{name}.1") || verbs.iter().any(of), "{file}");
    }

    let file = program.path("file");
    fs::write(&file, "mine").unwrap();
    program.refuses(&["man", "file"], &["file", "expected a folder"]);
    assert!(fs::read(&file).unwrap() == b"mine");
}

/// Copies the quickstart's target into a folder.
pub fn copy_target(to: &Path) {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(original).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
