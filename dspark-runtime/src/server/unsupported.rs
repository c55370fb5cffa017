//! Fields that would change the answer if they were obeyed, and fields that change nothing.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, shown};

/// A function that returns whether a value asks for what happens anyway.
type Neutral = fn(&Value) -> bool;

/// Fields of this and other APIs that do not change the answer: who asks, how it is stored, scheduled and billed elsewhere.
const WITHOUT_EFFECT: [&str; 16] = [
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "request_id",
    "rid",
    "session_id",
    "cache_prompt",
    "cache_salt",
    "id_slot",
    "priority",
    "ttl",
    "keep_alive",
];

/// Refuses, by name, what is not supported here, unless its value asks for what happens anyway.
pub(super) fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    let zero: Neutral = |value| value.as_f64() == Some(0.0);
    let one: Neutral = |value| value.as_f64() == Some(1.0);
    let off: Neutral = |value| value.as_bool() == Some(false);
    let on: Neutral = |value| value.as_bool() == Some(true);
    let empty: Neutral = |value| {
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    let none: Neutral = |value| value.as_str() == Some("none");
    let never: Neutral = |_| false;
    let text: Neutral = |value| value["type"].as_str() == Some("text");
    let only_text: Neutral = |value| value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"));
    let medium: Neutral = |value| value.as_str() == Some("medium");
    let no_penalty = "tokens are not penalised";
    let free = "answers are not constrained";
    let whole = "prompts are taken whole";
    let template = "put it into `chat_template_kwargs` if the chat template reads it";
    let stopping = "use `stop` or `stop_token_ids`";
    let limit = "use `max_tokens`";
    // Tools that must not be called are not shown to the model.
    let no_calls = fields.peek("tool_choice").is_some_and(none);
    let unused: Neutral = if no_calls { Value::is_array } else { empty };
    let table: &[(&'static str, Neutral, &str)] = &[
        ("tools", unused, "describe tools in a message, or set `tool_choice` to \"none\""),
        ("tool_choice", none, "there are no tools"),
        ("functions", empty, "describe functions in a message"),
        ("function_call", none, "there are no functions"),
        ("response_format", text, "answers are text"),
        ("modalities", only_text, "answers are text"),
        ("audio", never, "answers are text"),
        ("prediction", never, "the draft predicts"),
        ("web_search_options", never, "nothing is looked up"),
        ("store", off, "answers are not stored"),
        ("verbosity", medium, "ask for it in a message"),
        ("reasoning_effort", never, template),
        ("reasoning", never, template),
        ("enable_thinking", never, template),
        ("thinking", never, template),
        ("documents", empty, template),
        ("chat_template", never, "the model's own template is used"),
        ("frequency_penalty", zero, no_penalty),
        ("presence_penalty", zero, no_penalty),
        ("repetition_penalty", one, no_penalty),
        ("repeat_penalty", one, no_penalty),
        ("no_repeat_ngram_size", zero, no_penalty),
        ("length_penalty", one, "there is no beam search"),
        ("use_beam_search", off, "there is no beam search"),
        ("num_beams", one, "there is no beam search"),
        ("early_stopping", off, "there is no beam search"),
        ("do_sample", on, "use `temperature`"),
        ("typical_p", one, "use `top_p` or `min_p`"),
        ("tfs_z", one, "use `top_p` or `min_p`"),
        ("top_a", zero, "use `top_p` or `min_p`"),
        ("mirostat", zero, "use `top_p` or `min_p`"),
        ("dynatemp_range", zero, "use `temperature`"),
        ("xtc_probability", zero, "use `top_p` or `min_p`"),
        ("dry_multiplier", zero, no_penalty),
        ("logit_bias", empty, "only an empty one is"),
        ("logits_processors", empty, "only an empty list is"),
        ("allowed_token_ids", never, free),
        ("bad_words", empty, free),
        ("structured_outputs", never, free),
        ("guided_json", never, free),
        ("guided_regex", never, free),
        ("guided_choice", never, free),
        ("guided_grammar", never, free),
        ("guided_decoding_backend", never, free),
        ("guided_whitespace_pattern", never, free),
        ("json_schema", never, free),
        ("grammar", never, free),
        ("regex", never, free),
        ("ebnf", never, free),
        ("structural_tag", never, free),
        ("min_tokens", zero, "an answer may end at once; `ignore_eos` makes it go on to `max_tokens`"),
        ("min_new_tokens", zero, "an answer may end at once; `ignore_eos` makes it go on to `max_tokens`"),
        ("max_new_tokens", never, limit),
        ("n_predict", never, limit),
        ("num_predict", never, limit),
        ("stop_regex", never, stopping),
        ("stop_sequences", never, stopping),
        ("no_stop_trim", off, "use `include_stop_str_in_output`"),
        ("truncate_prompt_tokens", never, whole),
        ("truncate", never, whole),
        ("add_generation_prompt", on, "the answer is always a new message"),
        ("continue_final_message", off, "the answer is always a new message; `/v1/completions` continues a text"),
        ("prompt_logprobs", off, "only the answer's tokens have log-probabilities"),
        ("skip_special_tokens", on, "special tokens are never part of the text"),
        ("spaces_between_special_tokens", on, "special tokens are never part of the text"),
        ("detokenize", on, "answers are text"),
        ("return_token_ids", off, "answers are text"),
        ("return_tokens_as_token_ids", off, "answers are text"),
        ("return_full_text", off, "the prompt is not repeated"),
        ("echo", off, "the prompt is not repeated"),
        ("suffix", never, "text is only continued"),
        ("best_of", one, "use `n`"),
    ];
    for (field, neutral, instead) in table {
        if let Some(value) = fields.peek(field)
            && !neutral(value)
        {
            return Err(ApiError::unsupported(fields.name(field), &format!("{instead} (found {})", shown(value))));
        }
    }
    fields.accept(table.iter().map(|(field, ..)| *field).chain(WITHOUT_EFFECT));
    Ok(())
}
