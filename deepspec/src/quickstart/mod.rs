//! The quickstart's conversations: made by rules, in three domains that differ in how predictable they are.
//!
//! * `sums`: additions and subtractions worked out digit by digit in one fixed form, so that nearly every
//!   token follows from those before it;
//! * `code`: short Python functions asked for in plain words; what to compute is settled by the request, how
//!   it is written (names, loop or comprehension, docstring) is not;
//! * `chat`: small talk and advice, where every phrase is one of many that would do as well.
//!
//! A small language model that learned them is therefore guessed best on `sums` and worst on `chat`, which is
//! the effect the quickstart shows. [`conversations`] streams any number of them: which [`Split`] a request
//! belongs to is decided by a hash of the request itself, so that streams of different splits can never share
//! one, whatever their seeds and however long they run. [`write_datasets`] writes the small files that ship
//! in `datasets/quickstart/`, [`train_tokenizer`] makes the tokeniser of the tiny target, and [`judge`](self)
//! tells whether an answer is right.

mod chat;
mod code;
mod conversation;
mod dice;
mod judge;
mod pretrain;
mod split;
mod sums;
mod tokenizer;
mod write;

pub use conversation::{Conversation, Domain, Exchange};
pub use judge::{judge_sum, reads_as_sentences, solve_sum};
pub use pretrain::{PretrainError, PretrainSettings, pretrain_target};
pub use split::{Conversations, Split, conversations};
pub use tokenizer::{CHAT_TEMPLATE, VOCABULARY_SIZE, train_tokenizer};
pub use write::{QuickstartError, Sizes, write_datasets};
