//! What recipes promise to those who write them.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Algorithm, EvaluateSection, LearningRateSchedule, Recipe, RecipeError, Supervision, resolve_input};
use crate::evaluation::Turns;

const README: &str = include_str!("../../../recipes/README.md");
const QUICKSTART: &str = include_str!("../../../recipes/quickstart.toml");
const SMOLLM2: &str = include_str!("../../../recipes/smollm2_135m_dspark.toml");

const EAGLE3: &str = include_str!("../../../recipes/smollm2_135m_eagle3.toml");

const SMALLEST: &str = r#"name = "smallest"
target = "some/target"
[model]
num_draft_layers = 2
target_layer_ids = [1, 8]
num_anchors = 48
markov_rank = 64
[train]
lr = 6e-4
steps = 10
global_batch_size = 4
micro_batch_size = 2
[data]
train = ["a.jsonl"]
max_length = 512
"#;

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|argument| (*argument).to_owned()).collect();
    Recipe::parse(text, Path::new("r.toml"), &overrides)
}

fn error(overrides: &[&str]) -> String {
    parse(SMALLEST, overrides).expect_err("the recipe must be refused").to_string()
}

fn error_after(from: &str, to: &str) -> String {
    assert!(SMALLEST.contains(from), "{from:?} is not in the sample");
    parse(&SMALLEST.replace(from, to), &[]).expect_err("the recipe must be refused").to_string()
}

#[test]
fn defaults_are_the_published_settings() {
    let recipe = parse(SMALLEST, &[]).unwrap();
    assert_eq!(recipe.model.block_size, 7);
    assert_eq!(recipe.model.loss_decay(), Some(4.0));
    assert_eq!((recipe.model.ce_loss_alpha, recipe.model.l1_loss_alpha), (0.1, 0.9));
    assert_eq!(recipe.train.schedule, LearningRateSchedule::Cosine);
    assert_eq!((recipe.train.adam_beta1, recipe.train.adam_beta2), (0.9, 0.999));
    assert_eq!(recipe.data.min_supervised_tokens, 14);
    assert_eq!((recipe.evaluate.temperature, recipe.evaluate.max_new_tokens), (1.0, 2048));
    assert_eq!(recipe.evaluate.turns, Turns::All);
    assert_eq!(recipe.output_dir(), Path::new("runs/smallest"));
}

#[test]
fn shipped_recipes_are_valid() {
    let smollm2 = parse(SMOLLM2, &[]).unwrap();
    assert_eq!(smollm2.model.target_layer_ids, [1, 8, 15, 22, 27]);
    let eagle3 = parse(EAGLE3, &[]).unwrap();
    assert_eq!((eagle3.model.algorithm, eagle3.model.slots()), (Algorithm::Eagle3, 7));
    assert_eq!((eagle3.train, eagle3.data), (smollm2.train, smollm2.data));
    let quickstart = parse(QUICKSTART, &[]).unwrap();
    let tasks: Vec<_> = quickstart.evaluate.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(tasks, ["sums", "code", "chat"]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    for kind in ["dspark", "dflash"] {
        let gemma = Recipe::load(&folder.join(format!("gemma4_12b_{kind}.toml")), &[]).unwrap().model;
        assert_eq!(gemma.target_layer_ids, [5, 17, 29, 41, 46]);
        assert_eq!((gemma.mask_token_id, gemma.block_size, gemma.num_draft_layers), (Some(4), 7, 5));
        assert_eq!((gemma.num_anchors, gemma.markov_rank), (512, if kind == "dspark" { 256 } else { 0 }));
    }
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "toml") {
            names.push(Recipe::load(&file, &[]).unwrap_or_else(|error| panic!("{error}")).name);
        }
    }
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "two recipes of one name: {names:?}");
    // The twelve published settings, and all drafters for the two targets that fit a CPU.
    for target in ["qwen3-4b", "qwen3-8b", "qwen3-14b", "gemma4-12b", "smollm2-135m", "quickstart"] {
        for drafter in ["dspark", "dflash", "eagle3"] {
            let name = if (target, drafter) == ("quickstart", "dspark") {
                target.into()
            } else {
                format!("{target}-{drafter}")
            };
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
    }
}

