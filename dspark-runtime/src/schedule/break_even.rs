//! Whether drafting pays at all.
//!
//! An account of what drafting gains over plain decoding. A round with drafts that commits more than plain rounds would
//! have in the same time pays in, one that commits less draws out; the account holds a stake at first and never more than
//! a reserve. When it is empty, rounds decode plainly. How many depends on what was lost, so that the loss stays a small
//! share of all rounds; then drafting is tried again, with a smaller stake, and each time it fails again the wait doubles.
//! A full account shows that drafting pays, and forgets the failures.
//!
//! What counts is what rounds really committed, not what confidences promised: a head that was never calibrated may
//! promise anything. Chance plays a smaller part in a round of many requests (its share falls with the root of their
//! number), so their gains count for that much more and a useless draft is found out in one round.
//!
//! One account for the whole engine, not one per request: the draft runs once over all requests and its weights are read
//! once, so leaving out one request saves little; a retry answers for all requests, and new ones need not find out on their
//! own what is known. What drafting costs falls with the load, though, so an account that was emptied at a high load is
//! given another chance when the price has fallen by a third.
//!
//! What else a try costs, contexts that have to catch up before they can be drafted behind, says nothing about whether
//! drafting pays and leaves the account alone; it was lost all the same, and the wait is for it too.
//!
//! It is asked before a block is drafted and told about rounds that are over, so nothing that is decided on is ever looked
//! at.

/// The numbers of a [`BreakEven`] guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakEvenSettings {
    /// What the first try may lose, in plain steps of one request.
    pub stake: f64,
    /// What a later try may lose.
    pub retry_stake: f64,
    /// The most that gains are remembered for: what is lost before a change for the worse is noticed.
    pub reserve: f64,
    /// Plain rounds before the first retry, for each plain step that was lost.
    pub patience: f64,
    /// Plain rounds before a retry, at most.
    pub longest_wait: f64,
}

impl Default for BreakEvenSettings {
    fn default() -> Self {
        Self { stake: 2.0, retry_stake: 1.5, reserve: 6.0, patience: 64.0, longest_wait: 4096.0 }
    }
}

/// A retry that does not wait needs a price at most this share of the lowest that was too high.
const CHEAPER: f64 = 2.0 / 3.0;

/// Says before every round whether to draft.
#[derive(Clone, Debug)]
pub struct BreakEven {
    settings: BreakEvenSettings,
    account: f64,
    /// Plain steps lost since this try began or the account was full.
    lost: f64,
    /// Plain rounds left; 0 while drafting.
    waiting: u32,
    /// How much longer the next wait is for the failures so far.
    delay: f64,
    /// The lowest price at which drafting failed since it last paid.
    too_high: f64,
    price: f64,
}

impl BreakEven {
    /// Starts with a try.
    pub fn new(settings: BreakEvenSettings) -> Self {
        Self {
            account: settings.stake,
            lost: 0.0,
            waiting: 0,
            delay: 1.0,
            too_high: f64::INFINITY,
            price: f64::INFINITY,
            settings,
        }
    }

    /// Whether the next round drafts. `price` is what a drafted round costs more than a plain one at the present load,
    /// in plain steps; at an infinite one nothing is tried.
    pub fn drafts(&mut self, price: f64) -> bool {
        self.price = price;
        // A table may promise that drafting is free, or better; when it failed all the same, no price is lower.
        let least = price.max(0.0);
        if self.waiting > 0 && least <= CHEAPER * self.too_high && least < self.too_high {
            self.retry();
        }
        self.waiting == 0 && price.is_finite()
    }

