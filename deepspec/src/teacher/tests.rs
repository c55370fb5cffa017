//! The cache against the target itself, and damage to its files.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use dspark_runtime::checkpoint::CheckpointError;
use dspark_runtime::model::{LayerId, Target};
use dspark_runtime::tensors::host;

use super::codec::bf16;
use super::states::sample_key;
use super::*;
use crate::testing::tiny_models;

const LAYERS: [LayerId; 2] = [LayerId(0), LayerId(1)];

/// Samples of 3 to 12 tokens, of which the middle part is supervised.
fn samples(count: usize) -> Vec<CachedTokens> {
    let sample = |index: usize| {
        let tokens = 3 + index % 10;
        let ids = (0..tokens).map(|token| ((index * 7 + token * 3) % 16) as u32).collect();
        (ids, (0..tokens).map(|token| token > 0 && token + 1 < tokens).collect())
    };
    (0..count).map(sample).collect()
}

fn settings(target: &Target, codec: Codec) -> CacheSettings {
    let hidden_size = target.config().layer.hidden_size;
    CacheSettings { target: "a".to_owned(), layers: LAYERS.to_vec(), hidden_size, codec }
}

fn build(folder: &Path, target: &Target, codec: Codec, samples: &[CachedTokens]) -> Built {
    let build = CacheBuild::begin(folder, settings(target, codec), 0, 1).unwrap();
    build.group(0, samples, target).unwrap()
}

fn open(folder: &Path, target: &Target) -> Result<StateCache, CheckpointError> {
    StateCache::open(folder, "a", &LAYERS, target.config().layer.hidden_size)
}

fn borrowed(samples: &[CachedTokens]) -> Vec<(&[u32], &[bool])> {
    samples.iter().map(|(ids, loss_mask)| (ids.as_slice(), loss_mask.as_slice())).collect()
}

/// What a cache returns is the target's output, rounded, in any order; rows that no loss reads are NaN.
#[test]
fn cached_states_are_those_of_the_target() {
    let (target, _) = tiny_models();
    let (root, samples) = (tempfile::tempdir().unwrap(), samples(9));
    assert_eq!(build(root.path(), &target, Codec::Bf16Lossless, &samples), Built::Written);
    let cache = open(root.path(), &target).unwrap();
    let chosen = [samples[4].clone(), samples[8].clone(), samples[0].clone()];
    let cached = cache.read(&borrowed(&chosen), &Device::flex()).unwrap();
    let ids: Vec<&[u32]> = chosen.iter().map(|(ids, _)| ids.as_slice()).collect();
    let online = teach(&target, &ids, &LAYERS);
    let rounded = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().map(|value| f32::from_bits(u32::from(bf16(value)) << 16)).collect()
    };
    assert_eq!(host(cached.features_sf), rounded(host(online.features_sf)));
    let keep: Vec<bool> = chosen.iter().flat_map(|(_, loss_mask)| kept_rows(loss_mask)).collect();
    let d = target.config().layer.hidden_size;
    let (cached, online) = (host(cached.last_hidden_sd), rounded(host(online.last_hidden_sd)));
    for ((keep, cached), online) in keep.iter().zip(cached.chunks(d)).zip(online.chunks(d)) {
        match keep {
            true => assert_eq!(cached, online),
            false => assert!(cached.iter().all(|value| value.is_nan())),
        }
    }
    assert!(keep.contains(&false) && keep.contains(&true));
    let other = (samples[0].0.clone(), vec![true; samples[0].0.len()]);
    let error = cache.read(&borrowed(&[other]), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("not in this cache"), "{error}");
}

