//! Whether drafting pays at all.
//!
//! An account in units of plain steps. A round with drafts that commits more than a plain round of the same length would
//! have pays in, one that commits less draws out; the account holds a stake at first and never more than a reserve.
//! When it is empty, rounds decode plainly, and drafting is retried, with a smaller stake, after an interval that doubles
//! each time it fails again. A full account shows that drafting pays: the interval starts small again.
//!
//! What counts is what rounds really committed, not what confidences promised: a head that was never calibrated may
//! promise anything. What a bad draft costs is bounded: the stakes, with the interval doubling between them, and one round
//! beyond each.
//!
//! One account for the whole engine, not one per request: the draft runs once over all requests and its weights are read
//! once, so leaving out one request saves little; a retry answers for all requests, and new ones need not find out on their
//! own what is known; and with more requests the sum over a round is less noisy. What drafting costs falls with the load,
//! though, so an account that was emptied at a high load is given another chance when the price has fallen by a third.
//!
//! It is asked before a block is drafted and told about rounds that are over, so nothing that is decided on is ever looked at.

/// The numbers of a [`BreakEven`] guard. Stakes and reserve are in plain steps, intervals in rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakEvenSettings {
    /// What the first try may lose.
    pub stake: f64,
    /// What a later try may lose.
    pub retry_stake: f64,
    /// The most that gains are remembered for: what is lost before a change for the worse is noticed.
    pub reserve: f64,
    /// Plain rounds before the first retry.
    pub first_interval: u32,
    /// The interval grows no further.
    pub last_interval: u32,
}

impl Default for BreakEvenSettings {
    fn default() -> Self {
        Self { stake: 3.0, retry_stake: 1.5, reserve: 6.0, first_interval: 32, last_interval: 2048 }
    }
}

/// A retry that does not wait needs a price at most this share of the lowest that was too high.
const CHEAPER: f64 = 2.0 / 3.0;

/// Says before every round whether to draft.
#[derive(Clone, Debug)]
pub struct BreakEven {
    settings: BreakEvenSettings,
    account: f64,
    /// Plain rounds left; 0 while drafting.
    waiting: u32,
    interval: u32,
    /// The lowest price at which drafting failed since it last paid.
    too_high: f64,
    price: f64,
}

impl BreakEven {
    /// Starts with a try.
    pub fn new(settings: BreakEvenSettings) -> Self {
        Self {
            account: settings.stake,
            waiting: 0,
            interval: settings.first_interval,
            too_high: f64::INFINITY,
            price: f64::INFINITY,
            settings,
        }
    }

    /// Whether the next round drafts. `price` is what a drafted round costs more than a plain one at the present load,
    /// in plain steps.
    pub fn drafts(&mut self, price: f64) -> bool {
        self.price = price;
        if self.waiting > 0 && price <= CHEAPER * self.too_high {
            self.retry();
        }
        self.waiting == 0
    }

    /// A round with drafts is over: what it gained over a plain round, in plain steps, negative when it lost. `NaN` counts
    /// as nothing.
    pub fn drafted(&mut self, gain: f64) {
        // A round whose drafts came before the account was emptied changes nothing any more.
        if self.waiting > 0 || gain.is_nan() {
            return;
        }
        self.account += gain;
        if self.account >= self.settings.reserve {
            self.account = self.settings.reserve;
            self.interval = self.settings.first_interval;
            self.too_high = f64::INFINITY;
        } else if self.account < 0.0 {
            self.waiting = self.interval.max(1);
            self.interval = self.interval.saturating_mul(2).min(self.settings.last_interval);
            self.too_high = self.too_high.min(self.price);
        }
    }

    /// A plain round is over.
    pub fn plain(&mut self) {
        if self.waiting == 1 {
            self.retry();
        } else {
            self.waiting = self.waiting.saturating_sub(1);
        }
    }

    fn retry(&mut self) {
        self.waiting = 0;
        self.account = self.settings.retry_stake;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs so many rounds at one price; which of them drafted, and what all of them gained.
    fn run(guard: &mut BreakEven, rounds: usize, price: f64, mut gain: impl FnMut() -> f64) -> (Vec<usize>, f64) {
        let (mut drafted, mut gained) = (Vec::new(), 0.0);
        for round in 0..rounds {
            if guard.drafts(price) {
                let gain = gain();
                guard.drafted(gain);
                gained += gain;
                drafted.push(round);
            } else {
                guard.plain();
            }
        }
        (drafted, gained)
    }

    #[test]
    fn a_useless_draft_is_retried_at_doubling_intervals() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        let (drafted, lost) = run(&mut guard, 10_000, 1.0, || -1.0);
        let tries: Vec<usize> = (0..drafted.len())
            .filter(|&at| at == 0 || drafted[at] > drafted[at - 1] + 1)
            .map(|at| drafted[at])
            .collect();
        assert_eq!(tries, [0, 36, 102, 232, 490, 1004, 2030, 4080, 6130, 8180]);
        assert!(lost > -0.01 * 10_000.0, "{lost}");
    }

    #[test]
    fn a_useful_draft_goes_on_and_a_change_is_noticed() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        let mut round = 0;
        // Loses twice and then gains, again and again.
        let useful = || {
            round += 1;
            if round % 3 == 0 { 3.0 } else { -0.5 }
        };
        assert_eq!(run(&mut guard, 300, 0.5, useful).0.len(), 300);
        assert_eq!(run(&mut guard, 20, 0.5, || -0.5).0.len(), 13);
        // After the interval it pays again, and from then on it drafts.
        let (drafted, _) = run(&mut guard, 100, 0.5, || 0.5);
        assert_eq!(drafted, (25..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_lower_price_is_a_reason_to_try_at_once() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        assert_eq!(run(&mut guard, 20, 3.0, || -3.0).0, [0, 1]);
        assert!(!guard.drafts(2.5));
        assert!(guard.drafts(2.0));
        assert_eq!(run(&mut guard, 20, 2.0, || -2.0).0, [0]);
        // Failed at 2 as well: going back and forth is no reason.
        run(&mut guard, 1, 3.0, || -3.0);
        assert!(!guard.drafts(2.0));
    }

    proptest! {
        /// However rounds turn out, the loss against plain decoding stays within the stakes and a round beyond each.
        #[test]
        fn the_loss_is_bounded(gains in prop::collection::vec(-1.0..1.0_f64, 2000), bad in 0.0..1.0_f64) {
            let settings = BreakEvenSettings::default();
            let mut guard = BreakEven::new(settings);
            let mut gains = gains.into_iter();
            let (drafted, gained) = run(&mut guard, 2000, 1.0, || gains.next().unwrap_or(-1.0) - bad);
            let tries = drafted.windows(2).filter(|pair| pair[1] > pair[0] + 1).count() as f64;
            // Each period between two full accounts may lose the reserve once more.
            let worst = settings.reserve + 2.0 + tries * (settings.reserve + 2.0);
            prop_assert!(gained >= -worst, "{gained} after {tries} retries");
        }
    }
}
