//! Reports of drafting being switched off and on, for logs.

use std::fmt;
use std::time::Duration;

/// Minimum decoding time between two reports, so that a load that comes and goes does not flood the log.
const APART: Duration = Duration::from_secs(60);

/// Number of consecutive plain steps after which drafting counts as off if no loss was measured. One or two short requests without
/// drafting are not reported.
const PLAIN: u32 = 32;

/// The share of earlier steps that a new one leaves in the recent sums.
const KEPT: f64 = 1.0 - 1.0 / 64.0;

/// A change of drafting from on to off, or back.
#[derive(Clone, Debug, PartialEq)]
pub struct Switch {
    /// True if drafting is on now.
    pub drafts: bool,
    /// Measured speed of the last steps with drafts, as a multiple of plain decoding; `None` where nothing was drafted.
    pub speedup: Option<f64>,
    /// Tokens per round of the requests that drafted in these steps; `None` where nothing was verified.
    pub accepted_length: Option<f64>,
    /// Number of concurrent requests.
    pub requests: usize,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { drafts, speedup, accepted_length, requests } = self;
        let requests = if *requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") };
        f.write_str(if *drafts { "drafting is on" } else { "drafting is off" })?;
        match speedup {
            Some(speedup) => {
                write!(f, ": measured {speedup:.2}x the speed of plain decoding with {requests} at once")?
            }
            None => write!(f, ": by the measured step costs it would lose time with {requests} at once")?,
        }
        if let Some(length) = accepted_length {
            write!(f, ", accepted length {length:.2}")?;
        }
        if *drafts { Ok(()) } else { f.write_str("; it will be tried again") }
    }
}

/// Recent steps with drafts, and the last reported switch.
#[derive(Clone, Debug)]
pub(super) struct Switches {
    on: bool,
    /// The state that was reported last. Drafting counts as on until it is switched off.
    reported: bool,
    pending: Option<Switch>,
    /// Time of decoding since the last report; `None` before the first.
    since: Option<Duration>,
    /// Number of consecutive plain steps.
    plain: u32,
    /// Sums over recent steps: tokens per request, and plain steps that fit into their time.
    tokens: f64,
    steps: f64,
    /// Sums over recent rounds of one request.
    rounds: f64,
    accepted: f64,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            on: true,
            reported: true,
            pending: None,
            since: None,
            plain: 0,
            tokens: 0.0,
            steps: 0.0,
            rounds: 0.0,
            accepted: 0.0,
        }
    }
}

impl Switches {
    /// Counts the time of a step.
    pub fn time(&mut self, time: Duration) {
        self.since = self.since.map(|since| since.saturating_add(time));
    }

    /// Counts a block with this many verified and accepted tokens.
    pub fn judged(&mut self, verified: usize, accepted: usize) {
        if verified > 0 {
            self.rounds = KEPT * self.rounds + 1.0;
            self.accepted = KEPT * self.accepted + accepted as f64;
        }
    }

    /// Counts a step with drafts: tokens per request, and the number of plain steps that fit into its time; `pays` is
    /// true if the guard's account is full.
    pub fn drafted(&mut self, requests: usize, tokens: f64, steps: f64, pays: bool) {
        self.plain = 0;
        self.tokens = KEPT * self.tokens + tokens;
        self.steps = KEPT * self.steps + steps;
        if pays && !self.on {
            self.switch(true, requests, true);
        }
    }

    /// Counts a plain step that the scheduler decided on; `lost` is true if drafting was
    /// measured to lose time, and false if that was only predicted.
    pub fn plain(&mut self, requests: usize, lost: bool) {
        self.plain = self.plain.saturating_add(1);
        if self.on && (lost || self.plain >= PLAIN) {
            self.switch(false, requests, lost);
        }
        if lost {
            // The next attempt is measured separately.
            (self.tokens, self.steps, self.rounds, self.accepted) = (0.0, 0.0, 0.0, 0.0);
        }
    }

    fn switch(&mut self, drafts: bool, requests: usize, measured: bool) {
        self.on = drafts;
        let ratio = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
        self.pending = Some(Switch {
            drafts,
            speedup: ratio(self.tokens, self.steps).filter(|_| measured),
            accepted_length: ratio(self.accepted, self.rounds).map(|accepted| 1.0 + accepted),
            requests,
        });
    }

    /// Returns the switch to report now, if there is one.
    pub fn take(&mut self) -> Option<Switch> {
        if self.on == self.reported || self.since.is_some_and(|since| since < APART) {
            return None;
        }
        (self.reported, self.since) = (self.on, Some(Duration::ZERO));
        self.pending.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A second in which a round commits so many tokens per request at the cost of so many plain steps.
    fn round(switches: &mut Switches, tokens: f64, steps: f64, pays: bool) -> Option<String> {
        switches.judged(3, tokens as usize - 1);
        switches.drafted(1, tokens, steps, pays);
        switches.time(SECOND);
        switches.take().map(|switch| switch.to_string())
    }

    fn plain(switches: &mut Switches, requests: usize, lost: bool) -> Option<String> {
        switches.plain(requests, lost);
        switches.time(SECOND);
        switches.take().map(|switch| switch.to_string())
    }

    #[test]
    fn a_loss_is_reported_once_and_its_end_once() {
        let mut switches = Switches::default();
        assert_eq!(round(&mut switches, 1.0, 2.0, false), None);
        let off = "drafting is off: measured 0.50x the speed of plain decoding with 1 request at once, accepted length \
                   1.00; it will be tried again";
        assert_eq!(plain(&mut switches, 1, true).as_deref(), Some(off));
        for _ in 0..100 {
            assert_eq!(plain(&mut switches, 1, true), None);
        }
        // A failed attempt is not reported.
        assert_eq!(round(&mut switches, 1.0, 2.0, false), None);
        assert_eq!(plain(&mut switches, 1, true), None);
        assert_eq!(round(&mut switches, 3.0, 2.0, false), None);
        let on =
            "drafting is on: measured 1.50x the speed of plain decoding with 1 request at once, accepted length 3.00";
        assert_eq!(round(&mut switches, 3.0, 2.0, true).as_deref(), Some(on));
        assert_eq!(round(&mut switches, 3.0, 2.0, true), None);
    }

    #[test]
    fn what_comes_and_goes_is_reported_once_a_minute() {
        let mut switches = Switches::default();
        let mut reports = Vec::new();
        for second in 0..200 {
            let report = match second % 2 {
                0 => plain(&mut switches, 4, true),
                _ => round(&mut switches, 3.0, 2.0, true),
            };
            reports.extend(report.map(|_| second));
        }
        assert_eq!(reports, [0, 61, 122, 183]);
    }

    #[test]
    fn what_is_not_tried_is_reported_when_it_lasts() {
        let mut switches = Switches::default();
        // Literal: fewer steps would report a request or two.
        for _ in 1..32 {
            assert_eq!(plain(&mut switches, 8, false), None);
        }
        let off = "drafting is off: by the measured step costs it would lose time with 8 requests at once; it will be tried again";
        assert_eq!(plain(&mut switches, 8, false).as_deref(), Some(off));
    }
}
