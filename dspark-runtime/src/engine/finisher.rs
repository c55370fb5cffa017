//! The text side of answers: turns committed tokens into events, on a separate thread, while the next step computes.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::request::{Delta, EVENTS_AHEAD, Event, Failure, FinishReason, Finished, TokenOutput, Usage};
use super::stop_strings::StopStrings;
use crate::text::{Detokenizer, TextError, Tokenizer};

/// A message from the step loop about a request.
#[derive(Debug)]
pub(super) enum Output {
    /// It was taken.
    Begin {
        id: u64,
        events: Sender<Event>,
        stop_strings: Vec<String>,
        include_stop: bool,
        submitted: Instant,
        prompt: Vec<u32>,
    },
    /// Tokens were committed.
    Tokens(Tokens),
    /// The request failed.
    Fail { id: u64, failure: Failure },
    /// The request was cancelled because its client disconnected.
    Forget { id: u64 },
}

/// The tokens that one step committed for one request.
#[derive(Debug)]
pub(super) struct Tokens {
    pub id: u64,
    pub tokens: Vec<TokenOutput>,
    pub drafted: Vec<u32>,
    /// A round with a draft.
    pub round: bool,
    pub cached_prompt: usize,
    /// Present if these are the last tokens; the flag says whether the last token is a stop token.
    pub end: Option<(FinishReason, bool)>,
}

/// Tells the step loop that an answer ended for a reason that only its text shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped {
    pub id: u64,
    /// True if the answer is complete because it ended on a stop string; false if the request failed.
    pub complete: bool,
}

struct Text {
    events: Sender<Event>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    include_stop: bool,
    usage: Usage,
    submitted: Instant,
    first: Option<Duration>,
}

/// Runs until the step loop is gone. `tell_loop` tells the step loop of answers that ended without it.
pub(super) fn run(tokenizer: &Tokenizer, outputs: &Receiver<Output>, mut tell_loop: impl FnMut(Stopped)) {
    let mut texts: HashMap<u64, Text> = HashMap::new();
    for output in outputs {
        match output {
            Output::Begin { id, events, stop_strings, include_stop, submitted, prompt } => {
                let detokenizer = match Detokenizer::new(tokenizer, &prompt, true) {
                    Ok(detokenizer) => detokenizer,
                    Err(error) => {
                        tell_loop(Stopped { id, complete: false });
                        let _ = events.try_send(Event::Failed(Failure::Internal(error.to_string())));
                        continue;
                    }
                };
                let text = Text {
                    events,
                    detokenizer,
                    stop: StopStrings::new(stop_strings, include_stop),
                    include_stop,
                    usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
                    submitted,
                    first: None,
                };
                texts.insert(id, text);
            }
            Output::Tokens(tokens) => {
                let id = tokens.id;
                // An answer that ended on a stop string can receive tokens until the step loop is informed.
                let Some(text) = texts.get_mut(&id) else { continue };
                let Some(last) = text.add(tokens) else { continue };
                // The step loop is informed before the client: a client that has the whole answer and disconnects did
                // not cancel it. Without a step loop there is nothing to stop.
                if let Some(complete) = last.unknown_to_the_loop {
                    tell_loop(Stopped { id, complete });
                }
                text.tell(last.event);
                texts.remove(&id);
            }
            Output::Fail { id, failure } => {
                if let Some(text) = texts.remove(&id) {
                    text.tell(Event::Failed(failure));
                }
            }
            Output::Forget { id } => _ = texts.remove(&id),
        }
    }
}

/// The last event of an answer.
struct Last {
    event: Event,
    /// Set if the step loop does not know of the end yet: true if the answer is complete.
    unknown_to_the_loop: Option<bool>,
}

impl Last {
    fn failed(failure: Failure) -> Self {
        Self { event: Event::Failed(failure), unknown_to_the_loop: Some(false) }
    }
}

