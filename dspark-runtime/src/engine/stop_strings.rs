//! Holding text back while it might still become a stop string.

/// Finds the first stop string in a stream of text, in time proportional to the text.
#[derive(Clone, Debug)]
pub(super) struct StopStrings {
    stops: Vec<Matcher>,
    /// True if the stop string itself is given out.
    included: bool,
    /// Text that was not given out: the beginning of a stop string, perhaps.
    held: String,
}

impl StopStrings {
    /// Returns a watcher for these texts, none of which may be empty.
    pub fn new(stops: Vec<String>, included: bool) -> Self {
        Self { stops: stops.into_iter().map(Matcher::new).collect(), included, held: String::new() }
    }

    /// Takes the next piece of text and appends to `out` the part that is certain to belong to the answer. Returns
    /// whether a stop string was completed: the text before it is then complete. If one byte completes several stop
    /// strings, the longest counts.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        for (at, byte) in piece.bytes().enumerate() {
            let completed = self.stops.iter_mut().filter_map(|stop| stop.push(byte)).max();
            if let Some(length) = completed {
                self.held.push_str(&piece[..=at]);
                let kept = if self.included { self.held.len() } else { self.held.len() - length };
                out.push_str(&self.held[..kept]);
                self.held.clear();
                return true;
            }
        }
        self.held.push_str(piece);
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
        false
    }

    /// Ends the text: everything that was held back belongs to the answer.
    pub fn flush(&mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.held));
    }
}

/// Knows how much of one stop string the text ends with (the algorithm of Knuth, Morris and Pratt).
#[derive(Clone, Debug)]
struct Matcher {
    stop: Vec<u8>,
    /// For each number of matched bytes, the number that still matches when the next byte differs.
    shorter: Vec<usize>,
    /// Number of bytes of the stop string that the text ends with.
    matched: usize,
}

impl Matcher {
    fn new(stop: String) -> Self {
        let stop = stop.into_bytes();
        let mut shorter = vec![0; stop.len() + 1];
        let mut matched = 0;
        for at in 1..stop.len() {
            while matched > 0 && stop[matched] != stop[at] {
                matched = shorter[matched];
            }
            matched += usize::from(stop[matched] == stop[at]);
            shorter[at + 1] = matched;
        }
        Self { stop, shorter, matched: 0 }
    }

    /// Takes the next byte; returns the length of the stop string when that completes it.
    fn push(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        (self.matched == self.stop.len()).then_some(self.matched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        run_as(false, stops, pieces)
    }

    fn run_as(included: bool, stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), included);
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
        let mut stop = StopStrings::new(vec!["###".to_owned()], false);
        let mut out = String::new();
        assert!(!stop.push("a#", &mut out));
        assert_eq!(out, "a");
        assert!(!stop.push("b##", &mut out));
        assert_eq!(out, "a#b");
    }

    #[test]
    fn a_stop_string_is_part_of_the_answer_where_asked_for() {
        assert_eq!(run_as(true, &["bc", "abc"], &["xab", "cd"]), ("xabc".to_owned(), true));
        assert_eq!(run_as(true, &["bc"], &["xab"]), ("xab".to_owned(), false));
    }

    #[test]
    fn the_first_to_be_complete_ends_the_text_however_it_is_cut() {
        for pieces in [&["xabcd"][..], &["xa", "bc", "d"], &["x", "a", "b", "c", "d"]] {
            assert_eq!(run(&["abcd", "bc"], pieces), ("xa".to_owned(), true));
        }
    }

    /// Comparing a prefix from scratch with every byte would take hours.
    #[test]
    fn long_stop_strings_take_time_in_proportion_to_the_text() {
        let stops: Vec<String> = (0..16).map(|end| "y".repeat(1 << 20) + &end.to_string()).collect();
        let mut stop = StopStrings::new(stops, false);
        let mut out = String::new();
        for _ in 0..20_000 {
            assert!(!stop.push("yyyyyyyyyy", &mut out));
        }
        assert!(!stop.push("x", &mut out));
        assert_eq!(out.len(), 200_001);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[ab]{0,30}",
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
            cuts in prop::collection::vec(0_usize..30, 0..5),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            // The first end of any of them and, among those that end there, the longest.
            let ends = stops.iter().filter_map(|stop| Some((text.find(stop)? + stop.len(), stop.len())));
            let expected = match ends.min_by_key(|&(end, length)| (end, std::cmp::Reverse(length))) {
                Some((end, length)) => (text[..end - length].to_owned(), true),
                None => (text.clone(), false),
            };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(run(&stops, &pieces), expected);
        }
    }
}
