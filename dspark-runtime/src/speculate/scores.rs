//! The target's results for the rows that tokens are sampled from.
//!
//! Legend: `m` such rows, `r` of them, `d` hidden size, `n` rows of the draft, `v` vocabulary, `u` tokens that the draft can
//! propose.

use burn::tensor::{DType, Element, Tensor, TensorData, Transaction};

use super::device::{JudgedRow, judge_rows};
use super::round::JudgedShares;
use crate::model::{DraftVocabulary, Target};
use crate::tensors::ints;

/// The information that a sequence needs about its rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wanted {
    /// All logits of this many rows: hundreds of kilobytes each, copied from the device.
    Logits(usize),
    /// The most likely token of this many rows.
    Likeliest(usize),
    /// The inputs of the acceptance test, prepared on the device.
    Judged(Vec<JudgedRow>),
}

impl Wanted {
    pub fn rows(&self) -> usize {
        match self {
            Self::Logits(rows) | Self::Likeliest(rows) => *rows,
            Self::Judged(rows) => rows.len(),
        }
    }
}

/// The draft's distributions on the device, `[n, u]`, and its vocabulary.
pub(super) type Proposals<'a> = (Option<Tensor<2>>, Option<&'a DraftVocabulary>);

/// The results read from the device, each kind in the order of the sequences.
#[derive(Debug, Default)]
pub(super) struct Scores {
    logits: Vec<f32>,
    likeliest: Vec<u32>,
    next: Vec<u32>,
    /// Probabilities in the target's distribution, then in the draft's.
    shares: Vec<f32>,
    /// For each row, whether it defines a distribution; empty unless a device checked the rows.
    sound: Vec<bool>,
}

/// The results for the rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) enum RowScores<'a> {
    /// `v` numbers per row.
    Logits(&'a [f32]),
    /// One token per row.
    Likeliest(&'a [u32]),
    /// One entry of each kind per row.
    Judged(JudgedShares<'a>),
}

impl Scores {
    /// Reads what the sequences want of their rows, `[m, d]`, waiting for the device once.
    pub fn read(target: &Target, hidden_md: Tensor<2>, wanted: &[Wanted], proposals: Proposals<'_>) -> Self {
        let logits_mv = target.logits(hidden_md);
        let [m, _] = logits_mv.dims();
        let (mut logits, mut likeliest, mut judged) = (Vec::new(), Vec::new(), Vec::new());
        let mut judged_rows = Vec::new();
        let mut first = 0;
        for own in wanted {
            let rows = first..first + own.rows() as i32;
            first = rows.end;
            match own {
                Wanted::Logits(_) => logits.extend(rows),
                Wanted::Likeliest(_) => likeliest.extend(rows),
                Wanted::Judged(own) => {
                    judged.extend(rows);
                    judged_rows.extend_from_slice(own);
                }
            }
        }
        let rows = |which: Vec<i32>| -> Option<Tensor<2>> {
            let count = which.len();
            if count == m || count == 0 {
                return (count > 0).then(|| logits_mv.clone());
            }
            Some(logits_mv.clone().select(0, ints(which, target.device())))
        };
        let (logits_rv, likeliest_rv, judged_rv) = (rows(logits), rows(likeliest), rows(judged));
        // A NaN is in the sum, and +inf is the largest.
        let looked_at = likeliest_rv.is_some() || judged_rv.is_some();
        let checks = looked_at.then(|| {
            let logits_mv = logits_mv.clone().cast(DType::F32);
            (logits_mv.clone().sum_dim(1), logits_mv.max_dim(1))
        });
        drop(logits_mv);
        let (any_logits, any_likeliest, any_judged) =
            (logits_rv.is_some(), likeliest_rv.is_some(), judged_rv.is_some());
        let mut transaction = Transaction::default();
        if let Some(logits_rv) = logits_rv {
            transaction = transaction.register(logits_rv);
        }
        if let Some(likeliest_rv) = likeliest_rv {
            transaction = transaction.register(likeliest_rv.argmax(1));
        }
        if let Some(judged_rv) = judged_rv {
            let judged = judge_rows(judged_rv, &judged_rows, proposals.0, proposals.1);
            transaction = transaction.register(judged.next_r).register(judged.probabilities_2r.cast(DType::F32));
        }
        if let Some((sums_m1, largest_m1)) = checks {
            transaction = transaction.register(sums_m1).register(largest_m1);
        }
        let read = transaction.try_execute().unwrap_or_else(|error| panic!("the device failed: {error}"));
        let mut read = read.into_iter();
        let logits = numbers(any_logits, &mut read);
        let likeliest = numbers(any_likeliest, &mut read);
        let next = numbers(any_judged, &mut read);
        let shares = numbers(any_judged, &mut read);
        let (sums, largest): (Vec<f32>, Vec<f32>) = (numbers(looked_at, &mut read), numbers(looked_at, &mut read));
        let sound = sums.iter().zip(&largest).map(|(sum, largest)| !sum.is_nan() && largest.is_finite()).collect();
        Self { logits, likeliest, next, shares, sound }
    }

    /// Deals them out in the order of the sequences, each with the number of its rows before the first that a device found to
    /// give no distribution.
    pub fn deal(&self, wanted: &[Wanted], v: usize) -> Vec<(RowScores<'_>, usize)> {
        let mut first = 0;
        let sound = wanted.iter().map(|own| {
            let rows = first..first + own.rows();
            first = rows.end;
            let unsound = self.sound.get(rows).and_then(|rows| rows.iter().position(|sound| !sound));
            unsound.unwrap_or(own.rows())
        });
        let sound: Vec<usize> = sound.collect();
        let (mut logits, mut likeliest, mut next) = (&self.logits[..], &self.likeliest[..], &self.next[..]);
        let (mut of_target, mut of_draft) = self.shares.split_at(self.shares.len() / 2);
        let deal = |own: &Wanted| match own {
            Wanted::Logits(rows) => RowScores::Logits(take(&mut logits, rows * v)),
            Wanted::Likeliest(rows) => RowScores::Likeliest(take(&mut likeliest, *rows)),
            Wanted::Judged(rows) => RowScores::Judged(JudgedShares {
                target: take(&mut of_target, rows.len()),
                draft: take(&mut of_draft, rows.len()),
                next: take(&mut next, rows.len()),
            }),
        };
        wanted.iter().map(deal).zip(sound).collect()
    }
}

fn take<'a, T>(left: &mut &'a [T], count: usize) -> &'a [T] {
    let (first, rest) = left.split_at(count);
    *left = rest;
    first
}

fn numbers<E: Element>(wanted: bool, read: &mut impl Iterator<Item = TensorData>) -> Vec<E> {
    let data = if wanted { read.next() } else { None };
    let numbers =
        data.map(|data| data.try_into_vec_as::<E>().unwrap_or_else(|error| panic!("the device failed: {error}")));
    numbers.unwrap_or_default()
}
