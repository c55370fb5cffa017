//! The table, on configurations alone.

use std::collections::BTreeMap;

use dspark_runtime::checkpoint::JsonFields;
use serde_json::{Value, json};

use super::{Answer, DraftFacts, Verdict, verdicts};

/// What a case is called, fields that differ, tensors with their types, and the answers.
type Row = (&'static str, Vec<(&'static str, Value)>, Tensors, &'static str);
type Tensors = &'static [(&'static str, &'static str)];

const BOTH: Tensors = &[("embed_tokens.weight", "BF16"), ("lm_head.weight", "BF16")];
const EMBEDDING: Tensors = &[("embed_tokens.weight", "BF16")];
const HEAD: Tensors = &[("lm_head.weight", "BF16")];
const MAPS: Tensors = &[("d2t", "I64"), ("t2d", "BOOL"), ("lm_head.weight", "BF16")];

const ALL: Tensors = &[("embed_tokens.weight", "BF16"), ("lm_head.weight", "BF16"), ("d2t", "I64"), ("t2d", "BOOL")];

const ENGINES: [&str; 5] = ["vLLM", "SGLang", "TensorRT-LLM", "speculators", "llama.cpp"];

fn native() -> Value {
    json!({
        "architectures": ["Qwen3DSparkModel"], "model_type": "qwen3", "vocab_size": 100, "block_size": 7,
        "mask_token_id": 99, "target_layer_ids": [1, 3], "markov_rank": 8, "markov_head_type": "vanilla",
        "enable_confidence_head": true, "confidence_head_with_markov": true, "sample_from_anchor": true,
        "tie_word_embeddings": false,
    })
}

fn speculators() -> Value {
    json!({
        "speculators_model_type": "dspark", "transformer_layer_config": {"model_type": "qwen3", "vocab_size": 100},
        "draft_vocab_size": 100, "block_size": 7, "mask_token_id": 99, "aux_hidden_state_layer_ids": [2, 4],
        "markov_rank": 8, "markov_head_type": "vanilla", "sample_from_anchor": true,
        "speculators_config": {"verifier": {"name_or_path": "owner/name", "architectures": []}},
    })
}

fn facts(config: Value, tensors: &[(&str, &str)]) -> Option<DraftFacts> {
    let Value::Object(fields) = config else { unreachable!() };
    let tensors: BTreeMap<String, String> =
        tensors.iter().map(|(name, dtype)| ((*name).to_owned(), (*dtype).to_owned())).collect();
    DraftFacts::of(&JsonFields::new("config.json", fields), tensors)
}

fn table(config: Value, tensors: &[(&str, &str)]) -> Vec<Verdict> {
    verdicts(&facts(config, tensors).unwrap())
}

/// The answers in the order of [`ENGINES`]: takes, with care, misreads, refuses.
fn answers(table: &[Verdict]) -> String {
    assert_eq!(table.iter().map(|row| row.engine).collect::<Vec<_>>(), ENGINES);
    let letter = |row: &Verdict| match row.verdict {
        Answer::Takes => 'T',
        Answer::WithCare => 'C',
        Answer::Misreads => 'M',
        Answer::Refuses => 'R',
    };
    table.iter().map(letter).collect()
}

fn edited(mut config: Value, edits: &[(&str, Value)]) -> Value {
    for (name, value) in edits {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(*name)),
            value => config[name] = value.clone(),
        }
    }
    config
}

#[test]
fn each_engine_answers_for_itself() {
    let cases: Vec<Row> = vec![
        ("as we write it", vec![], &[], "TTCRR"),
        ("with both tables", vec![], BOTH, "TTCRR"),
        ("with one of them", vec![], EMBEDDING, "CTCRR"),
        ("said to be tied", vec![("tie_word_embeddings", json!(true))], BOTH, "CTCRR"),
        ("a gated head", vec![("markov_head_type", json!("gated"))], &[], "RTRRR"),
        ("an unnamed head", vec![("markov_head_type", Value::Null)], &[], "TRCRR"),
        ("no Markov head", vec![("markov_rank", json!(0))], &[], "RRCRR"),
        ("no confidence head", vec![("enable_confidence_head", json!(false))], &[], "CCCRR"),
        ("layer -1", vec![("target_layer_ids", json!([-1, 3]))], &[], "RRRRR"),
        ("fewer tokens, no head", vec![("draft_vocab_size", json!(50))], &[], "RRRRR"),
        ("fewer tokens", vec![("draft_vocab_size", json!(50))], HEAD, "TRRRR"),
        ("the other convention", vec![("sample_from_anchor", json!(false))], &[], "TTMRR"),
        (
            "the same, said to TensorRT-LLM too",
            vec![("sample_from_anchor", json!(false)), ("shift_label", json!(false))],
            &[],
            "TTCRR",
        ),
        (
            "the same, in a word of old",
            vec![("sample_from_anchor", Value::Null), ("dspark_bonus_anchor", json!(true))],
            &[],
            "MMMRR",
        ),
        ("eight bits", vec![], &[("fc.weight", "F8_E4M3")], "RRRRR"),
        ("biases", vec![("attention_bias", json!(true))], &[], "RRRRR"),
        ("windows", vec![("layer_types", json!(["sliding_attention"]))], &[], "CCCRR"),
        ("no mask", vec![("mask_token_id", Value::Null)], &[], "RRRRR"),
        ("a mask too far", vec![("mask_token_id", json!(100))], &[], "RRRRR"),
        ("Gemma's layers", vec![("architectures", json!(["Gemma4DSparkModel"]))], &[], "TRCRR"),
        ("no layers", vec![("target_layer_ids", Value::Null)], &[], "RRRRR"),
        (
            "DFlash by its own name",
            vec![
                ("architectures", json!(["DFlashDraftModel"])),
                ("markov_rank", json!(0)),
                ("sample_from_anchor", Value::Null),
            ],
            &[],
            "TTTCR",
        ),
        ("ours under that name", vec![("architectures", json!(["DFlashDraftModel"]))], &[], "MMMMR"),
    ];
    for (name, edits, tensors, expected) in cases {
        let table = table(edited(native(), &edits), tensors);
        assert_eq!(answers(&table), expected, "{name}: {table:#?}");
        for row in &table {
            assert_eq!(row.reasons.is_empty(), row.verdict == Answer::Takes, "{name}: {row:?}");
        }
    }
}

