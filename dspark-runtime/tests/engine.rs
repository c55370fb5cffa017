//! Many requests at once get what each would get alone: whatever the draft, the load, the memory.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Counts, VOCABULARY, deviation};
use dspark_runtime::engine::{
    Answer, Engine, EngineConfig, EngineHandle, Event, Failure, FinishReason, Finished, Refusal, Request, Sampling,
};
use dspark_runtime::model::DraftHeads;
use dspark_runtime::schedule::{Mode, SpsTable, StepCost, StsTable};
use dspark_runtime::text::Tokenizer;

const BLOCK: usize = 3;

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target");
    Tokenizer::from_directory(&folder).unwrap()
}

/// A tiny target with a draft whose tokens it keeps about half of the time.
fn start(config: EngineConfig) -> (Engine, EngineHandle) {
    let target = common::target(5);
    // Proposing with numbers that are a little off changes nothing of all this.
    let draft = common::draft(&target, BLOCK).with_heads(DraftHeads::Int8);
    Engine::start(target, Some(draft), tokenizer(), config).unwrap()
}

/// The same with an Eagle3 draft.
fn start_eagle3(config: EngineConfig) -> (Engine, EngineHandle) {
    let target = common::deep_target(5);
    let draft = common::eagle3_draft(&target, BLOCK).with_heads(DraftHeads::Int8);
    Engine::start(target, Some(draft), tokenizer(), config).unwrap()
}

fn request(prompt: &[u32], max_new_tokens: usize, sampling: Sampling) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_new_tokens,
        sampling,
        stop_token_ids: Vec::new(),
        stop_strings: Vec::new(),
        include_stop_string: false,
        logprobs: None,
    }
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

/// A machine on which a step of up to sixteen tokens costs little more than one of one, and larger ones cost in proportion.
fn curve() -> SpsTable {
    let batch_tokens: Vec<usize> = (1..=256).collect();
    let seconds = |tokens: usize| 0.01 * (1.0 + 0.02 * tokens as f64 + (tokens as f64 - 16.0).max(0.0) / 16.0);
    let steps_per_second = batch_tokens.iter().map(|&tokens| 1.0 / seconds(tokens)).collect();
    SpsTable::new(StepCost::Probes { batch_tokens, steps_per_second, per_request: None }, 256, None, None)
}

#[derive(Debug)]
struct Whole {
    ids: Vec<u32>,
    text: String,
    finished: Finished,
}

fn whole(mut answer: Answer) -> Whole {
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        match answer.wait().expect("an answer ends with an event") {
            Event::Delta(delta) => {
                ids.extend(delta.tokens.iter().map(|token| token.id));
                text.push_str(&delta.text);
            }
            Event::Finished(finished) => return Whole { ids, text, finished },
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
}

/// Different prompts, lengths and settings; every answer is determined by its request.
fn mixed(count: usize) -> Vec<Request> {
    (0..count)
        .map(|index| {
            let prompt: Vec<u32> = (0..3 + index % 20).map(|at| ((at * 5 + index * 3) % 7) as u32).collect();
            let seeded = |sampling: Sampling| Sampling { seed: Some(index as u64 * 7), ..sampling };
            let sampling = match index % 4 {
                0 => greedy(),
                1 => seeded(Sampling::default()),
                2 => seeded(Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() }),
                _ => seeded(Sampling { temperature: 1.3, top_k: 5, min_p: 0.05, ..Sampling::default() }),
            };
            request(&prompt, 5 + index % 30, sampling)
        })
        .collect()
}

fn answers(config: EngineConfig, requests: &[Request]) -> (Vec<Vec<u32>>, EngineHandle) {
    answers_of(start(config), requests)
}

fn answers_of((engine, handle): (Engine, EngineHandle), requests: &[Request]) -> (Vec<Vec<u32>>, EngineHandle) {
    let answers: Vec<Answer> = requests.iter().map(|request| handle.submit(request.clone()).unwrap()).collect();
    let ids = answers.into_iter().map(|answer| whole(answer).ids).collect();
    handle.shut_down(Duration::ZERO);
    engine.join();
    (ids, handle)
}

