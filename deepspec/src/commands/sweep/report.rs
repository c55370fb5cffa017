//! The results of a sweep: a table, `sweep.json`, and plots like figures 3 to 5 of the DSpark paper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use dspark_runtime::plot::Chart;
use serde::Serialize;
use serde_json::Value;

use super::axis::{Axis, short};
use crate::evaluation::{EvaluationReport, TaskReport};

/// All points, in the order in which they ran.
#[derive(Debug, Serialize)]
pub struct SweepReport {
    /// One entry per point of the grid and recipe.
    pub points: Vec<Point>,
}

/// A recipe with some settings, and what came of it.
#[derive(Debug, Serialize)]
pub struct Point {
    /// The recipe's name where several were given, and the settings.
    pub name: String,
    /// The recipe's file.
    pub recipe: String,
    /// The varied settings.
    pub settings: BTreeMap<String, String>,
    /// The folder of its run.
    pub folder: String,
    /// The training's report.
    pub training: Value,
    /// The evaluation's.
    pub evaluation: EvaluationReport,
}

impl Point {
    /// A name for tables and legends.
    pub fn name(recipe: &Path, settings: &[(String, String)], with_recipe: bool) -> String {
        let stem = recipe.file_stem().map(|stem| stem.to_string_lossy().into_owned()).filter(|_| with_recipe);
        let settings = settings.iter().map(|(key, value)| format!("{}={value}", short(key)));
        let parts: Vec<String> = stem.into_iter().chain(settings).collect();
        if parts.is_empty() { "the recipe".to_owned() } else { parts.join(" ") }
    }

