//! Filling templates: `{slot}` is a phrase of the topic, `[one|two|]` an inline choice.
//!
//! Topics word advice to a second person and troubles in the first; `{my_advice}` and `{your_trouble}` are
//! the same with the person turned round.

use super::topics::Topic;
use super::wording::{OPINIONS, PAST, Request, SENTENCES, WHEN};
use crate::dice::Dice;

/// Somebody who talks about one topic and does not say the same phrase twice.
pub(super) struct Speaker<'a> {
    pub(super) dice: &'a mut Dice,
    topic: &'static Topic,
    said: Vec<&'static str>,
}

impl<'a> Speaker<'a> {
    pub(super) fn new(dice: &'a mut Dice, topic: &'static Topic) -> Self {
        Self { dice, topic, said: Vec::new() }
    }

    /// An answer of two to four sentences to a request of the given kind.
    pub(super) fn answer(&mut self, request: &Request) -> String {
        let mut templates = Vec::new();
        if self.dice.chance(60) {
            templates.push(self.dice.pick(request.opens));
        }
        let sentences = if request.opinion { OPINIONS } else { SENTENCES };
        for _ in 0..self.dice.between(2, 3) {
            let fresh = (0..8).map(|_| self.dice.pick(sentences)).find(|one| !templates.contains(one));
            templates.extend(fresh);
        }
        if templates.len() < 4 && self.dice.chance(35) {
            templates.push(self.dice.pick(request.closes));
        }
        self.say(&templates)
    }

    /// The templates, filled, as sentences.
    pub(super) fn say(&mut self, templates: &[&'static str]) -> String {
        let filled: Vec<String> = templates.iter().map(|template| self.fill(template)).collect();
        capitalised(&filled.join(" "))
    }

    fn fill(&mut self, template: &str) -> String {
        let mut text = String::new();
        let mut rest = template;
        while let Some(start) = rest.find(['{', '[']) {
            text.push_str(&rest[..start]);
            let choice = rest[start..].starts_with('[');
            let length = rest[start..].find(if choice { ']' } else { '}' }).unwrap_or(rest.len() - start - 1);
            let inside = &rest[start + 1..start + length];
            if choice {
                let choices: Vec<&str> = inside.split('|').collect();
                let chosen = self.dice.pick(&choices);
                text.push_str(&self.fill(chosen));
            } else {
                text.push_str(&self.slot(inside));
            }
            rest = &rest[start + length + 1..];
        }
        text.push_str(rest);
        text
    }

    fn slot(&mut self, slot: &str) -> String {
        let topic = self.topic;
        match slot {
            "doing" => topic.doing.to_owned(),
            "todo" => topic.todo.to_owned(),
            "when" => self.dice.pick(WHEN).to_owned(),
            "past" => self.dice.pick(PAST).to_owned(),
            "advice" => self.fresh(topic.advice).to_owned(),
            "my_advice" => turned_round(self.fresh(topic.advice)),
            "trouble" => self.fresh(topic.trouble).to_owned(),
            "your_trouble" => turned_round(self.fresh(topic.trouble)),
            "benefit" => self.fresh(topic.benefit).to_owned(),
            "tool" => self.fresh(topic.tool).to_owned(),
            "joy" => self.fresh(topic.joy).to_owned(),
            other => unreachable!("no template has a slot {other:?}"),
        }
    }

    /// A phrase that was not said yet, if chance finds one.
    fn fresh(&mut self, phrases: &'static [&'static str]) -> &'static str {
        let mut phrase = self.dice.pick(phrases);
        for _ in 0..8 {
            if !self.said.contains(&phrase) {
                break;
            }
            phrase = self.dice.pick(phrases);
        }
        self.said.push(phrase);
        phrase
    }
}

/// `phrase` with first and second person exchanged.
fn turned_round(phrase: &str) -> String {
    let mut words: Vec<&str> = phrase.split(' ').collect();
    for index in 0..words.len() {
        let after_to = index > 0 && words[index - 1] == "to";
        words[index] = match words[index] {
            "I" | "me" => "you",
            "my" => "your",
            "am" => "are",
            "your" => "my",
            "you" if after_to => "me",
            "you" => "I",
            other => other,
        };
    }
    words.join(" ")
}

/// `text` with a capital letter at the start of every sentence.
fn capitalised(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut starts = true;
    for c in text.chars() {
        if starts && c.is_alphabetic() {
            result.extend(c.to_uppercase());
            starts = false;
        } else {
            result.push(c);
        }
        starts |= matches!(c, '.' | '!' | '?');
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persons_are_exchanged() {
        assert_eq!(turned_round("I am afraid my cat wakes me"), "you are afraid your cat wakes you");
        assert_eq!(
            turned_round("let it come to you while you read your book"),
            "let it come to me while I read my book"
        );
    }

    #[test]
    fn sentences_start_with_capitals() {
        assert_eq!(capitalised("what now? go. it is \"late\""), "What now? Go. It is \"late\"");
    }
}
