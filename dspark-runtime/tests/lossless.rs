//! Decoding with a draft leaves the target's distribution as it is: counted over many runs, and three ways to break it are
//! noticed.

mod common;

use dspark_runtime::model::{Draft, Target, TargetSegment};
use dspark_runtime::speculate::{
    Decoder, Distribution, GenerationOptions, Sampler, SeededUniforms, Uniforms, Verdict, judge,
};
use rayon::prelude::*;

use common::{Counts, deviation};

const RUNS: u64 = 20_000;
const NEW_TOKENS: usize = 4;
const BLOCK: usize = 3;
const PROMPT: [u32; 3] = [1, 5, 2];

/// An acceptance test: drafted tokens, draft and target distributions, random numbers.
type Judge = fn(&[u32], &[Distribution], &[Distribution], &mut dyn Uniforms) -> Verdict;

fn options() -> GenerationOptions {
    GenerationOptions { max_new_tokens: NEW_TOKENS, stop_token_ids: Vec::new(), confidence_threshold: 0.0 }
}

/// Rounds of one sequence written down once more, with any acceptance test: the oracle of `speculate::Rounds`, of which it uses
/// nothing but distributions and random numbers.
fn decode(target: &Target, draft: &Draft, seed: u64, judge: Judge) -> Vec<u32> {
    let mut uniforms = SeededUniforms::new(3, seed);
    let capture = &draft.config().target_layer_ids;
    let mut cache = target.new_cache(16);
    let mut context = draft.new_context(16);
    let pass = |ids: &[u32], cache: &mut _| {
        let output = target.forward(&mut [TargetSegment { ids, cache: Some(cache) }], capture);
        let logits: Vec<f32> = target.logits(output.last_hidden_nd).try_into_vec_as().unwrap();
        let rows: Vec<Distribution> =
            logits.chunks(common::VOCABULARY).map(|row| Distribution::from_logits(row, 1.0)).collect();
        (output.features_nf.unwrap(), rows)
    };
    let (mut features, rows) = pass(&PROMPT, &mut cache);
    let mut ids = vec![rows.last().unwrap().sample(uniforms.next())];
    let mut following = vec![PROMPT[1], PROMPT[2], ids[0]];
    while ids.len() < NEW_TOKENS {
        let anchor = ids[ids.len() - 1];
        draft.extend_context(&mut context, features, &following);
        let mut block = vec![anchor];
        let mut distributions = Vec::new();
        let mut drafting = draft.begin(vec![&mut context], &[anchor], BLOCK);
        for slot in 0..BLOCK {
            drafting.confidences(&block[slot..]);
            let distribution = Distribution::from_logits(drafting.logits(&[0])[0], 1.0);
            block.push(distribution.sample(uniforms.next()));
            distributions.push(distribution);
        }
        drop(drafting);
        let past = cache.len();
        let (new, rows) = pass(&block, &mut cache);
        let verdict = judge(&block[1..], &distributions, &rows, &mut uniforms);
        ids.extend(&block[1..=verdict.accepted]);
        ids.push(verdict.next);
        following = ids[ids.len() - verdict.accepted - 1..].to_vec();
        cache.truncate(past + 1 + verdict.accepted);
        features = new.narrow(0, 0, 1 + verdict.accepted);
    }
    ids.truncate(NEW_TOKENS);
    ids
}

fn judge_with(
    drafted: &[u32],
    target: &[Distribution],
    uniforms: &mut dyn Uniforms,
    ratio: impl Fn(usize) -> f64,
    rest: impl Fn(usize) -> Distribution,
) -> Verdict {
    let draws: Vec<f64> = drafted.iter().map(|_| uniforms.next()).collect();
    let accepted = (0..drafted.len()).take_while(|&slot| draws[slot] < ratio(slot)).count();
    let u = uniforms.next();
    let next = if accepted < drafted.len() { rest(accepted).sample(u) } else { target[accepted].sample(u) };
    Verdict { accepted, next }
}

fn wrong_ratio(drafted: &[u32], draft: &[Distribution], target: &[Distribution], u: &mut dyn Uniforms) -> Verdict {
    // The square root of the ratio: accepts unlikely tokens too often.
    let ratio =
        |slot: usize| (target[slot].probability(drafted[slot]) / draft[slot].probability(drafted[slot])).sqrt();
    judge_with(drafted, target, u, ratio, |slot| target[slot].residual(&draft[slot]))
}

fn no_residual(drafted: &[u32], draft: &[Distribution], target: &[Distribution], u: &mut dyn Uniforms) -> Verdict {
    let ratio = |slot: usize| target[slot].probability(drafted[slot]) / draft[slot].probability(drafted[slot]);
    judge_with(drafted, target, u, ratio, |slot| target[slot].clone())
}

