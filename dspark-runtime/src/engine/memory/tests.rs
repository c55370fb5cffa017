use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::JsonFields;
use crate::model::{DSparkConfig, DraftConfig, DraftKind, DraftShape, Eagle3Config, LayerId, TargetConfig};

fn config(layers: usize) -> TargetConfig {
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": layers, "vocab_size": 8,
        "max_position_embeddings": 256, "tie_word_embeddings": true,
    });
    let Value::Object(fields) = fields else { unreachable!("an object was written") };
    TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap()
}

fn models() -> (Target, Draft) {
    let config = config(2);
    let shape = DraftShape {
        block_size: 3,
        num_draft_layers: 1,
        target_layer_ids: vec![LayerId(0)],
        kind: DraftKind::DSpark(DSparkConfig::new(7, 2)),
    };
    let draft = DraftConfig::for_target(&config, &shape).unwrap();
    let target = Target::random(config, 1, &Device::flex());
    let draft = Draft::new(draft, &target, 2);
    (target, draft)
}

/// Forty tokens: the context holds the first 20, the features of the others wait; those of token `i` are all `i`.
fn finished(memory: &mut CacheMemory, (target, draft): &(Target, Draft)) -> (Vec<u32>, SequenceCache) {
    let ids: Vec<u32> = (0..40).map(|i| i % 7).collect();
    let mut cache = memory.admit(&ids, 1000, Rounds::new(target, Some(draft))).unwrap();
    cache.state.target.fill_with_zeros(40);
    cache.state.context.as_mut().unwrap().fill_with_zeros(20);
    for part in [20..23, 23..40] {
        let rows: Vec<f32> = part.clone().flat_map(|i| [i as f32; 8]).collect();
        let rows = Tensor::<1>::from_floats(rows.as_slice(), &Device::flex()).reshape([part.len(), 8]);
        cache.state.waiting.push(&rows, 0..part.len());
    }
    (ids, cache)
}

fn waiting(cache: &SequenceCache) -> Vec<f32> {
    let rows = |part: Tensor<2>| part.narrow(1, 0, 1).try_into_vec_as::<f32>().unwrap();
    cache.state.waiting.clone().take().into_iter().flat_map(rows).collect()
}

#[test]
fn features_that_wait_go_on_with_the_tokens_that_they_are_of() {
    let models = models();
    // Going on from the whole of it, from a part of what waits, and from a part of what the context holds.
    for (same, expected) in [(40, 20..39), (25, 20..25), (17, 0..0)] {
        let mut memory = CacheMemory::new(1024, &models.0, Some(&models.1));
        let (ids, cache) = finished(&mut memory, &models);
        memory.keep(ids.clone(), cache);
        let next: Vec<u32> = ids[..same].iter().copied().chain((same..45).map(|_| 7)).take(same.max(41)).collect();
        let next = if same == 40 { &next[..40] } else { &next[..] };
        let cache = memory.admit(next, 1000, Rounds::new(&models.0, Some(&models.1))).unwrap();
        let expected: Vec<f32> = expected.map(|i| i as f32).collect();
        assert_eq!(waiting(&cache), expected, "{same} tokens alike");
        assert_eq!(cache.state.target.len(), cache.state.context.as_ref().unwrap().len() + expected.len());
    }
}

/// The newest row of an Eagle3 draft's context has to be made anew, and rows depend on the token behind them.
#[test]
fn an_eagle3_draft_goes_on_a_token_earlier() {
    let config = config(6);
    let shape = DraftShape {
        block_size: 3,
        num_draft_layers: 1,
        target_layer_ids: (0..5).map(LayerId).collect(),
        kind: DraftKind::Eagle3(Eagle3Config { step_loss_decay: Some(0.8) }),
    };
    let draft = DraftConfig::for_target(&config, &shape).unwrap();
    let target = Target::random(config, 1, &Device::flex());
    let models = (target.clone(), Draft::new(draft, &target, 2));
    for (same, expected) in [(40, 38), (25, 24), (17, 16)] {
        let mut memory = CacheMemory::new(1024, &models.0, Some(&models.1));
        let (ids, cache) = finished(&mut memory, &models);
        memory.keep(ids.clone(), cache);
        let next: Vec<u32> = ids[..same].iter().copied().chain((same..40).map(|_| 7)).collect();
        let cache = memory.admit(&next, 1000, Rounds::new(&models.0, Some(&models.1))).unwrap();
        assert_eq!(cache.state.target.len(), expected, "{same} tokens alike");
    }
}

