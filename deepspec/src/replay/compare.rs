//! The first place where two bundles differ.
//!
//! Legend: as in [`super`].

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Case, Replay, Rows, Stage};

/// A position, and the values there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// 0-based prompt; `None`: what holds for all.
    pub prompt: Option<usize>,
    /// The stage of the computation.
    pub stage: String,
    /// The position in the stage.
    pub place: String,
    /// The value in the bundle.
    pub expected: String,
    /// The computed value.
    pub found: String,
    /// A possible cause.
    pub hint: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(prompt) = self.prompt {
            write!(f, "prompt {prompt}, ")?;
        }
        write!(f, "{}, {}: expected {}, found {}", self.stage, self.place, self.expected, self.found)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// The first difference in the order of computing: convention, then prompt by prompt tokens, the block's stages and the
/// rounds. Numbers are the same when they are within `tolerance` times their size plus the size of their row. The stages of
/// an `autoregressive` draft are compared slot by slot.
pub fn first_difference(
    expected: &Replay,
    found: &Replay,
    autoregressive: bool,
    tolerance: f32,
) -> Option<Difference> {
    let plain = |stage: &str, place: String, expected: String, found: String| Difference {
        prompt: None,
        stage: stage.to_owned(),
        place,
        expected,
        found,
        hint: None,
    };
    if expected.convention != found.convention {
        let fields = |convention| match serde_json::to_value(convention) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let (a, b) = (fields(&expected.convention), fields(&found.convention));
        // A field may be left out of either.
        let name = a.keys().chain(b.keys()).find(|name| a.get(*name) != b.get(*name))?;
        let value = |of: &Map<String, Value>| of.get(name).map_or_else(|| "nothing".to_owned(), ToString::to_string);
        return Some(plain("convention", name.clone(), value(&a), value(&b)));
    }
    if expected.cases.len() != found.cases.len() {
        let counts = [expected, found].map(|replay| replay.cases.len().to_string());
        let [a, b] = counts;
        return Some(plain("prompts", "count".to_owned(), a, b));
    }
    expected.cases.iter().zip(&found.cases).enumerate().find_map(|(prompt, (expected, found))| {
        let unrolled =
            autoregressive && expected.stage(Stage::Layers).is_some_and(|rows| rows.shape.first() == Some(&1));
        let difference = Comparison { expected, found, d: expected_width(expected), tolerance, unrolled }.first()?;
        Some(Difference { prompt: Some(prompt), ..difference })
    })
}

/// The hidden size.
fn expected_width(case: &Case) -> usize {
    case.stage(Stage::Hidden).and_then(|rows| rows.shape.last().copied()).unwrap_or(1)
}

struct Comparison<'a> {
    expected: &'a Case,
    found: &'a Case,
    d: usize,
    tolerance: f32,
    /// True if a slot is computed from what the slot before it drafted.
    unrolled: bool,
}

