//! Accounting of the KV cache: the share of every sequence, and caches of finished sequences kept for reuse.
//!
//! Memory is counted in tokens of cache capacity, in whole pages, so the count matches the allocation. Features that
//! wait for a draft's context count as the number of tokens whose keys and values take the same memory. They never
//! cause a preemption, but caches of finished sequences are dropped to make room for them.

#[cfg(test)]
mod tests;

use crate::model::{Draft, LayerConfig, Target};
use crate::speculate::{Rounds, SequenceState};

/// Tokens by which caches grow at least.
const PAGE: usize = 64;

/// Tokens of an answer that there is room for from the start where memory allows: growing copies the whole cache, which takes
/// as long as a step.
const ANSWER: usize = 256;

/// A shared beginning shorter than this is not worth keeping track of.
const SHORTEST_PREFIX: usize = 16;

/// The state of one sequence and the memory it accounts for.
#[derive(Debug)]
pub struct SequenceCache {
    /// The computed state of the sequence.
    pub state: SequenceState,
    /// Tokens that there is room for, as counted.
    room: usize,
    /// The size of the waiting features in tokens, as of the last step.
    waiting_tokens: usize,
}

/// A finished sequence whose cache can be reused.
#[derive(Debug)]
struct Kept {
    ids: Vec<u32>,
    cache: SequenceCache,
}

/// All cache memory of an engine.
#[derive(Debug)]
pub struct CacheMemory {
    /// Tokens that may be held.
    capacity: usize,
    /// Tokens that caches in use have room for.
    in_use: usize,
    /// The size of all waiting features in tokens.
    waiting: usize,
    /// The memory of one token's features in that of its keys and values.
    feature_share: f64,
    /// Oldest first.
    kept: Vec<Kept>,
    /// Rows that a drafted block takes beyond its sequence, for as long as it is drafted.
    block: usize,
    /// Number of following tokens that a token's row of the draft's context depends on.
    lookahead: usize,
}

impl CacheMemory {
    /// Memory for `capacity` tokens of sequences of these models.
    pub fn new(capacity: usize, target: &Target, draft: Option<&Draft>) -> Self {
        let numbers = |layers: usize, layer: &LayerConfig| layers * 2 * layer.key_value_width();
        let own = target.config().layers.iter().map(|layer| numbers(1, layer)).sum::<usize>();
        let (drafts, features, block) = draft.map_or((0, 0, 0), |draft| {
            let config = draft.config();
            let features = config.target_layer_ids.len() * config.layer.hidden_size;
            (numbers(config.num_hidden_layers, &config.layer), features, config.block_size)
        });
        let feature_share = features as f64 / (own + drafts) as f64;
        let lookahead = draft.map_or(0, |draft| draft.config().drafter().lookahead());
        Self { capacity, in_use: 0, waiting: 0, feature_share, kept: Vec::new(), block, lookahead }
    }

    /// Tokens that may be held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens held, or made room for.
    pub fn held(&self) -> usize {
        let kept = |kept: &Kept| kept.cache.room + kept.cache.waiting_tokens;
        self.in_use + self.waiting + self.kept.iter().map(kept).sum::<usize>()
    }

    /// The most tokens that one sequence can have.
    pub fn longest_sequence(capacity: usize, block: usize) -> usize {
        (capacity / PAGE * PAGE).saturating_sub(block + 1)
    }

    /// Returns a cache for a sequence of these tokens, with capacity for all of them and with the longest prefix that
    /// an earlier sequence left. Returns `None` if there is not enough memory even after dropping the caches of
    /// finished sequences. The sequence ends at `limit` tokens.
    pub fn admit(&mut self, ids: &[u32], limit: usize, rounds: Rounds<'_>) -> Option<SequenceCache> {
        let needed = self.pages(ids.len());
        if self.in_use + needed > self.capacity {
            return None;
        }
        let generous = self.generous(ids.len(), limit);
        let room = if self.leaves_half(self.in_use + generous) { generous } else { needed };
        // The last token's logits are needed, so it always goes through the target. Everything that a draft's rows
        // depend on must be equal too, and the newest row must be recomputed.
        let longest = self
            .kept
            .iter()
            .map(|kept| kept.common_prefix(ids).min(ids.len() - 1).saturating_sub(self.lookahead))
            .enumerate()
            .max_by_key(|&(index, length)| (length, index))
            .filter(|&(_, length)| length >= SHORTEST_PREFIX);
        let Some((index, length)) = longest else {
            if let Some(cache) = self.reuse(room) {
                return Some(cache);
            }
            self.evict_for(room);
            self.in_use += room;
            return Some(SequenceCache { state: rounds.new_state(room), room, waiting_tokens: 0 });
        };
        let goes_on = length + 1 >= self.kept[index].ids.len();
        if !goes_on && self.held() + room <= self.capacity {
            // Another sequence can continue from all of it.
            let kept = self.kept.remove(index);
            let state = kept.cache.state.copy_prefix(length, room);
            let mut copy = SequenceCache { state, room, waiting_tokens: 0 };
            self.kept.push(kept);
            self.in_use += room;
            self.count_waiting(&mut copy);
            return Some(copy);
        }
        let Kept { mut cache, .. } = self.kept.remove(index);
        cache.state.truncate(length);
        // Its buffers may be larger than needed. They are kept as long as no running sequence needs the memory.
        let stays = cache.room >= needed && self.in_use + cache.room <= self.capacity;
        let room = if stays { cache.room } else { room };
        self.evict_for(room);
        if cache.room != room {
            cache.resize(room);
        }
        self.in_use += cache.room;
        cache.waiting_tokens = 0;
        self.count_waiting(&mut cache);
        Some(cache)
    }