#[test]
fn the_speculators_layout_is_for_vllm_and_its_package() {
    let no_name = json!({"verifier": {"name_or_path": null, "architectures": []}});
    let fewer = ("draft_vocab_size", json!(50));
    let windows = json!({"model_type": "qwen3", "vocab_size": 100, "layer_types": ["sliding_attention"]});
    let cases: Vec<Row> = vec![
        ("as we write it", vec![], &[], "CRRTR"),
        ("the target unnamed", vec![("speculators_config", no_name.clone())], &[], "CRRMR"),
        ("unnamed, with tables", vec![("speculators_config", no_name)], BOTH, "CRRTR"),
        ("fewer tokens", vec![fewer.clone()], MAPS, "CRRTR"),
        ("fewer tokens, no map", vec![fewer], HEAD, "CRRRR"),
        ("the other convention", vec![("sample_from_anchor", json!(false))], &[], "TRRTR"),
        ("no word on the convention", vec![("sample_from_anchor", Value::Null)], &[], "MRRTR"),
        ("rnn", vec![("markov_head_type", json!("rnn"))], &[], "RRRTR"),
        ("windows", vec![("transformer_layer_config", windows)], &[], "CRRTR"),
    ];
    for (name, edits, tensors, expected) in cases {
        let config = edited(speculators(), &edits);
        let table = table(edited(config, &[("enable_confidence_head", json!(true))]), tensors);
        assert_eq!(answers(&table), expected, "{name}: {table:#?}");
    }
}

#[test]
fn eagle3_is_for_vllm_and_the_package_in_their_layout() {
    let native = json!({
        "architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "vocab_size": 100, "ttt_length": 7,
        "target_layer_ids": [0, 1, 2, 3, 4], "tie_word_embeddings": false,
    });
    let speculators = json!({
        "speculators_model_type": "eagle3", "transformer_layer_config": {"model_type": "qwen3", "vocab_size": 100},
        "draft_vocab_size": 100, "eagle_aux_hidden_state_layer_ids": [1, 2, 3, 4, 5], "norm_before_residual": false,
        "speculators_config": {"verifier": {"name_or_path": "owner/name", "architectures": []}},
    });
    assert_eq!(facts(speculators.clone(), &[]).unwrap().target_layer_ids, Some(vec![0, 1, 2, 3, 4]));
    let fewer = ("draft_vocab_size", json!(50));
    let unnamed = ("speculators_config", json!({"verifier": {"name_or_path": null, "architectures": []}}));
    let cases: Vec<(&Value, Row)> = vec![
        (&native, ("as we write it", vec![], &[], "RRMRR")),
        (&native, ("Gemma's layers", vec![("architectures", json!(["Gemma4Eagle3Model"]))], &[], "RRMRR")),
        (&native, ("no layers", vec![("target_layer_ids", Value::Null)], &[], "RRRRR")),
        (&speculators, ("in the other layout", vec![], &[], "TRRTR")),
        (&speculators, ("no word on the norm", vec![("norm_before_residual", Value::Null)], &[], "MRRTR")),
        (&speculators, ("fewer tokens", vec![fewer.clone()], MAPS, "TRRTR")),
        (&speculators, ("fewer tokens, no head", vec![fewer], &[], "RRRRR")),
        (&speculators, ("the target unnamed", vec![unnamed], &[], "TRRMR")),
        (&speculators, ("with one table", vec![], EMBEDDING, "CRRTR")),
    ];
    for (config, (name, edits, tensors, expected)) in cases {
        let table = table(edited(config.clone(), &edits), tensors);
        assert_eq!(answers(&table), expected, "{name}: {table:#?}");
    }
}

