//! What a training promises, on the tiny models.

mod checkpoints;

use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use dspark_runtime::model::{Draft, DraftParameters, FeedForward, Target};
use serde_json::{Value, json};

use super::*;
use crate::conversation::{Sample, SampleSet, Samples};
use crate::objective::{BlockChoice, Denominator, LossWeights};
use crate::process::{Interrupter, Signal};
use crate::testing::{TINY_VOCABULARY as VOCABULARY, tiny_eagle3_models as eagle3_models, tiny_models as models};

const TOKENS: usize = 24;

/// Samples of which those that `supervised` names carry loss.
fn samples(count: usize, supervised: impl Fn(usize) -> bool) -> Vec<Sample> {
    let sample = |index: usize| Sample {
        id: index.to_string(),
        token_ids: (0..TOKENS).map(|token| (index * 17 + token * 7) as u32 % (VOCABULARY - 8)).collect(),
        loss_mask: vec![supervised(index); TOKENS],
    };
    (0..count).map(sample).collect()
}

/// Samples that all carry loss, and none to validate on.
fn training(count: usize) -> Samples {
    Samples { training: samples(count, |_| true).into(), validation: SampleSet::default() }
}

fn settings(steps: u64) -> TrainSettings {
    TrainSettings {
        learning_rate: LearningRate::new(1e-3, steps, 0.0, false),
        optimizer: OptimizerSettings {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            muon: false,
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
            global_batch_size: 1,
            micro_batches: MicroBatches::Samples(1),
            blocks: BlockChoice::Drawn { count: 3, first: 0 },
            block_size: 4,
            seed: 5,
        },
        checkpoint_every: 1,
        keep_last: 9,
        validate_every: 0,
        log_every: 1,
    }
}

/// Of an Eagle3 draft, with blocks at all anchors or at some.
fn eagle3_settings(steps: u64, count: usize) -> TrainSettings {
    TrainSettings {
        loss: LossWeights::eagle3(0.8),
        batches: BatchSettings { blocks: BlockChoice::Drawn { count, first: 1 }, ..settings(steps).batches },
        ..settings(steps)
    }
}

/// A course told by one setting.
fn course(seed: u64) -> Course {
    Course { settings: [("train.seed".to_owned(), json!(seed))].into_iter().collect(), earlier_digest: None }
}

fn run_folder(path: &Path, resume: bool) -> RunFolder {
    RunFolder { path: path.to_owned(), course: course(5), resume }
}

/// A teacher that computes NaN is called the cause, not the draft's loss.
#[test]
fn a_target_of_nan_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (target, draft) = models();
    let config = target.config().clone();
    let folder = root.path().join("target");
    fs::create_dir(&folder).unwrap();
    target.write_into(&folder, dspark_runtime::checkpoint::WeightDtype::F32).unwrap();
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The last number of the file is one of the target's.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let opened = config.open_weights(&folder).unwrap();
    let broken = Target::from_weights(
        config,
        &opened,
        dspark_runtime::checkpoint::WeightPrecision::F32,
        &burn::tensor::Device::flex(),
    )
    .unwrap();
    let models = (broken, draft);
    let run = Run { models: &models, samples: &training(2), folder: &root.path().join("run") };
    let error = run.train(settings(2), false).unwrap_err();
    assert!(matches!(error, TrainError::Teacher { step: 1, .. }), "{error}");
    assert!(error.to_string().contains("the target"), "{error}");
}

struct Run<'a> {
    models: &'a (Target, Draft),
    samples: &'a Samples,
    folder: &'a Path,
}

impl Run<'_> {
    fn train(&self, settings: TrainSettings, resume: bool) -> Result<TrainReport, TrainError> {
        train(TrainJob {
            target: &self.models.0,
            cache: None,
            draft: self.models.1.clone(),
            samples: self.samples,
            settings,
            run: run_folder(self.folder, resume),
            interrupter: Interrupter::new(),
        })
    }

    fn checkpoints(&self) -> TrainingCheckpoints {
        TrainingCheckpoints::new(self.folder.join("checkpoints"), 9)
    }

    /// The steps of the checkpoints on disk.
    fn steps(&self) -> Vec<u64> {
        self.checkpoints().steps().unwrap()
    }

    fn weights(&self, step: u64) -> Vec<u8> {
        fs::read(self.checkpoints().path(step).join("model.safetensors")).unwrap()
    }
}