/// 64 tokens are a page; a block takes four rows.
#[test]
fn there_is_room_for_an_answer_where_that_leaves_room_for_others() {
    let (target, draft) = models();
    let ids: Vec<u32> = (0..40).map(|i| i % 7).collect();
    // (capacity, limit, room from the start, room at 200 tokens)
    let cases = [
        (2048, 1000, 320, 320),
        (2048, 50, 64, 256),
        (2048, 123, 128, 256),
        (640, 1000, 320, 320),
        (600, 1000, 64, 256),
        (1024, 10_000, 320, 320),
    ];
    for (capacity, limit, first, later) in cases {
        let mut memory = CacheMemory::new(capacity, &target, Some(&draft));
        let mut cache = memory.admit(&ids, limit, Rounds::new(&target, Some(&draft))).unwrap();
        assert_eq!((cache.room, cache.state.target.capacity()), (first, first), "{capacity} {limit}");
        assert!(memory.grow(&mut cache, 200, limit.max(200)));
        assert_eq!((cache.room, memory.in_use), (later, later), "{capacity} {limit}");
    }
    let mut memory = CacheMemory::new(4096, &target, Some(&draft));
    let mut cache = memory.admit(&ids, 5000, Rounds::new(&target, Some(&draft))).unwrap();
    assert!(memory.grow(&mut cache, 800, 5000));
    assert_eq!(cache.room, 1664, "twice what is there");
}

#[test]
fn what_has_to_go_lends_its_buffers() {
    let models = models();
    let mut memory = CacheMemory::new(640, &models.0, Some(&models.1));
    let (ids, mut cache) = finished(&mut memory, &models);
    assert!(memory.grow(&mut cache, 330, 1000));
    assert_eq!(cache.room, 384);
    memory.keep(ids, cache);
    let others: Vec<u32> = (0..40).map(|i| (3 * i + 2) % 7).collect();
    // Too large for so small a sequence, and there is room beside it.
    let small = memory.admit(&others, 50, Rounds::new(&models.0, Some(&models.1))).unwrap();
    assert_eq!((small.room, memory.kept.len()), (64, 1));
    memory.release(small);
    // A fresh one would have room for 320.
    let large = memory.admit(&others, 1000, Rounds::new(&models.0, Some(&models.1))).unwrap();
    assert_eq!((large.room, large.state.target.capacity(), memory.kept.len()), (384, 384, 0));
    assert_eq!(
        (large.state.target.len(), large.state.context.as_ref().unwrap().len(), large.state.waiting.rows()),
        (0, 0, 0)
    );
    assert_eq!((memory.in_use, memory.held()), (384, 384));
    memory.release(large);
    assert_eq!((memory.in_use, memory.waiting, memory.held()), (0, 0, 0));
}

#[test]
fn features_that_wait_take_the_place_of_what_was_kept() {
    let models = models();
    // A token has 32 numbers in the target's cache, 16 in the draft's, and 8 of features.
    let share = |rows: usize| rows.div_ceil(6);
    let mut memory = CacheMemory::new(128, &models.0, Some(&models.1));
    assert_eq!(memory.feature_share, 1.0 / 6.0);
    let (ids, cache) = finished(&mut memory, &models);
    memory.keep(ids, cache);
    assert_eq!(memory.held(), 64 + share(20));
    // Room for the next is there, but not beside what waits.
    let other: Vec<u32> = (0..30).map(|i| (i + 3) % 7).collect();
    let mut cache = memory.admit(&other, 1000, Rounds::new(&models.0, Some(&models.1))).unwrap();
    assert_eq!(memory.held(), 64, "what was kept is gone");
    // Of a sequence that runs they are counted before every step, and never stand in its way.
    cache.state.waiting.push(&Tensor::zeros([30, 8], &Device::flex()), 0..30);
    assert!(memory.grow(&mut cache, 31, 1000));
    assert_eq!(memory.held(), 64 + share(30));
    assert!(memory.grow(&mut cache, 124, 1000));
    assert_eq!(memory.held(), 128 + share(30));
    cache.state.waiting.take();
    assert!(memory.grow(&mut cache, 124, 1000));
    assert_eq!(memory.held(), 128);
    memory.release(cache);
    assert_eq!((memory.held(), memory.waiting), (0, 0));
}
