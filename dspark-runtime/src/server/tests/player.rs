//! An engine of few words: it counts, from one to forty, beginning anywhere.

use std::time::Duration;

use super::tokenizer;
use crate::engine::testing::{ScriptedEngine, Taken};
use crate::engine::{Delta, Event, FinishReason, Finished, Logprobs, TokenOutput, Usage};
use crate::text::{Detokenizer, Tokenizer};

/// Answers every request on a thread of its own until there are no more.
pub(super) fn play(engine: ScriptedEngine) {
    let tokenizer = tokenizer();
    std::thread::spawn(move || {
        while let Some(taken) = engine.take() {
            answer(&taken, &tokenizer);
        }
    });
}

/// The text of a request whose seed is `seed`, without any limit.
pub(super) fn text(seed: u64) -> String {
    let numbers: Vec<String> = (0..40).map(|number| ((seed % 40 + number) % 40 + 1).to_string()).collect();
    numbers.join(" ")
}

/// One token at a time, every second of them drafted, until a stop string or the limit. What may become a stop string is
/// held back. To go on for ever it says one word and waits until nobody listens.
fn answer(taken: &Taken, tokenizer: &Tokenizer) {
    let request = &taken.request;
    if tokenizer.decode(&request.prompt, false).unwrap().contains("for ever") {
        taken.send(Event::Delta(Delta { text: "on".to_owned(), ..Delta::default() }));
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(taken.cancelled());
        return;
    }
    let ids = tokenizer.encode(&text(request.sampling.seed.unwrap_or(0)), false).unwrap();
    let held_back = request.stop_strings.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
    let mut detokenizer = Detokenizer::new(tokenizer, &request.prompt, true).unwrap();
    let (mut said, mut handed_out, mut tokens, mut reason) = (String::new(), 0, 0, FinishReason::Stop);
    let mut hand_out = |said: &str, up_to: usize, tokens: Vec<TokenOutput>| {
        let text = said[handed_out..up_to.max(handed_out)].to_owned();
        handed_out += text.len();
        taken.send(Event::Delta(Delta { text, tokens, ..Delta::default() }));
    };
    for (position, id) in ids.into_iter().enumerate() {
        if position == request.max_new_tokens {
            reason = FinishReason::Length;
            break;
        }
        tokens += 1;
        said.push_str(&detokenizer.push(id).unwrap().unwrap_or_default());
        let stop = request.stop_strings.iter().filter_map(|stop| said.find(stop.as_str())).min();
        said.truncate(stop.unwrap_or(said.len()));
        let logprobs = request.logprobs.map(|top| Logprobs {
            chosen: -0.25,
            top: (0..top).map(|rank| (rank as u32 + 10, -0.5 - rank as f32)).collect(),
        });
        let output = TokenOutput { id, drafted: position % 2 == 1, logprobs };
        hand_out(&said, said.len().saturating_sub(held_back), vec![output]);
        if stop.is_some() {
            break;
        }
    }
    hand_out(&said, said.len(), Vec::new());
    let usage = Usage {
        prompt_tokens: request.prompt.len(),
        cached_prompt_tokens: 1,
        new_tokens: tokens,
        rounds: tokens / 2,
        // As where the last round ended with an accepted stop token.
        round_tokens: tokens.saturating_sub(2),
        verified_tokens: tokens,
        accepted_tokens: tokens / 2,
    };
    let (time_to_first_token, time) = (Duration::from_millis(1), Duration::from_millis(2));
    taken.send(Event::Finished(Finished { reason, usage, time_to_first_token, time }));
}