#[track_caller]
fn not_finite(result: Result<TrainReport, TrainError>, expected_step: u64, expected_term: &str, kept: &str) {
    let error = result.expect_err("the training must stop");
    let message = error.to_string();
    let TrainError::NotFinite { step, term, .. } = error else { panic!("{message}") };
    assert_eq!((step, term.as_str()), (expected_step, expected_term), "{message}");
    assert!(message.contains(kept), "{message}");
}

/// Nothing is supervised until the third step, whose update is so large that the fourth step's loss is NaN: the weights
/// that the third step left are the culprit, though all of them are finite.
#[test]
fn weights_whose_loss_is_not_finite_never_become_a_checkpoint() {
    let models = models();
    let order = SampleOrder::new(5, 1, settings(5).batches.seed);
    let settled: Vec<usize> = (0..2).flat_map(|step| order.of_step(step)).collect();
    let training = samples(5, |index| !settled.contains(&index));
    let ruinous = |steps: u64, validate_every: u64| TrainSettings {
        learning_rate: LearningRate::new(1e38, steps, 0.0, false),
        validate_every,
        ..settings(steps)
    };
    let samples = Samples { training: training.into(), validation: samples(1, |_| true).into() };
    for (steps, validate_every, expected_step, term) in [
        (5, 0, 4, "cross-entropy"),
        // After the last step there is no next one.
        (3, 0, 3, "updated draft's cross-entropy"),
        (5, 3, 3, "validation cross-entropy"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let run = Run { models: &models, samples: &samples, folder: root.path() };
        not_finite(run.train(ruinous(steps, validate_every), false), expected_step, term, "step-00000002");
        assert_eq!(run.steps(), [1, 2], "{term}");
        // Going on from there ends in the same way and spoils nothing.
        not_finite(run.train(ruinous(steps, validate_every), true), expected_step, term, "step-00000002");
        assert_eq!(run.steps(), [1, 2], "{term}");
    }
}

#[test]
fn a_gradient_or_weight_that_is_not_finite_is_named() {
    let (target, mut draft) = models();
    let samples = training(4);
    let root = tempfile::tempdir().unwrap();
    let overflowing = LossWeights { cross_entropy: 1e39, decay: None, ..settings(3).loss };
    let models = (target, draft.clone());
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    not_finite(run.train(TrainSettings { loss: overflowing, ..settings(3) }, false), 1, "gradient norm", "none yet");

    // The Markov row of a token that no sample has: no loss looks at it.
    let head = draft.parameters.markov_head.as_mut().unwrap();
    head.markov_w1.weight = head.markov_w1.weight.clone().map(|w1_vr| {
        let row = Tensor::full([1, 4], f32::INFINITY, &w1_vr.device());
        w1_vr.slice_assign([VOCABULARY as usize - 2..VOCABULARY as usize - 1, 0..4], row)
    });
    let root = tempfile::tempdir().unwrap();
    let models = (models.0, draft);
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    not_finite(run.train(settings(3), false), 1, "weight `markov_head.markov_w1.weight`", "none yet");
    assert!(run.steps().is_empty());
}

#[test]
fn a_run_continued_from_any_checkpoint_is_the_same_run() {
    continued(&models(), settings(7));
}

#[test]
fn so_is_a_continued_run_of_an_eagle3_draft() {
    continued(&eagle3_models(), eagle3_settings(7, 5));
}

fn continued(models: &(Target, Draft), settings: TrainSettings) {
    let samples = training(6);
    // Muon's momentum and AdamW's moments both have to come back.
    let optimizer = OptimizerSettings { muon: true, ..settings.optimizer };
    let batches = BatchSettings { global_batch_size: 2, ..settings.batches };
    let settings = TrainSettings { optimizer, batches, ..settings };
    let whole = tempfile::tempdir().unwrap();
    let whole = Run { models, samples: &samples, folder: whole.path() };
    whole.train(settings.clone(), false).unwrap();
    assert_eq!(whole.steps(), [1, 2, 3, 4, 5, 6, 7]);
    for step in [1, 4, 6] {
        let root = tempfile::tempdir().unwrap();
        let run = Run { models, samples: &samples, folder: root.path() };
        let (from, to) = (whole.checkpoints().path(step), run.checkpoints().path(step));
        fs::create_dir_all(&to).unwrap();
        for file in ["config.json", "model.safetensors", "optimizer.bpk", "state.json"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
        run.train(settings.clone(), true).unwrap();
        for later in step..=7 {
            assert!(run.weights(later) == whole.weights(later), "step {later} continued from {step}");
        }
    }
    let occupied = whole.train(settings, false).unwrap_err();
    assert!(matches!(occupied, TrainError::Occupied { .. }), "{occupied}");
}

#[test]
fn micro_batches_do_not_change_the_step() {
    split(&models(), settings(4));
}

/// The reference divides the loss of an Eagle3 draft by the positions of each micro-batch.
#[test]
fn nor_does_an_eagle3_drafts_step_depend_on_them() {
    split(&eagle3_models(), eagle3_settings(4, usize::MAX));
    let usual = eagle3_settings(4, 0);
    let batches = BatchSettings { blocks: BlockChoice::Eagle3Reference, ..usual.batches };
    split(&eagle3_models(), TrainSettings { batches, ..usual });
}

fn split(models: &(Target, Draft), settings: TrainSettings) {
    // Different numbers of supervised slots, so that a mean of means would show.
    let mut cut = samples(4, |_| true);
    for (index, sample) in cut.iter_mut().enumerate() {
        sample.token_ids.truncate(TOKENS - 5 * index);
        sample.loss_mask.truncate(TOKENS - 5 * index);
        sample.loss_mask[..3 * index].fill(false);
    }
    let samples = Samples { training: cut.into(), validation: SampleSet::default() };
    let last = |micro_batches: MicroBatches| {
        let root = tempfile::tempdir().unwrap();
        let run = Run { models, samples: &samples, folder: root.path() };
        let batches = BatchSettings { global_batch_size: 4, micro_batches, ..settings.batches };
        let settings = TrainSettings { batches, ..settings.clone() };
        run.train(settings, false).unwrap().last.unwrap()
    };
    let whole = last(MicroBatches::Samples(4));
    for split in [MicroBatches::Samples(1), MicroBatches::Tokens(2 * TOKENS), MicroBatches::Tokens(1)] {
        let split = last(split);
        assert!((whole.loss - split.loss).abs() < 1e-5 * whole.loss, "{whole:?}\n{split:?}");
        assert_eq!(whole.supervised_tokens, split.supervised_tokens);
    }
}

/// Layers in bf16, everything else in f32: the same training but for rounding, of either drafter.
#[test]
fn computing_in_bf16_trains_almost_alike() {
    for (models, settings) in [(models(), settings(12)), (eagle3_models(), eagle3_settings(12, usize::MAX))] {
        let samples = training(3);
        let last = |compute: DType| {
            let root = tempfile::tempdir().unwrap();
            let run = Run { models: &models, samples: &samples, folder: root.path() };
            run.train(TrainSettings { compute, ..settings.clone() }, false).unwrap().last.unwrap().loss
        };
        let (wide, narrow) = (last(DType::F32), last(DType::BF16));
        assert!(wide != narrow && (wide - narrow).abs() < 0.01 * wide, "{wide} {narrow}");
    }
}

#[test]
fn gradients_are_clipped_by_their_global_norm() {
    let (_, draft) = models();
    let parameters = draft.parameters.clone().unfreeze().train();
    let optimizer = Optimizer::new(&settings(1).optimizer);
    // Two tensors of 32 values each, every gradient the same: the norm is 8 times that.
    for (each, clipped) in [(0.1, 0.8), (3.0, 1.0)] {
        let sum = parameters.norm.weight.val().sum() + parameters.hidden_norm.as_ref().unwrap().weight.val().sum();
        let mut gradients = GradientSum::default();
        gradients.add((sum * each).backward(), &parameters);
        let (gradients, norm) = optimizer.clip(gradients, &parameters);
        assert!((norm - 8.0 * each).abs() < 1e-4, "{norm}");
        let left = Optimizer::gradient_norm(&gradients, &parameters);
        assert!((left - clipped).abs() < 1e-4, "{left}");
    }
}

/// One step from the same gradients, with AdamW alone and with Muon.
#[test]
fn muon_takes_the_matrices_between_hidden_states_and_leaves_the_rest_to_adamw() {
    const RATE: f64 = 1e-2;
    let (_, draft) = models();
    let before = draft.parameters.clone().unfreeze().train();
    let step = |muon: bool| {
        let mut sum = GradientSum::default();
        let mut total: Option<Tensor<1>> = None;
        // A gradient that is not the same everywhere: each parameter's own values.
        before.visit(&mut Squares { total: &mut total });
        sum.add(total.unwrap().backward(), &before);
        let mut optimizer = Optimizer::new(&OptimizerSettings { muon, ..settings(1).optimizer });
        optimizer.step(RATE, before.clone(), sum)
    };
    let (adamw, muon) = (step(false), step(true));
    let update = |after: &DraftParameters, weight: fn(&DraftParameters) -> Tensor<2>| {
        (weight(&before) - weight(after)).inner().try_into_vec_as::<f32>().unwrap()
    };
    let heads: [fn(&DraftParameters) -> Tensor<2>; 3] = [
        |parameters| parameters.markov_head.as_ref().unwrap().markov_w1.weight.val(),
        |parameters| parameters.markov_head.as_ref().unwrap().markov_w2.weight.val(),
        |parameters| parameters.confidence_head.as_ref().unwrap().proj.weight.val(),
    ];
    for head in heads {
        assert_eq!(update(&adamw, head), update(&muon, head));
    }
    let matrices: [fn(&DraftParameters) -> Tensor<2>; 2] = [
        |parameters| parameters.fc.weight.val(),
        |parameters| match &parameters.layers[0].mlp {
            FeedForward::Dense(mlp) => mlp.down_proj.weight.val(),
            FeedForward::Experts(_) => unreachable!("drafts have no experts"),
        },
    ];
    for matrix in matrices {
        let [rows, columns] = matrix(&before).dims();
        let (short, long) = (rows.min(columns) as f64, rows.max(columns) as f64);
        // Every singular value of the update is about one, before it is scaled.
        let square: f64 = update(&muon, matrix).iter().map(|&value| f64::from(value).powi(2)).sum();
        let singular = (square / short).sqrt() / (RATE * 0.2 * long.sqrt());
        assert!((0.7..1.2).contains(&singular), "{rows} x {columns}: {singular}");
        assert_ne!(update(&adamw, matrix), update(&muon, matrix));
    }
}

/// Sums the squares of all parameters.
struct Squares<'a> {
    total: &'a mut Option<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let square = param.val().square().sum();
        *self.total = Some(match self.total.take() {
            Some(total) => total + square,
            None => square,
        });
    }
}

#[test]
fn an_interrupt_before_the_first_update_leaves_a_run_that_can_be_continued() {
    let models = models();
    let samples = training(4);
    let root = tempfile::tempdir().unwrap();
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    let interrupter = Interrupter::new();
    interrupter.stop(Signal::Terminate);
    let stopped = train(TrainJob {
        target: &models.0,
        cache: None,
        draft: models.1.clone(),
        samples: &samples,
        settings: settings(3),
        run: run_folder(root.path(), false),
        interrupter,
    });
    assert!(matches!(stopped, Err(TrainError::Interrupted { step: 0, signal: Signal::Terminate })));
    assert!(run.steps().is_empty());
    run.train(settings(3), true).unwrap();
    assert_eq!(run.steps(), [1, 2, 3]);
}
