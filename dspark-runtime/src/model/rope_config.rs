//! Rotary settings in the two forms that a `config.json` may have: `rope_parameters` (`transformers` 5), and `rope_theta`
//! with `rope_scaling` (before).

use serde_json::{Map, Value, json};

use super::config::{LayerConfig, RopeScaling};
use crate::checkpoint::{CheckpointError, JsonFields};

const NEW: &str = "rope_parameters";
const SCALING: &str = "rope_scaling";
const THETA: &str = "rope_theta";

/// The base of the rotary frequencies if a file has none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Reads base and scaling from the form that a file has. If a file has both forms, they must agree.
///
/// # Errors
/// Returns an error if a field is not what it should be, asks for a rotation that is not computed, or contradicts another.
pub(super) fn rope(fields: &JsonFields) -> Result<(f64, RopeScaling), CheckpointError> {
    let stated = |name: &str| Ok(fields.object(name)?.filter(|settings| !settings.as_map().is_empty()));
    let (new, old) = (stated(NEW)?, stated(SCALING)?);
    let flat = theta(fields)?;
    let inner = new.as_ref().map(theta).transpose()?.flatten();
    if let (Some(inner), Some(flat)) = (inner, flat)
        && inner != flat
    {
        return Err(fields.wrong(THETA, format!("{inner}, as in `{NEW}`")));
    }
    // Newer programs write the base into what they call by the older name.
    let older = old.as_ref().map(theta).transpose()?.flatten();
    let base = inner.or(flat).or(older);
    if let (Some(base), Some(older)) = (base, older)
        && base != older
    {
        return Err(fields.wrong(SCALING, format!("{base}, as `{THETA}` elsewhere in the file")));
    }
    let scalings = (new.as_ref().map(scaling).transpose()?, old.as_ref().map(scaling).transpose()?);
    if let (Some(new), Some(old)) = scalings
        && new != old
    {
        return Err(fields.wrong(SCALING, format!("no value, or the value in `{NEW}`")));
    }
    Ok((base.unwrap_or(DEFAULT_THETA), scalings.0.or(scalings.1).unwrap_or(RopeScaling::None)))
}

fn theta(settings: &JsonFields) -> Result<Option<f64>, CheckpointError> {
    match settings.optional_float(THETA)? {
        Some(theta) if theta <= 0.0 => Err(settings.wrong(THETA, "a number > 0")),
        theta => Ok(theta),
    }
}

/// The stretching that an object of either form asks for.
fn scaling(settings: &JsonFields) -> Result<RopeScaling, CheckpointError> {
    let (new, old) = (settings.optional_text("rope_type")?, settings.optional_text("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(settings.wrong("type", format!("no value, or \"{new}\" as in `rope_type`")));
    }
    let positive = |field: &str| match settings.optional_float(field)? {
        Some(value) if value > 0.0 => Ok(value),
        _ => Err(settings.wrong(field, "a number > 0")),
    };
    let kind = new.or(old).unwrap_or("default");
    let (scaling, own): (_, &[&str]) = match kind {
        "default" => (RopeScaling::None, &[]),
        "linear" => (RopeScaling::Linear { factor: positive("factor")? }, &["factor"]),
        "llama3" if positive("high_freq_factor")? <= positive("low_freq_factor")? => {
            return Err(settings.wrong("high_freq_factor", "a number above low_freq_factor"));
        }
        "llama3" => {
            let scaling = RopeScaling::Llama3 {
                factor: positive("factor")?,
                low_frequency_factor: positive("low_freq_factor")?,
                high_frequency_factor: positive("high_freq_factor")?,
                original_max_position: settings.size("original_max_position_embeddings", 1)?,
            };
            (scaling, &["factor", "low_freq_factor", "high_freq_factor"])
        }
        _ => {
            let name = if new.is_some() { "rope_type" } else { "type" };
            let reason = "this rotary embedding is not supported";
            return Err(settings.not_computed(name, "one of default, linear, llama3", reason));
        }
    };
    let known = ["rope_type", "type", THETA, "original_max_position_embeddings"];
    for (name, value) in settings.as_map() {
        if value.is_null() || known.contains(&name.as_str()) || own.contains(&name.as_str()) {
            continue;
        }
        // Factors of 1 have no effect.
        let neutral = ["factor", "partial_rotary_factor", "attention_factor"].contains(&name.as_str());
        if !(neutral && value.as_f64() == Some(1.0)) {
            let expected = if neutral { "1" } else { "nothing" };
            let reason = format!("this is not a supported setting of a \"{kind}\" rotary embedding");
            return Err(settings.not_computed(name, expected, reason));
        }
    }
    Ok(scaling)
}

