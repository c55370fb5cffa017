//! Conversation data: from files to token ids with a loss mask.
//!
//! A row walks through five steps. `rows` reads JSON lines, JSON arrays or Parquet and numbers what it reads; `source`
//! decompresses. `message` and `tools` understand the forms in which a row can hold a conversation. `supervision` renders
//! it with the chat template and finds, for each answer, the context that the target was given and the text that it
//! generated: the answer with its end-of-turn token, without the tokens of the generation prompt. `served` encodes both;
//! answers whose contexts continue one another share a [`Sample`], and each other answer has one of its own. `read`
//! runs all this over many files in parallel, keeps their order, and
//! counts what it could not use in a [`ReadReport`]: nothing is dropped without a number.
//!
//! A [`SampleStore`] keeps the samples on disk, and a [`SampleSet`] reads them one at a time, from there or from memory.
//!
//! [`split_validation`] sets some samples aside, and [`read_evaluation_prompts`] reads the task files of an
//! evaluation, which hold questions only. [`generation_prompts`] reads the prompts that the target is to answer.
//!
//! Nothing here knows tensors or models; the tokeniser is the runtime's.

mod call_forms;
mod encoder;
mod error;
mod evaluation_prompt;
mod generation_prompt;
mod json_rows;
mod message;
mod parquet_rows;
mod read;
mod report;
mod row_chunks;
mod row_fields;
mod rows;
mod sample;
mod sample_set;
mod served;
mod source;
mod split;
mod store;
mod supervision;
#[cfg(test)]
mod testing;
mod thoughts;
mod token_row;
mod tools;

pub use error::ConversationError;
pub use evaluation_prompt::{EvaluationPrompt, read_evaluation_prompts};
pub use generation_prompt::{GenerationPrompt, generation_prompts};
pub use message::{Conversation, Message};
pub use read::{Format, READER_VERSION, ReadOptions, read_samples};
pub use report::{LeftOut, MalformedRow, ReadReport, Reasons, RowNumber};
pub use row_chunks::{ConversationRow, FileRow, RowChunks};
pub use rows::{check_beginning, holds_rows};
pub use sample::{MINIMUM_SUPERVISED_TOKENS, Sample};
pub use sample_set::{SampleSet, Samples};
pub use split::{SPLIT_RULE, split_validation};
pub use store::{SampleStore, StoreRequest};
