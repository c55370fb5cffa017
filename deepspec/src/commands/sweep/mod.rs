//! `deepspec sweep`: runs recipes over a grid of settings, each point as a separate run, and compares them in a table
//! and plots.

mod axis;
mod report;

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::write_file;
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;

use self::axis::{Axis, grid};
use self::report::{Point, SweepReport};
use super::described::{Described, RecipeArguments};
use super::run::{checked_tasks, execute, prepare};
use super::run_folder::lock;
use crate::process::watch;
use crate::recipe::Recipe;

/// Arguments of `deepspec sweep`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Recipe files; several recipes are compared at every point of the grid
    #[arg(required = true)]
    recipes: Vec<PathBuf>,
    /// Vary a setting over these values, for example `model.num_draft_layers=1,2,4`. Can be repeated to form a grid
    #[arg(long, value_name = "KEY=VALUE,VALUE,...")]
    vary: Vec<Axis>,
    /// Override a field of every recipe, for example `train.lr=3e-4`. Can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Output folder for runs, table and plots (default: `runs/NAME-sweep`, where NAME is the first recipe's name)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Stop at the first malformed row of the data (sets the recipes' `data.strict`)
    #[arg(long)]
    strict: bool,
    /// Delete what an earlier sweep wrote into the folders of these points and start from scratch. Other files in them
    /// are kept
    #[arg(long)]
    restart: bool,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// One point before it runs.
struct Planned {
    recipe: PathBuf,
    settings: Vec<(String, String)>,
    folder: PathBuf,
    /// The name of its evaluation, which distinguishes evaluations of the same training.
    evaluation: String,
}

/// Runs every point, or resumes an earlier sweep, and writes `sweep.json` and the plots.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (folder, points) = plan(arguments)?;
    watch().context("watching for signals")?;
    let _lock = lock(&folder)?;
    let mut emptied = HashSet::new();
    let mut report = SweepReport { points: Vec::new() };
    for (number, planned) in points.iter().enumerate() {
        let named = Point::name(&planned.recipe, &planned.settings, arguments.recipes.len() > 1);
        eprintln!("point {} of {}: {named}", number + 1, points.len());
        let described = Described::load(&recipe_arguments(arguments, planned))?;
        let tasks = checked_tasks(&described)?;
        if tasks.is_empty() {
            bail!(
                "{}: a sweep compares results on [evaluate] tasks, but the recipe has none",
                planned.recipe.display()
            );
        }
        let _lock = lock(&planned.folder)?;
        let restart = arguments.restart && emptied.insert(planned.folder.clone());
        let (prepared, run) = prepare(described, arguments.device, restart).with_context(|| named.clone())?;
        let outcome = execute(&prepared, run, &tasks, &planned.evaluation).with_context(|| named.clone())?;
        report.points.push(Point {
            name: named,
            recipe: planned.recipe.display().to_string(),
            settings: planned.settings.iter().cloned().collect(),
            folder: planned.folder.display().to_string(),
            training: outcome.training,
            evaluation: outcome.evaluation,
        });
        // After every point, so that a long sweep can be looked at while it goes on.
        write_file(&folder.join("sweep.json"), (serde_json::to_string_pretty(&report)? + "\n").as_bytes())?;
    }
    let pictures = report.draw(&arguments.vary, &folder)?;
    print(format_args!("\n{}\n\ntable:    {}", report.table(), folder.join("sweep.json").display()))?;
    for picture in pictures {
        print(format_args!("picture:  {}", picture.display()))?;
    }
    Ok(())
}

/// The sweep's folder and its points, all recipes being read once so that a wrong value is found before the first run.
fn plan(arguments: &Arguments) -> Result<(PathBuf, Vec<Planned>)> {
    let mut folder = arguments.out.clone();
    let mut points: Vec<Planned> = Vec::new();
    let mut taken = HashSet::new();
    for recipe in &arguments.recipes {
        for settings in grid(&arguments.vary) {
            let overrides: Vec<String> = arguments
                .set
                .iter()
                .cloned()
                .chain(settings.iter().map(|(key, value)| format!("{key}={value}")))
                .collect();
            let read = Recipe::load(recipe, &overrides)?;
            let folder = folder.get_or_insert_with(|| PathBuf::from("runs").join(format!("{}-sweep", read.name)));
            // What is only measured differently is trained once.
            let (measured, trained): (Vec<_>, Vec<_>) =
                settings.iter().cloned().partition(|(key, _)| key.starts_with("evaluate."));
            let point = Planned {
                recipe: recipe.clone(),
                folder: folder.join(axis::file_name(&read.name, &trained)),
                evaluation: axis::file_name("evaluate", &measured),
                settings,
            };
            if !taken.insert((point.folder.clone(), point.evaluation.clone())) {
                bail!(
                    "{} with {}: another point has the same folder, {}; expected recipes with different names and no \
                     repeated values",
                    recipe.display(),
                    Point::name(recipe, &point.settings, true),
                    point.folder.display()
                );
            }
            points.push(point);
        }
    }
    let folder = folder.context("no recipe was given")?;
    Ok((folder, points))
}

fn recipe_arguments(arguments: &Arguments, planned: &Planned) -> RecipeArguments {
    let varied = planned.settings.iter().map(|(key, value)| format!("{key}={value}"));
    // As a TOML string, so that a folder's name is not read as anything else.
    let folder = toml::Value::String(planned.folder.to_string_lossy().into_owned());
    RecipeArguments {
        recipe: planned.recipe.clone(),
        set: arguments.set.iter().cloned().chain(varied).chain([format!("output.dir={folder}")]).collect(),
        strict: arguments.strict,
        device: arguments.device,
    }
}
