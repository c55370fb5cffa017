//! Training, validation and evaluation conversations that cannot overlap.

use sha2::{Digest, Sha256};

use crate::conversation::{Conversation, Domain};
use crate::dice::Dice;
use crate::{chat, code, sums};

/// Purpose of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Learning.
    Train,
    /// Watching a training run.
    Validation,
    /// Measuring the result.
    Evaluate,
}

impl Split {
    /// All splits, in the order of their files.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Evaluate];

    /// Name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Evaluate => "evaluate",
        }
    }

    /// The split that everything asking for `key` belongs to: 90 in 100 keys train, 4 validate, 6 evaluate.
    /// For a sum the key is its terms, however the request words it; elsewhere it is the request. Case and
    /// punctuation do not count.
    pub(super) fn of(key: &str) -> Self {
        let mut hash = Sha256::new();
        for word in key.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            hash.update(word.to_lowercase());
            hash.update([0]);
        }
        let digest = hash.finalize();
        match u16::from_le_bytes([digest[0], digest[1]]) % 100 {
            0..90 => Self::Train,
            90..94 => Self::Validation,
            _ => Self::Evaluate,
        }
    }
}

/// An endless stream of conversations of one domain and split, the same for the same seed. Streams of different splits
/// never share a request, whatever their seeds.
pub fn conversations(domain: Domain, split: Split, seed: u64) -> Conversations {
    let label = format!("{}.{}", domain.name(), split.name());
    Conversations { domain, split, dice: Dice::new(seed, &label) }
}

/// See [`conversations`]; the iterator never ends.
pub struct Conversations {
    domain: Domain,
    split: Split,
    dice: Dice,
}

impl Iterator for Conversations {
    type Item = Conversation;

    fn next(&mut self) -> Option<Conversation> {
        // Requests of other splits are passed over. Every split holds thousands, so this ends.
        loop {
            let conversation = match self.domain {
                Domain::Sums => sums::conversation(&mut self.dice, self.split),
                Domain::Code => code::conversation(&mut self.dice, self.split),
                Domain::Chat => chat::conversation(&mut self.dice, self.split),
            };
            if conversation.is_some() {
                return conversation;
            }
        }
    }
}
