//! The share of new prompts in a step.

/// Maximum prompt tokens in a step in which no answer is being decoded.
const ALONE: usize = 512;

/// Returns the number of pending tokens of each request that go through the target in a step: the last token of every
/// decoding request (its only pending one), and prompt tokens, first come first served, up to `limit` tokens in total.
/// If nothing is being decoded, prompts may use more.
pub fn prompt_rows(pending: impl Iterator<Item = usize> + Clone, limit: usize) -> impl Iterator<Item = usize> {
    let decoding = pending.clone().any(|pending| pending == 1);
    let mut left = if decoding { limit } else { limit.max(ALONE) };
    pending.map(move |pending| {
        let rows = if pending == 1 { 1 } else { pending.min(left) };
        left -= if pending == 1 { 0 } else { rows };
        rows
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_what_a_step_may_take_and_answers_go_on() {
        let rows = |pending: &[usize], limit| prompt_rows(pending.iter().copied(), limit).collect::<Vec<_>>();
        assert_eq!(rows(&[1, 100, 1, 100, 5], 128), [1, 100, 1, 28, 0]);
        assert_eq!(rows(&[1000, 30], 128), [512, 0]);
        assert_eq!(rows(&[1000], 4096), [1000]);
        assert_eq!(rows(&[1, 1], 128), [1, 1]);
    }
}
