//! Samples: token ids with the mask of those that carry loss.

use dspark_runtime::text::{TextError, TokenId, Tokenizer};
use sha2::{Digest, Sha256};

/// Samples with fewer supervised tokens than this are dropped: they hold no full draft block.
pub const MINIMUM_SUPERVISED_TOKENS: usize = 14;

/// A text as the model sees it: a row of the data, or an answer of a conversation whose other answers were given in other
/// contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The row's `id`, or the name of its file and its number if it has none. Further samples of the row end in `#2`,
    /// `#3` and so on.
    pub id: String,
    /// The tokens of the whole text.
    pub token_ids: Vec<TokenId>,
    /// For each token whether it carries loss: whether the target would have generated it.
    pub loss_mask: Vec<bool>,
}

impl Sample {
    /// Number of tokens that carry loss.
    pub fn supervised_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|supervised| **supervised).count()
    }

    /// Cuts a plain text into tokens, with the special tokens that the tokeniser puts around a text. Every token
    /// but the first carries loss: nothing comes before it from which it could be predicted.
    ///
    /// # Errors
    /// See [`Tokenizer::encode`].
    pub(super) fn from_text(id: String, text: &str, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let token_ids = tokenizer.encode(text, true)?;
        let loss_mask = (0..token_ids.len()).map(|position| position > 0).collect();
        Ok(Self { id, token_ids, loss_mask })
    }

    /// Truncates to `max_length` tokens; returns whether anything was removed.
    pub(super) fn truncate(&mut self, max_length: usize) -> bool {
        let too_long = self.token_ids.len() > max_length;
        self.token_ids.truncate(max_length);
        self.loss_mask.truncate(max_length);
        too_long
    }
}

/// A number that is evenly spread over different token ids.
pub(super) fn hash(sample: &Sample) -> u64 {
    let mut hash = Sha256::new();
    for id in &sample.token_ids {
        hash.update(id.to_le_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::testing;

    #[test]
    fn plain_text_is_supervised_from_the_second_token() {
        let tokenizer = testing::tokenizer(None);
        let sample = Sample::from_text("x".to_owned(), "the thing", &tokenizer).unwrap();
        assert_eq!(tokenizer.decode(&sample.token_ids, false).unwrap(), "the thing");
        assert_eq!(sample.supervised_tokens(), sample.token_ids.len() - 1);
        assert!(!sample.loss_mask[0]);
    }

    #[test]
    fn truncation_keeps_tokens_and_mask_together() {
        let tokenizer = testing::tokenizer(None);
        let mut sample = Sample::from_text("x".to_owned(), "a b c d", &tokenizer).unwrap();
        assert!(!sample.truncate(sample.token_ids.len()));
        assert!(sample.truncate(3));
        assert_eq!((sample.token_ids.len(), sample.loss_mask.len()), (3, 3));
    }
}
