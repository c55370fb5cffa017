//! The evidence of a verdict: a run of the engine, or its source.
//!
//! Runs: `benchmarks/` has those of llama.cpp and of the `speculators` package. vLLM 0.32.0 ran on a CPU, where its Model Runner V1
//! refuses DSpark: a small plugin drove vLLM's own DSpark model from there. Eagle3 drafts ran without a plugin.

use super::facts::{DraftFacts, Drafts, Layout};
use super::{Answer, Verdict};

/// Returns the source of a row's verdict.
pub(super) fn known_by(facts: &DraftFacts, row: &Verdict) -> &'static str {
    let loaded = row.verdict <= Answer::WithCare;
    let from_anchor = facts.drafts_from_anchor() && !facts.is_foreign_dflash();
    let usual_block = from_anchor && !facts.reduced() && !facts.windows;
    let speculators = facts.layout == Layout::Speculators;
    match (row.engine, facts.drafts) {
        ("vLLM", Drafts::Blocks) if loaded && usual_block => {
            "run in vLLM 0.32.0 on a CPU, where a plugin drives its DSpark model; its GPU path by reading 0.33.0's source"
        }
        ("vLLM", Drafts::Blocks) if usual_block && facts.markov_rank == 0 => {
            "run: vLLM 0.32.0 on a CPU crashes on the missing Markov head"
        }
        ("vLLM", Drafts::Eagle3) if loaded && speculators && !facts.reduced() => "run in vLLM 0.32.0 on a CPU",
        ("vLLM", Drafts::Eagle3) if !speculators && facts.architecture == "Qwen3Eagle3Model" => {
            "run: vLLM 0.32.0 refuses it; the same by reading 0.33.0's source"
        }
        ("vLLM", _) => "by reading vLLM 0.33.0's source",
        ("SGLang", _) => "by reading SGLang 0.5.23's source",
        ("TensorRT-LLM", _) => "by reading TensorRT-LLM's source, main branch of summer 2026",
        ("speculators", Drafts::Blocks) if loaded && speculators && from_anchor && facts.markov_rank > 0 => {
            RUN_PACKAGE
        }
        ("speculators", Drafts::Eagle3) if loaded && speculators && !facts.reduced() => RUN_PACKAGE,
        ("speculators", _) => "by reading speculators 0.9.0's source",
        // Its one reason is that it reads files of another format, which `deepspec export` writes.
        ("llama.cpp", Drafts::Blocks) if usual_block && row.reasons.len() == 1 => {
            "run: exported to GGUF, in llama.cpp of llama-cpp-python 0.3.36 on a CPU"
        }
        _ => "by reading llama.cpp's source, as llama-cpp-python 0.3.36 has it",
    }
}

const RUN_PACKAGE: &str = "run with speculators 0.9.0 on a CPU";
