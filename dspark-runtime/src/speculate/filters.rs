//! Narrowing a distribution to its likely tokens.

use super::distribution::Distribution;

/// Filters of the tokens that can be sampled, applied in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filters {
    /// The most likely this many; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens whose total share reaches this, in `(0, 1]`; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this fraction as likely as the most likely one, in `[0, 1)`; 0 keeps all.
    pub min_p: f64,
}

impl Filters {
    /// Keeps every token.
    pub const NONE: Self = Self { top_k: 0, top_p: 1.0, min_p: 0.0 };
}

impl Distribution {
    /// The distribution given that one of the kept tokens is drawn. Of equally likely tokens the lower ids go first.
    #[must_use]
    pub fn filtered(self, filters: &Filters) -> Self {
        let Self::Dense(mut probabilities) = self else { return self };
        if *filters == Filters::NONE {
            return Self::Dense(probabilities);
        }
        let largest = probabilities.iter().copied().fold(0.0, f32::max);
        let share_of =
            |tokens: &[u32]| tokens.iter().map(|&token| f64::from(probabilities[token as usize])).sum::<f64>();
        let whole: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        let mut kept: Vec<u32> = Vec::new();
        // Sorting a whole vocabulary is expensive. The unlikely rest is examined only if the likely tokens are too few:
        // fewer than `top_k`, whose sum `top_p` is a share of, or less than `top_p` of the total.
        let mut floor = largest * 1e-3;
        loop {
            kept.clear();
            kept.extend((0..probabilities.len() as u32).filter(|&token| probabilities[token as usize] >= floor));
            let above_min_p = f64::from(floor) <= filters.min_p * f64::from(largest);
            let enough = match (filters.top_k, filters.top_p < 1.0) {
                (0, true) => share_of(&kept) >= filters.top_p * whole,
                (0, false) => above_min_p,
                (top_k, true) => kept.len() >= top_k,
                (top_k, false) => kept.len() >= top_k || above_min_p,
            };
            if enough || floor == 0.0 {
                break;
            }
            floor = if floor > largest * 1e-12 { floor * 1e-3 } else { 0.0 };
        }
        let by_likelihood = |a: &u32, b: &u32| {
            probabilities[*b as usize].total_cmp(&probabilities[*a as usize]).then_with(|| a.cmp(b))
        };
        if filters.top_k > 0 && kept.len() > filters.top_k {
            kept.select_nth_unstable_by(filters.top_k - 1, by_likelihood);
            kept.truncate(filters.top_k);
        }
        kept.sort_unstable_by(by_likelihood);
        if filters.top_p < 1.0 {
            let total = if filters.top_k == 0 { whole } else { share_of(&kept) };
            let mut share = 0.0;
            let reached = kept.iter().position(|&token| {
                share += f64::from(probabilities[token as usize]);
                share >= filters.top_p * total
            });
            kept.truncate(reached.map_or(kept.len(), |last| last + 1));
        }
        let least = filters.min_p * f64::from(largest);
        kept.retain(|&token| f64::from(probabilities[token as usize]) >= least);
        let mass = share_of(&kept);
        let values: Vec<(u32, f32)> =
            kept.iter().map(|&token| (token, (f64::from(probabilities[token as usize]) / mass) as f32)).collect();
        probabilities.fill(0.0);
        for (token, probability) in values {
            probabilities[token as usize] = probability;
        }
        Self::Dense(probabilities)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by sorting everything.
    fn by_definition(probabilities: &[f32], filters: &Filters) -> Vec<f64> {
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
        if filters.top_k > 0 {
            order.truncate(filters.top_k);
        }
        let mass = |order: &[usize]| order.iter().map(|&token| f64::from(probabilities[token])).sum::<f64>();
        let total = mass(&order);
        if filters.top_p < 1.0 {
            let count = (1..=order.len()).find(|&n| mass(&order[..n]) >= filters.top_p * total);
            order.truncate(count.unwrap_or(order.len()));
        }
        let least = filters.min_p * f64::from(probabilities[order[0]]);
        order.retain(|&token| f64::from(probabilities[token]) >= least);
        let total = mass(&order);
        let mut out = vec![0.0; probabilities.len()];
        order.iter().for_each(|&token| out[token] = f64::from(probabilities[token]) / total);
        out
    }

    proptest! {
        #[test]
        fn filters_do_what_they_say(
            logits in prop::collection::vec(-12.0_f32..12.0, 1..200),
            top_k in 0_usize..20,
            top_p in 0.01_f64..1.2,
            min_p in -0.2_f64..0.9,
        ) {
            let filters = Filters { top_k, top_p: top_p.min(1.0), min_p: min_p.max(0.0) };
            let Distribution::Dense(probabilities) = Distribution::from_logits(&logits, 1.0) else { unreachable!() };
            let expected = by_definition(&probabilities, &filters);
            let filtered = Distribution::Dense(probabilities).filtered(&filters);
            for (token, expected) in expected.iter().enumerate() {
                prop_assert!((filtered.probability(token as u32) - expected).abs() < 1e-5, "token {token}");
            }
        }
    }

    /// Tokens far below the likely ones still count among `top_k`, so in the sum that `top_p` is a share of.
    #[test]
    fn the_share_is_of_all_top_k_tokens() {
        let unlikely = Distribution::Dense(vec![0.79985, 0.19995, 0.0001, 0.0001]);
        let filtered = unlikely.filtered(&Filters { top_k: 4, top_p: 0.8, min_p: 0.0 });
        assert!(filtered.probability(1) > 0.19, "{filtered:?}");
    }

    #[test]
    fn equal_tokens_are_kept_in_the_order_of_their_ids() {
        let even = Distribution::Dense(vec![0.25; 4]);
        let filtered = even.filtered(&Filters { top_k: 2, ..Filters::NONE });
        assert_eq!(filtered, Distribution::Dense(vec![0.5, 0.5, 0.0, 0.0]));
        assert_eq!(Distribution::OneHot(3).filtered(&Filters { top_k: 1, ..Filters::NONE }), Distribution::OneHot(3));
    }
}
