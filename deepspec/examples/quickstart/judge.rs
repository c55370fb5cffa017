//! Is an answer right? For sums exactly; for chat whether it has the outward form of sentences. (Whether code
//! parses, only Python can tell.)

/// Words that make a request a subtraction.
const TAKES_AWAY: &[&str] = &["subtract", "minus", "away", "left", "missing"];

/// The result a request for a sum asks for; `None` if `prompt` is not such a request.
pub fn solve_sum(prompt: &str) -> Option<i64> {
    let lowercase = prompt.to_lowercase();
    let mut terms = Vec::new();
    let mut minus = false;
    for word in lowercase.split_whitespace() {
        let digits = word.trim_matches(|c: char| !c.is_ascii_digit());
        if !digits.is_empty() {
            let value: i64 = digits.parse().ok()?;
            terms.push(if minus { -value } else { value });
            minus = false;
        } else if word == "-" {
            minus = true;
        }
    }
    let in_words = lowercase.split(|c: char| !c.is_ascii_alphabetic()).any(|word| TAKES_AWAY.contains(&word));
    match terms.as_slice() {
        [] | [_] => None,
        [a, b] if in_words => Some((a - b).abs()),
        _ => Some(terms.iter().sum()),
    }
}

/// Returns whether `answer` ends in the number that `prompt` asks for: the first number after its last `Answer:`.
pub fn judge_sum(prompt: &str, answer: &str) -> bool {
    let Some((_, stated)) = answer.rsplit_once("Answer:") else {
        return false;
    };
    let stated = stated.trim().trim_end_matches('.');
    stated.parse().is_ok_and(|stated: i64| solve_sum(prompt) == Some(stated))
}

/// Returns whether `text` has the outward form of English sentences: each starts with a capital letter, ends with
/// `.`, `!` or `?`, and has at least two words, made of letters and ordinary punctuation, with no word three
/// times in a row.
pub fn reads_as_sentences(text: &str) -> bool {
    let text = text.trim();
    let ends = |c: char| matches!(c, '.' | '!' | '?');
    if !text.ends_with(ends) || text.contains(|c: char| !is_ordinary(c)) {
        return false;
    }
    text.split_inclusive(ends).map(str::trim).all(|sentence| {
        let words: Vec<String> = sentence.split_whitespace().map(str::to_lowercase).collect();
        sentence.starts_with(|c: char| c.is_uppercase())
            && words.len() >= 2
            && !words.windows(3).any(|three| three[0] == three[1] && three[1] == three[2])
    })
}

fn is_ordinary(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, ' ' | ',' | '.' | '!' | '?' | '\'' | ';' | ':' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Domain;
    use crate::split::{Split, conversations};

    #[test]
    fn every_generated_sum_is_solved_and_judged_right() {
        for conversation in conversations(Domain::Sums, Split::Train, 1).take(50_000) {
            let exchange = &conversation.exchanges[0];
            assert_eq!(solve_sum(&exchange.user), conversation.answer, "{}", exchange.user);
            assert!(judge_sum(&exchange.user, &exchange.assistant), "{}", exchange.user);
        }
    }

    #[test]
    fn wrong_answers_are_judged_wrong() {
        let prompt = "What is 347 + 86?";
        assert!(judge_sum(prompt, "Answer: 433"));
        assert!(judge_sum(prompt, "Answer: 1\nAnswer: 433."));
        for wrong in ["Answer: 434", "433", "Answer:", "Answer: 433 or 434", "Answer: 0x1b1"] {
            assert!(!judge_sum(prompt, wrong), "{wrong}");
        }
        assert!(!judge_sum("What is it?", "Answer: 0"));
        assert_eq!(solve_sum("Subtract 7 from 12."), Some(5));
        assert_eq!(solve_sum("What is 24 + 35 - 18?"), Some(41));
    }

    #[test]
    fn sentences_are_told_from_debris() {
        assert!(reads_as_sentences("That sounds good. Try it on Sunday, if it doesn't rain!"));
        for debris in [
            "",
            "no capital.",
            "Ends without",
            "Good. no capital.",
            "A very very very odd one.",
            "Odd <|x|> one.",
            "One.",
        ] {
            assert!(!reads_as_sentences(debris), "{debris}");
        }
        for conversation in conversations(Domain::Chat, Split::Train, 1).take(5_000) {
            for exchange in &conversation.exchanges {
                assert!(reads_as_sentences(&exchange.assistant), "{}", exchange.assistant);
            }
        }
    }
}