    /// A round of so many requests with drafts is over: what it gained over plain rounds in the same time, in plain steps,
    /// negative when it lost. `NaN` counts as nothing.
    pub fn drafted(&mut self, requests: usize, gain: f64) {
        // A round whose drafts came before the account was emptied changes nothing any more.
        if self.waiting > 0 || gain.is_nan() {
            return;
        }
        self.account += gain * (requests as f64).sqrt();
        self.lost -= gain;
        if self.account >= self.settings.reserve {
            (self.account, self.lost, self.delay) = (self.settings.reserve, 0.0, 1.0);
            self.too_high = f64::INFINITY;
        } else if self.account < 0.0 {
            let wait = (self.lost * self.settings.patience * self.delay).clamp(1.0, self.settings.longest_wait);
            self.waiting = wait as u32;
            self.delay = (2.0 * self.delay).min(self.settings.longest_wait);
            self.too_high = self.too_high.min(self.price.max(0.0));
        }
    }

    /// Returns whether the account was emptied, and drafting waits for its next try.
    pub fn lost(&self) -> bool {
        self.waiting > 0
    }

    /// Returns whether the account is full: drafting pays.
    pub fn pays(&self) -> bool {
        self.account >= self.settings.reserve
    }

    /// A round with drafts took that many plain steps for what is not part of any later one.
    pub fn prepared(&mut self, steps: f64) {
        if self.waiting == 0 && steps.is_finite() {
            self.lost += steps;
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
        self.lost = 0.0;
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
                guard.drafted(1, gain);
                gained += gain;
                drafted.push(round);
            } else {
                guard.plain();
            }
        }
        (drafted, gained)
    }

    #[test]
    fn a_useless_draft_is_retried_after_doubling_waits() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        let (drafted, lost) = run(&mut guard, 10_000, 1.0, || -1.0);
        let begins = |at: &usize| *at == 0 || drafted[*at] > drafted[*at - 1] + 1;
        let tries: Vec<usize> = (0..drafted.len()).filter(begins).map(|at| drafted[at]).collect();
        // Three rounds are lost at first and two each time after that.
        assert_eq!(tries, [0, 3 + 192, 197 + 256, 455 + 512, 969 + 1024, 1995 + 2048, 4045 + 4096]);
        assert_eq!(lost, -15.0);
    }

    #[test]
    fn of_many_requests_one_round_is_enough() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        assert!(guard.drafts(1.0));
        guard.drafted(32, -1.0);
        assert!(!guard.drafts(1.0));
        // The wait is for one step lost.
        for _ in 0..64 {
            assert!(!guard.drafts(1.0));
            guard.plain();
        }
        assert!(guard.drafts(1.0));
    }

    #[test]
    fn what_a_try_costs_besides_makes_the_wait_longer_and_not_the_try_shorter() {
        let waits = |besides: f64| {
            let mut guard = BreakEven::new(BreakEvenSettings::default());
            guard.prepared(besides);
            let (drafted, _) = run(&mut guard, 400, 1.0, || -1.0);
            (drafted.iter().take_while(|round| **round < 10).count(), drafted[3] - drafted[2] - 1)
        };
        assert_eq!(waits(0.0), (3, 192));
        assert_eq!(waits(1.5), (3, 288));
        assert_eq!(waits(f64::NAN), (3, 192));
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
        // 6.5 steps were lost; 7 rounds of the wait are over. Then it pays again, and from then on it drafts.
        let (drafted, _) = run(&mut guard, 600, 0.5, || 0.5);
        assert_eq!(drafted, (409..600).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_pay_is_not_tried() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        assert!(!guard.drafts(f64::INFINITY));
        assert!(guard.drafts(1.0));
    }

    #[test]
    fn a_lower_price_is_a_reason_to_try_at_once() {
        let mut guard = BreakEven::new(BreakEvenSettings::default());
        assert_eq!(run(&mut guard, 20, 3.0, || -3.0).0, [0]);
        assert!(!guard.drafts(2.5));
        assert!(guard.drafts(2.0));
        assert_eq!(run(&mut guard, 20, 2.0, || -2.0).0, [0]);
        // Failed at 2 as well: at a higher price, tried again in its turn, it fails too, and 2 is no better than before.
        assert_eq!(run(&mut guard, 400, 3.0, || -3.0).0.len(), 1);
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
