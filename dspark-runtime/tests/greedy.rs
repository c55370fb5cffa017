//! Greedy ids equal to those of the `transformers` package (f32), for the real models that are on this machine.
//!
//! Models are looked for in `DSPARK_MODELS`, else in `~/.cache/dspark-models`; a model that is not there is skipped. The
//! golden ids and the command that made them are in `golden/`. Memory for the largest is 7 GB.

use std::path::PathBuf;

use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::Target;
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use serde_json::Value;

fn folder() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/dspark-models");
    std::env::var_os("DSPARK_MODELS").map_or_else(home, PathBuf::from)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn greedy_ids_equal_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/greedy_ids.json")).unwrap();
    let models = golden["models"].as_array().unwrap();
    assert_eq!(models.len(), 4);
    for model in models {
        let name = model["model"].as_str().unwrap();
        let path = folder().join(name);
        if !path.join("model.safetensors").is_file() {
            println!("skipped {name}: not in {}", path.display());
            continue;
        }
        let target = Target::load(&path, &DeviceChoice::Cpu.open().unwrap()).unwrap();
        for prompt in model["prompts"].as_array().unwrap() {
            let expected = ids(&prompt["ids"]);
            let options = GenerationOptions {
                max_new_tokens: expected.len(),
                stop_token_ids: Vec::new(),
                confidence_threshold: 0.0,
            };
            let decoder = Decoder::new(&target, None);
            let generation = decoder.generate(&ids(&prompt["prompt_ids"]), &options, &mut Sampler::greedy()).unwrap();
            assert_eq!(generation.ids, expected, "{name}: {}", prompt["prompt"]);
        }
        println!("{name}: {} prompts equal", model["prompts"].as_array().unwrap().len());
    }
}