#[test]
fn greedy_and_seeded_texts_depend_on_neither_draft_nor_load_nor_schedule() {
    let requests = mixed(32);
    let alone: Vec<Vec<u32>> = requests
        .iter()
        .map(|request| {
            answers(EngineConfig { mode: Mode::Off, ..EngineConfig::default() }, std::slice::from_ref(request))
                .0
                .remove(0)
        })
        .collect();
    // Greedy ones against single passes of the target.
    let target = common::target(5);
    for (request, ids) in requests.iter().zip(&alone).step_by(4) {
        assert_eq!(&common::greedy(&target, &request.prompt, request.max_new_tokens), ids);
    }
    for mode in [Mode::Off, Mode::Fixed(1), Mode::Fixed(7), Mode::Threshold(0.5), Mode::Scheduled] {
        for (max_running, prefill_rows, on_device) in [(32, 128, false), (5, 4, false), (32, 128, true)] {
            let (curve, sampling_on_device) = (Some(curve()), Some(on_device));
            let config = EngineConfig {
                mode,
                max_running,
                prefill_rows,
                curve,
                sampling_on_device,
                ..EngineConfig::default()
            };
            let (together, handle) = answers(config, &requests);
            assert_eq!(
                together, alone,
                "{mode:?}, {max_running} at once, likeliest tokens on the device: {on_device}"
            );
            let metrics = handle.metrics();
            assert_eq!(metrics.finished, 32);
            assert_eq!(metrics.new_tokens as usize, alone.iter().map(Vec::len).sum::<usize>());
            if mode == Mode::Fixed(7) {
                let share = metrics.accepted_tokens as f64 / metrics.verified_tokens as f64;
                assert!((0.1..0.9).contains(&share), "the draft's share of kept tokens is {share}");
            }
        }
    }
}

#[test]
fn without_memory_for_all_requests_wait_or_start_again_and_none_is_lost() {
    let requests = mixed(24);
    let (alone, _) = answers(EngineConfig { mode: Mode::Off, max_running: 1, ..EngineConfig::default() }, &requests);
    for mode in [Mode::Off, Mode::Fixed(3)] {
        let config = EngineConfig { mode, cache_tokens: 192, ..EngineConfig::default() };
        let (tight, handle) = answers(config, &requests);
        assert_eq!(tight, alone, "{mode:?}");
        assert!(handle.metrics().preempted > 0 || handle.metrics().cached_tokens <= 192);
    }
}

#[test]
fn texts_with_an_eagle3_draft_are_the_targets_own() {
    let requests = mixed(24);
    let alone = EngineConfig { mode: Mode::Off, max_running: 1, ..EngineConfig::default() };
    let (alone, _) = answers_of(start_eagle3(alone), &requests);
    for (mode, cache_tokens) in
        [(Mode::Fixed(1), 65_536), (Mode::Fixed(7), 65_536), (Mode::Fixed(3), 192), (Mode::Scheduled, 65_536)]
    {
        let config = EngineConfig { mode, cache_tokens, curve: Some(curve()), ..EngineConfig::default() };
        let (together, handle) = answers_of(start_eagle3(config), &requests);
        assert_eq!(together, alone, "{mode:?}, room for {cache_tokens}");
        if mode == Mode::Fixed(7) {
            let share = handle.metrics().accepted_tokens as f64 / handle.metrics().verified_tokens as f64;
            assert!((0.1..0.9).contains(&share), "the draft's share of kept tokens is {share}");
        }
    }
}

/// Wrong keys in a context would cost acceptance, and nothing else would tell.
#[test]
fn an_eagle3_draft_guesses_as_well_behind_a_beginning_that_was_kept() {
    let prompt = |parted: usize| -> Vec<u32> {
        (0..40).map(|at| if at < parted { (at * 5 % 7) as u32 } else { (at * 3 % 8) as u32 }).collect()
    };
    let rounds = |requests: &[Request]| {
        let (engine, handle) = start_eagle3(EngineConfig { mode: Mode::Fixed(BLOCK), ..EngineConfig::default() });
        // One after the other.
        let ids: Vec<Vec<u32>> =
            requests.iter().map(|request| whole(handle.submit(request.clone()).unwrap()).ids).collect();
        handle.shut_down(Duration::ZERO);
        engine.join();
        let metrics = handle.metrics();
        (ids, [metrics.rounds, metrics.verified_tokens, metrics.accepted_tokens], metrics.cached_prompt_tokens)
    };
    let seeded = |seed| Sampling { seed: Some(seed), ..Sampling::default() };
    let requests: Vec<Request> =
        [(40, 1), (25, 2), (40, 3)].map(|(parted, seed)| request(&prompt(parted), 20, seeded(seed))).to_vec();
    let alone: Vec<_> = requests.iter().map(|request| rounds(std::slice::from_ref(request))).collect();
    let (ids, sums, cached) = rounds(&requests);
    assert_eq!(cached, 24 + 38);
    for (index, (own, ..)) in alone.iter().enumerate() {
        assert_eq!(&ids[index], &own[0]);
    }
    let expected = [0, 1, 2].map(|number| alone.iter().map(|(_, counts, _)| counts[number]).sum::<u64>());
    assert_eq!(sums, expected);
    assert!(sums[2] > 0);
}

