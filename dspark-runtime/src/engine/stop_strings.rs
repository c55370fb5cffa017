//! Holding text back while it might still become a stop string.

/// Finds the first stop string in a stream of text.
#[derive(Clone, Debug)]
pub(super) struct StopStrings {
    stops: Vec<String>,
    /// Text that was not given out: the beginning of a stop string, perhaps.
    held: String,
}

impl StopStrings {
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text and appends to `out` what is certain to be in the answer. Returns whether a stop string
    /// was completed: the text before it is then complete.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        self.held.push_str(piece);
        // The stop string that begins first ends the text.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
        false
    }

    /// No more text comes: what was held back belongs to the answer.
    pub fn flush(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }
}

/// The length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).skip(1).filter(|&at| text.ends_with(&stop[..at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut out = String::new();
        for piece in pieces {
            if stop.push(piece, &mut out) {
                return (out, true);
            }
        }
        stop.flush(&mut out);
        (out, false)
    }

    #[test]
    fn a_stop_string_over_several_pieces_ends_the_text_before_it() {
        assert_eq!(run(&["\n\nQ:"], &["one\n", "\n", "Q", ": two"]), ("one".to_owned(), true));
        assert_eq!(run(&["\n\nQ:"], &["one\n", "\n", "R: two"]), ("one\n\nR: two".to_owned(), false));
        assert_eq!(run(&["bc", "abc"], &["xab", "c"]), ("x".to_owned(), true));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".to_owned(), false));
    }

    #[test]
    fn nothing_is_held_back_that_cannot_become_a_stop_string() {
        let mut stop = StopStrings::new(vec!["###".to_owned()]);
        let mut out = String::new();
        assert!(!stop.push("a#", &mut out));
        assert_eq!(out, "a");
        assert!(!stop.push("b##", &mut out));
        assert_eq!(out, "a#b");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab]{0,30}", stop in "[ab]{1,4}", cuts in prop::collection::vec(0_usize..30, 0..5)) {
            let expected = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), true),
                None => (text.clone(), false),
            };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(run(&[&stop], &pieces), expected);
        }
    }
}
