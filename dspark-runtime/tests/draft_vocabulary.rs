//! Drafts that can propose a part of the vocabulary alone: what they write is read back, and answers stay the target's.

#![allow(missing_docs)]

mod common;

use std::fs;

use burn::tensor::Tensor;
use dspark_runtime::checkpoint::WeightDtype;
use dspark_runtime::model::{Draft, DraftHeads, DraftVocabulary, Target};
use dspark_runtime::speculate::{Decoder, GenerationOptions, Sampler};
use rayon::prelude::*;

use common::{Counts, VOCABULARY, deviation};

const PROMPT: [u32; 3] = [1, 5, 2];

/// Every other token.
fn half(target: &Target, block: usize) -> Draft {
    let counts: Vec<u64> = (0..VOCABULARY as u64).map(|id| u64::from(id % 2 == 1)).collect();
    common::draft(target, block).with_vocabulary(DraftVocabulary::most_frequent(&counts, VOCABULARY / 2))
}

fn options(max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_new_tokens, stop_token_ids: Vec::new(), confidence_threshold: 0.0 }
}

#[test]
fn a_checkpoint_is_read_back_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let target = common::target(3);
    let draft = half(&target, 4);
    let x = Tensor::<2>::ones([2, draft.config().layer.hidden_size], &target.device().clone());
    for with_embeddings in [true, false] {
        let folder = root.path().join(format!("draft-{with_embeddings}"));
        draft.save(&folder, WeightDtype::F32, with_embeddings).unwrap();
        let read = Draft::load(&folder, &target).unwrap();
        assert_eq!(read.vocabulary(), draft.vocabulary());
        assert_eq!(read.config().draft_vocab_size, VOCABULARY / 2);
        let logits = |draft: &Draft| draft.base_logits(x.clone()).try_into_vec_as::<f32>().unwrap();
        assert_eq!(logits(&read), logits(&draft));
        assert_eq!(logits(&read).len(), VOCABULARY);
        let generate = |draft: &Draft| {
            let decoder = Decoder::new(&target, Some(draft));
            decoder.generate(&PROMPT, &options(30), &mut Sampler::repeatable(1.0, 0, 0)).unwrap()
        };
        let (own, other) = (generate(&draft), generate(&read));
        assert_eq!((own.ids, own.rounds), (other.ids, other.rounds));
        // Another program counts on the list; without it nothing can be proposed.
        let config = folder.join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains("\"draft_vocab_size\""));
        let wrong = text.replace(&format!("\"draft_vocab_size\": {}", VOCABULARY / 2), "\"draft_vocab_size\": 3");
        assert_ne!(text, wrong);
        fs::write(&config, wrong).unwrap();
        let error = Draft::load(&folder, &target).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_draft_of_the_whole_vocabulary_does_not_fit_the_configuration() {
    let root = tempfile::tempdir().unwrap();
    let target = common::target(3);
    let folder = root.path().join("draft");
    common::draft(&target, 4).save(&folder, WeightDtype::F32, false).unwrap();
    let config = folder.join("config.json");
    let text = fs::read_to_string(&config).unwrap().replacen('{', "{\"draft_vocab_size\": 5,", 1);
    fs::write(&config, text).unwrap();
    let error = Draft::load(&folder, &target).unwrap_err().to_string();
    assert!(error.contains("markov_w2") && error.contains("[5, 4]"), "{error}");
}

#[test]
fn greedy_answers_are_the_targets_own() {
    for seed in 0..10 {
        let target = common::target(seed);
        let greedy = |draft: Option<&Draft>| {
            Decoder::new(&target, draft).generate(&PROMPT, &options(40), &mut Sampler::greedy()).unwrap()
        };
        let alone = greedy(None);
        for heads in [DraftHeads::Exact, DraftHeads::Int8] {
            let generation = greedy(Some(&half(&target, 5).with_heads(heads)));
            assert_eq!(generation.ids, alone.ids);
        }
    }
}

/// At temperature 1 the distribution of tokens 2 to 4 stays the target's, those that cannot be proposed included.
#[test]
fn sampled_answers_have_the_targets_distribution() {
    let target = common::target(5);
    let draft = half(&target, 3);
    let count = |draft: Option<&Draft>, stream: u64| {
        let run = |seed: u64| {
            let decoder = Decoder::new(&target, draft);
            decoder.generate(&PROMPT, &options(4), &mut Sampler::repeatable(1.0, stream, seed)).unwrap().ids[1..]
                .to_vec()
        };
        let mut counts = Counts::new();
        for tokens in (0..20_000_u64).into_par_iter().map(run).collect::<Vec<_>>() {
            *counts.entry(tokens).or_default() += 1;
        }
        counts
    };
    let same = deviation(&count(None, 21), &count(Some(&draft), 22));
    assert!(same < 3.1, "the draft changes the distribution: {same} standard deviations");
}
