//! Conversation data: from files to token ids with a loss mask.
//!
//! A row walks through five steps. `rows` reads JSON lines, JSON arrays or Parquet and numbers what it reads; `source`
//! decompresses. `message` and `tools` understand the forms in which a row can hold a conversation. `supervision` writes it through the chat
//! template and finds the text that the target itself would have generated: the assistant's turns with their
//! end-of-turn token, without the tokens of the generation prompt. `sample` cuts that text into tokens and
//! turns the found text into a mask. `read` runs all this over many files in parallel, keeps their order, and
//! counts what it could not use in a [`ReadReport`]: nothing is dropped without a number.
//!
//! [`split_validation`] sets some samples aside, and [`read_evaluation_prompts`] reads the task files of an
//! evaluation, which hold questions only.
//!
//! Nothing here knows tensors or models; the tokeniser is the runtime's.

mod error;
mod evaluation_prompt;
mod json_rows;
mod message;
mod parquet_rows;
mod read;
mod report;
mod row_chunks;
mod row_fields;
mod rows;
mod sample;
mod source;
mod split;
mod supervision;
#[cfg(test)]
mod testing;
mod token_row;
mod tools;

pub use error::ConversationError;
pub use evaluation_prompt::{EvaluationPrompt, read_evaluation_prompts};
pub use message::{Conversation, Message};
pub use read::{Format, ReadOptions, read_samples};
pub use report::{LeftOut, MalformedRow, ReadReport, Reasons, RowNumber};
pub use row_chunks::{ConversationRow, FileRow, RowChunks};
pub use rows::{check_beginning, holds_rows};
pub use sample::{MINIMUM_SUPERVISED_TOKENS, Sample, Samples};
pub use split::{SPLIT_RULE, split_validation};
