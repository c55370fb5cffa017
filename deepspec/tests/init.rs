//! `deepspec init`: recipes that the other verbs take as they are.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use deepspec::recipe::{Algorithm, Recipe};
use serde_json::{Value, json};

use common::drafts::TARGET;
use common::{deepspec, refused, workspace};

const DATA: &str = "datasets/quickstart/sums.train.jsonl";
const TASK: &str = "datasets/quickstart/sums.evaluate.jsonl";

/// Runs `deepspec init` with the device that tests have. Returns what it printed.
#[track_caller]
fn init(target: &str, out: &Path, more: &[&str]) -> String {
    let out = out.display().to_string();
    let output = deepspec(&[&["init", "--target", target, "--out", &out], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn recipe(path: &Path) -> Recipe {
    Recipe::load(path, &[]).unwrap()
}

/// A folder with a configuration, and the quickstart's tokeniser.
fn target(folder: &Path, name: &str, config: &Value) -> PathBuf {
    let target = folder.join(name);
    fs::create_dir(&target).unwrap();
    for file in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(workspace().join(TARGET).join(file), target.join(file)).unwrap();
    }
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    target
}

#[test]
fn a_recipe_with_data_is_planned_and_run_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mine.toml");
    let said = init(TARGET, &out, &["--data", DATA, "--task", TASK]);
    for part in ["wrote ", "--plan", "deepspec run "] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    let written = recipe(&out);
    assert_eq!((written.name.as_str(), written.model.algorithm), ("quickstart-target-dspark", Algorithm::Dspark));
    assert_eq!(written.model.target_layer_ids, [0, 1, 2, 3]);
    assert_eq!(written.model.mask_token_id, Some(1536));
    // 980 of 1,000 conversations, as many times as make 2,560.
    assert_eq!((written.train.steps, written.train.global_batch_size), (Some(320), 8));
    assert!(
        written.data.max_length < 1024 && written.data.max_length.is_multiple_of(64),
        "{}",
        written.data.max_length
    );
    assert_eq!(written.evaluate.tasks[0].name, "sums.evaluate");

    let path = out.display().to_string();
    let plan = deepspec(&["train", &path, "--plan", "--json"]);
    assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["steps"], 320);

    let run = format!("output.dir={:?}", folder.path().join("run").display().to_string());
    let few = ["train.steps=2", "evaluate.samples=1", "evaluate.max_new_tokens=8", &run];
    let few: Vec<&str> = few.iter().flat_map(|set| ["--set", set]).collect();
    let ran = deepspec(&[&["run", &path], &few[..]].concat());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(folder.path().join("run/draft/config.json").is_file());

    let before = fs::read(&out).unwrap();
    refused(&deepspec(&["init", "--target", TARGET, "--out", &path]), &["exists already", "mine.toml", "--out"]);
    assert!(fs::read(&out).unwrap() == before);
}

#[test]
fn placeholders_are_named_by_the_first_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mine.toml");
    let said = init(TARGET, &out, &[]);
    assert!(said.contains("conversations.jsonl") && said.contains("prompts.jsonl"), "{said}");
    let path = out.display().to_string();
    let missing = ["mine.toml: data.train: ", "conversations.jsonl", "no such file"];
    refused(&deepspec(&["train", &path, "--plan"]), &missing);
    refused(&deepspec(&["run", &path]), &missing);
    let data = format!("data.train=[{DATA:?}]");
    let missing = ["mine.toml: evaluate.tasks", "prompts.jsonl", "no such file"];
    refused(&deepspec(&["run", &path, "--set", &data]), &missing);
}

