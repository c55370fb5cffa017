//! Training the tiny target from random weights.
//!
//! Legend: `n` supervised tokens, `s` tokens of a batch, `d` hidden size, `v` vocabulary.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use clap::Args;
use deepspec::console::Progress;
use deepspec::conversation::{Format, ReadOptions, Sample, read_samples};
use deepspec::trainer::{GradientSum, LearningRate, Optimizer, OptimizerSettings, SampleOrder};
use dspark_runtime::checkpoint::{AtomicDirectory, JsonFields, WeightDtype};
use dspark_runtime::commands::print;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{Target, TargetConfig, TargetSegment};
use dspark_runtime::tensors::ints;
use dspark_runtime::text::Tokenizer;
use serde_json::{Value, json};

use crate::conversation::Domain;
use crate::split::{Split, conversations};
use crate::tokenizer::{VOCABULARY_SIZE, train_tokenizer};

/// Rows of the embedding: the tokens, and some that no token uses, of which the first becomes the draft's mask token.
const EMBEDDING_ROWS: usize = VOCABULARY_SIZE + 16;

/// Longest conversation, tokens.
const MAX_LENGTH: usize = 256;

/// Conversations of each domain for every ten: sums need the most practice.
const MIXTURE: [(Domain, usize); 3] = [(Domain::Sums, 5), (Domain::Code, 2), (Domain::Chat, 3)];

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder to write the target to
    #[arg(long, default_value = "checkpoints/quickstart-target")]
    out: PathBuf,
    /// Optimiser steps
    #[arg(long, default_value_t = 3600)]
    steps: u64,
    /// Conversations per step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Seed of tokeniser, data, order and weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

/// Trains tokeniser and target, and writes both, whole or not at all.
pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let directory = AtomicDirectory::begin(&arguments.out)?;
    train_tokenizer(directory.path(), arguments.seed, VOCABULARY_SIZE)?;
    let tokenizer = Tokenizer::from_directory(directory.path())?;
    let samples = training_samples(&tokenizer, arguments)?;
    let Value::Object(fields) = target_config() else { unreachable!("the configuration is an object") };
    let config = TargetConfig::from_fields(JsonFields::new(arguments.out.join("config.json"), fields))?;
    let target = train(Target::random(config, arguments.seed, &device), &samples, arguments);
    target.write_into(directory.path(), WeightDtype::Bf16)?;
    directory.commit()?;
    Ok(print(format_args!("wrote {}", arguments.out.display()))?)
}

/// Qwen3 in miniature: 2.3 million parameters.
fn target_config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": null,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 448,
        "max_position_embeddings": 1024,
        "model_type": "qwen3",
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": EMBEDDING_ROWS,
    })
}

/// Returns as many conversations of the training split as the steps need, each once.
fn training_samples(tokenizer: &Tokenizer, arguments: &Arguments) -> Result<Vec<Sample>> {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile()?;
    let total = arguments.steps as usize * arguments.batch;
    let parts: usize = MIXTURE.iter().map(|(_, part)| part).sum();
    {
        let mut out = std::io::BufWriter::new(file.as_file_mut());
        for (domain, part) in MIXTURE {
            let rows = conversations(domain, Split::Train, arguments.seed.wrapping_add(1));
            for (index, row) in rows.take((total * part).div_ceil(parts)).enumerate() {
                writeln!(out, "{}", row.training_row(&format!("{}-{index}", domain.name())))?;
            }
        }
        out.flush()?;
    }
    let options = ReadOptions {
        format: Format::Chat,
        max_length: MAX_LENGTH,
        minimum_supervised_tokens: 1,
        template_arguments: serde_json::Map::new(),
        strict: true,
        cut_answers: false,
        vocabulary_size: EMBEDDING_ROWS,
    };
    let mut samples = Vec::new();
    read_samples(&[file.path().to_owned()], tokenizer, &options, |sample| {
        samples.push(sample);
        Ok(())
    })?;
    Ok(samples)
}

fn train(target: Target, samples: &[Sample], arguments: &Arguments) -> Target {
    let mut optimizer = Optimizer::new(&OptimizerSettings {
        beta_1: 0.9,
        beta_2: 0.98,
        epsilon: 1e-8,
        weight_decay: 0.0,
        muon: false,
        max_grad_norm: 1.0,
    });
    let rate = LearningRate::new(arguments.lr, arguments.steps, 0.05, false);
    let mut progress = Progress::new("pretrain", arguments.steps, 0);
    let mut parameters = target.parameters().clone().unfreeze().train();
    let order = SampleOrder::new(samples.len(), arguments.batch, arguments.seed);
    for step in 0..arguments.steps {
        let batch: Vec<&Sample> = order.of_step(step).into_iter().map(|index| &samples[index]).collect();
        let model = target.with_parameters(parameters);
        let loss = next_token_loss(&model, &batch);
        let mut gradients = GradientSum::default();
        gradients.add(loss.backward(), model.parameters());
        let value: f32 = loss.inner().into_scalar();
        let (gradients, norm) = optimizer.clip(gradients, model.parameters());
        parameters = optimizer.step(rate.at(step), model.parameters().clone(), gradients);
        progress.step(|| format!("loss {value:.3} gradient {norm:.2}"));
    }
    progress.finish();
    target.with_parameters(parameters.valid())
}

/// Mean cross-entropy of the supervised tokens of a batch, nats.
fn next_token_loss(model: &Target, batch: &[&Sample]) -> Tensor<1> {
    let mut segments: Vec<TargetSegment<'_>> =
        batch.iter().map(|sample| TargetSegment { ids: &sample.token_ids, cache: None }).collect();
    let hidden_sd = model.forward(&mut segments, &[]).last_hidden_nd;
    let (mut rows, mut labels, mut first) = (Vec::new(), Vec::new(), 0);
    for sample in batch {
        for next in 1..sample.token_ids.len() {
            if sample.loss_mask[next] {
                rows.push((first + next - 1) as i32);
                labels.push(sample.token_ids[next] as i32);
            }
        }
        first += sample.token_ids.len();
    }
    let n = rows.len();
    let device = hidden_sd.device();
    let hidden_nd = hidden_sd.select(0, ints(rows, &device));
    let log_p_nv = log_softmax(model.logits(hidden_nd), 1);
    log_p_nv.gather(1, ints(labels, &device).reshape([n, 1])).mean().neg()
}
