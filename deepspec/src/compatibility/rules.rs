//! Requirements of each engine on a draft.

use super::evidence::known_by;
use super::facts::{DraftFacts, Drafts, Layout};
use super::{Answer, Verdict, eagle3};

const NATIVE: &str = "export it again: `deepspec export --layout deepspec`";
pub(super) const SPECULATORS: &str = "export it again: `deepspec export --layout speculators`";
const GGUF: &str = "export it again: `deepspec export --layout gguf`, and with `--target-out` unless the target is a GGUF file already";
pub(super) const GGUF_TARGET: &str = "`deepspec export --layout gguf --target-out` writes the target's own file";
const VANILLA: &str = "train with `model.markov_head_type = \"vanilla\"`";
const ZERO_HEAD: &str = "add a Markov head of zeros, which changes nothing: `deepspec export --zero-markov-head`";
const RANK: &str = "train with `model.markov_rank` above 0";
const STATE: &str = "state `sample_from_anchor` in config.json";
const ANCHOR: &str = "a draft cannot be converted between block conventions: train one for this convention";

/// All engines' verdicts, in a fixed order.
pub fn verdicts(facts: &DraftFacts) -> Vec<Verdict> {
    let mut table = match facts.drafts {
        Drafts::Blocks => vec![vllm(facts), sglang(facts), tensorrt_llm(facts), speculators(facts), llama_cpp(facts)],
        Drafts::Eagle3 => eagle3::verdicts(facts),
    };
    for row in &mut table {
        common(facts, row);
        row.known_by = known_by(facts, row);
    }
    table
}

/// Faults that no engine can work around.
fn common(facts: &DraftFacts, row: &mut Verdict) {
    if let Some((name, dtype)) = facts.quantised() {
        let reason = format!("`{name}` is {dtype}: only bf16, f16 and f32 weights are judged here");
        row.add(Answer::Refuses, reason, "export in bf16");
    }
    if facts.attention_bias {
        row.add(Answer::Refuses, "its projections have biases; engines compute Qwen3's layers, which have none", "");
    }
    if facts.windows {
        match row.engine {
            // The package that trains such drafts.
            "speculators" => {}
            "llama.cpp" => row.add(Answer::Refuses, "`deepspec export --layout gguf` writes no drafts with windows", "train without `model.sliding_window`"),
            _ => row.add(
                Answer::WithCare,
                "its layers attend to windows: versions differ in whether a slot of such a layer attends to later slots of its block",
                "compare accepted lengths with those of the program that trained it",
            ),
        }
    }
    match facts.drafts {
        Drafts::Blocks if facts.mask_token_id.is_none() => {
            row.add(Answer::Refuses, "`mask_token_id` is missing", "add it to config.json");
        }
        Drafts::Blocks if facts.mask_token_id >= facts.vocab_size && facts.vocab_size.is_some() => {
            row.add(Answer::Refuses, "`mask_token_id` is beyond the vocabulary", "name a token that the target has");
        }
        // Slots of an Eagle3 draft read what was drafted, and no mask.
        Drafts::Blocks | Drafts::Eagle3 => {}
    }
    if facts.target_layer_ids.is_none() {
        row.add(Answer::Refuses, "the captured target layers are not named", "add them to config.json");
    }
}

/// Architectures in the engines' tables of models; drafts of the speculators layout are renamed on reading.
const VLLM_MODELS: [&str; 4] = ["Qwen3DSparkModel", "Gemma4DSparkModel", "DSparkDraftModel", "DFlashDraftModel"];
const SGLANG_MODELS: [&str; 4] = ["Qwen3DSparkModel", "LingDSparkModel", "DSparkDraftModel", "DFlashDraftModel"];

fn known_model(facts: &DraftFacts, models: &[&str], row: &mut Verdict) {
    if !models.contains(&facts.architecture.as_str()) {
        row.add(Answer::Refuses, format!("it knows no model called `{}`", facts.architecture), "");
    }
}

fn layers_before_the_first(facts: &DraftFacts) -> bool {
    facts.target_layer_ids.iter().flatten().any(|&id| id < 0)
}

fn other_head(facts: &DraftFacts) -> Option<&str> {
    facts.markov_head_type.as_deref().filter(|kind| facts.markov_rank > 0 && *kind != "vanilla")
}

fn has_tables(facts: &DraftFacts) -> [bool; 2] {
    ["embed_tokens.weight", "lm_head.weight"].map(|name| facts.has(name))
}

