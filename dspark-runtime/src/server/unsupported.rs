//! Unsupported fields that would change the answer, and fields without effect.

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

/// Refuses unsupported fields by name, unless their value describes the supported behaviour.
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
    let no_penalty = "penalties are not implemented";
    let free = "constrained decoding is not implemented";
    let whole = "prompts are never truncated";
    let template = "pass it in `chat_template_kwargs` if the chat template reads it";
    let stopping = "use `stop` or `stop_token_ids`";
    let limit = "use `max_tokens`";
    // Tools that must not be called are not shown to the model.
    let no_calls = fields.peek("tool_choice").is_some_and(none);
    let unused: Neutral = if no_calls { Value::is_array } else { empty };
    let table: &[(&'static str, Neutral, &str)] = &[
        ("tools", unused, "describe tools in a message, or set `tool_choice` to \"none\""),
        ("tool_choice", none, "tools are not implemented"),
        ("functions", empty, "describe functions in a message"),
        ("function_call", none, "functions are not implemented"),
        ("response_format", text, "the output is always text"),
        ("modalities", only_text, "the output is always text"),
        ("audio", never, "the output is always text"),
        ("prediction", never, "predictions come from the draft model"),
        ("web_search_options", never, "web search is not implemented"),
        ("store", off, "answers are not stored"),
        ("verbosity", medium, "describe it in a message"),
        ("reasoning_effort", never, template),
        ("reasoning", never, template),
        ("enable_thinking", never, template),
        ("thinking", never, template),
        ("documents", empty, template),
        ("chat_template", never, "the model's own template is always used"),
        ("frequency_penalty", zero, no_penalty),
        ("presence_penalty", zero, no_penalty),
        ("repetition_penalty", one, no_penalty),
        ("repeat_penalty", one, no_penalty),
        ("no_repeat_ngram_size", zero, no_penalty),
        ("length_penalty", one, "beam search is not implemented"),
        ("use_beam_search", off, "beam search is not implemented"),
        ("num_beams", one, "beam search is not implemented"),
        ("early_stopping", off, "beam search is not implemented"),
        ("do_sample", on, "use `temperature`"),
        ("typical_p", one, "use `top_p` or `min_p`"),
        ("tfs_z", one, "use `top_p` or `min_p`"),
        ("top_a", zero, "use `top_p` or `min_p`"),
        ("mirostat", zero, "use `top_p` or `min_p`"),
        ("dynatemp_range", zero, "use `temperature`"),
        ("xtc_probability", zero, "use `top_p` or `min_p`"),
        ("dry_multiplier", zero, no_penalty),
        ("logit_bias", empty, "logit biases are not implemented"),
        ("logits_processors", empty, "logits processors are not implemented"),
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
        ("min_tokens", zero, "a minimum length is not implemented; `ignore_eos` continues to `max_tokens`"),
        ("min_new_tokens", zero, "a minimum length is not implemented; `ignore_eos` continues to `max_tokens`"),
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
        ("prompt_logprobs", off, "log-probabilities are returned for the answer's tokens only"),
        ("skip_special_tokens", on, "special tokens are never part of the text"),
        ("spaces_between_special_tokens", on, "special tokens are never part of the text"),
        ("detokenize", on, "the output is always text"),
        ("return_token_ids", off, "the output is always text"),
        ("return_tokens_as_token_ids", off, "the output is always text"),
        ("return_full_text", off, "the prompt is not returned"),
        ("echo", off, "the prompt is not returned"),
        ("suffix", never, "text can only be continued at its end"),
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
