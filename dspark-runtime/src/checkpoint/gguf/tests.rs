use std::path::Path;

use serde_json::Value;

use super::super::{CheckpointError, Weights};
use super::testing::{RawFile, string};
use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/golden/gguf_blocks.json")).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn floats(hex: &Value) -> Vec<f32> {
    bytes(hex).chunks(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

fn open(file: &RawFile) -> Result<GgufFile, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    GgufFile::open(&file.write(folder.path()))
}

#[track_caller]
fn refused(file: &RawFile, words: &[&str]) {
    let error = open(file).unwrap_err().to_string();
    assert!(error.contains("model.gguf"), "{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

/// A small file that is in order.
fn sound() -> RawFile {
    RawFile::new()
        .text("general.architecture", "llama")
        .number("llama.attention.head_count", 2)
        .float("llama.rope.freq_base", 10_000.0)
        .tensor("blk.0.attn_q.weight", &[1, 8], &[0., 1., 2., 3., 4., 5., 6., 7.])
        .tensor("blk.0.attn_v.weight", &[1, 8], &[0., 1., 2., 3., 4., 5., 6., 7.])
}

#[test]
fn blocks_of_every_type_are_read_as_the_gguf_package_reads_them() {
    let golden = golden();
    let cases = golden["read"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let block_type = BlockType::from_number(case["number"].as_u64().unwrap() as u32).unwrap();
        assert_eq!(block_type.to_string(), case["type"].as_str().unwrap());
        let expected = floats(&case["values"]);
        let mut values = vec![0.0; expected.len()];
        block_type.read(&bytes(&case["blocks"]), &mut values);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&values), bits(&expected), "{block_type}");
    }
}

#[test]
fn blocks_are_written_as_the_gguf_package_writes_them() {
    let golden = golden();
    let values = floats(&golden["values"]);
    for case in golden["written"].as_array().unwrap() {
        let block_type = [BlockType::F32, BlockType::F16, BlockType::Bf16, BlockType::Q8_0]
            .into_iter()
            .find(|block_type| block_type.to_string() == case["type"].as_str().unwrap())
            .unwrap();
        let mut written = Vec::new();
        block_type.write(&values, &mut written);
        assert_eq!(written, bytes(&case["blocks"]), "{block_type}");
    }
}

#[test]
fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let metadata = vec![
        ("size".to_owned(), GgufValue::Integer(7)),
        ("small".to_owned(), GgufValue::Float(1e-5)),
        ("yes".to_owned(), GgufValue::Bool(true)),
        ("text".to_owned(), GgufValue::from("Ġa")),
        ("ids".to_owned(), GgufValue::Integers(vec![-1, 3])),
        ("floats".to_owned(), GgufValue::Floats(vec![0.5, 0.1])),
        ("flags".to_owned(), GgufValue::Bools(vec![false, true])),
        ("texts".to_owned(), GgufValue::Texts(vec![String::new(), "b".to_owned()])),
    ];
    let values: Vec<f32> = (0..192).map(|value| value as f32 / 7.0 - 10.0).collect();
    let mut writer = GgufWriter::new(metadata.clone());
    for (name, shape, block_type) in [
        ("f32", &[3, 64][..], BlockType::F32),
        ("f16", &[3, 64], BlockType::F16),
        ("bf16", &[3, 64], BlockType::Bf16),
        ("q8", &[3, 64], BlockType::Q8_0),
        ("odd rows", &[4, 48], BlockType::Q8_0),
        ("vector", &[192], BlockType::Q8_0),
    ] {
        writer.add(name.to_owned(), shape, block_type, || Ok(values.clone()));
    }
    writer.write(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    for (key, value) in &metadata {
        assert_eq!(file.get(key), Some(value), "{key}");
    }
    assert_eq!(file.keys().count(), metadata.len());
    let types: Vec<(&str, BlockType)> =
        file.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.block_type)).collect();
    let expected = [
        ("f32", BlockType::F32),
        ("f16", BlockType::F16),
        ("bf16", BlockType::Bf16),
        ("q8", BlockType::Q8_0),
        ("odd rows", BlockType::F16),
        ("vector", BlockType::F32),
    ];
    assert_eq!(types, expected);
    for (tensor, tolerance) in file.tensors().iter().zip([0.0, 8e-3, 7e-2, 8e-2, 8e-3, 0.0]) {
        let mut read = vec![0.0; 192];
        tensor.block_type.read(&file.map[tensor.start..tensor.end], &mut read);
        let worst = read.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{}: {worst}", tensor.name);
        assert!(tensor.start.is_multiple_of(32));
    }
}

