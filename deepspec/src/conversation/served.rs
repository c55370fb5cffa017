//! From the answers of a conversation, as they were served, to samples.

use dspark_runtime::text::{TokenId, Tokenizer};
use serde_json::{Map, Value};

use super::call_forms;
use super::encoder::Encoder;
use super::error::RowError;
use super::message::{ASSISTANT, Conversation, Message, USER};
use super::sample::Sample;
use super::supervision::{Observer, Served};

impl Sample {
    /// Returns the samples of a conversation. In each of them the answers are supervised, with the text that closes
    /// their turns, and the contexts that the target was given are not. What comes after the last answer is left out.
    ///
    /// An answer whose context begins with the ids of the sample before it continues that sample. Every other answer
    /// begins a new one: the template wrote the conversation before it differently. Most templates give one sample.
    ///
    /// Answers that begin after `max_length` tokens cannot be in a sample, so a long conversation is not rendered to its
    /// end. The first such answer is included: the reader counts its sample as cut off or as too short.
    ///
    /// # Errors
    /// Returns the reason that the template or the tokeniser cannot process this conversation.
    pub(super) fn from_conversation(
        id: String,
        conversation: Conversation,
        tokenizer: &Tokenizer,
        arguments: &Map<String, Value>,
        max_length: usize,
    ) -> Result<Vec<Self>, RowError> {
        let template = tokenizer.chat_template().ok_or("the tokeniser has no chat template")?;
        let arguments = conversation.template_arguments(arguments);
        let messages = conversation.messages.as_slice();
        let last = messages.iter().rposition(|message| message.role == ASSISTANT);
        let messages = &messages[..=last.ok_or("there is no assistant message")?];
        let mut first_error = None;
        for values in call_forms::forms(messages.iter().map(Message::to_json).collect()) {
            let observer = Observer::new(template, &values, &arguments);
            match serve(&observer, messages, tokenizer, max_length) {
                Ok(samples) => return Ok(named(id, samples)),
                Err(error @ RowError::Template(_)) => return Err(error),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| "there is no assistant message".into()))
    }
}

/// Token ids and loss mask of a sample.
type Unnamed = (Vec<TokenId>, Vec<bool>);

/// The first sample has the row's id.
fn named(id: String, samples: Vec<Unnamed>) -> Vec<Sample> {
    let name = |number: usize| if number == 1 { id.clone() } else { format!("{id}#{number}") };
    let sample = |(number, (token_ids, loss_mask))| Sample { id: name(number), token_ids, loss_mask };
    (1..).zip(samples).map(sample).collect()
}

fn serve(
    observer: &Observer<'_>,
    messages: &[Message],
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Vec<Unnamed>, RowError> {
    let mut encoder = Encoder::new(tokenizer);
    let mut samples: Vec<Unnamed> = Vec::new();
    let (mut next, mut overflowed) = (0, false);
    while let Some(index) = (next..messages.len()).find(|index| messages[*index].role == ASSISTANT) {
        let (context, answer) = encode(&observer.served(index)?, index, tokenizer, &mut encoder)?;
        let overflows = context.len() >= max_length;
        match samples.last_mut() {
            Some((ids, mask)) if context.starts_with(ids.as_slice()) => {
                mask.resize(context.len(), false);
                *ids = context;
            }
            _ => samples.push((context.clone(), vec![false; context.len()])),
        }
        if let Some((ids, mask)) = samples.last_mut() {
            mask.resize(mask.len() + answer.len(), true);
            ids.extend(answer);
        }
        next = index + 1;
        if overflows {
            if overflowed {
                break;
            }
            // Templates remove thoughts when the user asks again, and the context becomes shorter.
            match (next..messages.len()).find(|index| messages[*index].role == USER) {
                Some(question) => next = question,
                None => break,
            }
        }
        overflowed = overflows;
    }
    Ok(samples)
}

/// Returns the ids of a context and of the answer to it.
fn encode(
    served: &Served,
    index: usize,
    tokenizer: &Tokenizer,
    encoder: &mut Encoder<'_>,
) -> Result<(Vec<TokenId>, Vec<TokenId>), RowError> {
    let Served { context, answer } = served;
    let context_ids = encoder.encode(context)?;
    let whole = encoder.encode(&format!("{context}{answer}"))?;
    if let Some(answer_ids) = whole.strip_prefix(context_ids.as_slice()) {
        return Ok((context_ids, answer_ids.to_vec()));
    }
    // As one text, the end of the context and the beginning of the answer have tokens in common. The target was given the
    // context alone.
    let answer_ids = tokenizer.encode(answer, false)?;
    let together = [context_ids.as_slice(), answer_ids.as_slice()].concat();
    if tokenizer.decode(&together, false)? != tokenizer.decode(&whole, false)? {
        let number = index + 1;
        return Err(format!(
            "message {number}: the tokeniser merges the end of the generation prompt with the beginning of the answer, and \
             cannot encode the answer alone"
        )
        .into());
    }
    Ok((context_ids, answer_ids))
}

#[cfg(test)]
mod tests;