#[test]
fn overrides_replace_add_and_keep_strings_without_quotes() {
    let overrides = [
        "train.lr=1e-3",
        "train.lr=3e-4",
        "model.target_layer_ids=[2, 5, 9]",
        "output.dir=runs/other one",
        "data.template_arguments.enable_thinking=false",
        "evaluate.tasks=[{ name = \"sums\" }]",
        "model.loss_decay_gamma=0",
        "train.schedule=reference",
    ];
    let recipe = parse(SMALLEST, &overrides).unwrap();
    assert_eq!(recipe.train.lr, 3e-4);
    assert_eq!(recipe.model.target_layer_ids, [2, 5, 9]);
    assert_eq!(recipe.output_dir(), Path::new("runs/other one"));
    assert_eq!(recipe.data.template_arguments["enable_thinking"], false);
    assert_eq!((recipe.evaluate.tasks[0].name.as_str(), &recipe.evaluate.tasks[0].path), ("sums", &None));
    assert_eq!(recipe.model.loss_decay(), None);
    assert_eq!(recipe.train.schedule, LearningRateSchedule::Reference);
}

#[test]
fn unknown_keys_name_line_and_path_and_suggest() {
    let message = error_after("lr = 6e-4", "lr = 6e-4\nwarmup_ration = 0.1");
    assert_eq!(message, "r.toml:10: unknown key `train.warmup_ration`; did you mean `train.warmup_ratio`?");
    let message = error_after("[data]", "[dta]");
    assert_eq!(message, "r.toml:13: unknown key `dta`; did you mean `data`?");
    let message = error(&["evaluate.tasks=[{ name = \"a\", file = \"b\" }]"]);
    assert!(message.contains("unknown key `evaluate.tasks[0].file`; known keys: name, path"), "{message}");
    let message = error(&["train.learning=1"]);
    assert!(message.starts_with("--set train.learning=1: unknown key `train.learning`"), "{message}");
    let message = error(&["train.lr=1", "modl.x=1"]);
    assert_eq!(message, "--set modl.x=1: unknown key `modl`; did you mean `model`?");
    let message = error(&["evaluate.task.name.x=1"]);
    assert_eq!(message, "--set evaluate.task.name.x=1: unknown key `evaluate.task`; did you mean `evaluate.tasks`?");
    // A table that the file has is the file's fault, whatever is laid over it.
    let file = SMALLEST.replace("[data]", "[modl]\ny = 1\n[data]");
    let message = parse(&file, &["modl.x=1"]).unwrap_err().to_string();
    assert!(message.starts_with("r.toml:13: unknown key `modl`"), "{message}");
}

#[test]
fn wrong_types_name_key_expected_and_found() {
    let cases = [
        ("lr = 6e-4", "lr = \"fast\"", "r.toml:9: `train.lr` must be a number, found the string \"fast\""),
        (
            "steps = 10",
            "steps = -1",
            "r.toml:10: `train.steps` must be a whole number of at least 0, found the whole number -1",
        ),
        (
            "steps = 10",
            "steps = 1.5",
            "r.toml:10: `train.steps` must be a whole number of at least 0, found the number 1.5",
        ),
        (
            "[1, 8]",
            "[1, true]",
            "r.toml:5: `model.target_layer_ids[1]` must be a whole number of at least 0, found true",
        ),
        ("[\"a.jsonl\"]", "\"a.jsonl\"", "r.toml:14: `data.train` must be an array, found the string \"a.jsonl\""),
        ("max_length = 512", "max_length = 2024-01-01", "found a date"),
        (
            "target = \"some/target\"",
            "target = { path = \"x\" }",
            "r.toml:2: `target` must be a string, found a table",
        ),
        (
            "lr = 6e-4",
            "lr = 1\nschedule = \"cosin\"",
            "r.toml:10: `train.schedule` must be one of \"cosine\", \"reference\", found \"cosin\"",
        ),
        (
            "lr = 6e-4",
            "lr = 1\nschedule = 3",
            "`train.schedule` must be one of \"cosine\", \"reference\", found the whole number 3",
        ),
    ];
    for (from, to, expected) in cases {
        let message = error_after(from, to);
        assert!(message.contains(expected), "{message}\nshould contain\n{expected}");
    }
}

#[test]
fn missing_keys_and_broken_toml_are_named() {
    let message = error_after("markov_rank = 64\n", "");
    assert_eq!(message, "r.toml:3: `model.markov_rank` is missing; recipes/README.md describes it");
    assert!(parse("name = \"x\"", &[]).unwrap_err().to_string().contains("`target` is missing"));
    let message = error_after("lr = 6e-4", "lr = = 6e-4");
    assert!(message.starts_with("r.toml:9: not valid TOML"), "{message}");
    let message = error_after("lr = 6e-4", "lr = 6e-4\nlr = 1");
    assert!(message.starts_with("r.toml:10: not valid TOML"), "{message}");
}