#[test]
fn nothing_is_left_when_a_value_is_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let mut writer = GgufWriter::new(Vec::new());
    writer.add("good".to_owned(), &[2], BlockType::F32, || Ok(vec![1.0, 2.0]));
    writer.add("bad".to_owned(), &[2], BlockType::F32, || Ok(vec![1.0, f32::NAN]));
    let error = writer.write(&path).unwrap_err().to_string();
    assert!(error.contains("`bad`") && error.contains("NaN"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_cut_short_is_refused_wherever_that_was() {
    let folder = tempfile::tempdir().unwrap();
    let whole = sound().bytes();
    let path = folder.path().join("model.gguf");
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = GgufFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("model.gguf") && error.contains("damaged"), "{length}: {error}");
    }
    std::fs::write(&path, &whole).unwrap();
    GgufFile::open(&path).unwrap();
}

#[test]
fn headers_that_lie_are_named_errors() {
    let with = |key: &str, value: &[&[u8]]| {
        let mut file = sound();
        file.metadata.push((key.to_owned(), value.concat()));
        file
    };
    let (u32_of, u64_of) = (u32::to_le_bytes, u64::to_le_bytes);
    // Lengths and counts far beyond the file, which must not be reserved.
    refused(&with("long", &[&u32_of(8), &u64_of(u64::MAX)]), &["`long`", "the file ends"]);
    refused(&with("many", &[&u32_of(9), &u32_of(8), &u64_of(1 << 60)]), &["`many`", "a list of 1152921504606846976"]);
    refused(&with("nested", &[&u32_of(9), &u32_of(9), &u64_of(1)]), &["`nested`", "list of lists"]);
    refused(&with("strange", &[&u32_of(13)]), &["`strange`", "unknown value type 13"]);
    refused(&with("flag", &[&u32_of(7), &[2]]), &["`flag`", "boolean"]);
    refused(&with("huge", &[&u32_of(10), &u64_of(u64::MAX)]), &["`huge`", "2^63"]);
    for (at, what) in [(8, "tensor"), (16, "metadata")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut bytes = sound().bytes();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = GgufFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{what} count: {error}");
    }

    let tensor = |change: fn(&mut testing::RawTensor)| {
        let mut file = sound();
        change(&mut file.tensors[1]);
        file
    };
    let named = "`blk.0.attn_v.weight`";
    refused(&tensor(|tensor| tensor.axes = vec![1 << 40, 1 << 40]), &[named, "[1099511627776, 1099511627776]"]);
    refused(&tensor(|tensor| tensor.axes = vec![u64::MAX]), &[named]);
    refused(&tensor(|tensor| tensor.axes = vec![1, 1 << 40]), &[named, "ends at byte"]);
    refused(&tensor(|tensor| tensor.axes = Vec::new()), &[named, "1 to 4 axes, found 0"]);
    refused(&tensor(|tensor| tensor.axes = vec![1; 5]), &[named, "found 5"]);
    refused(&tensor(|tensor| tensor.axes = vec![0, 8]), &[named, "length 0"]);
    refused(&tensor(|tensor| tensor.offset = Some(u64::MAX - 3)), &[named]);
    refused(&tensor(|tensor| tensor.offset = Some(1 << 20)), &[named, "ends at byte"]);
    refused(&tensor(|tensor| tensor.offset = Some(0)), &[named, "overlap"]);
    refused(&tensor(|tensor| tensor.name = "blk.0.attn_q.weight".to_owned()), &["`blk.0.attn_q.weight`", "twice"]);
    refused(&tensor(|tensor| tensor.number = 13), &[named, "Q5_K", "expected one of F32"]);
    refused(&tensor(|tensor| tensor.number = 77), &[named, "type number 77"]);
    // Rows of one element are no whole blocks of 32.
    refused(&tensor(|tensor| tensor.number = 8), &[named, "Q8_0"]);

    refused(&sound().text("general.architecture", "llama"), &["`general.architecture`", "twice"]);
    refused(&sound().number("split.count", 3), &["`split.count`", "found 3"]);
    refused(&sound().number("general.alignment", 24), &["`general.alignment`", "power of two"]);
    refused(&sound().number("general.alignment", 0), &["`general.alignment`"]);
    for (version, words) in [(1, "version 1"), (4, "version 4"), (3_u32.swap_bytes(), "big-endian")] {
        refused(&RawFile { version, ..sound() }, &[words]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    std::fs::write(&path, [&b"PK\x03\x04"[..], &string("zip")].concat()).unwrap();
    assert!(GgufFile::open(&path).unwrap_err().to_string().contains("first bytes are `GGUF`"));
    assert!(GgufFile::open(Path::new("absent.gguf")).unwrap_err().to_string().contains("absent.gguf"));
}

#[test]
fn another_alignment_is_heeded() {
    let mut file = sound().number("general.alignment", 128);
    file.alignment = 128;
    let file = open(&file).unwrap();
    assert!(file.tensors().iter().all(|tensor| tensor.start.is_multiple_of(128)));
}

/// Any single wrong byte gives a result or an error, never a panic, and never tensors that are not in the file.
#[test]
fn a_wrong_byte_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let whole = sound().bytes();
    let mut opened = 0;
    for (position, byte) in whole.iter().enumerate() {
        for value in [0, u8::MAX, byte.wrapping_add(1), byte.wrapping_sub(1), byte ^ 128] {
            let mut bytes = whole.clone();
            bytes[position] = value;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(file) = GgufFile::open(&path) {
                assert!(file.tensors().iter().all(|tensor| tensor.end <= bytes.len()), "{position}: {value}");
                opened += 1;
            }
            let _ = Weights::open(&path);
        }
    }
    // Letters of names and numbers of the data may change; a header is mostly neither.
    assert!(opened > 0 && opened < 4 * whole.len(), "{opened} of {}", 5 * whole.len());
}

#[test]
fn rows_in_pairs_become_halves_and_back() {
    // Two heads of four rows.
    let pairs = [0, 10, 1, 11, 100, 110, 101, 111];
    let halves = [0, 1, 10, 11, 100, 101, 110, 111];
    assert_eq!(reorder_rows(&pairs, 8, 2, RowOrder::Halves), halves);
    assert_eq!(reorder_rows(&halves, 8, 2, RowOrder::Pairs), pairs);
    let wide: Vec<i32> = pairs.iter().flat_map(|row| [*row, -row]).collect();
    let expected: Vec<i32> = halves.iter().flat_map(|row| [*row, -row]).collect();
    assert_eq!(reorder_rows(&wide, 8, 2, RowOrder::Halves), expected);
}

#[test]
fn llama_rows_are_put_in_order_and_others_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::open(&sound().write(folder.path())).unwrap();
    let query = weights.values("model.layers.0.self_attn.q_proj.weight", &[8, 1]).unwrap();
    assert_eq!(query, [0., 2., 1., 3., 4., 6., 5., 7.]);
    let value = weights.values("model.layers.0.self_attn.v_proj.weight", &[8, 1]).unwrap();
    assert_eq!(value, [0., 1., 2., 3., 4., 5., 6., 7.]);
    let mut other = sound();
    other.metadata.remove(0);
    let weights = Weights::open(&other.text("general.architecture", "qwen2").write(folder.path())).unwrap();
    assert_eq!(weights.values("model.layers.0.self_attn.q_proj.weight", &[8, 1]).unwrap(), value);
}