    /// The mean over the tasks of a figure that some may lack.
    fn mean(&self, figure: impl Fn(&TaskReport) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.evaluation.tasks.iter().filter_map(figure).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    fn acceptance_by_slot(&self) -> Vec<(f64, f64)> {
        let tasks: Vec<Vec<Option<f64>>> = self
            .evaluation
            .tasks
            .iter()
            .map(|task| of_many_rounds(&task.conditional_acceptance, &task.survival, task.rounds))
            .collect();
        along_the_block(&tasks.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

/// Minimum number of rounds for a share to be plotted: one of two accepted is not meaningful.
const ENOUGH: f64 = 20.0;

/// Returns the conditional acceptance of the slots before which at least [`ENOUGH`] of this many rounds had accepted
/// everything.
fn of_many_rounds(conditional: &[Option<f64>], survival: &[Option<f64>], rounds: u64) -> Vec<Option<f64>> {
    let before = std::iter::once(Some(1.0)).chain(survival.iter().copied());
    let enough = |share: Option<f64>| share.is_some_and(|share| share * rounds as f64 >= ENOUGH);
    conditional.iter().zip(before).map(|(own, before)| own.filter(|_| enough(before))).collect()
}

/// Returns the mean conditional acceptance over the tasks, slot by slot: `(slot from 1, share)`. It ends at the first
/// slot without data for some task: a mean over fewer tasks is not comparable.
fn along_the_block(tasks: &[&[Option<f64>]]) -> Vec<(f64, f64)> {
    let at = |slot: usize| -> Option<f64> {
        let shares: Option<Vec<f64>> = tasks.iter().map(|shares| shares.get(slot).copied().flatten()).collect();
        shares.filter(|shares| !shares.is_empty()).map(|shares| shares.iter().sum::<f64>() / shares.len() as f64)
    };
    (0..).map_while(|slot| at(slot).map(|share| (slot as f64 + 1.0, share))).collect()
}

impl SweepReport {
    /// One line per point: accepted length of every task, their mean, verified and committed tokens, speed, cost of training.
    pub fn table(&self) -> String {
        let width = self.points.iter().map(|point| point.name.chars().count()).max().unwrap_or(0).max(5);
        let mut tasks: Vec<&str> = Vec::new();
        for task in self.points.iter().flat_map(|point| &point.evaluation.tasks) {
            if !tasks.contains(&task.name.as_str()) {
                tasks.push(&task.name);
            }
        }
        let number =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        let heads: Vec<String> = tasks.iter().map(|task| format!("{task:>8}")).collect();
        let mut lines = vec![
            "accepted length (tokens per round) by task, and their mean".to_owned(),
            format!(
                "{:width$}  {}      mean  verified/round  kept   speed-up  parameters  training s",
                "point",
                heads.join("  ")
            ),
        ];
        for point in &self.points {
            let of = |name: &&str| point.evaluation.tasks.iter().find(|task| task.name == **name);
            let lengths: Vec<String> = tasks
                .iter()
                .map(|name| {
                    format!(
                        "{:>w$}",
                        number(of(name).and_then(|task| task.accepted_length), 3),
                        w = name.chars().count().max(8)
                    )
                })
                .collect();
            let ratio = point.mean(|task| Some(task.tokens_per_second? / task.plain_tokens_per_second?));
            lines.push(format!(
                "{:width$}  {}  {:>8}  {:>14}  {:>5}  {:>8}  {:>10}  {:>10}",
                point.name,
                lengths.join("  "),
                number(point.mean(|task| task.accepted_length), 3),
                number(point.mean(|task| task.draft_tokens_per_round), 2),
                number(point.mean(|task| task.verify_rate), 3),
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x")),
                point.training["parameters"].as_u64().map_or("-".to_owned(), |count| count.to_string()),
                number(point.training["seconds"].as_f64(), 0),
            ));
        }
        lines.push(
            "verified/round: drafted tokens verified per round. kept: share of the tokens that went through the target that became part \
             of an answer. speed-up: tok/s with the draft by tok/s without, mean over tasks"
                .to_owned(),
        );
        lines.join("\n")
    }

    /// Writes the pictures that these points allow, and says where: conditional acceptance by slot always, as far as enough
    /// rounds got, accepted length and share of kept tokens against the first varied setting that is a number.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn draw(&self, axes: &[Axis], folder: &Path) -> Result<Vec<PathBuf>> {
        let path = folder.join("conditional_acceptance.svg");
        Chart {
            title: "Acceptance by position in the block, mean over tasks",
            x_label: "position",
            y_label: "accepted, where all before were accepted",
            x_in_octaves: false,
            lines: self.points.iter().map(|point| (point.name.clone(), point.acceptance_by_slot())).collect(),
        }
        .write(&path)?;
        let mut written = vec![path];
        let numeric = axes.iter().find(|axis| axis.values.len() > 1 && axis.numbers().is_some());
        if let Some(axis) = numeric {
            let figures: [(&str, &str, &str, Figure); 2] = [
                ("accepted_length.svg", "Accepted length, mean over tasks", "tokens per round", |task| {
                    task.accepted_length
                }),
                ("verify_rate.svg", "Kept tokens per token verified, mean over tasks", "kept", |task| {
                    task.verify_rate
                }),
            ];
            for (file, title, y_label, figure) in figures {
                let path = folder.join(file);
                let lines = self.against(&axis.key, figure);
                Chart { title, x_label: short(&axis.key), y_label, x_in_octaves: false, lines }.write(&path)?;
                written.push(path);
            }
        }
        Ok(written)
    }

    /// A figure against a setting, a line for every combination of the others.
    fn against(&self, key: &str, figure: Figure) -> Vec<(String, Vec<(f64, f64)>)> {
        let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        let several = self.points.iter().any(|point| point.recipe != self.points[0].recipe);
        for point in &self.points {
            let others: Vec<(String, String)> = point
                .settings
                .iter()
                .filter(|(other, _)| *other != key)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            let name = Point::name(Path::new(&point.recipe), &others, several);
            let x = point.settings.get(key).and_then(|value| value.parse::<f64>().ok());
            let Some((x, y)) = x.zip(point.mean(figure)) else { continue };
            match lines.iter_mut().find(|line| line.0 == name) {
                Some(line) => line.1.push((x, y)),
                None => lines.push((name, vec![(x, y)])),
            }
        }
        for line in &mut lines {
            line.1.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        lines
    }
}

/// A figure of a task.
type Figure = fn(&TaskReport) -> Option<f64>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_a_task_drops_out() {
        let (far, near) = ([Some(0.5), Some(1.0), Some(0.75)], [Some(0.25), Some(0.0), None]);
        assert_eq!(along_the_block(&[&far, &near]), [(1.0, 0.375), (2.0, 0.5)]);
        assert_eq!(along_the_block(&[&far]).len(), 3);
        assert_eq!(along_the_block(&[]), []);
    }

    #[test]
    fn a_share_of_a_few_rounds_is_not_drawn() {
        let (conditional, survival) = ([Some(0.5), Some(0.4), Some(1.0)], [Some(0.5), Some(0.2), Some(0.2)]);
        assert_eq!(of_many_rounds(&conditional, &survival, 100), conditional);
        assert_eq!(of_many_rounds(&conditional, &survival, 99), [Some(0.5), Some(0.4), None]);
        assert_eq!(of_many_rounds(&conditional, &survival, 19), [None, None, None]);
        assert_eq!(of_many_rounds(&[None], &[None], 100), [None]);
    }
}
