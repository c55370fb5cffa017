//! The vocabulary loss on devices with their own memory.
//!
//! Legend: as in [`super`].

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{IndexingUpdateOp, Tensor, TensorData};
#[cfg(feature = "cube")]
use dspark_runtime::cube;
use dspark_runtime::tensors::{host, ints};

use super::{RowTerms, VocabularyRows, VocabularyWeights};

impl VocabularyRows {
    /// Computes the losses on devices with their own memory: in a kernel or, without one, composed of tensor
    /// operations.
    pub(super) fn on_device(
        &self,
        logits_mv: Tensor<2>,
        teacher_tv: Tensor<2>,
        local: Vec<usize>,
        weights: Option<&VocabularyWeights>,
    ) -> (Vec<RowTerms>, Option<Tensor<2>>) {
        #[cfg(feature = "cube")]
        if cube::runs_on(&logits_mv) {
            return self.in_kernel(logits_mv, teacher_tv, local, weights);
        }
        self.composed(logits_mv, teacher_tv, local, weights)
    }

    #[cfg(feature = "cube")]
    fn in_kernel(
        &self,
        logits_mv: Tensor<2>,
        teacher_tv: Tensor<2>,
        local: Vec<usize>,
        weights: Option<&VocabularyWeights>,
    ) -> (Vec<RowTerms>, Option<Tensor<2>>) {
        let device = logits_mv.device();
        let factors = weights.map(|weights| {
            let of_row = |row: usize| [weights.cross_entropy[row], weights.soft_cross_entropy[row], weights.l1[row]];
            let factors: Vec<f32> = (0..local.len()).flat_map(of_row).collect();
            Tensor::<2>::from_data(TensorData::new(factors, [local.len(), 3]), &device)
        });
        let rows = cube::VocabularyRows {
            logits_mu: logits_mv,
            teacher_tv,
            teacher_rows_m: ints(local, &device),
            labels_m: ints(self.labels.iter().map(|label| label.map_or(-1, i64::from)).collect(), &device),
            factors_m3: factors,
            ids_u: self.vocabulary.as_ref().map(|ids| ints(ids.to_vec(), &device)),
        };
        let (losses_m3, gradient) = rows.losses();
        let losses = host(losses_m3);
        let losses = losses.as_chunks::<3>().0.iter();
        let losses =
            losses.map(|&[cross_entropy, soft_cross_entropy, l1]| RowTerms { cross_entropy, soft_cross_entropy, l1 });
        (losses.collect(), gradient)
    }

    pub(super) fn composed(
        &self,
        logits_mv: Tensor<2>,
        teacher_tv: Tensor<2>,
        local: Vec<usize>,
        weights: Option<&VocabularyWeights>,
    ) -> (Vec<RowTerms>, Option<Tensor<2>>) {
        let device = logits_mv.device();
        let m = local.len();
        let column = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, [m, 1]), &device);
        // A row without a label that could be proposed takes any, and counts it as nothing.
        let labels = self.labels.iter().map(|label| label.unwrap_or(0)).collect();
        let labels = ints(labels, &device).reshape([m, 1]);
        let labelled = column(self.labels.iter().map(|label| f32::from(u8::from(label.is_some()))).collect());
        let log_p = log_softmax(logits_mv, 1);
        let cross_entropy_m1 = log_p.clone().gather(1, labels.clone()).neg() * labelled.clone();
        let q = softmax(teacher_tv, 1);
        let (q, mass_t1) = match &self.vocabulary {
            Some(ids) => {
                let q = q.select(1, ints(ids.to_vec(), &device));
                (q.clone(), q.sum_dim(1))
            }
            None => (q.clone(), q.narrow(1, 0, 1).ones_like()),
        };
        let local = ints(local, &device);
        let (q, mass_m1) = (q.select(0, local.clone()), mass_t1.select(0, local));
        let soft_cross_entropy_m1 = (log_p.clone() * q.clone()).sum_dim(1).neg();
        let p = log_p.exp();
        let difference = p.clone() - q;
        let l1_m1 = difference.clone().abs().sum_dim(1) + (mass_m1.clone().neg() + 1.0);
        let gradient = weights.map(|weights| {
            let (w_ce, w_l1) = (column(weights.cross_entropy.clone()) * labelled, column(weights.l1.clone()));
            let w_soft = column(weights.soft_cross_entropy.clone());
            let soft = p.clone() * mass_m1 - (p.clone() - difference.clone());
            let sign = difference.clone().sign();
            let mean_sign = (p.clone() * sign.clone()).sum_dim(1);
            let gradient = p * (w_ce.clone() + w_l1 * (sign - mean_sign)) + soft * w_soft;
            gradient.scatter(1, labels, w_ce.neg(), IndexingUpdateOp::Add)
        });
        let losses = host(cross_entropy_m1).into_iter().zip(host(soft_cross_entropy_m1)).zip(host(l1_m1));
        let losses = losses.map(|((cross_entropy, soft_cross_entropy), l1)| RowTerms {
            cross_entropy,
            soft_cross_entropy,
            l1,
        });
        (losses.collect(), gradient)
    }
}