#[test]
fn malformed_overrides_are_refused() {
    assert!(error(&["train.lr"]).contains("expected the form section.key=value"));
    assert!(error(&["train..lr=1"]).contains("is not a key"));
    assert!(error(&["=1"]).contains("is not a key"));
    assert!(error(&["name.x=1"]).contains("`name` is of type string, not a table"));
    // A value that smuggles in a second line is a string, not two keys.
    assert!(error(&["train.lr=1\nsteps = 2"]).contains("`train.lr` must be a number"));
}

#[test]
fn of_two_ways_to_say_it_an_override_replaces_the_other() {
    let settings = ["train.micro_batch_tokens=9", "train.epochs=2"];
    let train = parse(SMALLEST, &settings).unwrap().train;
    assert_eq!((train.micro_batch_size, train.micro_batch_tokens), (None, Some(9)));
    assert_eq!((train.steps, train.epochs), (None, Some(2)));
    let back = parse(SMALLEST, &["train.epochs=2", "train.micro_batch_size=4"]).unwrap().train;
    assert_eq!((back.micro_batch_size, back.micro_batch_tokens), (Some(4), None));
}

#[test]
fn values_out_of_range_are_refused() {
    let cases = [
        (vec!["model.block_size=0"], "`model.block_size` must be at least 1, found 0"),
        (vec!["model.target_layer_ids=[3, 3]"], "must be strictly increasing, found [3, 3]"),
        (vec!["model.target_layer_ids=[]"], "`model.target_layer_ids` is empty"),
        (vec!["model.ce_loss_alpha=0", "model.l1_loss_alpha=0"], "the draft would not be trained"),
        (vec!["model.soft_ce_loss_alpha=-1"], "`model.soft_ce_loss_alpha` must be at least 0, found -1"),
        (vec!["train.optimizer=sgd"], "`train.optimizer`"),
        (vec!["model.l1_loss_alpha=-0.5"], "`model.l1_loss_alpha` must be at least 0, found -0.5"),
        (vec!["model.loss_decay_gamma=nan"], "`model.loss_decay_gamma` must be finite"),
        (vec!["train.lr=0"], "`train.lr` must be above 0, found 0"),
        (vec!["train.lr=inf"], "`train.lr` must be above 0, found inf"),
        (vec!["train.epochs=2", "train.steps=3"], "`train.epochs` cannot be combined with `train.steps`"),
        (
            vec!["train={lr = 1e-3, epochs = 2, global_batch_size = 4, micro_batch_size = 4}", "train.steps=3"],
            "`train.epochs` cannot be combined with `train.steps`",
        ),
        (
            vec!["train.micro_batch_tokens=9", "train.micro_batch_size=2"],
            "`train.micro_batch_tokens` cannot be combined with `train.micro_batch_size`",
        ),
        (vec!["train.micro_batch_size=3"], "must divide `train.global_batch_size` = 4, found 3"),
        (vec!["train.warmup_ratio=1"], "`train.warmup_ratio` must be at least 0 and below 1, found 1"),
        (vec!["train.keep_last=0"], "`train.keep_last` must be at least 1"),
        (vec!["data.train=[]"], "`data.train` is empty"),
        (vec!["data.max_length=14"], "must exceed `data.min_supervised_tokens` = 14, found 14"),
        (vec!["data.validation_fraction=1.0"], "`data.validation_fraction` must be at least 0 and below 1"),
        (
            vec!["data.validation=[\"v\"]", "data.validation_fraction=0.1"],
            "cannot be combined with `data.validation`",
        ),
        (vec!["evaluate.tasks=[{name='a'},{name='a'}]"], "names \"a\" twice"),
        (vec!["evaluate.temperature=-1"], "`evaluate.temperature` must be at least 0"),
        (
            vec!["model.enable_confidence_head=false", "evaluate.confidence_threshold=0.3"],
            "`evaluate.confidence_threshold` = 0.3 needs a confidence head, but `model.enable_confidence_head` is \
             false",
        ),
        (vec!["evaluate.mode=off"], "nothing is drafted"),
        (vec!["evaluate.mode=all"], "expected `whole`"),
        (
            vec!["model.enable_confidence_head=false", "evaluate.mode=threshold:0.3"],
            "`evaluate.mode` = \"threshold:0.3\" needs a confidence head, but `model.enable_confidence_head` is false",
        ),
        (vec!["evaluate.mode=scheduled", "evaluate.confidence_threshold=0.3"], "both limit what is verified"),
        (vec!["evaluate.samples=0"], "`evaluate.samples` must be at least 1"),
        (vec!["name=../up"], "is a folder name"),
    ];
    for (overrides, expected) in cases {
        let message = error(&overrides);
        assert!(message.contains(expected), "{message}\nshould contain\n{expected}");
        assert!(message.starts_with("--set "), "the argument is named: {message}");
    }
    assert!(error(&["data.format=text", "data.template_arguments.a=1"]).contains("uses no chat template"));
    assert!(error_after("steps = 10\n", "").contains("r.toml:8: `train` needs either `steps` or `epochs`"));
}

