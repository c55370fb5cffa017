//! Perplexity of a text under a target.
//!
//! Legend: `n` rows (tokens), `d` hidden size, `v` vocabulary.

use super::target::{Target, TargetSegment};
use crate::tensors::host;

/// Number of rows whose logits are on the host at a time.
const ROWS: usize = 64;

impl Target {
    /// Returns the negative log-probability of each token after the first, given all preceding ones, in nats; `ids` are
    /// one text, and all of them must be below the vocabulary size.
    pub fn token_losses(&self, ids: &[u32]) -> Vec<f64> {
        let Some((_, next)) = ids.split_first().filter(|(_, next)| !next.is_empty()) else {
            return Vec::new();
        };
        let read = &ids[..next.len()];
        let hidden_nd = self.forward(&mut [TargetSegment { ids: read, cache: None }], &[]).last_hidden_nd;
        let mut losses = Vec::with_capacity(next.len());
        for (first, tokens) in (0..).step_by(ROWS).zip(next.chunks(ROWS)) {
            let logits_nv = self.logits(hidden_nd.clone().narrow(0, first, tokens.len()));
            let values = host(logits_nv);
            let rows = values.chunks(self.config().vocab_size).zip(tokens);
            losses.extend(rows.map(|(logits, token)| loss(logits, *token as usize)));
        }
        losses
    }
}

/// `log(sum(exp(logits))) - logits[token]`
fn loss(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    sum.ln() + f64::from(largest - logits[token])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_the_softmax() {
        let logits = [1.0_f32, 3.0, -2.0];
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (token, logit) in logits.into_iter().enumerate() {
            let expected = -(f64::from(logit).exp() / sum).ln();
            assert!((loss(&logits, token) - expected).abs() < 1e-12);
        }
        // Large logits do not overflow.
        assert!((loss(&[1e4, 1e4], 0) - std::f64::consts::LN_2).abs() < 1e-12);
    }
}