/// Faults of the embedding and the head: one of them missing, or both declared as one table.
pub(super) fn tables(facts: &DraftFacts, row: &mut Verdict) {
    let [embedding, head] = has_tables(facts);
    if embedding != head && !facts.reduced() {
        let reason = "it holds one of embedding and head: the other is taken from the target";
        row.add(Answer::WithCare, reason, "export both or neither");
    }
    if facts.tied && (embedding || head) {
        let reason = "`tie_word_embeddings` says that embedding and head are one: the head may be dropped";
        row.add(Answer::WithCare, reason, "set `tie_word_embeddings` to false");
    }
}

/// For engines that always use the target's embedding and head.
fn target_tables(facts: &DraftFacts, row: &mut Verdict) {
    if facts.other_tables == Some(true) {
        let reason = "it has an embedding or a head other than the target's, and the target's are used";
        row.add(Answer::Misreads, reason, "train with the target's own tables (`deepspec train`)");
    }
}

fn vllm(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("vLLM");
    let from_anchor = facts.drafts_from_anchor();
    let speculators = facts.layout == Layout::Speculators;
    if !speculators {
        known_model(facts, &VLLM_MODELS, &mut row);
    }
    if facts.is_foreign_dflash() {
        if from_anchor {
            let reason = format!("as `{}` the block is read from the slot behind the anchor", facts.architecture);
            row.add(Answer::Misreads, reason, "set `architectures` to [\"Qwen3DSparkModel\"]");
        }
    } else if facts.sample_from_anchor.unwrap_or(!speculators) != from_anchor {
        let read = if speculators { "behind the anchor" } else { "of the anchor" };
        let reason = format!("without `sample_from_anchor` the block is read from the slot {read}");
        row.add(Answer::Misreads, reason, STATE);
    } else if speculators && from_anchor {
        let reason = "some versions before 0.33 ignore `sample_from_anchor` in this layout and read the block one \
                      slot later: an accepted length of about 1 is the sign";
        row.add(Answer::WithCare, reason, NATIVE);
    }
    if !facts.is_foreign_dflash() && facts.markov_rank == 0 {
        row.add(Answer::Refuses, "it has no Markov head, and vLLM's DSpark drafts have one", ZERO_HEAD);
    }
    if let Some(kind) = other_head(facts) {
        row.add(Answer::Refuses, format!("its Markov head is {kind}; only vanilla ones are known"), VANILLA);
    }
    if layers_before_the_first(facts) {
        let reason = "it reads the embedding's output (layer -1), which is not captured";
        row.add(Answer::Refuses, reason, "train with layers from 0 on");
    }
    if facts.reduced() && !facts.has("lm_head.weight") {
        let reason = "it proposes only some tokens and leaves out its head, and the target's has all rows";
        row.add(Answer::Refuses, reason, "export with embeddings");
    }
    if facts.confidence_head != Some(true) && !facts.is_foreign_dflash() {
        row.add(Answer::WithCare, "without a confidence head `adaptive_verification` is refused", "");
    }
    tables(facts, &mut row);
    row
}

fn sglang(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("SGLang");
    if facts.layout == Layout::Speculators {
        row.add(Answer::Refuses, "the speculators layout is not read", NATIVE);
        return row;
    }
    known_model(facts, &SGLANG_MODELS, &mut row);
    if facts.is_foreign_dflash() {
        if facts.drafts_from_anchor() {
            let reason = "as a DFlash draft the block is read from the slot behind the anchor";
            row.add(Answer::Misreads, reason, ANCHOR);
        }
    } else {
        if facts.sample_from_anchor.unwrap_or(true) != facts.drafts_from_anchor() {
            row.add(
                Answer::Misreads,
                "without `sample_from_anchor` the block is read from the slot of the anchor",
                STATE,
            );
        }
        if facts.markov_rank == 0 {
            row.add(Answer::Refuses, "it has no Markov head, and SGLang's DSpark drafts have one", RANK);
        } else if facts.markov_head_type.is_none() {
            row.add(Answer::Refuses, "`markov_head_type` is missing", "add it to config.json");
        }
        if facts.confidence_head != Some(true) && !facts.has("confidence_head.proj.weight") {
            let reason = "without a confidence head only SGLANG_RAGGED_VERIFY_MODE=static works";
            row.add(Answer::WithCare, reason, "");
        }
    }
    if layers_before_the_first(facts) {
        row.add(Answer::Refuses, "it reads the embedding's output (layer -1)", "train with layers from 0 on");
    }
    if facts.reduced() {
        let reason = "it proposes only some tokens; SGLang's drafts propose all";
        row.add(Answer::Refuses, reason, "export a draft of all tokens");
    }
    target_tables(facts, &mut row);
    row
}