/// Returns the fields in both forms; `None` for rotary embeddings that only one form can represent.
pub(super) fn rope_fields(layer: &LayerConfig) -> Option<Value> {
    let settings = match layer.rope_scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(json!({"rope_type": "linear", "factor": factor})),
        RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_max_position } => {
            Some(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_frequency_factor,
                "high_freq_factor": high_frequency_factor,
                "original_max_position_embeddings": original_max_position,
            }))
        }
        RopeScaling::Proportional { .. } => return None,
    };
    let mut parameters = settings.clone().unwrap_or_else(|| json!({"rope_type": "default"}));
    parameters[THETA] = json!(layer.rope_theta);
    Some(json!({THETA: layer.rope_theta, SCALING: settings, NEW: parameters}))
}

/// Describes what readers of one form miss; `None` if every reader computes the same rotation.
pub(super) fn missing_form(fields: &Map<String, Value>, layer: &LayerConfig) -> Option<String> {
    rope_fields(layer)?;
    let has = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    let plain = layer.rope_theta == DEFAULT_THETA && layer.rope_scaling == RopeScaling::None;
    let scaled = layer.rope_scaling != RopeScaling::None;
    let old = (has(THETA) || layer.rope_theta == DEFAULT_THETA) && (has(SCALING) || !scaled);
    match (plain, has(NEW), old) {
        (true, ..) | (_, true, true) => None,
        (_, true, false) => Some(format!(
            "config.json has `{NEW}` alone: programs that read `{THETA}` and `{SCALING}`, as those on transformers 4 do, \
             compute a plain rotation of theta {DEFAULT_THETA}; export the draft again with `deepspec export`"
        )),
        (_, false, _) => Some(format!(
            "config.json has `{THETA}` and `{SCALING}` but no `{NEW}`: programs that read the latter alone, as some on \
             transformers 5 do, compute a plain rotation of theta {DEFAULT_THETA}; export the draft again with \
             `deepspec export`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<(f64, RopeScaling), CheckpointError> {
        let Value::Object(fields) = value else { panic!("not an object") };
        rope(&JsonFields::new("config.json", fields))
    }

    #[test]
    fn either_form_is_read_and_a_contradiction_refused() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        });
        let mut new = llama3.clone();
        new["rope_theta"] = json!(5e4);
        let expected = read(json!({"rope_parameters": new})).unwrap();
        assert_eq!(expected.0, 5e4);
        assert_eq!(read(json!({"rope_theta": 5e4, "rope_scaling": llama3})).unwrap(), expected);
        let both = json!({"rope_theta": 5e4, "rope_scaling": llama3, "rope_parameters": new});
        assert_eq!(read(both.clone()).unwrap(), expected);
        for (field, value) in [
            ("rope_theta", json!(1e4)),
            ("rope_scaling", json!({"rope_type": "linear", "factor": 8.0})),
            (
                "rope_scaling",
                json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 512}),
            ),
        ] {
            let mut other = both.clone();
            other[field] = value.clone();
            let error = read(other).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{value}: {error}");
        }
    }

    #[test]
    fn other_rotations_are_named() {
        for (settings, named) in [
            (json!({"type": "dynamic", "factor": 2.0}), "`type`"),
            (json!({"rope_type": "longrope"}), "`rope_type`"),
            (json!({"rope_type": "default", "type": "yarn"}), "`type`"),
            (json!({"rope_type": "default", "factor": 4.0}), "`factor`"),
            (json!({"rope_type": "linear", "factor": 4.0, "attention_factor": 1.2}), "`attention_factor`"),
            (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "`partial_rotary_factor`"),
            (json!({"rope_type": "default", "mrope_section": [1, 2]}), "`mrope_section`"),
        ] {
            for form in ["rope_scaling", "rope_parameters"] {
                let error = read(json!({form: settings})).unwrap_err().to_string();
                assert!(error.contains(named) && error.contains("config.json"), "{settings}: {error}");
            }
        }
        read(json!({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 1.0}})).unwrap();
    }
}
