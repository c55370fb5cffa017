//! The answers to one request as they come from the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::app::App;
use super::error::ApiError;
use super::parameters::Asked;
use super::record::{Answers, Record};
use crate::engine::{Answer, Delta, EngineHandle, Event, FinishReason, Refusal, Request, Usage};

/// All choices of a request. Dropping it cancels those that are not finished.
pub(super) struct Generation {
    app: Arc<App>,
    record: Arc<Record>,
    asked: Asked,
    events: SelectAll<BoxStream<'static, (usize, Option<Event>)>>,
    /// Number of choices that were submitted to the engine.
    begun: usize,
    usage: Vec<Usage>,
}

/// An update of one choice.
#[derive(Debug)]
pub(super) enum Update {
    Delta(Delta),
    Finished(FinishReason),
}

impl Generation {
    /// Submits a request for each of the first choices. The others follow as those end, so a client with many choices
    /// never has more than its share of the engine.
    ///
    /// # Errors
    /// Returns an error if the engine rejects one of them; then none is answered.
    pub fn begin(app: Arc<App>, asked: Asked, record: Arc<Record>, prompt_field: &str) -> Result<Self, ApiError> {
        let answers = asked.prompts.len() * asked.choices;
        let limits = app.engine.limits();
        if answers > limits.queue.max(1) {
            let (expected, found) = (format!("at most {} answers to one request", limits.queue), answers.to_string());
            return Err(ApiError::invalid(if asked.choices > 1 { "n" } else { prompt_field }, &expected, &found));
        }
        let usage = vec![Usage::default(); answers];
        let mut generation = Self { app, record, asked, events: SelectAll::new(), begun: 0, usage };
        while generation.begun < answers.min(limits.share.max(1)) {
            generation.ask(EngineHandle::submit).map_err(|refusal| ApiError::refused(&refusal, prompt_field))?;
        }
        generation.record.set(Answers::Begun);
        Ok(generation)
    }

    /// Asks the engine for the next choice.
    fn ask(&mut self, submit: fn(&EngineHandle, Request) -> Result<Answer, Refusal>) -> Result<(), Refusal> {
        let (index, asked) = (self.begun, &self.asked);
        let mut request = Request { prompt: asked.prompts[index / asked.choices].clone(), ..asked.request.clone() };
        let choice = (index % asked.choices) as u64;
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(choice));
        let answer = submit(&self.app.engine, request)?;
        self.events.push(events_of(answer).map(move |event| (index, event)).boxed());
        self.begun += 1;
        Ok(())
    }

    /// Returns the next update and the choice that it belongs to; `None` after the last one finished.
    ///
    /// # Errors
    /// Returns an error if a choice failed or the time for the request is over. No more comes after that.
    pub async fn next(&mut self) -> Result<Option<(usize, Update)>, ApiError> {
        let update = self.receive().await;
        match &update {
            Ok(Some((_, Update::Delta(delta)))) => {
                if let Some(after) = self.record.tokens(delta.tokens.len()) {
                    self.app.traffic.first_token(after);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => self.record.set(Answers::Finished),
            Err(_) => {
                self.record.set(Answers::Failed);
                self.events.clear();
            }
        }
        update
    }

    async fn receive(&mut self) -> Result<Option<(usize, Update)>, ApiError> {
        let limit = self.app.config.request_timeout;
        let deadline = self.record.arrived.checked_add(limit).unwrap_or_else(far_future);
        let next = timeout_at(deadline.into(), self.events.next()).await.map_err(|_| ApiError::timed_out(limit))?;
        let Some((index, event)) = next else {
            return Ok(None);
        };
        match event {
            Some(Event::Delta(delta)) => Ok(Some((index, Update::Delta(delta)))),
            Some(Event::Finished(finished)) => {
                self.usage[index] = finished.usage;
                if self.begun < self.usage.len() {
                    // The prompt was taken once already.
                    self.ask(EngineHandle::submit_next).map_err(|refusal| ApiError::refused(&refusal, "prompt"))?;
                }
                Ok(Some((index, Update::Finished(finished.reason))))
            }
            Some(Event::Failed(failure)) => Err(ApiError::failed(&failure)),
            None => Err(ApiError::internal("the engine ended before the answer was complete")),
        }
    }

    /// Tokens of all choices; a prompt counts once however many choices it has.
    pub fn usage(&self) -> Value {
        let mut all = Usage::default();
        self.usage.iter().for_each(|usage| all += *usage);
        let once =
            |count: fn(&Usage) -> usize| self.usage.iter().step_by(self.asked.choices).map(count).sum::<usize>();
        let prompt = once(|usage| usage.prompt_tokens);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": all.new_tokens,
            "total_tokens": prompt + all.new_tokens,
            "prompt_tokens_details": {"cached_tokens": once(|usage| usage.cached_prompt_tokens)},
            "completion_tokens_details": {
                "accepted_prediction_tokens": all.accepted_tokens,
                "rejected_prediction_tokens": all.verified_tokens - all.accepted_tokens,
                // Ours.
                "draft_rounds": all.rounds,
                "accepted_length": all.accepted_length(),
            },
        })
    }
}

/// A long time from now, where adding the limit overflows the clock.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365)
}

/// The events of an answer; `None` when it ended without saying how.
fn events_of(answer: Answer) -> impl stream::Stream<Item = Option<Event>> + Send + 'static {
    stream::unfold(Some(answer), |answer| async {
        let mut answer = answer?;
        let event = answer.next().await;
        let rest = matches!(event, Some(Event::Delta(_))).then_some(answer);
        Some((event, rest))
    })
}
