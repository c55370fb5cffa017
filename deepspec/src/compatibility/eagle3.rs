//! Requirements of each engine on an Eagle3 draft. All of them support Eagle3 drafts of three captured layers without norms of queries
//! and keys; those of this project and the reference have five, and Qwen3's norms.

use super::facts::{DraftFacts, Layout};
use super::rules::{GGUF_TARGET, SPECULATORS, speculators_files, tables};
use super::{Answer, Verdict};

const NO_MODEL: &str = "none: the engine has no model that computes such a draft";
const QWEN3: &str = "Qwen3Eagle3Model";
const NO_NORMS: &str = "its Eagle3 layer has no norms of queries and keys";

/// All engines' verdicts, in a fixed order.
pub(super) fn verdicts(facts: &DraftFacts) -> Vec<Verdict> {
    vec![vllm(facts), sglang(facts), tensorrt_llm(facts), speculators(facts), llama_cpp()]
}

fn of_qwen3(facts: &DraftFacts) -> bool {
    facts.layout == Layout::Speculators || facts.architecture == QWEN3
}

/// Refuses a draft in this project's layout, and names the layout that two programs read if it can hold the draft.
fn rewritten(facts: &DraftFacts, row: &mut Verdict, reason: String) {
    if of_qwen3(facts) {
        row.add(Answer::Refuses, reason, SPECULATORS);
    } else {
        row.add(Answer::Refuses, format!("{reason}, nor any of Gemma 4's layers"), NO_MODEL);
    }
}

fn vllm(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("vLLM");
    if facts.layout != Layout::Speculators {
        rewritten(facts, &mut row, format!("it knows no model called `{}`", facts.architecture));
        return row;
    }
    if facts.norm_before_residual.is_none() {
        let reason = "without `norm_before_residual` the layer's norm is taken to come before the residual";
        row.add(Answer::Misreads, reason, "set `norm_before_residual` to false");
    }
    if facts.reduced() && !facts.has("lm_head.weight") {
        let reason = "it proposes only some tokens and leaves out its head, and the target's has all rows";
        row.add(Answer::Refuses, reason, "export with embeddings");
    }
    tables(facts, &mut row);
    row
}

fn sglang(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("SGLang");
    let reason = match facts.layout {
        Layout::Speculators => "the speculators layout is not read".to_owned(),
        _ => format!("it knows no model called `{}`", facts.architecture),
    };
    row.add(Answer::Refuses, reason, "");
    let renamed = format!(
        "{NO_NORMS}: under the name of one that it knows, the draft's norms would be dropped without an error"
    );
    row.add(Answer::Refuses, renamed, NO_MODEL);
    row
}

fn tensorrt_llm(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("TensorRT-LLM");
    if facts.layout == Layout::Speculators {
        row.add(Answer::Refuses, "the speculators layout is not read", "");
    }
    row.add(Answer::Misreads, format!("{NO_NORMS}: the draft's norms are dropped without an error"), NO_MODEL);
    row
}

fn speculators(facts: &DraftFacts) -> Verdict {
    let mut row = Verdict::new("speculators");
    match facts.layout {
        Layout::Speculators => speculators_files(facts, &mut row),
        _ => rewritten(facts, &mut row, "it is not in the speculators layout".to_owned()),
    }
    row
}

fn llama_cpp() -> Verdict {
    let mut row = Verdict::new("llama.cpp");
    let reason = "its Eagle3 drafts have exactly three captured layers and no norms of queries and keys";
    row.add(Answer::Refuses, reason, format!("{NO_MODEL}; {GGUF_TARGET}"));
    row
}