#[test]
fn fields_are_found_wherever_they_lie() {
    let nested = json!({
        "architectures": ["DSparkDraftModel"], "model_type": "qwen3", "vocab_size": 100, "block_size": 9,
        "dflash_config": {"target_layer_ids": [1, 3], "mask_token_id": 5, "markov_rank": 4, "block_size": 7},
    });
    let facts = facts(nested, &[]).unwrap();
    assert_eq!((facts.block_size, facts.mask_token_id, facts.markov_rank), (Some(7), Some(5), 4));
    assert!(facts.drafts_from_anchor());
    let layers = super::tests::facts(speculators(), &[]).unwrap().target_layer_ids;
    assert_eq!(layers, Some(vec![1, 3]));
}

#[test]
fn other_models_are_not_judged() {
    for config in [
        json!({"architectures": ["Qwen3ForCausalLM"]}),
        json!({"speculators_model_type": "mtp", "transformer_layer_config": {}}),
        json!({"architectures": ["LlamaForCausalLMEagle3"]}),
        json!({}),
    ] {
        assert!(facts(config, &[]).is_none());
    }
}

/// A verdict says whether the engine was run or read, and only what was run is called so.
#[test]
fn every_verdict_says_how_it_is_known() {
    let known = |config: Value| -> Vec<&'static str> { table(config, &[]).iter().map(|row| row.known_by).collect() };
    let run: Vec<bool> = known(native()).iter().map(|words| words.starts_with("run")).collect();
    assert_eq!(run, [true, false, false, false, true]);
    let run: Vec<bool> = known(speculators()).iter().map(|words| words.starts_with("run")).collect();
    assert_eq!(run, [true, false, false, true, true]);
    assert!(known(native())[0].contains("plugin") && known(native())[1].contains("SGLang 0.5.23's source"));
    for (edit, engine, words) in [
        (("markov_rank", json!(0)), 0, "run: vLLM 0.32.0 on a CPU crashes"),
        (("markov_head_type", json!("gated")), 0, "by reading vLLM 0.33.0"),
        (("sample_from_anchor", json!(false)), 0, "by reading vLLM 0.33.0"),
        (("draft_vocab_size", json!(50)), 4, "by reading llama.cpp"),
    ] {
        let found = known(edited(native(), &[edit]))[engine];
        assert!(found.contains(words), "{found}");
    }
    let eagle3 = |layout: &str| match layout {
        "native" => json!({"architectures": ["Qwen3Eagle3Model"], "vocab_size": 100, "target_layer_ids": [0, 1]}),
        _ => json!({
            "speculators_model_type": "eagle3", "transformer_layer_config": {"vocab_size": 100},
            "eagle_aux_hidden_state_layer_ids": [1, 2], "norm_before_residual": false, "draft_vocab_size": 100,
        }),
    };
    // What a run did not try is not called run: each edit leaves the engine's verdict open or good.
    let unlike = |config: Value, edit: (&str, Value), tensors: Tensors, engine: usize| {
        let row = &table(edited(config, &[edit]), tensors)[engine];
        assert!(row.known_by.starts_with("by reading"), "{row:?}");
    };
    let windows = json!(["sliding_attention"]);
    unlike(native(), ("draft_vocab_size", json!(50)), HEAD, 0);
    unlike(native(), ("layer_types", windows), &[], 0);
    unlike(native(), ("markov_head_type", json!("gated")), &[], 4);
    unlike(edited(native(), &[("markov_rank", json!(0))]), ("architectures", json!(["DFlashDraftModel"])), &[], 0);
    unlike(speculators(), ("sample_from_anchor", json!(false)), &[], 0);
    unlike(speculators(), ("sample_from_anchor", json!(false)), &[], 3);
    unlike(speculators(), ("markov_rank", json!(0)), &[], 3);
    unlike(eagle3("speculators"), ("draft_vocab_size", json!(50)), MAPS, 0);
    assert_eq!(table(eagle3("speculators"), BOTH)[3].known_by, "run with speculators 0.9.0 on a CPU");
    unlike(eagle3("speculators"), ("draft_vocab_size", json!(50)), ALL, 3);
    unlike(eagle3("speculators"), ("norm_before_residual", Value::Null), &[], 0);
    unlike(eagle3("native"), ("architectures", json!(["Gemma4Eagle3Model"])), &[], 0);
    assert!(known(eagle3("native"))[0].contains("refuses it"), "{:?}", known(eagle3("native")));
    assert_eq!(known(eagle3("speculators"))[0], "run in vLLM 0.32.0 on a CPU");
    assert!(known(eagle3("native"))[4].contains("reading llama.cpp"));
}

/// The fix that `inspect` names for vLLM is one: with a head, the draft loads.
#[test]
fn a_draft_without_a_markov_head_is_sent_to_the_option_that_adds_one() {
    let row = &table(edited(native(), &[("markov_rank", json!(0))]), &[])[0];
    assert!(row.fix.iter().any(|fix| fix.contains("--zero-markov-head")), "{row:?}");
}
