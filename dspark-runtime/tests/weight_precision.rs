//! A model whose matrices stay in bf16, as they are on disk, computes bit for bit what it computes in f32.

mod common;

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use dspark_runtime::Normals;
use dspark_runtime::checkpoint::{WeightDtype, WeightPrecision};
use dspark_runtime::model::{Draft, DraftHeads, LayerId, Target, TargetSegment};
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};

const PRECISIONS: [WeightPrecision; 2] = [WeightPrecision::F32, WeightPrecision::AsStored];

fn targets(folder: &Path) -> [Target; 2] {
    common::target(3).write_into(folder, WeightDtype::Bf16).unwrap();
    PRECISIONS.map(|precision| Target::load_with(folder, precision, &Device::flex()).unwrap())
}

#[test]
fn hidden_states_and_logits_are_the_same_for_few_rows_and_for_many() {
    let folder = tempfile::tempdir().unwrap();
    let [wide, narrow] = targets(folder.path());
    assert_eq!((wide.head_weight().dtype(), narrow.head_weight().dtype()), (DType::F32, DType::BF16));
    let ids: Vec<u32> = (0..50).map(|i| i * 5 % 8).collect();
    for n in [1, 9, 50] {
        let pass = |target: &Target| {
            let mut segments = [TargetSegment { ids: &ids[..n], cache: None }];
            let output = target.forward(&mut segments, &[LayerId(-1), LayerId(0)]);
            (output.features_nf.unwrap().into_data(), target.logits(output.last_hidden_nd).into_data())
        };
        let (wide, narrow) = (pass(&wide), pass(&narrow));
        narrow.0.assert_eq(&wide.0, true);
        narrow.1.assert_eq(&wide.1, true);
    }
}

#[test]
fn a_draft_proposes_the_same_and_the_same_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let targets = targets(folder.path());
    let draft_folder = folder.path().join("draft");
    common::draft(&targets[0], 4).save(&draft_folder, WeightDtype::Bf16, false).unwrap();
    let options = GenerationOptions { max_new_tokens: 30, stop_token_ids: Vec::new(), confidence_threshold: 0.0 };
    let generations = [0, 1].map(|i| {
        let draft = Draft::load_with(&draft_folder, PRECISIONS[i], &targets[i]).unwrap();
        assert_eq!(draft.head_weight().dtype(), targets[i].head_weight().dtype());
        Decoder::new(&targets[i], Some(&draft))
            .generate(&[1, 2, 3], &options, &mut Sampler::repeatable(1.0, 5, 0))
            .unwrap()
    });
    assert_eq!(generations[0].ids, generations[1].ids);
    assert_eq!(generations[0].rounds, generations[1].rounds);
}

#[test]
fn draft_heads_in_8_bits_propose_nearly_what_the_weights_do() {
    let target = common::target(3);
    let draft = common::draft(&target, 4);
    let quick = draft.clone().with_heads(DraftHeads::Int8);
    let [_, d] = draft.head_weight().dims();
    let off = |a: Tensor<2>, b: Tensor<2>| -> f32 {
        (a.clone() - b).abs().max().into_scalar::<f32>() / a.abs().max().into_scalar::<f32>()
    };
    let mut normals = Normals::new(5);
    for rows in [1, 7, 33] {
        let x = normals.tensor::<2>([rows, d], 1.0, &Device::flex());
        let logits = off(draft.base_logits(x.clone()), quick.proposal_logits(x.clone()));
        assert!(logits > 0.0 && logits < 0.02, "{rows} rows are off by {logits}");
        let factors = draft.markov_factors(&vec![3; rows]).unwrap();
        let biases = off(draft.proposal_bias(factors.clone()).unwrap(), quick.proposal_bias(factors).unwrap());
        assert!(biases > 0.0 && biases < 0.02, "{rows} rows are off by {biases}");
    }
    // Other heads and other parameters take the weights themselves.
    let x = normals.tensor::<2>([2, d], 1.0, &Device::flex());
    let error = |draft: &Draft| off(draft.base_logits(x.clone()), draft.proposal_logits(x.clone()));
    assert!(error(&quick) > 0.0);
    assert_eq!(error(&quick.clone().with_heads(DraftHeads::Exact)), 0.0);
    assert_eq!(error(&quick.with_parameters(draft.parameters.clone())), 0.0);
}