#[test]
fn every_algorithm_has_fields_of_its_own() {
    let eagle3 = SMALLEST
        .replace("num_draft_layers = 2\n", "algorithm = \"eagle3\"\n")
        .replace("num_anchors = 48\nmarkov_rank = 64\n", "ttt_length = 5\n");
    let recipe = parse(&eagle3, &[]).unwrap();
    assert_eq!((recipe.model.slots(), recipe.model.step_loss_decay), (5, 0.8));
    assert_eq!(recipe.model.supervision, Supervision::Predicted);
    assert!(!recipe.model.has_confidence_head());
    for (overrides, expected) in [
        (&["model.markov_rank=4"][..], "`model.markov_rank` has no meaning with `model.algorithm = \"eagle3\"`"),
        (&["model.block_size=4"], "`model.block_size` has no meaning"),
        (&["model.initialize_from_target=true"], "`model.initialize_from_target` has no meaning"),
        (&["model.ttt_length=0"], "`model.ttt_length` must be at least 1, found 0"),
        (&["model.num_anchors=0"], "`model.num_anchors` must be at least 1, found 0"),
        (&["model.step_loss_decay=1.5"], "`model.step_loss_decay` must be above 0 and at most 1, found 1.5"),
        (&["model.supervision=late"], "`model.supervision` must be one of \"predicted\", \"reference\""),
        (&["model.num_anchors=9", "model.supervision=reference"], "cannot be combined with `model.supervision"),
        (&["evaluate.confidence_threshold=0.3"], "Eagle3 drafts have none"),
    ] {
        let message = parse(&eagle3, overrides).unwrap_err().to_string();
        assert!(message.contains(expected) && message.starts_with("--set "), "{message}\nshould contain\n{expected}");
    }
    assert!(error(&["model.ttt_length=4"]).contains("no meaning with `model.algorithm = \"dspark\"`"));
    assert!(error(&["model.algorithm=eagle2"]).contains("must be one of \"dspark\", \"eagle3\""));
}

/// A run goes on only where the digest of its settings is the same, and that is taken of this text.
#[test]
fn the_text_of_the_model_section_stays_as_it_was() {
    let text = |recipe: &str| serde_json::to_string(&parse(recipe, &[]).unwrap().model).unwrap();
    let expected = r#"{"algorithm":"dspark","block_size":7,"num_draft_layers":2,"target_layer_ids":[1,8],"mask_token_id":null,"num_anchors":48,"markov_rank":64,"draft_vocab_size":null,"markov_head_type":"vanilla","enable_confidence_head":true,"confidence_head_with_markov":true,"loss_decay_gamma":4.0,"ce_loss_alpha":0.1,"soft_ce_loss_alpha":0.0,"l1_loss_alpha":0.9,"confidence_head_alpha":1.0,"initialize_from_target":false,"ttt_length":7,"step_loss_decay":0.8,"supervision":"predicted"}"#;
    assert_eq!(text(SMALLEST), expected);
}

#[test]
fn epochs_count_partly_filled_batches() {
    let recipe = parse(&SMALLEST.replace("steps = 10", "epochs = 3"), &[]).unwrap();
    assert_eq!(recipe.train.total_steps(9), 9);
    assert_eq!(parse(SMALLEST, &[]).unwrap().train.total_steps(9), 10);
}