impl Text {
    /// Takes what one step committed; returns how the answer ends when it does.
    fn add(&mut self, step: Tokens) -> Option<Last> {
        self.first.get_or_insert_with(|| self.submitted.elapsed());
        self.usage.cached_prompt_tokens = step.cached_prompt;
        self.usage.rounds += usize::from(step.round);
        self.usage.verified_tokens += step.drafted.len();
        let end = step.end;
        let (delta, stopped) = match self.text_of(step) {
            Ok(read) => read,
            Err(error) => return Some(Last::failed(Failure::Internal(error.to_string()))),
        };
        // A place is kept for the last event.
        if self.events.capacity() < 2 && !self.events.is_closed() {
            return Some(Last::failed(Failure::NotRead(EVENTS_AHEAD)));
        }
        self.tell(Event::Delta(delta));
        let reason = match (stopped, end) {
            (true, _) => FinishReason::Stop,
            (false, Some((reason, _))) => reason,
            (false, None) => return None,
        };
        let finished = Finished {
            reason,
            usage: self.usage,
            time_to_first_token: self.first.unwrap_or_default(),
            time: self.submitted.elapsed(),
        };
        Some(Last { event: Event::Finished(finished), unknown_to_the_loop: end.is_none().then_some(true) })
    }

    /// Turns a step's tokens into text, up to a stop string.
    fn text_of(&mut self, step: Tokens) -> Result<(Delta, bool), TextError> {
        let mut delta = Delta { drafted: step.drafted, round: step.round, ..Delta::default() };
        let last = step.tokens.len().wrapping_sub(1);
        let mut stopped = false;
        for (index, token) in step.tokens.into_iter().enumerate() {
            self.usage.new_tokens += 1;
            self.usage.round_tokens += usize::from(step.round);
            self.usage.accepted_tokens += usize::from(token.drafted);
            // A stop token is part of the answer, not of its text.
            let silent = !self.include_stop && index == last && matches!(step.end, Some((_, true)));
            let piece = if silent { None } else { self.detokenizer.push(token.id)? };
            delta.tokens.push(token);
            stopped = self.stop.push(piece.as_deref().unwrap_or_default(), &mut delta.text);
            if stopped {
                break;
            }
        }
        if step.end.is_some() && !stopped {
            let rest = self.detokenizer.flush()?;
            stopped = self.stop.push(rest.as_deref().unwrap_or_default(), &mut delta.text);
            if !stopped {
                self.stop.flush(&mut delta.text);
            }
        }
        Ok((delta, stopped))
    }

    fn tell(&self, event: Event) {
        // The receiver may be gone; the step loop looks for that itself.
        let _ = self.events.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use tokio::sync::mpsc;

    use super::*;
    use crate::text::testing;

    /// Returns the text of an answer, and why it ended.
    fn finished(prompt: &[&str], answer: &[&str], stop_strings: &[&str]) -> (String, FinishReason) {
        let tokenizer = testing::load(&testing::sentence_piece());
        let ids =
            |tokens: &[&str]| -> Vec<u32> { tokens.iter().map(|token| tokenizer.token_id(token).unwrap()).collect() };
        let (sender, mut events) = mpsc::channel(EVENTS_AHEAD);
        let (outputs, inbox) = channel();
        let stop_strings = stop_strings.iter().map(|stop| (*stop).to_owned()).collect();
        let submitted = Instant::now();
        let prompt = ids(prompt);
        outputs
            .send(Output::Begin { id: 1, events: sender, stop_strings, include_stop: false, submitted, prompt })
            .unwrap();
        for (index, id) in ids(answer).into_iter().enumerate() {
            let end = (index + 1 == answer.len()).then_some((FinishReason::Length, false));
            let tokens = vec![TokenOutput { id, drafted: false, logprobs: None }];
            let tokens = Tokens { id: 1, tokens, drafted: Vec::new(), round: false, cached_prompt: 0, end };
            outputs.send(Output::Tokens(tokens)).unwrap();
        }
        drop(outputs);
        run(&tokenizer, &inbox, |_| {});
        let mut text = String::new();
        loop {
            match events.blocking_recv() {
                Some(Event::Delta(delta)) => text.push_str(&delta.text),
                Some(Event::Finished(finished)) => return (text, finished.reason),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_text_continues_its_prompt() {
        let length = FinishReason::Length;
        assert_eq!(finished(&["<s>", "▁th", "e"], &["▁th", "e"], &[]), (" the".to_owned(), length));
        assert_eq!(finished(&["<s>"], &["▁th", "e"], &[]), ("the".to_owned(), length));
    }

    #[test]
    fn stop_strings_may_begin_with_the_first_space() {
        assert_eq!(finished(&["▁th"], &["▁th", "e"], &[" th"]), (String::new(), FinishReason::Stop));
    }
}