fn rescaled_draft(drafted: &[u32], draft: &[Distribution], target: &[Distribution], u: &mut dyn Uniforms) -> Verdict {
    // As if the acceptance test saw the draft at another temperature than the one it was sampled at.
    let rescaled: Vec<Distribution> = draft.iter().map(sharpened).collect();
    judge(drafted, &rescaled, target, u)
}

fn sharpened(distribution: &Distribution) -> Distribution {
    let Distribution::Dense(probabilities) = distribution else { panic!("temperature 1 is dense") };
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() * 1.5).collect();
    Distribution::from_logits(&logits, 1.0)
}

fn count(run: impl Fn(u64) -> Vec<u32> + Sync) -> Counts {
    let runs: Vec<Vec<u32>> = (0..RUNS).into_par_iter().map(|seed| run(seed)[1..].to_vec()).collect();
    let mut counts = Counts::new();
    for tokens in runs {
        *counts.entry(tokens).or_default() += 1;
    }
    counts
}

#[test]
fn tokens_two_to_four_have_the_targets_distribution() {
    let target = common::target(5);
    lossless(&target, &common::draft(&target, BLOCK));
}

#[test]
fn an_eagle3_draft_leaves_the_targets_distribution_too() {
    let target = common::deep_target(5);
    lossless(&target, &common::eagle3_draft(&target, BLOCK));
}

fn lossless(target: &Target, draft: &Draft) {
    // The decoder's rounds are those of the oracle, draw for draw.
    for seed in 0..50 {
        let own = Decoder::new(target, Some(draft))
            .generate(&PROMPT, &options(), &mut Sampler::repeatable(1.0, 3, seed))
            .unwrap();
        assert_eq!(decode(target, draft, seed, judge), own.ids);
    }
    let rounds: Vec<(usize, usize)> = (0..2000_u64)
        .into_par_iter()
        .flat_map_iter(|seed| {
            let decoder = Decoder::new(target, Some(draft));
            let generation = decoder.generate(&PROMPT, &options(), &mut Sampler::repeatable(1.0, 4, seed)).unwrap();
            generation.rounds.into_iter().map(|round| (round.accepted, round.proposed))
        })
        .collect();
    for slot in 0..BLOCK {
        let reached = rounds.iter().filter(|(accepted, proposed)| *accepted >= slot && *proposed > slot).count();
        let kept = rounds.iter().filter(|(accepted, _)| *accepted > slot).count();
        let share = kept as f64 / reached as f64;
        assert!((0.2..0.8).contains(&share), "conditional acceptance at slot {slot} is {share}");
    }
    let alone = count(|seed| {
        Decoder::new(target, None).generate(&PROMPT, &options(), &mut Sampler::repeatable(1.0, 11, seed)).unwrap().ids
    });
    let with_draft = count(|seed| {
        let decoder = Decoder::new(target, Some(draft));
        decoder.generate(&PROMPT, &options(), &mut Sampler::repeatable(1.0, 12, seed)).unwrap().ids
    });
    let same = deviation(&alone, &with_draft);
    println!("with the draft: {same:.2} standard deviations");
    assert!(same < 3.1, "the draft changes the distribution: {same} standard deviations");
    for (name, fault) in
        [("wrong ratio", wrong_ratio as Judge), ("no residual", no_residual), ("rescaled draft", rescaled_draft)]
    {
        let faulty = deviation(&alone, &count(|seed| decode(target, draft, seed, fault)));
        println!("{name}: {faulty:.2} standard deviations");
        assert!(faulty > 6.0, "{name} goes unnoticed: {faulty} standard deviations");
    }
}

#[test]
fn greedy_output_is_the_same_with_any_draft_and_any_threshold() {
    for seed in 0..20 {
        let (target, deep) = (common::target(seed), common::deep_target(seed));
        let greedy_of = |target: &Target, draft: Option<&Draft>, threshold: f64| {
            let options =
                GenerationOptions { max_new_tokens: 40, stop_token_ids: Vec::new(), confidence_threshold: threshold };
            Decoder::new(target, draft).generate(&PROMPT, &options, &mut Sampler::greedy()).unwrap().ids
        };
        let greedy = |draft: Option<&Draft>, threshold: f64| greedy_of(&target, draft, threshold);
        let alone = greedy(None, 0.0);
        let deep_alone = greedy_of(&deep, None, 0.0);
        assert_eq!(alone.len(), 40);
        for block in [1, 2, 5, 15] {
            let draft = common::draft(&target, block);
            for threshold in [0.0, 0.5, 2.0] {
                assert_eq!(greedy(Some(&draft), threshold), alone, "block {block}, threshold {threshold}");
            }
            let eagle3 = common::eagle3_draft(&deep, block);
            assert_eq!(greedy_of(&deep, Some(&eagle3), 0.0), deep_alone, "Eagle3, {block} tokens");
        }
    }
}