#[test]
fn errors_of_tensors_have_the_names_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::open(&sound().write(folder.path())).unwrap();
    let error = weights.values("model.layers.0.self_attn.q_proj.weight", &[8, 2]).unwrap_err().to_string();
    assert!(
        error.contains("`blk.0.attn_q.weight`") && error.contains("[8, 2]") && error.contains("[8, 1]"),
        "{error}"
    );
    let error = weights.values("model.layers.1.mlp.up_proj.weight", &[8, 2]).unwrap_err().to_string();
    assert!(error.contains("`blk.1.ffn_up.weight` is missing"), "{error}");
    let open = |file: RawFile| Weights::open(&file.write(folder.path())).unwrap_err().to_string();
    let error = open(sound().tensor("blk.0.attn_rot.weight", &[1], &[0.0]));
    assert!(error.contains("`blk.0.attn_rot.weight`") && error.contains("is not part of the model"), "{error}");
    let error = open(sound().tensor("rope_freqs.weight", &[1], &[0.0]));
    assert!(error.contains("`rope_freqs.weight`"), "{error}");
    let mut file = sound();
    file.metadata[1].1[4] = 3;
    let error = open(file);
    assert!(error.contains("`blk.0.attn_q.weight`") && error.contains("3 heads"), "{error}");
    let mut file = sound();
    file.metadata.remove(1);
    assert!(open(file).contains("`llama.attention.head_count`"));
}
