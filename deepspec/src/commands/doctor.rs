//! `deepspec doctor`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::commands::{Diagnosis, DoctorArguments};

use crate::cards::{Card, dataset_folders};
use crate::recipe::Recipe;

/// Folder of the recipes that are looked at.
const RECIPES: &str = "recipes";

/// Looks at the machine, the datasets and the targets of the recipes, and prints what it finds.
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
    let targets = targets(Path::new(RECIPES));
    if !targets.is_empty() {
        found.fact("targets_of_recipes", targets);
    }
    found.report(arguments)
}

/// The targets that the recipes in a folder name, each with whether it is here.
fn targets(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut recipes: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    recipes.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    recipes.sort();
    let mut targets: Vec<String> = Vec::new();
    for recipe in recipes {
        let Ok(recipe) = Recipe::load(&recipe, &[]) else { continue };
        let word = if Path::new(&recipe.target).exists() { "here" } else { "not here" };
        let line = format!("{}: {word}", recipe.target);
        if !targets.contains(&line) {
            targets.push(line);
        }
    }
    targets
}
