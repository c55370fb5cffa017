//! The loss of a micro-batch against its definition, slot by slot with plain autodiff.

use burn::module::Module;
use burn::tensor::activation::{log_sigmoid, log_softmax, softmax};
use burn::tensor::{Int, Tensor, TensorData};
use dspark_runtime::model::{Draft, DraftSample, Target};

use super::metrics::{LossSums, SlotOutcome};
use super::*;
use crate::teacher::teach;
use crate::testing::tiny_models;
use crate::trainer::GradientSum;

const BLOCK: usize = 4;
const WEIGHTS: LossWeights = LossWeights {
    cross_entropy: 0.1,
    soft_cross_entropy: 0.3,
    l1: 0.9,
    confidence: 0.7,
    decay: Some(4.0),
    denominator: Denominator::SlotWeights,
};

/// Two samples of different length, and the blocks trained on each: `(anchor, supervised slots)`.
const SAMPLES: [(usize, &[(usize, usize)]); 2] = [(9, &[(1, 4), (5, 3)]), (13, &[(3, 2), (6, 4), (8, 4)])];

fn ids(sample: usize) -> Vec<u32> {
    (0..SAMPLES[sample].0).map(|token| (sample * 23 + token * 11 + 5) as u32 % 61).collect()
}

fn blocks(sample: usize) -> SampleBlocks {
    let (anchors, slots) = SAMPLES[sample].1.iter().map(|&(anchor, slots)| (anchor, (0..slots).collect())).unzip();
    SampleBlocks { anchors, slots, candidates: 5 }
}

fn value(x: Tensor<1>) -> f64 {
    f64::from(x.inner().into_scalar::<f32>())
}

/// The loss of both samples, one slot after the other, and the sum over blocks of their expected tokens.
fn by_definition(target: &Target, draft: &Draft, global_weight: f64) -> (Tensor<1>, f64) {
    let constant = |x: Tensor<2>| Tensor::<2>::from_inner(x);
    let head_vd = constant(draft.head_weight());
    let (mut total, mut tau): (Option<Tensor<1>>, f64) = (None, 0.0);
    for (sample, &(_, blocks)) in SAMPLES.iter().enumerate() {
        let ids = ids(sample);
        let anchors: Vec<usize> = blocks.iter().map(|(anchor, _)| *anchor).collect();
        let teacher = teach(target, &[&ids], &draft.config().target_layer_ids);
        let q_sv = softmax(teacher.last_hidden_sd.matmul(target.head_weight().transpose()), 1);
        let draft_sample = DraftSample { ids: &ids, anchors: &anchors };
        let hidden_bd = draft.forward_blocks(constant(teacher.features_sf), &[draft_sample]);
        for (block, &(anchor, slots)) in blocks.iter().enumerate() {
            let (mut survival, mut expected) = (1.0, 1.0);
            for slot in 0..slots {
                let hidden_1d = hidden_bd.clone().narrow(0, block * BLOCK + slot, 1);
                let factors_1r = draft.markov_factors(&[ids[anchor + slot]]).unwrap();
                let w2_vr = draft.parameters.markov_head.as_ref().unwrap().markov_w2.weight.val();
                let logits_1v = hidden_1d.clone().matmul(head_vd.clone().transpose())
                    + factors_1r.clone().matmul(w2_vr.transpose());
                let label = TensorData::new(vec![ids[anchor + slot + 1] as i32], [1, 1]);
                let label = Tensor::<2, Int>::from_data(label, &hidden_1d.device());
                let cross_entropy = log_softmax(logits_1v.clone(), 1).gather(1, label).neg().sum();
                let q_1v = constant(q_sv.clone().narrow(0, anchor + slot, 1));
                let soft_cross_entropy = (log_softmax(logits_1v.clone(), 1) * q_1v.clone()).sum().neg();
                let l1 = (softmax(logits_1v, 1) - q_1v).abs().sum();
                let acceptance = (1.0 - value(l1.clone()) / 2.0).clamp(0.0, 1.0);
                let z = draft.confidence_logits(hidden_1d, Some(factors_1r)).unwrap();
                let confidence =
                    (log_sigmoid(z.clone()) * acceptance + log_sigmoid(z.neg()) * (1.0 - acceptance)).neg();
                let loss = cross_entropy * WEIGHTS.cross_entropy
                    + soft_cross_entropy * WEIGHTS.soft_cross_entropy
                    + l1 * WEIGHTS.l1
                    + confidence * WEIGHTS.confidence;
                let loss = loss * ((-(slot as f64) / 4.0).exp() / global_weight);
                total = Some(match total.take() {
                    Some(total) => total + loss,
                    None => loss,
                });
                survival *= acceptance;
                expected += survival;
            }
            tau += expected;
        }
    }
    (total.unwrap(), tau)
}

