//! Numbers that are NaN: of the target they are an error for the request that meets them, of the draft they change no token.

mod common;

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use common::{VOCABULARY, fill, greedy};
use dspark_runtime::checkpoint::JsonFields;
use dspark_runtime::engine::{Answer, Engine, EngineConfig, Event, Failure, Request, Sampling};
use dspark_runtime::model::{Draft, DraftVocabulary, Target, TargetConfig};
use dspark_runtime::schedule::Mode;
use dspark_runtime::speculate::{Decoder, Filters, GenerationOptions, NotFinite, Randomness, Sampler};
use dspark_runtime::text::Tokenizer;
use serde_json::{Value, json};

/// The token whose embedding is NaN.
const BAD: u32 = 6;

/// Writes NaN into the numbers of a parameter that `which` names, by their index.
struct Spoil<W> {
    path: Vec<String>,
    which: W,
}

impl<W: Fn(&str, usize) -> bool> ModuleMapper for Spoil<W> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (name, shape) = (self.path.join("."), param.lazy_shape());
        param.map(|old| {
            let device = old.device();
            let mut values: Vec<f32> = old.try_into_vec_as().unwrap();
            values.iter_mut().enumerate().filter(|(at, _)| (self.which)(&name, *at)).for_each(|(_, v)| *v = f32::NAN);
            Tensor::from_data(TensorData::new(values, shape), &device)
        })
    }
}

fn spoilt<M: Module>(module: M, which: impl Fn(&str, usize) -> bool) -> M {
    module.map(&mut Spoil { path: Vec::new(), which })
}

/// A target with a head of its own, so that an embedding is in the logits only where its token was read.
fn sound_target() -> Target {
    let fields = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "tie_word_embeddings": false,
    });
    let Value::Object(fields) = fields else { unreachable!() };
    let config = TargetConfig::from_fields(JsonFields::new("config.json", fields)).unwrap();
    let target = Target::random(config, 0, &Device::flex());
    target.with_parameters(fill(target.parameters().clone(), 5, 0.35))
}

/// The same, whose token [`BAD`] has an embedding of NaN.
fn target() -> Target {
    let target = sound_target();
    let row = 16 * BAD as usize..16 * (BAD as usize + 1);
    let parameters = target.parameters().clone();
    target.with_parameters(spoilt(parameters, |name, at| name == "model.embed_tokens.weight" && row.contains(&at)))
}

/// A draft that computes nothing but NaN.
fn draft(target: &Target) -> Draft {
    let draft = common::draft(target, 3);
    let parameters = spoilt(draft.parameters.clone(), |_, _| true);
    draft.with_parameters(parameters)
}

fn options() -> GenerationOptions {
    GenerationOptions { max_new_tokens: 12, stop_token_ids: Vec::new(), confidence_threshold: 0.0 }
}

fn samplers() -> [Sampler; 3] {
    [
        Sampler::greedy(),
        Sampler::new(1.0, Filters::NONE, Randomness::Coupled(3)),
        Sampler::new(0.8, Filters { top_k: 4, ..Filters::NONE }, Randomness::of_request(None)),
    ]
}

#[test]
fn no_token_is_taken_from_logits_that_are_nan() {
    let target = target();
    let good = common::draft(&target, 3);
    for draft in [None, Some(&good)] {
        for mut sampler in samplers() {
            let decoder = Decoder::new(&target, draft);
            let error = decoder.generate(&[1, BAD, 3], &options(), &mut sampler).unwrap_err();
            assert_eq!(error, NotFinite { position: 3 });
        }
    }
    // One number in a row is enough.
    let sound = sound_target();
    let one = spoilt(sound.parameters().clone(), |name, at| name == "lm_head.weight" && at == 2 * 16);
    let target = sound.with_parameters(one);
    for mut sampler in samplers() {
        assert!(Decoder::new(&target, None).generate(&[1, 2], &options(), &mut sampler).is_err());
    }
}

#[test]
fn a_draft_of_nan_changes_no_token() {
    let target = sound_target();
    let draft = draft(&target);
    let coupled = || Sampler::new(1.0, Filters::NONE, Randomness::Coupled(9));
    let answer = |draft: Option<&Draft>, mut sampler: Sampler| {
        Decoder::new(&target, draft).generate(&[1, 2, 3], &options(), &mut sampler).unwrap().ids
    };
    assert_eq!(answer(Some(&draft), Sampler::greedy()), greedy(&target, &[1, 2, 3], 12));
    assert_eq!(answer(Some(&draft), coupled()), answer(None, coupled()));
}

fn request(prompt: &[u32], temperature: f64) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_new_tokens: 12,
        sampling: Sampling { temperature, ..Sampling::default() },
        stop_token_ids: Vec::new(),
        stop_strings: Vec::new(),
        include_stop_string: false,
        logprobs: None,
    }
}

/// Tokens, or why there are none.
fn outcome(mut answer: Answer) -> Result<Vec<u32>, Failure> {
    let mut ids = Vec::new();
    loop {
        match answer.wait().expect("the engine ended") {
            Event::Delta(delta) => ids.extend(delta.tokens.iter().map(|token| token.id)),
            Event::Finished(_) => return Ok(ids),
            Event::Failed(failure) => return Err(failure),
        }
    }
}

#[test]
fn a_request_that_meets_nan_fails_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    for on_device in [false, true] {
        for (mode, nan_draft) in [(Mode::Off, false), (Mode::Fixed(3), false), (Mode::Fixed(3), true)] {
            let target = target();
            // What others are answered does not lead to the bad token.
            let expected = greedy(&target, &[1, 2, 3], 12);
            assert!(!expected[..11].contains(&BAD), "{expected:?}");
            let draft = if nan_draft { draft(&target) } else { common::draft(&target, 3) };
            // Nor does the draft propose it.
            let counts: Vec<u64> = (0..VOCABULARY as u32).map(|token| u64::from(token != BAD)).collect();
            let draft = draft.with_vocabulary(DraftVocabulary::most_frequent(&counts, VOCABULARY - 1));
            let config = EngineConfig { mode, sampling_on_device: Some(on_device), ..EngineConfig::default() };
            let tokenizer = Tokenizer::from_directory(&folder).unwrap();
            let (engine, handle) = Engine::start(target, Some(draft), tokenizer, config).unwrap();
            let bad = [0.0, 1.0].map(|temperature| handle.submit(request(&[4, BAD], temperature)).unwrap());
            let good = handle.submit(request(&[1, 2, 3], 0.0)).unwrap();
            for answer in bad {
                let failure = outcome(answer).unwrap_err();
                assert_eq!(failure, Failure::NotFinite(NotFinite { position: 2 }), "{mode}, {on_device}");
            }
            assert_eq!(outcome(good).unwrap(), expected, "{mode}, {on_device}");
            // Nothing of the failed requests is left for later ones.
            assert_eq!(outcome(handle.submit(request(&[1, 2, 3], 0.0)).unwrap()).unwrap(), expected);
            drop(handle);
            engine.join();
        }
    }
}
