//! Anchors, blocks and the slots of a block that are supervised.
//!
//! Positions are token positions in one sample. Slot `j` (0-based) of the block at anchor `p` predicts token `p + 1 + j`;
//! the teacher's distribution for it is in row `p + j`; the token before it is `p + j`.

/// Positions that may be anchors: those where the token itself and the next one are supervised.
pub fn anchor_candidates(loss_mask: &[bool]) -> Vec<usize> {
    (1..loss_mask.len()).filter(|&next| loss_mask[next - 1] && loss_mask[next]).map(|next| next - 1).collect()
}

/// Draws up to `count` anchors without replacement: the candidates with the smallest random values, in text order.
///
/// `random` has a value for every position that could be a candidate in a sample of this length (one less than its
/// tokens), so that a recorded draw can be repeated.
pub fn choose_anchors(candidates: &[usize], random: &[f32], count: usize) -> Vec<usize> {
    let mut chosen = candidates.to_vec();
    chosen.sort_by(|&a, &b| random[a].total_cmp(&random[b]));
    chosen.truncate(count);
    chosen.sort_unstable();
    chosen
}

/// Returns the number of leading supervised slots of the block at `anchor`: a slot counts while it is inside the
/// sample, and it and every slot before it are supervised.
pub fn supervised_slots(loss_mask: &[bool], anchor: usize, block_size: usize) -> usize {
    loss_mask[anchor + 1..].iter().take(block_size).take_while(|&&supervised| supervised).count()
}

/// The blocks of a sample that are trained, and their supervised slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockChoice {
    /// Blocks at up to `count` anchors drawn among the candidates from position `first` on, each with its leading supervised
    /// slots.
    Drawn {
        /// Maximum number of anchors.
        count: usize,
        /// The first position that may be one: the drafter's lookahead.
        first: usize,
    },
    /// DeepSpec's supervision of Eagle3 drafts: blocks at all anchors from position 1 on. A slot counts if the token
    /// two positions before the predicted one is supervised, unless the sample ends there, independent of the preceding
    /// slots.
    Eagle3Reference,
}

impl BlockChoice {
    /// The blocks of a sample; `random` as in [`choose_anchors`].
    pub fn blocks(self, loss_mask: &[bool], random: &[f32], block_size: usize) -> SampleBlocks {
        let Self::Drawn { count, first } = self else {
            return SampleBlocks::eagle3_reference(loss_mask, block_size);
        };
        let mut candidates = anchor_candidates(loss_mask);
        candidates.retain(|&candidate| candidate >= first);
        let anchors = choose_anchors(&candidates, random, count);
        let slots = anchors.iter().map(|&anchor| (0..supervised_slots(loss_mask, anchor, block_size)).collect());
        SampleBlocks { slots: slots.collect(), anchors, candidates: candidates.len() }
    }
}

/// The trained blocks of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleBlocks {
    /// Anchors, increasing.
    pub anchors: Vec<usize>,
    /// Supervised slots per anchor, increasing, at least one each.
    pub slots: Vec<Vec<usize>>,
    /// Number of anchors that could have been drawn.
    pub candidates: usize,
}

impl SampleBlocks {
    fn eagle3_reference(loss_mask: &[bool], block_size: usize) -> Self {
        let counted = &loss_mask[..loss_mask.len().saturating_sub(1)];
        let supervised = |anchor: usize| -> Vec<usize> {
            (0..block_size).filter(|slot| counted.get(anchor - 1 + slot) == Some(&true)).collect()
        };
        let blocks = (1..loss_mask.len()).map(|anchor| (anchor, supervised(anchor)));
        let (anchors, slots): (Vec<usize>, Vec<Vec<usize>>) = blocks.filter(|(_, slots)| !slots.is_empty()).unzip();
        Self { candidates: anchors.len(), anchors, slots }
    }

    /// Every supervised slot, block after block.
    pub fn supervised(&self) -> impl Iterator<Item = BlockSlots> {
        let blocks = self.anchors.iter().zip(&self.slots).enumerate();
        blocks.flat_map(|(block, (&anchor, slots))| slots.iter().map(move |&slot| BlockSlots { block, anchor, slot }))
    }
}

/// One supervised slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSlots {
    /// Index of the block in its sample.
    pub block: usize,
    /// Position of its anchor.
    pub anchor: usize,
    /// 0-based slot in the block.
    pub slot: usize,
}

impl BlockSlots {
    /// Position of the token before the slot, which is also the teacher's row for it.
    pub fn previous(&self) -> usize {
        self.anchor + self.slot
    }

    /// Position of the token that the slot predicts.
    pub fn label(&self) -> usize {
        self.anchor + self.slot + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [bool; 8] = [false, true, true, true, false, true, true, false];

    #[test]
    fn candidates_have_two_supervised_tokens_in_a_row() {
        assert_eq!(anchor_candidates(&MASK), [1, 2, 5]);
        assert_eq!(anchor_candidates(&[]), [0; 0]);
        assert_eq!(anchor_candidates(&[true]), [0; 0]);
    }

    #[test]
    fn the_first_hole_ends_a_block() {
        assert_eq!([1, 2, 5].map(|anchor| supervised_slots(&MASK, anchor, 4)), [2, 1, 1]);
        assert_eq!(supervised_slots(&[true; 4], 0, 7), 3);
        assert_eq!(supervised_slots(&[true; 9], 0, 7), 7);
    }

    #[test]
    fn anchors_are_the_smallest_random_values_in_text_order() {
        let random = [0.0, 0.9, 0.1, 0.0, 0.0, 0.5, 0.0];
        assert_eq!(choose_anchors(&[1, 2, 5], &random, 2), [2, 5]);
        assert_eq!(choose_anchors(&[1, 2, 5], &random, 9), [1, 2, 5]);
        let blocks = BlockChoice::Drawn { count: 2, first: 0 }.blocks(&MASK, &random, 4);
        let labels: Vec<usize> = blocks.supervised().map(|slot| slot.label()).collect();
        assert_eq!(labels, [3, 6]);
        let later = BlockChoice::Drawn { count: 9, first: 2 }.blocks(&MASK, &random, 4);
        assert_eq!((later.anchors, later.candidates), (vec![2, 5], 2));
    }

    /// DeepSpec's supervision leaves out the first two tokens of an answer and includes the two after it.
    #[test]
    fn the_reference_supervises_two_tokens_late() {
        let blocks = BlockChoice::Eagle3Reference.blocks(&MASK, &[], 3);
        let mut labels: Vec<usize> =
            blocks.supervised().filter(|slot| slot.slot == 0).map(|slot| slot.label()).collect();
        assert_eq!(labels, [3, 4, 5, 7, 8]);
        labels = blocks.supervised().map(|slot| slot.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels, [3, 4, 5, 7, 8]);
        assert_eq!(blocks.slots[blocks.anchors.iter().position(|&anchor| anchor == 3).unwrap()], [0, 1]);
        // A hole does not end the block, and the last token counts nowhere.
        assert_eq!(
            BlockChoice::Eagle3Reference.blocks(&[true, false, true, true], &[], 4).slots,
            [vec![0, 2], vec![1], vec![0]]
        );
    }
}
