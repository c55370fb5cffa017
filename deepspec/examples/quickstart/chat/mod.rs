//! Small talk and advice on everyday subjects.
//!
//! A [`Topic`](topics::Topic) holds phrases that fit one subject; [`wording`] holds requests and sentences
//! with slots for them. An answer is a handful of sentences drawn independently, so nearly every phrase could
//! have been another one: readable, and hard to guess.

mod grammar;
mod topics;
mod wording;

use crate::conversation::{Conversation, Domain, Exchange};
use crate::dice::Dice;
use crate::split::Split;
use grammar::Speaker;
use wording::{FOLLOW_UPS, REQUESTS};

/// Follow-up requests drawn before a conversation is left at one turn.
const TRIES: usize = 40;

/// Draws a conversation; `None` if its first request belongs to another split. A second request is drawn
/// until it belongs to the same split as the first, so that no request of any turn is shared between splits.
pub(super) fn conversation(dice: &mut Dice, split: Split) -> Option<Conversation> {
    let topic = dice.pick(topics::TOPICS);
    let mut speaker = Speaker::new(dice, topic);
    let kind = speaker.dice.pick(REQUESTS);
    let user = speaker.say(&[kind.asks]);
    if Split::of(&user) != split {
        return None;
    }
    let assistant = speaker.answer(kind);
    let mut exchanges = vec![Exchange { user, assistant }];
    if speaker.dice.chance(25) {
        let kind = speaker.dice.pick(FOLLOW_UPS);
        let user = (0..TRIES).map(|_| speaker.say(&[kind.asks])).find(|user| Split::of(user) == split);
        if let Some(user) = user {
            let assistant = speaker.answer(kind);
            exchanges.push(Exchange { user, assistant });
        }
    }
    Some(Conversation { domain: Domain::Chat, exchanges, answer: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::conversations;

    #[test]
    fn answers_are_short_and_leave_no_slot_open() {
        let mut second_turns = 0;
        for conversation in conversations(Domain::Chat, Split::Evaluate, 2).take(4_000) {
            second_turns += conversation.exchanges.len() - 1;
            for exchange in &conversation.exchanges {
                let sentences = exchange.assistant.matches(['.', '!', '?']).count();
                assert!((2..=4).contains(&sentences), "{}", exchange.assistant);
                let both = format!("{} {}", exchange.user, exchange.assistant);
                assert!(!both.contains(['{', '}', '[', ']', '|', '<', '>']) && !both.contains("  "), "{both}");
            }
        }
        assert!((600..1400).contains(&second_turns), "about a quarter has two turns: {second_turns}");
    }

    #[test]
    fn answers_hardly_repeat() {
        let answers: std::collections::HashSet<String> = conversations(Domain::Chat, Split::Train, 9)
            .take(5_000)
            .map(|conversation| conversation.exchanges[0].assistant.clone())
            .collect();
        assert!(answers.len() > 4_900, "{}", answers.len());
    }
}
