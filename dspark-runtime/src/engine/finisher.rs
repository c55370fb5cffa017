//! The text side of answers: from committed tokens to events, on a thread of its own, while the next step computes.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::request::{Delta, Event, Failure, FinishReason, Finished, TokenOutput, Usage};
use super::stop_strings::StopStrings;
use crate::text::{Detokenizer, Tokenizer};

/// What the step loop says about a request.
#[derive(Debug)]
pub(super) enum Output {
    /// It was taken.
    Begin { id: u64, events: UnboundedSender<Event>, stop_strings: Vec<String>, submitted: Instant, prompt: usize },
    /// Tokens were committed.
    Tokens(Tokens),
    /// It was given up.
    Fail { id: u64, failure: Failure },
    /// It was cancelled: nobody listens.
    Forget { id: u64 },
}

/// What one step committed for one request.
#[derive(Debug)]
pub(super) struct Tokens {
    pub id: u64,
    pub tokens: Vec<TokenOutput>,
    pub drafted: Vec<u32>,
    /// A round with a draft.
    pub round: bool,
    pub cached_prompt: usize,
    /// When these were the last; the flag says whether the last token is a stop token.
    pub end: Option<(FinishReason, bool)>,
}

/// Tells the step loop that an answer ended on a stop string.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped(pub u64);

struct Text {
    events: UnboundedSender<Event>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    usage: Usage,
    submitted: Instant,
    first: Option<Duration>,
}

/// Runs until the step loop is gone.
pub(super) fn run(tokenizer: &Tokenizer, outputs: &Receiver<Output>, stopped: &Sender<Stopped>) {
    let mut texts: HashMap<u64, Text> = HashMap::new();
    for output in outputs {
        match output {
            Output::Begin { id, events, stop_strings, submitted, prompt } => {
                let text = Text {
                    events,
                    detokenizer: Detokenizer::new(tokenizer, true),
                    stop: StopStrings::new(stop_strings),
                    usage: Usage { prompt_tokens: prompt, ..Usage::default() },
                    submitted,
                    first: None,
                };
                texts.insert(id, text);
            }
            Output::Tokens(tokens) => {
                let id = tokens.id;
                // An answer that ended on a stop string may get tokens until the step loop hears of it.
                let Some(text) = texts.get_mut(&id) else { continue };
                match text.add(tokens) {
                    Progress::GoesOn => {}
                    Progress::Ended => _ = texts.remove(&id),
                    Progress::StoppedHere => {
                        texts.remove(&id);
                        // Without a step loop there is nothing left to stop.
                        let _ = stopped.send(Stopped(id));
                    }
                }
            }
            Output::Fail { id, failure } => {
                if let Some(text) = texts.remove(&id) {
                    let _ = text.events.send(Event::Failed(failure));
                }
            }
            Output::Forget { id } => _ = texts.remove(&id),
        }
    }
}

enum Progress {
    GoesOn,
    Ended,
    /// On a stop string, which the step loop does not know yet.
    StoppedHere,
}

impl Text {
    fn add(&mut self, step: Tokens) -> Progress {
        self.first.get_or_insert_with(|| self.submitted.elapsed());
        self.usage.cached_prompt_tokens = step.cached_prompt;
        self.usage.rounds += usize::from(step.round);
        self.usage.verified_tokens += step.drafted.len();
        let mut delta = Delta { drafted: step.drafted, round: step.round, ..Delta::default() };
        let last = step.tokens.len().wrapping_sub(1);
        let mut stopped = false;
        for (index, token) in step.tokens.into_iter().enumerate() {
            self.usage.new_tokens += 1;
            self.usage.round_tokens += usize::from(step.round);
            self.usage.accepted_tokens += usize::from(token.drafted);
            // A stop token is part of the answer, not of its text.
            let silent = index == last && matches!(step.end, Some((_, true)));
            let piece = if silent { Ok(None) } else { self.detokenizer.push(token.id) };
            delta.tokens.push(token);
            match piece {
                Ok(piece) => stopped = self.stop.push(piece.as_deref().unwrap_or_default(), &mut delta.text),
                Err(error) => return self.fail(&error.to_string()),
            }
            if stopped {
                break;
            }
        }
        if step.end.is_some() && !stopped {
            match self.detokenizer.flush() {
                Ok(rest) => stopped = self.stop.push(rest.as_deref().unwrap_or_default(), &mut delta.text),
                Err(error) => return self.fail(&error.to_string()),
            }
            if !stopped {
                self.stop.flush(&mut delta.text);
            }
        }
        // The receiver may be gone; the step loop looks for that itself.
        let _ = self.events.send(Event::Delta(delta));
        let reason = match (stopped, step.end) {
            (true, _) => FinishReason::Stop,
            (false, Some((reason, _))) => reason,
            (false, None) => return Progress::GoesOn,
        };
        let finished = Finished {
            reason,
            usage: self.usage,
            time_to_first_token: self.first.unwrap_or_default(),
            time: self.submitted.elapsed(),
        };
        let _ = self.events.send(Event::Finished(finished));
        if step.end.is_some() { Progress::Ended } else { Progress::StoppedHere }
    }

    fn fail(&self, error: &str) -> Progress {
        let _ = self.events.send(Event::Failed(Failure::Internal(error.to_owned())));
        Progress::StoppedHere
    }
}
