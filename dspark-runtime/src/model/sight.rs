//! What the slots of a draft's block see, layer by layer.
//!
//! A full layer sees the whole context and all slots of the block. A sliding layer sees the newest tokens of the context,
//! counted from the anchor, so that all slots of a block see the same ones, and in the block only earlier slots and the
//! slot itself, or with `sliding_window_non_causal` all slots. This is the rule of the `speculators` package.

use std::ops::Range;

use serde_json::{Value, json};

use super::config::layer_count;
use crate::checkpoint::{CheckpointError, JsonFields};

/// Field of windows that are not causal inside the block.
pub(super) const NON_CAUSAL: &str = "sliding_window_non_causal";

/// What the slots of a block see in one layer; by default everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Number of context tokens before the anchor; `None`: all.
    pub window: Option<usize>,
    /// True if a slot sees no later slots of its block.
    pub causal: bool,
}

impl Sight {
    /// Returns the part of a context that is seen; the context ends before the anchor.
    pub fn of_context(&self, context: &Range<usize>) -> Range<usize> {
        let start = self.window.map_or(context.start, |window| context.end.saturating_sub(window).max(context.start));
        start..context.end
    }
}

/// The sliding layers of a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sliding {
    /// Number of context tokens that they see, at least 1.
    pub window: usize,
    /// Which of the draft's layers are sliding.
    pub layers: Vec<bool>,
    /// True if their slots see no later slots of the block.
    pub causal: bool,
}

impl Sliding {
    /// Reads the windows of a draft's layers; `None` if all layers are full.
    ///
    /// # Errors
    /// Returns an error if the fields contradict each other, or leave open what a layer sees.
    pub(super) fn read(fields: &JsonFields) -> Result<Option<Self>, CheckpointError> {
        let causal = !fields.flag(NON_CAUSAL, false)?;
        let on = match fields.get("use_sliding_window") {
            Some(_) => Some(fields.flag("use_sliding_window", false)?),
            None => None,
        };
        let window = fields.optional_size("sliding_window", 1)?;
        let Some(types) = fields.get("layer_types") else {
            return match (on, window) {
                (Some(false), _) | (None, None) => Ok(None),
                // Some programs apply the window to all layers, others to those from `max_window_layers` on.
                _ => Err(fields.not_computed(
                    "layer_types",
                    "a list of \"full_attention\" and \"sliding_attention\"",
                    "`sliding_window` or `use_sliding_window` is set, and no field says which layers use it",
                )),
            };
        };
        let count = layer_count(fields)?;
        let kind = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Some(false),
            Some("sliding_attention") => Some(true),
            _ => None,
        };
        let list = types.as_array().filter(|types| types.len() == count);
        let layers: Option<Vec<bool>> = list.and_then(|types| types.iter().map(kind).collect());
        let layers = layers.ok_or_else(|| {
            let expected = format!("a list of {count} times \"full_attention\" or \"sliding_attention\"");
            fields.not_computed("layer_types", expected, "other layers are not supported in drafts")
        })?;
        if !layers.contains(&true) {
            return match on {
                Some(true) => {
                    let reason = "windows are on, and `layer_types` names no sliding layer";
                    Err(fields.not_computed("use_sliding_window", "false", reason))
                }
                _ => Ok(None),
            };
        }
        if on != Some(true) {
            let reason = "`layer_types` names sliding layers; with windows off, some programs compute full attention";
            return Err(fields.not_computed("use_sliding_window", "true", reason));
        }
        let window =
            window.ok_or_else(|| fields.wrong("sliding_window", "the number of tokens that sliding layers see"))?;
        Ok(Some(Self { window, layers, causal }))
    }

    /// Returns the fields that describe these layers.
    pub(super) fn fields(&self) -> Value {
        let kind = |sliding: &bool| if *sliding { "sliding_attention" } else { "full_attention" };
        json!({
            "layer_types": self.layers.iter().map(kind).collect::<Vec<_>>(),
            "use_sliding_window": true,
            "sliding_window": self.window,
            NON_CAUSAL: !self.causal,
        })
    }

    /// What a layer's slots see.
    pub fn sight(&self, layer: usize) -> Sight {
        match self.layers.get(layer) {
            Some(true) => Sight { window: Some(self.window), causal: self.causal },
            _ => Sight::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: Value) -> Result<Option<Sliding>, String> {
        let Value::Object(fields) = fields else { unreachable!("an object was written") };
        Sliding::read(&JsonFields::new("config.json", fields)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_window_ends_at_the_anchor() {
        let sight = Sight { window: Some(4), causal: true };
        assert_eq!((sight.of_context(&(10..30)), sight.of_context(&(10..12))), (26..30, 10..12));
        assert_eq!((sight.of_context(&(10..10)), Sight::default().of_context(&(3..9))), (10..10, 3..9));
    }

    #[test]
    fn windows_are_read_or_refused_by_field() {
        let full = json!({"num_hidden_layers": 2, "layer_types": ["full_attention", "full_attention"]});
        let with = |more: Value| {
            let mut fields = full.clone();
            let (fields_map, Value::Object(more)) = (fields.as_object_mut().unwrap(), more) else { unreachable!() };
            fields_map.extend(more);
            fields_map.retain(|_, value| !value.is_null());
            fields
        };
        let off = json!({"use_sliding_window": false, "sliding_window": 9});
        for same in [json!({}), off, json!({"sliding_window": 9}), json!({"layer_types": null})] {
            assert_eq!(read(with(same.clone())), Ok(None), "{same}");
        }
        let mixed = json!({"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": true, "sliding_window": 9});
        let sliding = Sliding { window: 9, layers: vec![true, false], causal: true };
        assert_eq!(read(with(mixed.clone())), Ok(Some(sliding.clone())));
        assert_eq!(sliding.sight(0), Sight { window: Some(9), causal: true });
        assert_eq!(sliding.sight(1), Sight::default());
        assert_eq!(read(with(sliding.fields())), Ok(Some(sliding)));
        for (change, field) in [
            (json!({"layer_types": ["sliding_attention"]}), "`layer_types`"),
            (json!({"layer_types": ["sliding_attention", "linear_attention"]}), "`layer_types`"),
            (json!({"layer_types": ["full_attention", "full_attention"]}), "`use_sliding_window`"),
            (json!({"use_sliding_window": false}), "`use_sliding_window`"),
            (json!({"use_sliding_window": null}), "`use_sliding_window`"),
            (json!({"sliding_window": null}), "`sliding_window`"),
            (json!({"sliding_window": 0}), "`sliding_window`"),
            (json!({"layer_types": null}), "`layer_types`"),
            (json!({"layer_types": null, "use_sliding_window": null}), "`layer_types`"),
            (json!({"sliding_window_non_causal": "no"}), "`sliding_window_non_causal`"),
        ] {
            let mut fields = mixed.clone();
            let (map, Value::Object(change_map)) = (fields.as_object_mut().unwrap(), change.clone()) else {
                unreachable!()
            };
            map.extend(change_map);
            let error = read(with(fields)).unwrap_err();
            assert!(error.contains(field), "{change}: {error}");
        }
    }
}