impl Comparison<'_> {
    fn first(&self) -> Option<Difference> {
        let (a, b) = (self.expected, self.found);
        let tokens = list("tokens", "position", &a.token_ids, &b.token_ids);
        tokens
            .or_else(|| list("block", "anchor position", &[a.anchor_position], &[b.anchor_position]))
            .or_else(|| self.stages())
            .or_else(|| list("drafted tokens of the block", "slot", &a.drafted, &b.drafted))
            .or_else(|| self.rounds())
    }

    /// Returns the first difference in the order of computing: stage by stage, or slot by slot if a slot reads drafted
    /// tokens.
    fn stages(&self) -> Option<Difference> {
        let differences = Stage::ALL.into_iter().filter_map(|stage| Some((stage, self.stage(stage)?)));
        let order = |(stage, (row, _)): &(Stage, (usize, Difference))| match self.unrolled && *stage >= Stage::Layers
        {
            true => (1, *row, *stage),
            false => (usize::from(*stage >= Stage::Layers), 0, *stage),
        };
        differences.min_by_key(order).map(|(_, (_, difference))| difference)
    }

    /// The first row of a stage that differs, and how.
    fn stage(&self, stage: Stage) -> Option<(usize, Difference)> {
        let nothing = || "nothing".to_owned();
        let shape = |rows: Option<&Rows>| rows.map_or_else(nothing, |rows| format!("{:?}", rows.shape));
        let (a, b) = (self.expected.stage(stage), self.found.stage(stage));
        let (Some(a), Some(b)) = (a, b) else {
            return (a.is_some() != b.is_some())
                .then(|| (0, difference(stage.name(), "shape".into(), shape(a), shape(b))));
        };
        let columns = [self.expected, self.found].map(|case| &case.columns);
        if matches!(stage, Stage::BaseLogits) && columns[0].len() != columns[1].len() {
            let [a, b] = columns.map(|columns| columns.len().to_string());
            return Some((0, difference(stage.name(), "kept columns".into(), a, b)));
        }
        if a.shape != b.shape {
            return Some((0, difference(stage.name(), "shape".into(), shape(Some(a)), shape(Some(b)))));
        }
        let width = match stage {
            Stage::Features | Stage::LastFeatures => self.d,
            Stage::BaseLogSumExp | Stage::ConfidenceLogits => 1,
            _ => a.shape.last().copied().unwrap_or(1),
        }
        .max(1);
        let (row, column) = first_off(&a.values, &b.values, width, self.tolerance)?;
        let at = row * width + column;
        let (expected, found) = (a.values[at].to_string(), b.values[at].to_string());
        let hint = self.hint(stage, a, b, width, row);
        let difference = difference(stage.name(), self.place(stage, row, column), expected, found);
        Some((row, Difference { hint, ..difference }))
    }

    /// A row and a column in words.
    fn place(&self, stage: Stage, row: usize, column: usize) -> String {
        let k = self.expected.drafted.len().max(1);
        match stage {
            Stage::Features | Stage::LastFeatures => {
                let captured = self.captured();
                let (row_position, slot) = (row / captured, row % captured);
                let position =
                    if stage == Stage::Features { row_position } else { self.expected.token_ids.len() - 1 };
                format!("position {position}, captured layer {slot} of 0..{captured}, component {column}")
            }
            Stage::Context => format!("position {row}, component {column}"),
            Stage::Layers => format!("draft layer {}, slot {}, component {column}", row / k, row % k),
            Stage::Hidden => format!("slot {row}, component {column}"),
            Stage::BaseLogits | Stage::BiasedLogits => {
                format!("slot {row}, the draft's token {}", self.expected.columns.get(column).copied().unwrap_or(0))
            }
            Stage::BaseLogSumExp | Stage::ConfidenceLogits => format!("slot {row}"),
        }
    }

    /// Captured layers, `m`.
    fn captured(&self) -> usize {
        let width = self.expected.stage(Stage::LastFeatures).and_then(|rows| rows.shape.last().copied());
        (width.unwrap_or(self.d) / self.d.max(1)).max(1)
    }

    /// Returns whether a row that differs is what another place should have.
    fn hint(&self, stage: Stage, a: &Rows, b: &Rows, width: usize, row: usize) -> Option<String> {
        if width < 2 {
            return None;
        }
        let rows = a.values.len() / width;
        let cut = |values: &[f32], row: usize| values[row * width..(row + 1) * width].to_vec();
        let found = cut(&b.values, row);
        let is =
            |other: usize| other != row && first_off(&cut(&a.values, other), &found, width, self.tolerance).is_none();
        match stage {
            Stage::Features | Stage::LastFeatures => {
                let captured = self.captured();
                let first = row / captured * captured;
                let slot = (0..captured).find(|slot| is(first + slot))?;
                Some(format!("these are the expected values of captured layer {slot}: the layers are swapped"))
            }
            Stage::Hidden | Stage::BaseLogits => {
                let other = (0..rows).find(|&other| is(other))?;
                Some(format!(
                    "these are the expected values of slot {other}: the block is read with the other convention \
                     (`sample_from_anchor`)"
                ))
            }
            _ => None,
        }
    }

    fn rounds(&self) -> Option<Difference> {
        let (a, b) = (&self.expected.rounds, &self.found.rounds);
        for (index, (a, b)) in a.iter().zip(b).enumerate() {
            let name = format!("round {index}");
            let anchors = list(&name, "anchor", &[a.anchor], &[b.anchor]);
            let drafted = || {
                let slot = a.drafted.iter().zip(&b.drafted).position(|(a, b)| a != b);
                let difference = list(&name, "drafted token of slot", &a.drafted, &b.drafted)?;
                let margin = slot.and_then(|slot| a.draft_margins.get(slot));
                Some(Difference { hint: margin.map(|margin| tie("the draft's", *margin)), ..difference })
            };
            let confidence = || {
                let (slot, _) = first_off(&a.confidence_logits, &b.confidence_logits, 1, self.tolerance)?;
                let logits = [a, b].map(|round| round.confidence_logits[slot].to_string());
                let [expected, found] = logits;
                Some(difference(&name, format!("confidence logit of slot {slot}"), expected, found))
            };
            let judged = || {
                let counts = [a.accepted, a.next as usize];
                let place = if a.accepted == b.accepted { "next token" } else { "accepted tokens" };
                let at = usize::from(a.accepted == b.accepted);
                let found = [b.accepted, b.next as usize];
                let margin = a.target_margins.get(a.accepted.min(b.accepted)).copied().unwrap_or(f32::MAX);
                (counts != found).then(|| Difference {
                    hint: Some(tie("the target's", margin)),
                    ..difference(&name, place.into(), counts[at].to_string(), found[at].to_string())
                })
            };
            if let Some(found) = anchors.or_else(drafted).or_else(confidence).or_else(judged) {
                return Some(found);
            }
        }
        (a.len() != b.len()).then(|| difference("rounds", "count".into(), a.len().to_string(), b.len().to_string()))
    }
}

