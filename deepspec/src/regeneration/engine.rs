//! Answers of the engine in this process.

use dspark_runtime::engine::{EngineHandle, Event, Failure, FinishReason, Refusal, Request, Sampling};
use dspark_runtime::text::{Tokenizer, UserText};
use serde_json::{Map, Value, json};

use super::answer::{AnswerError, Finish, Question, Reply, Source, Stop};
use super::error::RegenerationError;

/// The engine of this process with the settings of all requests.
#[derive(Debug)]
pub struct InProcess {
    handle: EngineHandle,
    tokenizer: Tokenizer,
    sampling: Sampling,
    max_new_tokens: usize,
    template_arguments: Map<String, Value>,
}

impl InProcess {
    /// Returns a source of answers through `handle`. The seed of `sampling` is not used: every answer has its own.
    ///
    /// # Errors
    /// [`RegenerationError::NoChatTemplate`] if conversations cannot be written as text for this target.
    pub fn new(
        handle: EngineHandle,
        tokenizer: Tokenizer,
        sampling: Sampling,
        max_new_tokens: usize,
        template_arguments: Map<String, Value>,
    ) -> Result<Self, RegenerationError> {
        if tokenizer.chat_template().is_none() {
            let target = tokenizer.directory().display().to_string();
            return Err(RegenerationError::NoChatTemplate { target });
        }
        Ok(Self { handle, tokenizer, sampling, max_new_tokens, template_arguments })
    }

    /// Returns the token ids of a prompt, as the server has them.
    fn prompt(&self, question: &Question<'_>) -> Result<Vec<u32>, AnswerError> {
        let mut arguments = self.template_arguments.clone();
        if !question.tools.is_empty() {
            arguments.insert("tools".to_owned(), Value::Array(question.tools.to_vec()));
        }
        let Some(template) = self.tokenizer.chat_template() else {
            return Err(AnswerError::Row("the target has no chat template".to_owned()));
        };
        let prompt = template.prompt(&self.tokenizer, question.messages, &arguments, UserText::default());
        prompt.map_err(|error| AnswerError::Row(error.to_string()))
    }
}

impl Source for InProcess {
    fn answer(&self, question: &Question<'_>, stop: &Stop) -> Result<Reply, AnswerError> {
        let request = Request {
            prompt: self.prompt(question)?,
            max_new_tokens: self.max_new_tokens,
            sampling: Sampling { seed: Some(question.seed), ..self.sampling },
            stop_token_ids: self.tokenizer.stop_token_ids().to_vec(),
            stop_strings: Vec::new(),
            include_stop_string: false,
            logprobs: None,
        };
        // The number of threads bounds the queue.
        let mut answer = self.handle.submit_next(request).map_err(refused)?;
        let mut text = String::new();
        while let Some(event) = answer.wait() {
            if stop.is_set() {
                return Err(AnswerError::Stopped);
            }
            match event {
                Event::Delta(delta) => text.push_str(&delta.text),
                Event::Finished(finished) => {
                    let finish = match finished.reason {
                        FinishReason::Stop => Finish::Stop,
                        FinishReason::Length => Finish::Length,
                    };
                    let mut message = Map::new();
                    message.insert("role".to_owned(), json!("assistant"));
                    message.insert("content".to_owned(), json!(text));
                    return Ok(Reply { message, finish, tokens: finished.usage.new_tokens });
                }
                Event::Failed(failure) => return Err(failed(failure)),
            }
        }
        Err(AnswerError::Fatal(RegenerationError::Engine("it ended in the middle of an answer".to_owned())))
    }
}

fn refused(refusal: Refusal) -> AnswerError {
    match refusal {
        Refusal::PromptTooLong { .. } | Refusal::Invalid { .. } => AnswerError::Row(refusal.to_string()),
        Refusal::QueueFull { .. } | Refusal::ShuttingDown => {
            AnswerError::Fatal(RegenerationError::Engine(refusal.to_string()))
        }
    }
}

fn failed(failure: Failure) -> AnswerError {
    match failure {
        Failure::NotFinite(_) | Failure::TimedOut(_) | Failure::NotRead(_) => AnswerError::Row(failure.to_string()),
        Failure::ShutDown | Failure::Internal(_) => {
            AnswerError::Fatal(RegenerationError::Engine(failure.to_string()))
        }
    }
}