/// A bit flipped anywhere in a file is found when the cache is opened or the block is read, and a build repairs it.
#[test]
fn every_flipped_bit_is_named_and_repaired() {
    let (target, _) = tiny_models();
    let (root, samples) = (tempfile::tempdir().unwrap(), samples(20));
    build(root.path(), &target, Codec::Int8, &samples);
    let file = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "states")).unwrap();
    let intact = fs::read(&file).unwrap();
    let mut bits = 7_u64;
    for _ in 0..40 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (place, bit) = ((bits >> 33) as usize % intact.len(), bits >> 60 & 7);
        let mut flipped = intact.clone();
        flipped[place] ^= 1 << bit;
        fs::write(&file, &flipped).unwrap();
        let (_, problems) = StateCache::verify(root.path()).unwrap();
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1, "byte {place}: {said:?}");
        assert!(said[0].contains(file.file_name().unwrap().to_str().unwrap()), "{said:?}");
        let read = open(root.path(), &target).and_then(|cache| cache.read(&borrowed(&samples), &Device::flex()));
        assert!(read.is_err(), "byte {place} was trained on");
        assert_eq!(build(root.path(), &target, Codec::Int8, &samples), Built::Repaired);
        assert_eq!(fs::read(&file).unwrap(), intact);
    }
    for length in [0, 30, 100, intact.len() - 1] {
        fs::write(&file, &intact[..length]).unwrap();
        assert_eq!(StateCache::verify(root.path()).unwrap().1.len(), 1, "{length} bytes");
    }
    fs::write(&file, &intact).unwrap();
    assert_eq!(build(root.path(), &target, Codec::Int8, &samples), Built::Before);
}

#[test]
fn a_cache_of_something_else_is_refused_by_field() {
    let (target, _) = tiny_models();
    let (root, samples) = (tempfile::tempdir().unwrap(), samples(3));
    build(root.path(), &target, Codec::Bf16, &samples);
    let d = target.config().layer.hidden_size;
    let refused = |name: &str, layers: &[LayerId], d: usize| {
        StateCache::open(root.path(), name, layers, d).unwrap_err().to_string()
    };
    assert!(refused("b", &LAYERS, d).contains("`target`"));
    assert!(refused("a", &LAYERS[..1], d).contains("`target_layer_ids`"));
    assert!(refused("a", &LAYERS, d + 1).contains("`hidden_size`"));
    let error = CacheBuild::begin(root.path(), settings(&target, Codec::Fp8), 0, 1).unwrap_err().to_string();
    assert!(error.contains("`codec`") && error.contains("bf16") && error.contains("fp8"), "{error}");
    // A part is built by one process at a time; others build other parts.
    let first = CacheBuild::begin(root.path(), settings(&target, Codec::Bf16), 0, 2).unwrap();
    assert!(matches!(
        CacheBuild::begin(root.path(), settings(&target, Codec::Bf16), 0, 2),
        Err(CheckpointError::InUse { .. })
    ));
    let second = CacheBuild::begin(root.path(), settings(&target, Codec::Bf16), 1, 2).unwrap();
    drop((first, second));
    let manifest = root.path().join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"bf16\"", "\"int8\"")).unwrap();
    assert!(open(root.path(), &target).unwrap_err().to_string().contains("`identity`"));
}

#[test]
fn sizes_are_counted_exactly() {
    let (target, _) = tiny_models();
    let samples = samples(30);
    let tokens: usize = samples.iter().map(|(ids, _)| ids.len()).sum();
    let kept = samples.iter().flat_map(|(_, mask)| kept_rows(mask)).filter(|keep| *keep).count();
    for codec in Codec::ALL {
        let settings = settings(&target, codec);
        if codec.check_width(settings.hidden_size).is_err() {
            continue;
        }
        let root = tempfile::tempdir().unwrap();
        build(root.path(), &target, codec, &samples);
        let files = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path());
        let file = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "states")).unwrap();
        let blocks = sizes(std::slice::from_ref(&settings), &samples, &target).unwrap()[0];
        assert_eq!(
            fs::metadata(&file).unwrap().len(),
            file_bytes(blocks, samples.len(), SAMPLES_PER_FILE),
            "{codec}"
        );
        if let Some(bytes) = settings.block_bytes(tokens, kept) {
            assert_eq!(blocks, bytes + 8 * (samples.len() as u64 - 1), "{codec}");
        }
    }
}

#[test]
fn samples_with_other_supervision_are_others() {
    let ids = [1, 2, 3];
    assert_ne!(sample_key(&ids, &[true, true, false]), sample_key(&ids, &[false, true, true]));
    assert_ne!(sample_key(&ids, &[]), sample_key(&ids[..2], &[]));
    assert_eq!(kept_rows(&[false, true, true, false, false, true]), [false, true, true, true, false, true]);
}