#[test]
fn every_family_and_architecture_gets_a_recipe_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = json!({
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "num_hidden_layers": 12, "vocab_size": 1552, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true,
    });
    let with = |more: Value| {
        let mut config = sizes.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let kinds: Vec<&str> =
        (0..12).map(|layer| if layer % 3 == 2 { "full_attention" } else { "sliding_attention" }).collect();
    let families = [
        ("llama", with(json!({"architectures": ["LlamaForCausalLM"]}))),
        ("qwen2", with(json!({"architectures": ["Qwen2ForCausalLM"]}))),
        ("qwen3", with(json!({"architectures": ["Qwen3ForCausalLM"]}))),
        (
            "qwen3_moe",
            with(json!({
                "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2,
                "moe_intermediate_size": 16, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
            })),
        ),
        (
            "gemma4",
            with(json!({
                "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "num_key_value_heads": 2,
                "num_global_key_value_heads": 1, "global_head_dim": 16, "attention_k_eq_v": true, "layer_types": kinds,
                "sliding_window": 64, "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 0,
                "final_logit_softcapping": 30.0,
                "rope_parameters": {
                    "full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 1e6, "rope_type": "proportional"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            })),
        ),
    ];
    for (name, config) in families {
        let target = target(folder.path(), name, &config).display().to_string();
        for algorithm in ["dspark", "dflash", "eagle3"] {
            let out = folder.path().join(format!("{name}-{algorithm}.toml"));
            init(&target, &out, &["--algorithm", algorithm]);
            let written = recipe(&out);
            assert_eq!(written.name, format!("{name}-{algorithm}"));
            let ids: &[usize] = if name == "gemma4" { &[2, 5, 8, 10] } else { &[1, 3, 5, 7, 9] };
            assert_eq!(written.model.target_layer_ids, ids);
            let data = format!("data.train=[{DATA:?}]");
            let plan = deepspec(&["train", &out.display().to_string(), "--plan", "--json", "--set", &data]);
            assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
        }
    }
}

/// A tokeniser without an unused row lends one of its special tokens, or the architecture that needs none is named.
#[test]
fn a_mask_token_is_found_or_its_lack_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(workspace().join(TARGET).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = json!(1536);
    let target = target(folder.path(), "full", &config);
    let out = folder.path().join("full.toml");
    let arguments = ["init", "--target", &target.display().to_string(), "--out", &out.display().to_string()];
    refused(&deepspec(&arguments), &["full", "no token is left", "--algorithm eagle3"]);

    let path = target.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for added in ["<|spare|>", "<|reserved_3|>"] {
        let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
        let id = 1536 + (added == "<|reserved_3|>") as usize;
        tokens.push(json!({
            "id": id, "content": added, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }));
    }
    fs::write(&path, tokenizer.to_string()).unwrap();
    config["vocab_size"] = json!(1538);
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    init(&target.display().to_string(), &out, &[]);
    assert_eq!(recipe(&out).model.mask_token_id, Some(1537));
    assert!(fs::read_to_string(&out).unwrap().contains("does not contain \"<|reserved_3|>\""));
}

/// A token that ends or fills texts, stands for unknown ones, or occurs in the template or the data does not mask.
#[test]
fn a_mask_token_has_no_other_use() {
    let folder = tempfile::tempdir().unwrap();
    let edit = |path: &Path, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    let config = fs::read_to_string(workspace().join(TARGET).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    // All of them have a name that the reserved ones have.
    let uses = ["begin", "pad", "stop", "unk", "template", "data"].map(|use_| format!("<|reserved_{use_}|>"));
    let rows = 1536 + uses.len();
    config["vocab_size"] = json!(rows);
    let target = target(folder.path(), "used", &config);
    edit(&target.join("tokenizer.json"), &|tokenizer| {
        for (index, content) in uses.iter().enumerate() {
            tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": 1536 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        }
    });
    edit(&target.join("generation_config.json"), &|generation| {
        generation["eos_token_id"] = json!([2, 1538]);
        drop(generation.as_object_mut().unwrap().remove("pad_token_id"));
    });
    edit(&target.join("tokenizer_config.json"), &|tokenizer| {
        tokenizer["bos_token"] = json!(uses[0]);
        tokenizer["pad_token"] = json!(uses[1]);
        let template = tokenizer["chat_template"].as_str().unwrap();
        tokenizer["chat_template"] =
            json!(format!("{template}{{%- if never -%}}<|reserved_template|>{{%- endif -%}}"));
    });
    let named = target.display().to_string();
    let (free, taken) = (folder.path().join("free.toml"), folder.path().join("taken.toml"));
    init(&named, &free, &[]);
    assert_eq!(recipe(&free).model.mask_token_id, Some(1541));

    let data = folder.path().join("data.jsonl");
    let row = |answer: &str| {
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]}).to_string()
            + "\n"
    };
    let long = format!("Hello, {}! ", uses[5]).repeat(20);
    fs::write(&data, row(&long) + &row(&format!("{long}Bye."))).unwrap();
    let data = data.display().to_string();
    init(&named, &taken, &["--data", &data]);
    assert_eq!(recipe(&taken).model.mask_token_id, Some(0), "no reserved token is free, and <|endoftext|> is");
}

/// The template's own variable: false ends a prompt with an empty thought.
#[test]
fn thinking_is_switched_off_where_the_template_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(workspace().join(TARGET).join("config.json")).unwrap();
    let target = target(folder.path(), "thinker", &serde_json::from_str(&config).unwrap());
    let path = target.join("tokenizer_config.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let template = tokenizer["chat_template"].as_str().unwrap();
    let thinking = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}";
    tokenizer["chat_template"] = json!(format!("{template}{thinking}"));
    fs::write(&path, tokenizer.to_string()).unwrap();
    let (out, plain) = (folder.path().join("thinker.toml"), folder.path().join("plain.toml"));
    init(&target.display().to_string(), &out, &[]);
    init(TARGET, &plain, &[]);
    assert_eq!(recipe(&out).data.template_arguments["enable_thinking"], false);
    assert!(recipe(&plain).data.template_arguments.is_empty());
}
