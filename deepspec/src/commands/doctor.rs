//! `deepspec doctor`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::checkpoint::{Weights, expand_home, resolve_model};
use dspark_runtime::commands::{Diagnosis, DoctorArguments};
use dspark_runtime::model::TargetConfig;
use dspark_runtime::text::Tokenizer;

use crate::cards::{Card, dataset_folders};
use crate::recipe::Recipe;

/// Folder of the recipes whose targets are checked.
const RECIPES: &str = "recipes";

/// Checks the machine, the datasets and the targets of the recipes, and prints the results.
pub fn run(arguments: &DoctorArguments) -> Result<()> {
    let mut found = Diagnosis::of_machine("deepspec", env!("CARGO_PKG_VERSION"));
    let folders = dataset_folders();
    let there = |folder: &PathBuf| {
        let word = if folder.is_dir() { "there" } else { "not there" };
        format!("{}, {word}", folder.display())
    };
    found.fact("dataset_folders", folders.iter().map(there).collect::<Vec<_>>());
    let (here, missing): (Vec<_>, Vec<_>) = Card::all()?.into_iter().partition(|card| card.resolve(&folders).is_ok());
    let names = |cards: Vec<Card>| match cards.is_empty() {
        true => "none".to_owned(),
        false => cards.into_iter().map(|card| card.name).collect::<Vec<_>>().join(", "),
    };
    found.fact("datasets_found", names(here));
    found.fact("datasets_not_here", names(missing));
    targets(&mut found, Path::new(RECIPES));
    found.report(arguments)
}

/// Adds the targets that the recipes in a folder name, and the faults of recipes and targets.
fn targets(found: &mut Diagnosis, folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut recipes: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    recipes.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    recipes.sort();
    let (mut names, mut states): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for recipe in recipes {
        let name = match Recipe::load(&recipe, &[]) {
            Ok(recipe) => recipe.target,
            Err(error) => {
                found.problem(error.to_string());
                continue;
            }
        };
        if names.contains(&name) {
            continue;
        }
        let state = match expand_home(Path::new(&name)).exists().then(|| check(&name)) {
            None => "not found",
            Some(Ok(())) => "found",
            Some(Err(error)) => {
                found.problem(format!(
                    "a recipe's target cannot be loaded: {error:#}; restore this file, or download it again"
                ));
                "damaged"
            }
        };
        states.push(format!("{name}: {state}"));
        names.push(name);
    }
    if !states.is_empty() {
        found.fact("targets_of_recipes", states);
    }
}

/// Reads the configuration, the headers of the weights and the tokeniser of a target.
fn check(name: &str) -> Result<()> {
    let folder = resolve_model(name)?;
    TargetConfig::read(&folder)?;
    Weights::open(&folder)?;
    Tokenizer::of_model(&folder)?;
    Ok(())
}