#[test]
fn running_out_of_memory_in_mid_answer_puts_the_latest_back() {
    // Three sequences start within one page each, and there are three; each grows beyond its own.
    let requests: Vec<Request> = (0..3).map(|first| request(&[first, 1, 2], 61, greedy())).collect();
    let (alone, _) = answers(EngineConfig { max_running: 1, ..EngineConfig::default() }, &requests);
    let (tight, handle) = answers(EngineConfig { cache_tokens: 3 * 64, ..EngineConfig::default() }, &requests);
    assert_eq!(tight, alone);
    assert!(handle.metrics().preempted > 0, "{:?}", handle.metrics());
}

#[test]
fn unseeded_tokens_two_to_four_have_the_targets_distribution() {
    const RUNS: usize = 20_000;
    let count = |mode: Mode, on_device: bool| {
        let config = EngineConfig { mode, max_waiting: RUNS, curve: Some(curve()), ..EngineConfig::default() };
        let (engine, handle) = start(EngineConfig { sampling_on_device: Some(on_device), ..config });
        // Two temperatures side by side.
        let ask = |index: usize| {
            let temperature = if index.is_multiple_of(2) { 1.0 } else { 0.7 };
            handle.submit(request(&[1, 5, 2], 4, Sampling { temperature, ..Sampling::default() })).unwrap()
        };
        let answers: Vec<Answer> = (0..RUNS).map(ask).collect();
        let mut counts = Counts::new();
        for (index, answer) in answers.into_iter().enumerate() {
            let mut tokens = whole(answer).ids;
            tokens[0] = index as u32 % 2;
            *counts.entry(tokens).or_default() += 1;
        }
        handle.shut_down(Duration::ZERO);
        engine.join();
        counts
    };
    let alone = count(Mode::Off, false);
    for (mode, on_device) in [
        (Mode::Fixed(BLOCK), false),
        (Mode::Scheduled, false),
        (Mode::Off, true),
        (Mode::Fixed(BLOCK), true),
        (Mode::Scheduled, true),
    ] {
        let deviation = deviation(&alone, &count(mode, on_device));
        println!("through the engine, {mode}, drawn on the device: {on_device}: {deviation:.2} standard deviations");
        // Unseeded: one run in fifteen thousand is beyond this by chance.
        assert!(deviation < 3.8, "{mode}, drawn on the device: {on_device}: {deviation} standard deviations");
    }
}

#[test]
fn a_request_that_nobody_waits_for_any_more_frees_its_place() {
    let (engine, handle) = start(EngineConfig { max_running: 1, ..EngineConfig::default() });
    let mut first = handle.submit(request(&[1, 2], 60, greedy())).unwrap();
    assert!(matches!(first.wait(), Some(Event::Delta(_))));
    let second = handle.submit(request(&[1, 3], 4, greedy())).unwrap();
    drop(first);
    // Would wait for the first's sixty tokens, and `cancelled` would stay 0.
    assert_eq!(whole(second).ids.len(), 4);
    assert!(handle.metrics().cancelled + handle.metrics().finished >= 1);
    handle.shut_down(Duration::ZERO);
    engine.join();
    assert_eq!(handle.metrics().running, 0);
}