#[test]
fn inputs_are_found_beside_the_recipe_when_not_in_the_working_directory() {
    let folder = tempfile::tempdir().unwrap();
    let beside = folder.path().join("only-beside-the-recipe.jsonl");
    std::fs::write(&beside, "").unwrap();
    let recipe_file = folder.path().join("r.toml");
    std::fs::write(&recipe_file, SMALLEST.replace("a.jsonl", "only-beside-the-recipe.jsonl")).unwrap();
    let recipe = Recipe::load(&recipe_file, &[]).unwrap();
    assert_eq!(recipe.data.train, [beside]);
    assert_eq!(recipe.target, "some/target", "a name that is no folder stays as it is");
    assert_eq!(resolve_input(Path::new("nowhere.jsonl"), folder.path()), Path::new("nowhere.jsonl"));

    let missing = Recipe::load(&folder.path().join("none.toml"), &[]).unwrap_err().to_string();
    assert!(missing.contains("cannot read the recipe") && missing.contains("none.toml"), "{missing}");
}

/// Full keys of every field, sections themselves left out, array elements written `[]`.
fn fields(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        // The one table whose keys belong to the template, not to the recipe.
        serde_json::Value::Object(table) if path != "data.template_arguments" => {
            for (key, value) in table {
                let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if !value.is_object() || full == "data.template_arguments" {
                    found.insert(full.clone());
                }
                fields(value, &full, found);
            }
        }
        serde_json::Value::Array(items) => {
            for item in items.iter().filter(|item| item.is_object()) {
                fields(item, &format!("{path}[]"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_field_is_documented_and_every_documented_field_exists() {
    // One that has what is left out of digests while it is absent.
    let recipe = parse(
        SMALLEST,
        &[
            "evaluate.tasks=[{ name = \"a\" }]",
            "train.from=\"draft\"",
            "train.compute=bf16",
            "evaluate.mode=fixed:1",
            "model.num_draft_layers=1",
            "model.sliding_window=8",
            "model.layer_types=[\"sliding_attention\"]",
            "model.sliding_window_non_causal=true",
            "data.cut_answers=true",
            "data.store=samples",
            "data.cache=states",
        ],
    )
    .unwrap();
    let mut existing = BTreeSet::new();
    fields(&serde_json::to_value(&recipe).unwrap(), "", &mut existing);
    // And one of two that cannot both stand there.
    let other = parse(&SMALLEST.replace("micro_batch_size = 2", "micro_batch_tokens = 2048"), &[]).unwrap();
    fields(&serde_json::to_value(&other).unwrap(), "", &mut existing);
    let documented: BTreeSet<String> = README
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(field, _)| field.to_owned())
        .filter(|field| !field.ends_with(".toml"))
        .collect();
    assert_eq!(existing, documented);
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_made_of_them() {
    let sizes = [
        "model.block_size",
        "model.num_draft_layers",
        "model.num_anchors",
        "model.markov_rank",
        "model.draft_vocab_size",
        "train.steps",
        "train.epochs",
        "train.global_batch_size",
        "train.micro_batch_size",
        "train.micro_batch_tokens",
        "data.max_length",
        "data.min_supervised_tokens",
        "evaluate.max_new_tokens",
    ];
    for key in sizes {
        for value in ["1000000000000", "9223372036854775807", "-1", "1e308"] {
            let message = error(&[&format!("{key}={value}")]);
            assert!(message.contains(&format!("`{key}`")) && message.contains("must be"), "{message}");
        }
    }
    assert!(error(&["model.block_size=1e308"]).ends_with("found the number 1e308"));
    let published = ["model.block_size=16", "model.num_anchors=512", "train.global_batch_size=512"];
    parse(SMALLEST, &published).unwrap();
}

/// Tables are read, compared and dropped by functions that call themselves.
#[test]
fn keys_and_values_without_a_bottom_are_refused() {
    let deep = format!("a{}=1", ".b".repeat(40_000));
    let message = error(&[&deep]);
    assert!(message.contains("more than 16 names") && message.len() < 300, "{message}");
    let value = format!("data.template_arguments={}1{}", "{a=".repeat(40_000), "}".repeat(40_000));
    assert!(error(&[&value]).len() < 1000);
    assert!(parse(&deep, &[]).is_err());
    assert!(parse(&format!("x = {}{}", "[".repeat(40_000), "]".repeat(40_000)), &[]).is_err());
}

/// A recipe that names no mode has the settings that it had before there were modes, and is not evaluated again.
#[test]
fn the_default_mode_leaves_no_trace_in_the_settings() {
    let mut evaluate = EvaluateSection::default();
    assert!(!serde_json::to_string(&evaluate).unwrap().contains("\"mode\""));
    evaluate.mode = "scheduled".parse().unwrap();
    assert!(serde_json::to_string(&evaluate).unwrap().contains("\"mode\":\"scheduled\""));
}