/// Describes the margin of a token that differs.
fn tie(whose: &str, margin: f32) -> String {
    format!("{whose} two largest logits differ by {margin} there")
}

fn difference(stage: &str, place: String, expected: String, found: String) -> Difference {
    Difference { prompt: None, stage: stage.to_owned(), place, expected, found, hint: None }
}

/// The first element that differs, or the lengths.
fn list<T: PartialEq + ToString>(stage: &str, what: &str, a: &[T], b: &[T]) -> Option<Difference> {
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    match at {
        Some(at) if a.len() == 1 => Some(difference(stage, what.to_owned(), a[at].to_string(), b[at].to_string())),
        Some(at) => Some(difference(stage, format!("{what} {at}"), a[at].to_string(), b[at].to_string())),
        None if a.len() != b.len() => {
            Some(difference(stage, format!("{what}s"), a.len().to_string(), b.len().to_string()))
        }
        None => None,
    }
}

/// The first row of `width` in which a number is off, and the column that is most.
fn first_off(a: &[f32], b: &[f32], width: usize, tolerance: f32) -> Option<(usize, usize)> {
    a.chunks(width).zip(b.chunks(width)).enumerate().find_map(|(row, (a, b))| {
        let size = (a.iter().map(|value| value * value).sum::<f32>() / width as f32).sqrt();
        let excess = |(a, b): (&f32, &f32)| {
            let off = (a - b).abs() / (a.abs() + size).max(1e-6);
            // What is not a number is as far off as can be.
            if off.is_nan() { f32::INFINITY } else { off }
        };
        let offs: Vec<f32> = a.iter().zip(b).map(excess).collect();
        let worst = (0..offs.len()).max_by(|&i, &j| offs[i].total_cmp(&offs[j]))?;
        (offs[worst] > tolerance).then_some((row, worst))
    })
}