#[test]
fn text_ends_before_a_stop_string_and_stop_tokens_are_not_part_of_it() {
    let (engine, handle) = start(EngineConfig::default());
    let plain = whole(handle.submit(request(&[1, 5, 2], 40, greedy())).unwrap());
    assert_eq!(plain.finished.reason, FinishReason::Length);
    assert_eq!(plain.ids.len(), 40);
    let stop = plain.text[plain.text.len() / 2..][..2].to_owned();
    let mut asked = request(&[1, 5, 2], 40, greedy());
    asked.stop_strings = vec![stop.clone()];
    let stopped = whole(handle.submit(asked).unwrap());
    assert_eq!(stopped.finished.reason, FinishReason::Stop);
    assert_eq!(stopped.text, plain.text[..plain.text.find(&stop).unwrap()]);
    let mut asked = request(&[1, 5, 2], 40, greedy());
    asked.stop_token_ids = vec![plain.ids[9]];
    let at = plain.ids.iter().position(|id| *id == plain.ids[9]).unwrap();
    let stopped = whole(handle.submit(asked).unwrap());
    assert_eq!(stopped.finished.reason, FinishReason::Stop);
    assert_eq!(stopped.ids, plain.ids[..=at]);
    assert_eq!(stopped.text, tokenizer().decode(&plain.ids[..at], true).unwrap());
    assert_eq!(stopped.finished.usage.new_tokens, at + 1);
    handle.shut_down(Duration::ZERO);
    engine.join();
}

#[test]
fn a_common_beginning_is_computed_once() {
    let (engine, handle) = start(EngineConfig::default());
    let prompt: Vec<u32> = (0..30).map(|at| (at * 3 % 7) as u32).collect();
    let first = whole(handle.submit(request(&prompt, 8, greedy())).unwrap());
    assert_eq!(first.finished.usage.cached_prompt_tokens, 0);
    // The same again, the conversation continued, and another one with the same beginning.
    let again = whole(handle.submit(request(&prompt, 8, greedy())).unwrap());
    let continued: Vec<u32> = prompt.iter().chain(&first.ids).copied().chain([3, 1]).collect();
    let longer = whole(handle.submit(request(&continued, 8, greedy())).unwrap());
    let other: Vec<u32> = prompt[..20].iter().copied().chain([6, 6, 6]).collect();
    let branched = whole(handle.submit(request(&other, 8, greedy())).unwrap());
    assert_eq!(again.ids, first.ids);
    assert_eq!(again.finished.usage.cached_prompt_tokens, 29);
    assert!(longer.finished.usage.cached_prompt_tokens >= 36, "{:?}", longer.finished.usage);
    assert_eq!(branched.finished.usage.cached_prompt_tokens, 20);
    handle.shut_down(Duration::ZERO);
    engine.join();
    let (alone, _) = answers(
        EngineConfig { mode: Mode::Off, ..EngineConfig::default() },
        &[request(&continued, 8, greedy()), request(&other, 8, greedy())],
    );
    assert_eq!([longer.ids, branched.ids], alone[..]);
}

#[test]
fn what_cannot_be_answered_is_refused_at_once() {
    let (engine, handle) = start(EngineConfig { max_running: 1, max_waiting: 2, ..EngineConfig::default() });
    let refusal = |request: Request| handle.submit(request).unwrap_err().to_string();
    assert_eq!(refusal(request(&[], 4, greedy())), "prompt: expected at least one token, found none");
    assert_eq!(
        refusal(request(&[VOCABULARY as u32], 4, greedy())),
        format!("prompt: expected token ids below {VOCABULARY}, found {VOCABULARY}")
    );
    assert_eq!(refusal(request(&[1; 64], 4, greedy())), "the prompt has 64 tokens; expected at most 63");
    assert!(refusal(request(&[1], 0, greedy())).starts_with("max_tokens: expected at least 1"));
    let with = |sampling: Sampling| refusal(request(&[1], 4, sampling));
    assert!(with(Sampling { temperature: f64::NAN, ..greedy() }).starts_with("temperature:"));
    assert!(with(Sampling { top_p: 0.0, ..greedy() }).starts_with("top_p:"));
    assert!(with(Sampling { min_p: 1.0, ..greedy() }).starts_with("min_p:"));
    // Far more than may wait, faster than they can be answered.
    let mut taken = Vec::new();
    let full = loop {
        match handle.submit(request(&[1, 2], 60, greedy())) {
            Ok(answer) => taken.push(answer),
            Err(refusal) => break refusal,
        }
        assert!(taken.len() < 10_000, "the queue has no end");
    };
    assert!(matches!(full, Refusal::QueueFull { waiting: 2, .. }), "{full}");
    taken.into_iter().for_each(|answer| assert_eq!(whole(answer).ids.len(), 60));
    handle.shut_down(Duration::ZERO);
    engine.join();
    assert!(!handle.takes_requests());
    assert_eq!(handle.submit(request(&[1], 4, greedy())).unwrap_err(), Refusal::ShuttingDown);
}

