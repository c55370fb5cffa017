//! The confidences of one step, and the survival that follows from them.

/// Calibrated confidences of the drafted blocks of all requests of a step, one row per request. Rows may differ in
/// length, and a request that drafted nothing has an empty one. The buffers are refilled every step and do not allocate
/// once they have grown.
///
/// Confidence `c_j` is the chance that position `j` is accepted given that all before it were; survival `a_j` is the
/// product of `c_1` to `c_j`, so it never rises along a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Confidences {
    confidence: Vec<f64>,
    survival: Vec<f64>,
    /// The end of each row.
    ends: Vec<usize>,
}

impl Confidences {
    /// Forgets all rows and keeps the room.
    pub fn clear(&mut self) {
        self.confidence.clear();
        self.survival.clear();
        self.ends.clear();
    }

    /// Becomes equal to another, in the room that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.confidence.clone_from(&other.confidence);
        self.survival.clone_from(&other.survival);
        self.ends.clone_from(&other.ends);
    }

    /// Adds the row of the next request. NaN counts as 0, and values outside of 0 to 1 are clamped.
    pub fn push(&mut self, confidences: impl IntoIterator<Item = f64>) {
        let mut survival = 1.0;
        for confidence in confidences {
            let confidence = if confidence.is_nan() { 0.0 } else { confidence.clamp(0.0, 1.0) };
            survival *= confidence;
            self.confidence.push(confidence);
            self.survival.push(survival);
        }
        self.ends.push(self.survival.len());
    }

    /// Number of requests.
    pub fn requests(&self) -> usize {
        self.ends.len()
    }

    /// Drafted positions of all requests together.
    pub fn positions(&self) -> usize {
        self.survival.len()
    }

    /// Confidences of a request.
    pub fn confidence(&self, request: usize) -> &[f64] {
        &self.confidence[self.span(request)]
    }

    /// Survival probabilities of a request.
    pub fn survival(&self, request: usize) -> &[f64] {
        &self.survival[self.span(request)]
    }

    fn span(&self, request: usize) -> std::ops::Range<usize> {
        let start = if request == 0 { 0 } else { self.ends[request - 1] };
        start..self.ends[request]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survival_is_the_running_product() {
        let mut confidences = Confidences::default();
        confidences.push([0.5, 0.5, 1.0]);
        confidences.push([]);
        confidences.push([0.25]);
        assert_eq!(confidences.requests(), 3);
        assert_eq!(confidences.positions(), 4);
        assert_eq!(confidences.survival(0), [0.5, 0.25, 0.25]);
        assert_eq!(confidences.confidence(0), [0.5, 0.5, 1.0]);
        assert!(confidences.survival(1).is_empty());
        assert_eq!(confidences.survival(2), [0.25]);
    }

    #[test]
    fn what_is_no_probability_becomes_one() {
        let mut confidences = Confidences::default();
        confidences.push([2.0, f64::NAN, 0.5]);
        confidences.push([-1.0]);
        assert_eq!(confidences.survival(0), [1.0, 0.0, 0.0]);
        assert_eq!(confidences.survival(1), [0.0]);
    }
}
