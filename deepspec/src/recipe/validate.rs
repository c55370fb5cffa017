//! Constraints of a recipe beyond its types. Constraints that depend on the target (its number of layers, its
//! vocabulary) are checked where the target is known.

use std::fmt::Display;

use super::error::RecipeError;
use super::schema::{
    Algorithm, DataSection, EvaluateSection, LayerType, ModelSection, Recipe, Supervision, TrainSection,
};
use super::source::Document;
use crate::conversation::Format;

/// Keys of `[model]` that every algorithm has.
const COMMON_KEYS: [&str; 3] = ["algorithm", "target_layer_ids", "draft_vocab_size"];

/// Keys of `[model]` that not every algorithm has: those that a recipe of this one must give, and those that it may.
fn own_keys(algorithm: Algorithm) -> (&'static [&'static str], &'static [&'static str]) {
    match algorithm {
        Algorithm::Dspark => (
            &["num_draft_layers", "num_anchors", "markov_rank"],
            &[
                "block_size",
                "mask_token_id",
                "markov_head_type",
                "enable_confidence_head",
                "confidence_head_with_markov",
                "sliding_window",
                "layer_types",
                "sliding_window_non_causal",
                "loss_decay_gamma",
                "ce_loss_alpha",
                "soft_ce_loss_alpha",
                "l1_loss_alpha",
                "confidence_head_alpha",
                "initialize_from_target",
            ],
        ),
        Algorithm::Eagle3 => (&[], &["num_anchors", "ttt_length", "step_loss_decay", "supervision"]),
    }
}

/// Largest values that a recipe may ask for. They are far above any use, and small enough that nothing overflows.
mod largest {
    pub(super) const BLOCK: usize = 256;
    pub(super) const LAYERS: usize = 256;
    pub(super) const ANCHORS: usize = 1 << 16;
    pub(super) const RANK: usize = 1 << 16;
    pub(super) const VOCABULARY: usize = 1 << 24;
    pub(super) const SEQUENCES: usize = 1 << 20;
    pub(super) const TOKENS: usize = 1 << 24;
    pub(super) const STEPS: u64 = 1_000_000_000;
    pub(super) const TEMPERATURE: f64 = 100.0;
    /// Largest weight of a term of the loss. Losses are computed in f32.
    pub(super) const WEIGHT: f64 = 1e6;
}

