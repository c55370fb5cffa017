//! The guard that decides whether to draft at all.
//!
//! It keeps an account of the gain of drafting over plain decoding. A round with drafts adds to the account if it
//! commits more tokens than plain rounds in the same time, and draws on it otherwise. The account starts with a stake
//! and is capped at a reserve. When it is empty, rounds decode plainly. The number of plain rounds depends on the loss,
//! which keeps the loss a small share of all rounds. Drafting is then tried again with a smaller stake, and the wait
//! doubles with each further failure. A full account shows that drafting pays, and clears the failures.
//!
//! The account uses the tokens that rounds really committed, not the confidences: a head that was never calibrated can
//! predict anything. Chance matters less in a round of many requests (its share falls with the square root of their
//! number), so their gains are weighted accordingly and a useless draft is detected in one round.
//!
//! The whole engine has one account, not one per request. The draft runs once over all requests and its weights are
//! read once, so excluding one request saves little. A retry tests the draft for all requests, and new ones need not
//! repeat the test. The relative cost of drafting falls with the load, however, so an account that was emptied at a
//! high load gets another chance when the price has fallen by a third.
//!
//! Other costs of a retry, such as updating contexts before drafting, do not show whether drafting pays and do not
//! change the account. The time is lost all the same, so the wait accounts for it.
//!
//! The guard is asked before a block is drafted and informed about finished rounds, so its decisions never depend on
//! the tokens that they concern.

/// The numbers of a [`BreakEven`] guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakEvenSettings {
    /// Maximum loss of the first try, in plain steps of one request.
    pub stake: f64,
    /// Maximum loss of a later try.
    pub retry_stake: f64,
    /// Cap on remembered gains: the loss before a change for the worse is detected.
    pub reserve: f64,
    /// Plain rounds before the first retry, for each plain step that was lost.
    pub patience: f64,
    /// Maximum number of plain rounds before a retry.
    pub longest_wait: f64,
}

impl Default for BreakEvenSettings {
    fn default() -> Self {
        Self { stake: 2.0, retry_stake: 1.5, reserve: 6.0, patience: 64.0, longest_wait: 4096.0 }
    }
}

/// A retry without a wait needs a price of at most this share of the lowest price that was too high.
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
    /// Factor of the next wait for the failures so far.
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

    /// Returns whether the next round drafts. `price` is the extra cost of a drafted round over a plain one at the
    /// current load, in plain steps; at an infinite price nothing is tried.
    pub fn drafts(&mut self, price: f64) -> bool {
        self.price = price;
        // A table may promise that drafting is free, or better; when it failed all the same, no price is lower.
        let least = price.max(0.0);
        if self.waiting > 0 && least <= CHEAPER * self.too_high && least < self.too_high {
            self.retry();
        }
        self.waiting == 0 && price.is_finite()
    }

    /// Records a finished round of this many requests with drafts. `gain` is its gain over plain rounds in the same
    /// time, in plain steps, and is negative for a loss. `NaN` counts as 0.
    pub fn drafted(&mut self, requests: usize, gain: f64) {
        // A round whose drafts were made before the account was emptied has no effect any more.
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

    /// Runs this many rounds at one price; returns which of them drafted, and their total gain.
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
        // 6.5 steps were lost; 7 rounds of the wait are over. Drafting then pays again, and continues from there.
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
        /// For any outcomes of rounds, the loss against plain decoding stays within the stakes plus one round each.
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
