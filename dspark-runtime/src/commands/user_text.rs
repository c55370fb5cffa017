//! The argument that decides about special tokens in messages.

use clap::Args;

use crate::text::UserText;

/// Arguments for the encoding of messages.
#[derive(Debug, Args)]
pub(super) struct UserTextArguments {
    /// Encode special tokens in message text, such as `<|im_end|>`, as plain text (default: as special tokens, like the
    /// `transformers` package). Special tokens written by the chat template are not affected
    #[arg(long)]
    pub plain_user_text: bool,
}

impl UserTextArguments {
    /// Returns the setting as the chat template takes it.
    pub(super) fn user_text(&self) -> UserText {
        if self.plain_user_text { UserText::Plain } else { UserText::WithSpecialTokens }
    }
}
