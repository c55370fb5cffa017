//! Outputs that would overwrite what a verb reads.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::checkpoint::behind_links;

/// File names of a model other than weights and templates.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
];

/// A file or folder on the command line, and the argument that names it.
pub type Named<'a> = (&'a str, &'a Path);

/// Checks, before anything runs, that outputs are no folders, and that none is an input, a file of a model folder that is
/// read, or another output. Links and relative paths are followed. `-` is standard output, not a file.
///
/// # Errors
/// Names the argument, or the two.
pub fn check_outputs(outputs: &[Named<'_>], inputs: &[Named<'_>]) -> Result<()> {
    let outputs: Vec<&Named<'_>> = outputs.iter().filter(|(_, path)| path.as_os_str() != "-").collect();
    for (index, (flag, path)) in outputs.iter().enumerate() {
        if path.is_dir() {
            bail!("{flag} {}: expected a file to write, found a folder", path.display());
        }
        if path.metadata().is_ok_and(|kind| !kind.is_file()) {
            bail!("{flag} {}: expected a file to write, found a pipe or a device", path.display());
        }
        if let Some((other, _)) = inputs.iter().find(|(_, input)| same_file(path, input) || in_model(path, input)) {
            bail!("{flag} {}: would overwrite the input of {other}; choose another file", path.display());
        }
        if let Some((other, _)) = outputs[..index].iter().find(|(_, output)| same_file(path, output)) {
            bail!("{flag} {}: {other} writes the same file; choose another one", path.display());
        }
    }
    Ok(())
}

/// Returns whether two paths lead to one file, which need not be there yet.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    real(a) == real(b)
}

/// Returns whether a path is one of the files that a model is read from, in the model's folder.
fn in_model(path: &Path, folder: &Path) -> bool {
    let of_model = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        MODEL_FILES.contains(&name) || name.ends_with(".safetensors") || name.ends_with(".jinja")
    });
    of_model && folder.is_dir() && path.exists() && real(path).parent() == Some(&real(folder))
}

/// The path without links; of a file that is not there, its folder's with its name.
fn real(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    // A link to a file that is not there yet.
    let path = &behind_links(path);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_output_that_is_an_input_or_another_output_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("task.jsonl"), "x").unwrap();
        fs::create_dir(path("draft")).unwrap();
        fs::write(path("draft/config.json"), "{}").unwrap();
        fs::hard_link(path("task.jsonl"), path("hard.jsonl")).unwrap();
        let check = |outputs: &[(&str, &str)]| {
            let outputs: Vec<(&str, PathBuf)> = outputs.iter().map(|(flag, name)| (*flag, path(name))).collect();
            let outputs: Vec<Named<'_>> = outputs.iter().map(|(flag, path)| (*flag, path.as_path())).collect();
            let (task, draft) = (path("task.jsonl"), path("draft"));
            check_outputs(&outputs, &[("--task", &task), ("--draft", &draft)]).map_err(|error| error.to_string())
        };
        for name in ["task.jsonl", "draft/../task.jsonl", "hard.jsonl", "draft/config.json"] {
            let error = check(&[("--json", name)]).unwrap_err();
            assert!(error.starts_with("--json ") && error.contains("overwrite the input of --"), "{error}");
        }
        let error = check(&[("--json", "new.json"), ("--trace", "draft/../new.json")]).unwrap_err();
        assert!(error.contains("--json writes the same file"), "{error}");
        check(&[("--json", "new.json"), ("--trace", "draft/new.json"), ("--answers", "draft/report.json")]).unwrap();
        assert!(check(&[("--json", "draft")]).unwrap_err().contains("found a folder"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(path("task.jsonl"), path("link.jsonl")).unwrap();
            assert!(check(&[("--json", "link.jsonl")]).is_err());
            std::os::unix::fs::symlink(path("new.json"), path("dangling")).unwrap();
            assert!(check(&[("--json", "new.json"), ("--trace", "dangling")]).is_err());
            assert!(check_outputs(&[("--json", Path::new("/dev/full"))], &[]).is_err());
        }
        let standard = Path::new("-");
        check_outputs(&[("--json", standard), ("--trace", standard)], &[]).unwrap();
    }
}