/// Reason a key's value cannot be used.
type Complaint = (&'static str, String);

/// Checks all sections.
///
/// # Errors
/// [`RecipeError::Invalid`] for the first value that cannot be used.
pub(super) fn check(recipe: &Recipe, document: &Document) -> Result<(), RecipeError> {
    check_algorithm(&recipe.model, document)?;
    check_name(recipe)
        .and_then(|()| check_model(&recipe.model, document))
        .and_then(|()| check_train(&recipe.train))
        .and_then(|()| check_data(&recipe.data))
        .and_then(|()| check_evaluate(&recipe.evaluate))
        .and_then(|()| check_confidence(recipe))
        .map_err(|(key, reason)| RecipeError::Invalid { place: document.place(key), key: key.to_owned(), reason })
}

/// Checks that no key of the recipe's algorithm is missing and that no key of another one is given.
fn check_algorithm(model: &ModelSection, document: &Document) -> Result<(), RecipeError> {
    let (needed, optional) = own_keys(model.algorithm);
    if let Some(key) = needed.iter().find(|key| !document.has("model", key)) {
        return Err(RecipeError::Missing { place: document.place("model"), key: format!("model.{key}") });
    }
    let known = |key: &&str| [&COMMON_KEYS[..], needed, optional].iter().any(|keys| keys.contains(key));
    if let Some(key) = document.keys("model").find(|key| !known(key)) {
        let key = format!("model.{key}");
        let reason = format!("has no meaning with `model.algorithm = {:?}`: remove it", model.algorithm.name());
        return Err(RecipeError::Invalid { place: document.place(&key), key, reason });
    }
    Ok(())
}

fn check_name(recipe: &Recipe) -> Result<(), Complaint> {
    let name = &recipe.name;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(allowed) {
        return Err((
            "name",
            format!(
                "is a folder name: expected letters, digits, `.`, `_` and `-`, not starting with `.`, found {name:?}"
            ),
        ));
    }
    if recipe.target.is_empty() {
        return Err(("target", "is empty: expected a directory or a Hugging Face name".to_owned()));
    }
    Ok(())
}

fn check_model(model: &ModelSection, document: &Document) -> Result<(), Complaint> {
    from_one("model.block_size", model.block_size, largest::BLOCK)?;
    from_one("model.num_draft_layers", model.num_draft_layers, largest::LAYERS)?;
    if document.has("model", "num_anchors") {
        from_one("model.num_anchors", model.num_anchors, largest::ANCHORS)?;
        if model.supervision == Supervision::Reference {
            let reason =
                "cannot be combined with `model.supervision = \"reference\"`, which trains all blocks".to_owned();
            return Err(("model.num_anchors", reason));
        }
    }
    check_windows(model)?;
    from_one("model.ttt_length", model.ttt_length, largest::BLOCK)?;
    from_one("model.markov_rank", model.markov_rank.max(1), largest::RANK)?;
    if !(model.step_loss_decay > 0.0 && model.step_loss_decay <= 1.0) {
        let reason = format!("must be above 0 and at most 1, found {}", model.step_loss_decay);
        return Err(("model.step_loss_decay", reason));
    }
    from_one("model.draft_vocab_size", model.draft_vocab_size.unwrap_or(1), largest::VOCABULARY)?;
    let ids = &model.target_layer_ids;
    if ids.is_empty() {
        return Err(("model.target_layer_ids", "is empty: expected at least one layer".to_owned()));
    }
    if !ids.is_sorted_by(|a, b| a < b) {
        return Err(("model.target_layer_ids", format!("must be strictly increasing, found {ids:?}")));
    }
    if !model.loss_decay_gamma.is_finite() {
        let found = model.loss_decay_gamma;
        return Err(("model.loss_decay_gamma", format!("must be finite (0 for no decay), found {found}")));
    }
    not_negative("model.ce_loss_alpha", model.ce_loss_alpha)?;
    not_negative("model.soft_ce_loss_alpha", model.soft_ce_loss_alpha)?;
    not_negative("model.l1_loss_alpha", model.l1_loss_alpha)?;
    not_negative("model.confidence_head_alpha", model.confidence_head_alpha)?;
    if model.ce_loss_alpha == 0.0 && model.soft_ce_loss_alpha == 0.0 && model.l1_loss_alpha == 0.0 {
        let reason =
            "and `model.soft_ce_loss_alpha` and `model.l1_loss_alpha` are all 0: the draft would not be trained"
                .to_owned();
        return Err(("model.ce_loss_alpha", reason));
    }
    Ok(())
}

fn check_windows(model: &ModelSection) -> Result<(), Complaint> {
    from_one("model.sliding_window", model.sliding_window.unwrap_or(1), largest::TOKENS)?;
    let sliding = |types: &Vec<LayerType>| types.contains(&LayerType::SlidingAttention);
    match &model.layer_types {
        Some(types) if types.len() != model.num_draft_layers => {
            let reason = format!(
                "must name each of the {} layers of `model.num_draft_layers`, found {}",
                model.num_draft_layers,
                types.len()
            );
            Err(("model.layer_types", reason))
        }
        Some(types) if sliding(types) != model.sliding_window.is_some() => {
            let reason = "must contain `sliding_attention` if `model.sliding_window` is set, and only then";
            Err(("model.layer_types", reason.to_owned()))
        }
        _ if model.sliding_window_non_causal && model.sliding_window.is_none() => {
            let reason = "has no meaning without `model.sliding_window`: remove it";
            Err(("model.sliding_window_non_causal", reason.to_owned()))
        }
        _ => Ok(()),
    }
}

fn check_train(train: &TrainSection) -> Result<(), Complaint> {
    positive("train.lr", train.lr)?;
    match (train.steps, train.epochs) {
        (Some(_), Some(_)) => {
            return Err(("train.epochs", "cannot be combined with `train.steps`: set one of them".to_owned()));
        }
        (None, None) => return Err(("train", "needs either `steps` or `epochs`".to_owned())),
        (Some(steps), None) => from_one("train.steps", steps, largest::STEPS)?,
        (None, Some(epochs)) => from_one("train.epochs", epochs, largest::STEPS)?,
    }
    from_one("train.global_batch_size", train.global_batch_size, largest::SEQUENCES)?;
    let global = train.global_batch_size;
    match (train.micro_batch_size, train.micro_batch_tokens) {
        (Some(_), Some(_)) => {
            let reason = "cannot be combined with `train.micro_batch_size`: set one of them";
            return Err(("train.micro_batch_tokens", reason.to_owned()));
        }
        (None, None) => {
            return Err(("train", "needs either `micro_batch_size` or `micro_batch_tokens`".to_owned()));
        }
        (None, Some(tokens)) => from_one("train.micro_batch_tokens", tokens, largest::TOKENS)?,
        (Some(micro), None) => {
            from_one("train.micro_batch_size", micro, largest::SEQUENCES)?;
            if !global.is_multiple_of(micro) {
                let reason = format!("must divide `train.global_batch_size` = {global}, found {micro}");
                return Err(("train.micro_batch_size", reason));
            }
        }
    }
    fraction("train.warmup_ratio", train.warmup_ratio)?;
    positive("train.max_grad_norm", train.max_grad_norm)?;
    not_negative("train.weight_decay", train.weight_decay)?;
    fraction("train.adam_beta1", train.adam_beta1)?;
    fraction("train.adam_beta2", train.adam_beta2)?;
    positive("train.adam_epsilon", train.adam_epsilon)?;
    from_one("train.checkpoint_every", train.checkpoint_every, u64::MAX)?;
    from_one("train.keep_last", train.keep_last, usize::MAX)?;
    from_one("train.log_every", train.log_every, u64::MAX)
}

fn check_data(data: &DataSection) -> Result<(), Complaint> {
    if data.train.is_empty() {
        return Err((
            "data.train",
            "is empty: expected at least one JSONL or Parquet file, or the name of a training card".to_owned(),
        ));
    }
    if let Some(share) = data.validation_fraction {
        if !data.validation.is_empty() {
            let reason = "cannot be combined with `data.validation`: set one of them".to_owned();
            return Err(("data.validation_fraction", reason));
        }
        if !(0.0..1.0).contains(&share) {
            let reason = format!("must be at least 0 and below 1, found {share}");
            return Err(("data.validation_fraction", reason));
        }
    }
    from_one("data.min_supervised_tokens", data.min_supervised_tokens, largest::TOKENS)?;
    from_one("data.max_length", data.max_length, largest::TOKENS)?;
    if data.max_length <= data.min_supervised_tokens {
        let (found, minimum) = (data.max_length, data.min_supervised_tokens);
        let reason = format!("must exceed `data.min_supervised_tokens` = {minimum}, found {found}");
        return Err(("data.max_length", reason));
    }
    if data.format == Format::Text && !data.template_arguments.is_empty() {
        let reason = "has no effect with `data.format = \"text\"`, which uses no chat template".to_owned();
        return Err(("data.template_arguments", reason));
    }
    Ok(())
}

fn check_evaluate(evaluate: &EvaluateSection) -> Result<(), Complaint> {
    let tasks = &evaluate.tasks;
    for (index, task) in tasks.iter().enumerate() {
        if task.name.is_empty() {
            return Err(("evaluate.tasks", format!("has a task without a name (number {})", index + 1)));
        }
        if tasks[..index].iter().any(|earlier| earlier.name == task.name) {
            return Err(("evaluate.tasks", format!("names {:?} twice", task.name)));
        }
    }
    up_to("evaluate.temperature", evaluate.temperature, largest::TEMPERATURE)?;
    from_one("evaluate.max_new_tokens", evaluate.max_new_tokens, largest::TOKENS)?;
    from_one("evaluate.samples", evaluate.samples.unwrap_or(1), usize::MAX)?;
    fraction("evaluate.confidence_threshold", evaluate.confidence_threshold)
}

fn check_confidence(recipe: &Recipe) -> Result<(), Complaint> {
    let EvaluateSection { confidence_threshold: threshold, mode, .. } = &recipe.evaluate;
    if *threshold > 0.0 && !mode.is_whole() {
        let reason =
            format!("= \"{mode}\" and `evaluate.confidence_threshold` = {threshold} both limit what is verified");
        return Err(("evaluate.mode", format!("{reason}: give one of them")));
    }
    let (key, value) = match mode.needs_confidences() {
        true => ("evaluate.mode", format!("\"{mode}\"")),
        false if *threshold > 0.0 => ("evaluate.confidence_threshold", threshold.to_string()),
        false => return Ok(()),
    };
    if recipe.model.has_confidence_head() {
        return Ok(());
    }
    let reason = match recipe.model.algorithm {
        Algorithm::Dspark => "needs a confidence head, but `model.enable_confidence_head` is false",
        Algorithm::Eagle3 => "needs a confidence head, but Eagle3 drafts have none",
    };
    Err((key, format!("= {value} {reason}")))
}

fn from_one<N>(key: &'static str, found: N, largest: N) -> Result<(), Complaint>
where
    N: Default + PartialOrd + Display,
{
    if found == N::default() {
        Err((key, format!("must be at least 1, found {found}")))
    } else if found > largest {
        Err((key, format!("must be at most {largest}, found {found}")))
    } else {
        Ok(())
    }
}

fn positive(key: &'static str, found: f64) -> Result<(), Complaint> {
    if found.is_finite() && found > 0.0 { Ok(()) } else { Err((key, format!("must be above 0, found {found}"))) }
}

fn not_negative(key: &'static str, found: f64) -> Result<(), Complaint> {
    up_to(key, found, largest::WEIGHT)
}

fn up_to(key: &'static str, found: f64, largest: f64) -> Result<(), Complaint> {
    match (0.0..=largest).contains(&found) {
        true => Ok(()),
        false if found > largest => Err((key, format!("must be at most {largest}, found {found}"))),
        false => Err((key, format!("must be at least 0, found {found}"))),
    }
}

fn fraction(key: &'static str, found: f64) -> Result<(), Complaint> {
    if (0.0..1.0).contains(&found) {
        Ok(())
    } else {
        Err((key, format!("must be at least 0 and below 1, found {found}")))
    }
}
