//! Text and token ids: the tokeniser, the chat template that turns a conversation into text, and the
//! incremental way back from ids to text.
//!
//! A request enters as messages. [`ChatTemplate::render`] writes them as the one string that the target was trained on.
//! [`Tokenizer::encode`] turns it into ids ([`ChatTemplate::prompt`] does both). For the ids of the answer, a
//! [`Detokenizer`] returns the text that no later id can change. Everything is read from a Hugging Face model directory
//! or from a GGUF file, and a tokeniser can be written as GGUF metadata.
//!
//! Nothing here knows tensors, models or sampling.

mod chat_template;
mod detokenize;
mod error;
mod generation_config;
mod gguf_export;
mod gguf_tokenizer;
mod longest_token;
mod pre_tokenizers;
mod python;
mod stop_tokens;
mod template_files;
mod template_process;
mod template_program;
#[cfg(test)]
pub(crate) mod testing;
mod tojson;
mod token_bytes;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_limits;
mod user_text;

pub use chat_template::{ChatTemplate, RENDERED};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use generation_config::{GenerationConfig, GenerationDefaults};
pub use template_process::{render_templates_with, template_process};
pub use tokenizer::Tokenizer;
pub use user_text::UserText;

/// The number of one token: a row of the target's embedding.
pub type TokenId = u32;