    /// Returns the buffers of the oldest finished sequence of about the same size, if one must be dropped anyway: its
    /// pages need not be cleared again.
    fn reuse(&mut self, room: usize) -> Option<SequenceCache> {
        if self.held() + room <= self.capacity {
            return None;
        }
        let most = (2 * room).min(self.capacity - self.in_use);
        let index = self.kept.iter().position(|kept| (room..=most).contains(&kept.cache.room))?;
        let mut cache = self.kept.remove(index).cache;
        cache.state.truncate(0);
        cache.waiting_tokens = 0;
        self.evict_for(cache.room);
        self.in_use += cache.room;
        Some(cache)
    }

    /// Reserves capacity for `length` tokens; must be called before every step. Returns `false` if there is no memory.
    /// The sequence ends at `limit` tokens.
    pub fn grow(&mut self, cache: &mut SequenceCache, length: usize, limit: usize) -> bool {
        self.count_waiting(cache);
        let needed = self.pages(length);
        if needed <= cache.room {
            return true;
        }
        let others = self.in_use - cache.room;
        let generous = self.generous(length, limit);
        let room = if self.leaves_half(others + generous) { generous } else { needed };
        if others + room > self.capacity {
            return false;
        }
        self.in_use = others;
        self.evict_for(room);
        cache.resize(room);
        self.in_use += room;
        true
    }

    /// Takes a cache back for good.
    pub fn release(&mut self, cache: SequenceCache) {
        self.in_use -= cache.room;
        self.waiting -= cache.waiting_tokens;
    }

    /// Takes back a cache that holds the keys of the first tokens of `ids`, for reuse by a later sequence with the same
    /// prefix.
    pub fn keep(&mut self, mut ids: Vec<u32>, mut cache: SequenceCache) {
        self.in_use -= cache.room;
        self.waiting -= cache.waiting_tokens;
        let mut length = cache.state.target.len().min(ids.len());
        if let Some(context) = &cache.state.context {
            length = length.min(context.len() + cache.state.waiting.rows());
        }
        if length < SHORTEST_PREFIX {
            return;
        }
        ids.truncate(length);
        cache.state.truncate(length);
        cache.waiting_tokens = self.waiting_tokens(&cache);
        self.kept.push(Kept { ids, cache });
        self.evict_for(0);
    }

    /// Counts the features that wait in a cache in use.
    fn count_waiting(&mut self, cache: &mut SequenceCache) {
        let tokens = self.waiting_tokens(cache);
        self.waiting = self.waiting - cache.waiting_tokens + tokens;
        cache.waiting_tokens = tokens;
        self.evict_for(0);
    }

    fn waiting_tokens(&self, cache: &SequenceCache) -> usize {
        (cache.state.waiting.rows() as f64 * self.feature_share).ceil() as usize
    }

    /// Drops what finished sequences left, oldest first, until `room` more tokens fit.
    fn evict_for(&mut self, room: usize) {
        while self.held() + room > self.capacity && !self.kept.is_empty() {
            self.kept.remove(0);
        }
    }

    /// Room for twice the tokens or a usual answer, so that a long one is not copied once per page.
    fn generous(&self, length: usize, limit: usize) -> usize {
        self.pages((2 * length).max(length + ANSWER).min(limit).max(length))
    }

    /// Returns whether other sequences could still start with this much memory in use. Caches of finished sequences are
    /// dropped for room that is not needed yet; sequences that run or wait are not.
    fn leaves_half(&self, in_use: usize) -> bool {
        in_use <= self.capacity / 2
    }

    fn pages(&self, length: usize) -> usize {
        (length + self.block + 1).next_multiple_of(PAGE)
    }
}

impl SequenceCache {
    fn resize(&mut self, room: usize) {
        self.state.resize(room);
        self.room = room;
    }
}

impl Kept {
    fn common_prefix(&self, ids: &[u32]) -> usize {
        self.ids.iter().zip(ids).take_while(|(own, other)| own == other).count()
    }
}