fn tensorrt_llm(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("TensorRT-LLM");
    if facts.layout == Layout::Speculators {
        row.add(Answer::Refuses, "the speculators layout is not read", NATIVE);
        return row;
    }
    let from_anchor = facts.drafts_from_anchor();
    if facts.is_foreign_dflash() {
        if from_anchor {
            row.add(Answer::Misreads, "as a DFlash draft the block is read from the slot behind the anchor", ANCHOR);
        }
    } else if facts.shift_label.unwrap_or(true) != from_anchor {
        let reason = "`sample_from_anchor` is ignored: the block is read from the anchor's slot";
        row.add(Answer::Misreads, reason, "set `shift_label` to false in `dspark_config`");
    }
    if let Some(kind) = other_head(facts) {
        row.add(Answer::Refuses, format!("its Markov head is {kind}; only vanilla ones are known"), VANILLA);
    }
    if facts.reduced() {
        let reason = "it proposes only some tokens; TensorRT-LLM's drafts propose all";
        row.add(Answer::Refuses, reason, "export a draft of all tokens");
    }
    if layers_before_the_first(facts) {
        let reason = "it reads the embedding's output (layer -1), which is not captured";
        row.add(Answer::Refuses, reason, "train with layers from 0 on");
    }
    if let Some(block) = facts.block_size.filter(|_| !facts.is_foreign_dflash()) {
        let reason = format!("`max_draft_len` must be the block size, {block}; the confidence head is not used");
        row.add(Answer::WithCare, reason, "");
    }
    tables(facts, &mut row);
    row
}

fn speculators(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("speculators");
    if facts.layout != Layout::Speculators {
        if facts.is_foreign_dflash() {
            let reason = "it is converted as a DFlash draft on loading, its target named";
            row.add(Answer::WithCare, reason, "");
            if facts.drafts_from_anchor() {
                row.add(
                    Answer::Misreads,
                    "converted, its block is read from the slot behind the anchor",
                    SPECULATORS,
                );
            }
        } else {
            row.add(Answer::Refuses, "it is not in the speculators layout", SPECULATORS);
        }
        return row;
    }
    speculators_files(facts, &mut row);
    if facts.confidence_with_markov && facts.markov_rank == 0 && facts.confidence_head != Some(false) {
        let reason = "`confidence_head_with_markov` without a Markov head";
        row.add(Answer::Refuses, reason, "set `confidence_head_with_markov` to false");
    }
    row
}

/// Parts that the package takes from the target, and parts that it does not.
pub(super) fn speculators_files(facts: &DraftFacts, row: &mut Verdict) {
    let [embedding, head] = has_tables(facts);
    if facts.verifier.is_none() && !(embedding && head) {
        let reason = "it leaves embedding or head to the target and does not name it: they stay undefined";
        row.add(Answer::Misreads, reason, "export with `--verifier NAME`, or with embeddings");
    }
    if facts.reduced() && !(facts.has("d2t") && facts.has("t2d")) {
        row.add(Answer::Refuses, "it proposes only some tokens and lacks `d2t` or `t2d`", SPECULATORS);
    }
    if facts.reduced() && !head {
        row.add(Answer::Refuses, "it proposes only some tokens and lacks its head", SPECULATORS);
    }
    if facts.verifier.is_some() && !facts.reduced() {
        target_tables(facts, row);
    }
}

fn llama_cpp(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("llama.cpp");
    row.add(Answer::Refuses, "it reads GGUF files", GGUF);
    if !facts.drafts_from_anchor() || facts.is_foreign_dflash() {
        row.add(Answer::Refuses, "`deepspec export` reads drafts that draft from the anchor's slot", ANCHOR);
    }
    if facts.markov_rank == 0 && !facts.is_foreign_dflash() {
        let reason = "without a Markov head it takes a draft for one whose blocks begin behind the anchor";
        row.add(Answer::Refuses, reason, RANK);
    }
    if let Some(kind) = other_head(facts) {
        row.add(Answer::Refuses, format!("its Markov head is {kind}; only vanilla ones are known"), VANILLA);
    }
    if facts.reduced() {
        let reason = "it proposes only some tokens; llama.cpp's drafts propose all";
        row.add(Answer::Refuses, reason, "export a draft of all tokens");
    }
    if facts.confidence_head == Some(true) && !facts.confidence_with_markov {
        let reason = "its confidence head does not read the Markov factors, and llama.cpp's does";
        row.add(Answer::Refuses, reason, "train with `model.confidence_head_with_markov = true`");
    }
    row
}
