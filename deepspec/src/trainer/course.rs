//! The settings and files that decide the course of a training, by which a run is recognised.

use serde_json::{Map, Value};

use super::checkpoint::TrainingCheckpoints;
use super::error::TrainError;
use super::order::ORDER_RULE;
use super::state::TrainingState;
use crate::digest::digest;

/// Settings that may change during a run: they affect rounding of sums and measurements, but not what is trained.
const MAY_CHANGE: [&str; 3] = ["train.micro_batch_size", "train.micro_batch_tokens", "train.validate_every"];

/// The key of the rule by which a run orders its samples.
pub const ORDER_KEY: &str = "train.seed: order of samples";

/// Hexadecimal digits of a digest that messages show.
const SHOWN_DIGITS: usize = 12;
/// Start of values that are digests of files.
pub(super) const DIGEST: &str = "sha256:";

/// Everything that decides the course of a training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Settings by their keys in the recipe, and digests of the files that the training reads.
    pub settings: Map<String, Value>,
    /// The digest of the same settings and files that runs of earlier versions carry, which recorded no settings. Needed to
    /// continue such a run.
    pub earlier_digest: Option<String>,
}

/// The state of an existing run when a training resumes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The run's digest.
    pub digest: String,
    /// Settings that the run had otherwise and that may change, in words.
    pub changed: Vec<String>,
}

impl Course {
    /// A file's digest as [`settings`](Self::settings) hold it.
    pub fn file(digest: &str) -> Value {
        format!("{DIGEST}{digest}").into()
    }

    /// The digest of a new run.
    pub fn digest(&self) -> String {
        let fixed: Map<String, Value> =
            self.settings.iter().filter(|(key, _)| !may_change(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        digest(&[&Value::Object(fixed).to_string()])
    }

    /// Compares with the course of a run. Returns the settings that changed and may; refuses other differences.
    fn compare(&self, run: &TrainingState) -> Result<Vec<String>, Vec<String>> {
        if run.settings.is_empty() {
            let same = self.earlier_digest.as_ref() == Some(&run.digest);
            return if same { Ok(Vec::new()) } else { Err(Vec::new()) };
        }
        let mut keys: Vec<&String> = run.settings.keys().chain(self.settings.keys()).collect();
        keys.sort();
        keys.dedup();
        let (mut changed, mut refused) = (Vec::new(), Vec::new());
        for key in keys {
            let (then, now) = (run.settings.get(key), self.settings.get(key));
            if then.unwrap_or(&Value::Null) == now.unwrap_or(&Value::Null) {
                continue;
            }
            if key == ORDER_KEY && then.is_none() {
                refused
                    .push(format!("the run took its samples in the order of an earlier version, not `{ORDER_RULE}`"));
                continue;
            }
            let text = format!("`{key}` is {}, the run has {}", shown(now), shown(then));
            if may_change(key) { changed.push(text) } else { refused.push(text) }
        }
        if refused.is_empty() { Ok(changed) } else { Err(refused) }
    }
}

fn may_change(key: &str) -> bool {
    MAY_CHANGE.contains(&key)
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(Value::String(text)) if text.starts_with(DIGEST) => {
            format!("{}...", text.chars().take(DIGEST.len() + SHOWN_DIGITS).collect::<String>())
        }
        Some(Value::Array(values)) => {
            format!("[{}]", values.iter().map(|value| shown(Some(value))).collect::<Vec<_>>().join(", "))
        }
        Some(value) => value.to_string(),
    }
}

impl TrainingCheckpoints {
    /// The run in the folder, as its newest readable state describes it, or a new one.
    ///
    /// # Errors
    /// [`TrainError::OtherRun`] when its settings or data differ in what may not change.
    pub fn identify(&self, course: &Course) -> Result<Identity, TrainError> {
        match self.newest_state()? {
            None => Ok(Identity { digest: course.digest(), changed: Vec::new() }),
            Some(state) => Ok(Identity { changed: self.recognise(&state, course)?, digest: state.digest }),
        }
    }

    /// Returns the settings that changed and may; refuses the state of another run.
    pub(super) fn recognise(&self, state: &TrainingState, course: &Course) -> Result<Vec<String>, TrainError> {
        course.compare(state).map_err(|differences| TrainError::OtherRun { path: self.path(state.step), differences })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn course(settings: Value) -> Course {
        Course { settings: settings.as_object().unwrap().clone(), earlier_digest: None }
    }

    #[test]
    fn differences_are_named_with_both_values() {
        let run = TrainingState::new(&course(json!({
            "train.lr": 1e-3, "train.steps": 30, "train.epochs": null, "train.micro_batch_size": 2,
            "data.train": ["sha256:0123456789abcdef"],
        })));
        let same = json!({
            "data.train": ["sha256:0123456789abcdef"], "train.steps": 30, "train.lr": 0.001, "train.micro_batch_tokens": 64,
        });
        let changed = course(same.clone()).compare(&run).unwrap();
        assert_eq!(
            changed,
            [
                "`train.micro_batch_size` is not set, the run has 2",
                "`train.micro_batch_tokens` is 64, the run has not set"
            ]
        );
        let mut other = same;
        other["train.steps"] = json!(40);
        other["data.train"] = json!(["sha256:fedcba9876543210"]);
        assert_eq!(
            course(other).compare(&run).unwrap_err(),
            [
                "`data.train` is [sha256:fedcba987654...], the run has [sha256:0123456789ab...]",
                "`train.steps` is 40, the run has 30"
            ]
        );
    }

    #[test]
    fn a_run_with_the_order_of_an_earlier_version_is_refused_in_words() {
        let run = TrainingState::new(&course(json!({"train.steps": 30})));
        let now = course(json!({"train.steps": 30, ORDER_KEY: ORDER_RULE}));
        let refused = now.compare(&run).unwrap_err();
        assert_eq!(refused.len(), 1);
        assert!(refused[0].contains("in the order of an earlier version"), "{refused:?}");
        assert_eq!(now.compare(&TrainingState::new(&now)), Ok(Vec::new()));
    }

    #[test]
    fn runs_without_settings_are_told_by_their_digest() {
        let run = TrainingState { digest: "old".to_owned(), ..TrainingState::new(&Course::default()) };
        let now =
            |earlier: &str| Course { earlier_digest: Some(earlier.to_owned()), ..course(json!({"train.lr": 1.0})) };
        assert_eq!(now("old").compare(&run), Ok(Vec::new()));
        assert_eq!(now("other").compare(&run), Err(Vec::new()));
    }
}