#[test]
fn shutting_down_finishes_what_was_taken_or_says_that_it_did_not() {
    for (grace, complete) in [(Duration::from_secs(600), true), (Duration::ZERO, false)] {
        let (engine, handle) = start(EngineConfig { max_running: 2, ..EngineConfig::default() });
        let mut answers: Vec<Answer> =
            (0..200).map(|_| handle.submit(request(&[1, 2, 3], 60, greedy())).unwrap()).collect();
        handle.shut_down(grace);
        engine.join();
        let ends: Vec<Event> = answers
            .iter_mut()
            .map(|answer| std::iter::from_fn(|| answer.wait()).last().expect("every answer has an end"))
            .collect();
        let finished = ends.iter().filter(|end| matches!(end, Event::Finished(_))).count();
        let failed = ends.iter().filter(|end| matches!(end, Event::Failed(Failure::ShutDown))).count();
        assert_eq!(finished + failed, 200);
        assert_eq!(finished == 200, complete);
    }
}

#[test]
fn logprobs_are_the_targets_own() {
    // Greedy tokens that a device finds by itself come without logits, those of a request that wants these do not.
    let (engine, handle) = start(EngineConfig { sampling_on_device: Some(true), ..EngineConfig::default() });
    let seeded = Sampling { seed: Some(4), temperature: 0.6, ..Sampling::default() };
    let plain = whole(handle.submit(request(&[1, 5, 2], 10, greedy())).unwrap()).ids;
    for sampling in [seeded, greedy()] {
        let likeliest = sampling.temperature == 0.0;
        let mut asked = request(&[1, 5, 2], 10, sampling);
        asked.logprobs = Some(VOCABULARY);
        let mut answer = handle.submit(asked).unwrap();
        let mut tokens = Vec::new();
        while let Some(Event::Delta(delta)) = answer.wait() {
            tokens.extend(delta.tokens);
        }
        assert_eq!(tokens.len(), 10);
        for (token, plain) in tokens.into_iter().zip(&plain) {
            let logprobs = token.logprobs.unwrap();
            let total: f64 = logprobs.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
            assert!((total - 1.0).abs() < 1e-5);
            assert!(logprobs.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            assert!(logprobs.top.contains(&(token.id, logprobs.chosen)));
            assert!(!likeliest || (logprobs.top[0].0, token.id) == (*plain, *plain));
        }
    }
    handle.shut_down(Duration::ZERO);
    engine.join();
}

/// A draft that would lose time is reported as off, once, with the reason.
#[test]
fn drafting_that_cannot_pay_is_reported() {
    // A pass takes a time per token, and none was ever accepted.
    let batch_tokens: Vec<usize> = (1..=256).collect();
    let steps_per_second = batch_tokens.iter().map(|&tokens| 100.0 / tokens as f64).collect();
    let cost = StepCost::Probes { batch_tokens, steps_per_second, per_request: None };
    let calibration = StsTable { acceptance: vec![0.0; BLOCK], ..StsTable::identity(BLOCK) };
    let config = EngineConfig {
        mode: Mode::Scheduled,
        curve: Some(SpsTable::new(cost, 256, None, None)),
        calibration: Some(calibration),
        ..EngineConfig::default()
    };
    let (_, handle) = answers(config, &[request(&[1, 2, 3], 60, greedy()), request(&[3, 2, 1], 60, greedy())]);
    let metrics = handle.metrics();
    assert_eq!(metrics.rounds, 0);
    let switch = metrics.switch.expect("drafting is off").to_string();
    assert_eq!(
        switch,
        "drafting is off: by the measured step costs it would lose time with 2 requests at once; it will be tried again"
    );
}
