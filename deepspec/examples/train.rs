//! Trains a draft for a target, exports it and measures it, without a recipe file.
//!
//! ```sh
//! cargo run --release -p deepspec --example train -- [TARGET [OUTPUT]]
//! ```
//!
//! `deepspec run` does the same from a recipe and adds resuming, validation and checks. The comments name the recipe's fields.

use std::error::Error;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use deepspec::conversation::{Format, MINIMUM_SUPERVISED_TOKENS, ReadOptions, SampleSet, Samples, read_samples};
use deepspec::evaluation::{
    EvaluationMode, EvaluationOptions, EvaluationReport, Models, Records, SamplingMethod, Tables, Task, Turns,
    evaluate, table,
};
use deepspec::objective::{BlockChoice, Denominator, LossWeights};
use deepspec::process::Interrupter;
use deepspec::trainer::{
    BatchSettings, Course, LearningRate, MicroBatches, OptimizerSettings, RunFolder, TrainJob, TrainSettings, train,
};
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::device::DeviceChoice;
use dspark_runtime::model::{
    DSparkConfig, Draft, DraftConfig, DraftKind, DraftShape, LayerId, MarkovHeadType, Target,
};
use dspark_runtime::text::Tokenizer;
use serde_json::Map;

const SLOTS: usize = 7;
const ANCHORS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().unwrap_or_else(|| "checkpoints/quickstart-target".to_owned());
    let output = arguments.next().unwrap_or_else(|| "runs/example".to_owned());
    let data = Path::new("datasets/quickstart");
    println!("{}", table(&train_and_evaluate(Path::new(&target), data, Path::new(&output), 100, 20)?));
    Ok(())
}

/// Trains on the sums in `data` for some steps, exports to `output/draft` and evaluates that folder on some prompts.
pub fn train_and_evaluate(
    target_folder: &Path,
    data: &Path,
    output: &Path,
    steps: u64,
    prompts: usize,
) -> Result<EvaluationReport, Box<dyn Error>> {
    let tokenizer = Tokenizer::of_model(target_folder)?;
    let target = Target::load(target_folder, &DeviceChoice::Cpu.open()?)?;
    let vocabulary = target.config().vocab_size;

    // Data: conversations become token ids with a mask of the assistant's tokens, which are the supervised ones.
    let options = ReadOptions {
        format: Format::Chat,
        max_length: 256,
        minimum_supervised_tokens: MINIMUM_SUPERVISED_TOKENS,
        template_arguments: Map::new(),
        strict: false,
        cut_answers: false,
        vocabulary_size: vocabulary,
    };
    let mut training = Vec::new();
    let report = read_samples(&[data.join("sums.train.jsonl")], &tokenizer, &options, |sample| {
        training.push(sample);
        Ok(())
    })?;
    println!("training data: {report}");

    // The draft (`[model]`): one layer that reads the target's hidden states after layers 0 and 2 and drafts 7 tokens.
    let shape = DraftShape {
        block_size: SLOTS,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0), LayerId(2)],
        kind: DraftKind::DSpark(DSparkConfig {
            // A row of the embedding that no text uses.
            mask_token_id: tokenizer.first_unused_row(vocabulary).ok_or("every embedding row belongs to a token")?,
            num_anchors: ANCHORS,
            markov_rank: 64,
            markov_head_type: MarkovHeadType::Vanilla,
            enable_confidence_head: true,
            confidence_head_with_markov: true,
            sliding: None,
        }),
    };
    let texts: Vec<&[u32]> = training.iter().take(4).map(|sample| sample.token_ids.as_slice()).collect();
    let draft = Draft::new(DraftConfig::for_target(target.config(), &shape)?, &target, 0);
    // Copies layers, embedding and head of the target, a better start than random weights (`initialize_from_target`).
    let draft = draft.initialized_from(&target, &texts);
    // Samples in memory; `SampleStore` keeps them on disk for later starts, as a recipe's are.
    let samples = Samples { training: training.into(), validation: SampleSet::default() };

    // Training (`[train]`). In every step the target computes the hidden states of the step's samples.
    let settings = TrainSettings {
        learning_rate: LearningRate::new(1e-2, steps, 0.04, false),
        optimizer: OptimizerSettings {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            muon: true,
        },
        loss: LossWeights {
            cross_entropy: 0.1,
            soft_cross_entropy: 0.0,
            l1: 0.9,
            confidence: 1.0,
            decay: Some(4.0),
            denominator: Denominator::SlotWeights,
        },
        compute: DType::F32,
        batches: BatchSettings {
            global_batch_size: 8,
            micro_batches: MicroBatches::Samples(8),
            blocks: BlockChoice::Drawn { count: ANCHORS, first: 1 },
            block_size: SLOTS,
            seed: 0,
        },
        checkpoint_every: steps,
        keep_last: 1,
        validate_every: 0,
        log_every: 10,
    };
    let run = RunFolder { path: output.to_owned(), course: Course::default(), resume: false };
    let report = train(TrainJob {
        target: &target,
        cache: None,
        draft,
        samples: &samples,
        settings,
        run,
        interrupter: Interrupter::new(),
    })?;
    println!("trained {} parameters in {} steps, {:.0} s", report.parameters, report.steps, report.seconds);

    // Export: a folder that `dspark serve --draft` and `deepspec inspect` take.
    let exported = output.join("draft");
    Draft::load(&report.checkpoint, &target)?.save(&exported, WeightDtype::Bf16, true)?;

    // Evaluation: of the exported folder, so that the figures are those of what is served.
    let draft = Draft::load(&exported, &target)?;
    let task = |name: &str, file: &str| Task { name: name.to_owned(), path: PathBuf::from(data).join(file) };
    let options = EvaluationOptions {
        temperature: 0.0,
        max_new_tokens: 96,
        samples: Some(prompts),
        seed: 0,
        sampling: SamplingMethod::Rejection,
        turns: Turns::All,
        mode: EvaluationMode::default(),
        tables: Tables::default(),
        confidence_threshold: 0.0,
        template_arguments: Map::new(),
        measure_plain: true,
    };
    let models = Models { target: &target, draft: &draft, tokenizer: &tokenizer };
    let names = (&*target_folder.to_string_lossy(), &*exported.to_string_lossy());
    Ok(evaluate(models, names, &[task("sums", "sums.evaluate.jsonl")], &options, Records::default())?)
}