#[test]
fn a_micro_batch_is_the_sum_of_its_slots() {
    let (target, draft) = tiny_models();
    let draft = draft.with_parameters(draft.parameters.clone().unfreeze().train());
    let (ids, blocks) = ([ids(0), ids(1)], [blocks(0), blocks(1)]);
    // The global batch is larger than this micro-batch.
    let global_weight = 1.5 * slot_weight_sum(&blocks, &WEIGHTS);
    let (expected, tau) = by_definition(&target, &draft, global_weight);

    let teacher = teach(&target, &[&ids[0], &ids[1]], &draft.config().target_layer_ids);
    let batch = MicroBatch {
        ids: ids.iter().map(Vec::as_slice).collect(),
        blocks: blocks.iter().collect(),
        features_sf: teacher.features_sf,
        last_hidden_sd: teacher.last_hidden_sd,
        teacher_head_vd: target.head_weight(),
    };
    let loss = draft_loss(&draft, &batch, &WEIGHTS, global_weight, true);
    let metrics = loss.sums.metrics(&WEIGHTS);
    let of_all = value(expected.clone());
    assert!((metrics.loss / 1.5 - of_all).abs() < 1e-5 * of_all, "{} and {of_all}", metrics.loss / 1.5);
    assert!((loss.sums.tau - tau).abs() < 1e-4, "{} and {tau}", loss.sums.tau);
    assert_eq!((loss.sums.samples, loss.sums.blocks, loss.sums.candidates), (2, 5, 10));
    assert_eq!((metrics.supervised_tokens, loss.sums.supervised), (17, vec![5, 5, 4, 3]));

    let (mut own, mut plain) = (GradientSum::default(), GradientSum::default());
    own.add(loss.surrogate.unwrap().backward(), &draft.parameters);
    plain.add(expected.backward(), &draft.parameters);
    let parameters = &draft.parameters;
    let markov = parameters.markov_head.as_ref().unwrap();
    for (name, id) in [
        ("fc", parameters.fc.weight.id),
        ("markov_w1", markov.markov_w1.weight.id),
        ("markov_w2", markov.markov_w2.weight.id),
        ("confidence", parameters.confidence_head.as_ref().unwrap().proj.weight.id),
    ] {
        let (own, plain) = (own.get::<2>(id).unwrap(), plain.get::<2>(id).unwrap());
        let largest: f32 = plain.clone().abs().max().into_scalar();
        let off: f32 = (own - plain).abs().max().into_scalar();
        assert!(largest > 0.0 && off <= 1e-4 * largest, "{name}: off by {off} of {largest}");
    }
}

#[test]
fn survival_is_a_product_and_the_anchors_own_token_counts() {
    let slot = |slot: usize, l1: f64, probability: f64| SlotOutcome {
        slot,
        weight: 1.0,
        cross_entropy: 2.0,
        soft_cross_entropy: 2.5,
        l1,
        confidence: Some((0.5, probability)),
    };
    let mut sums = LossSums::default();
    sums.add_block(&[slot(0, 1.0, 0.6), slot(1, 1.0, 0.5)]);
    sums.add_block(&[slot(0, 2.0, 0.0)]);
    // 1 + 0.5 + 0.25, and 1 + 0.
    assert_eq!((sums.tau, sums.blocks, &sums.accepted), (2.75, 2, &vec![0.5, 0.5]));
    let metrics = sums.metrics(&WEIGHTS);
    let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-5, "{got} instead of {expected}");
    close(metrics.tau_probabilistic, 1.375);
    close(metrics.confidence_bias, 0.1 / 3.0);
    close(metrics.confidence_abs_error, 0.1 / 3.0);
    // The product of the predictions against the product of the acceptances: 0.6 - 0.5, 0.3 - 0.25, 0.
    close(metrics.confidence_cumprod_bias, 0.15 / 3.0);
    assert_eq!(metrics.accept_rate, [0.25, 0.5]);
    // Behind a hole nothing is expected, and a block whose first slot is not supervised is none.
    sums.add_block(&[slot(0, 1.0, 0.6), slot(2, 0.0, 0.5)]);
    sums.add_block(&[slot(1, 0.0, 0.6)]);
    assert_eq!((sums.tau, sums.blocks, &sums.supervised), (4.25, 3, &vec![3, 2, 1]));
}
