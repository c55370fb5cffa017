//! Keys and values of a sequence, kept while it grows.
//!
//! Legend: `n` rows (tokens), `h` query heads, `c` key and value heads, `w` head width, `l` layers of one shape.

use burn::tensor::{Device, Tensor, s};

use super::attention::{KeysValues, SCORES, attend_in_parts, seen_keys};
use super::config::LayerConfig;
use super::sight::Sight;
#[cfg(feature = "cube")]
use crate::cube;
use crate::kernels::{self, Keys};

/// Maximum number of rows that a device appends to a cache one by one, as in a decoding step or a block to verify. More
/// rows are a prompt's, and use matrix products.
#[cfg(feature = "cube")]
const FEW_ROWS: usize = 64;

/// Keys and values of one sequence, for every layer of a model.
///
/// All layers of one shape (in most models: all) share one buffer, with separate pages. Many small buffers of all
/// lengths, each living as long as its sequence, would fragment the allocator; a large one is returned as a whole. Rows
/// are written in place, so appending one token costs the same at any length. The buffers double when full.
#[derive(Debug)]
pub struct KvCache {
    /// Per shape, keys and values of its layers in turn, `[2 l, c, capacity, w]`.
    buffers: Vec<Tensor<4>>,
    layers: Vec<Layer>,
    length: usize,
    capacity: usize,
}

/// The location of a layer's keys and values.
#[derive(Clone, Copy, Debug)]
struct Layer {
    buffer: usize,
    /// Index of the keys; the values follow them.
    index: usize,
    /// Keys that a row sees; `None`: all before it. All are kept, so that a sequence can be cut anywhere.
    window: Option<usize>,
}

/// What new rows see.
#[derive(Clone, Copy, Debug)]
pub(super) enum Visible {
    /// Earlier rows and themselves, within the layer's window.
    Causal,
    /// A block of a draft: the newest tokens before it, and the block's slots as in [`Sight`].
    Block(Sight),
}

impl KvCache {
    /// An empty cache for `layers` layers with room for `capacity` tokens.
    pub fn new(config: &LayerConfig, layers: usize, capacity: usize, device: &Device) -> Self {
        Self::for_layers(std::iter::repeat_n(config, layers), capacity, device)
    }

    /// Returns a cache for layers that differ.
    pub fn for_layers<'a>(
        layers: impl IntoIterator<Item = &'a LayerConfig>,
        capacity: usize,
        device: &Device,
    ) -> Self {
        let capacity = capacity.max(1);
        // Heads, width and matrices of each buffer.
        let mut shapes: Vec<([usize; 2], usize)> = Vec::new();
        let place = |config: &LayerConfig| {
            let shape = [config.num_key_value_heads, config.head_dim];
            let buffer = shapes.iter().position(|(known, _)| *known == shape).unwrap_or_else(|| {
                shapes.push((shape, 0));
                shapes.len() - 1
            });
            let index = shapes[buffer].1;
            shapes[buffer].1 += 2;
            Layer { buffer, index, window: config.window() }
        };
        let layers = layers.into_iter().map(place).collect();
        let buffers =
            shapes.iter().map(|&([c, w], count)| kernels::mapped_zeros([count, c, capacity, w], device)).collect();
        Self { buffers, layers, length: 0, capacity }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Returns whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tokens that it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the capacity to exactly `capacity` tokens, which must not be less than the cached tokens.
    pub fn resize(&mut self, capacity: usize) {
        let capacity = capacity.max(self.length).max(1);
        if capacity != self.capacity {
            self.buffers = self.copied(self.length, capacity);
            self.capacity = capacity;
        }
    }

    /// Returns a separate cache with the first `length` tokens of this one and room for `capacity`.
    #[must_use]
    pub fn copy_prefix(&self, length: usize, capacity: usize) -> Self {
        let length = length.min(self.length);
        let capacity = capacity.max(length).max(1);
        Self { buffers: self.copied(length, capacity), layers: self.layers.clone(), length, capacity }
    }

    fn copied(&self, length: usize, capacity: usize) -> Vec<Tensor<4>> {
        let copy = |buffer: &Tensor<4>| {
            let [m, c, _, w] = buffer.dims();
            let grown = kernels::mapped_zeros([m, c, capacity, w], &buffer.device());
            match length {
                0 => grown,
                length => grown.slice_assign(s![.., .., 0..length, ..], buffer.clone().narrow(2, 0, length)),
            }
        };
        self.buffers.iter().map(copy).collect()
    }

    /// Adds `length` tokens with zero keys and values, for timing passes after a long sequence.
    pub fn fill_with_zeros(&mut self, length: usize) {
        self.reserve(length.saturating_sub(self.length));
        self.length = length;
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes room for `count` more tokens.
    pub(super) fn reserve(&mut self, count: usize) {
        let needed = self.length + count;
        if needed <= self.capacity {
            return;
        }
        self.resize(needed.next_power_of_two());
    }

    /// Counts rows written by [`attend`](Self::attend) as part of the sequence.
    pub(super) fn advance(&mut self, count: usize) {
        self.length += count;
        debug_assert!(self.length <= self.capacity);
    }

    /// Appends the new rows of one layer to the sequence and attends to what is `visible`: `[n, h, w] -> [n, h * w]`.
    ///
    /// The rows become part of the sequence with [`advance`](Self::advance); without it they are overwritten by the next
    /// call, which is how a draft block is dropped after its round. Room must have been made by
    /// [`reserve`](Self::reserve).
    pub(super) fn attend(
        &mut self,
        layer: usize,
        queries_nhw: Tensor<3>,
        new: KeysValues,
        visible: Visible,
    ) -> Tensor<2> {
        let past = self.length;
        let [n, _, _] = new.keys_ncw.dims();
        self.write(layer, new);
        let Layer { buffer, index, window } = self.layers[layer];
        let buffer = &self.buffers[buffer];
        let total = past + n;
        let seen = |row: usize| match visible {
            Visible::Causal => seen_keys(past + row, window),
            Visible::Block(sight) => {
                let end = if sight.causal { past + row + 1 } else { total };
                sight.of_context(&(0..past)).start..end
            }
        };
        let keys = Keys::Cache { buffer_mctw: buffer, keys: index, values: index + 1 };
        if let Some(attended) = kernels::attend(&queries_nhw, &keys, seen) {
            return attended;
        }
        let [_, c, _, w] = buffer.dims();
        // A block's window begins at the same token for all its rows, so only the tokens from there on are taken.
        let (first, causal, window) = match visible {
            Visible::Causal => (0, true, window),
            Visible::Block(sight) => (sight.of_context(&(0..past)).start, sight.causal, None),
        };
        #[cfg(feature = "cube")]
        if n <= FEW_ROWS && first == 0 && cube::runs_on(&queries_nhw) {
            let (end, step) = if causal { (past + 1, 1) } else { (total, 0) };
            let seen = cube::SeenKeys { end, step, window };
            return cube::cache_attention(queries_nhw, buffer.clone(), [index, index + 1], seen);
        }
        let rows = |index: usize| {
            let rows = buffer.clone().slice(s![index..index + 1, .., first..total, ..]);
            rows.reshape([c, total - first, w])
        };
        attend_in_parts(queries_nhw, [index, index + 1].map(rows), causal, window, SCORES)
    }

    /// Appends rows to the sequence without attending to them.
    pub(super) fn write(&mut self, layer: usize, new: KeysValues) {
        let past = self.length;
        let [n, c, w] = new.keys_ncw.dims();
        let Layer { buffer, index, .. } = self.layers[layer];
        for (index, rows_ncw) in [(index, new.keys_ncw), (index + 1, new.values_ncw)] {
            let rows = rows_ncw.swap_dims(0, 1).reshape([1, c, n, w]);
            self.buffers[buffer]
                .inplace(|buffer| buffer.slice_assign(s![index..index + 1, .., past..past + n, ..], rows));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Normals;

    fn normals(seed: u64) -> impl FnMut([usize; 3]) -> Tensor<3> {
        let mut normals = Normals::new(seed);
        move |shape| normals.tensor(shape, 1.0, &Device::flex())
    }

    fn close(found: &Tensor<2>, expected: &Tensor<2>, what: &str) {
        let [found, expected] = [found, expected].map(|x| x.to_data().try_into_vec_as::<f32>().unwrap());
        let largest = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst <= 1e-5 * largest, "{what}: {worst} of {largest}");
    }

    #[test]
    fn rows_in_parts_attend_like_all_at_once() {
        let mut normal = normals(21);
        let (h, c, w, n, t) = (4, 2, 6, 23, 32);
        let (queries, keys, values) = (normal([n, h, w]), normal([c, t, w]), normal([c, t, w]));
        for (causal, window) in [(true, None), (true, Some(5)), (false, None)] {
            let attend = |scores: usize| {
                attend_in_parts(queries.clone(), [keys.clone(), values.clone()], causal, window, scores)
            };
            let whole = attend(n * h * t);
            // Test one row at a time, and parts of which the last is smaller.
            for rows in [0, 1, 5, 22] {
                close(&attend(rows * h * t), &whole, &format!("{rows} rows, causal {causal}, {window:?}"));
            }
        }
    }

    /// A sequence that grows, in a cache on this machine and in one that CubeCL's CPU runtime reads in place.
    #[cfg(feature = "cubecl-cpu")]
    #[test]
    fn the_kernel_attends_like_this_machine() {
        let (host, cube) = (Device::flex(), Device::cpu());
        let mut normal = normals(22);
        for ([h, c, w], window) in [([4, 2, 6], None), ([3, 1, 33], Some(4)), ([2, 2, 1], None)] {
            // Two layers, of which the second is checked; the cache grows on the way.
            let mut caches = [&host, &cube].map(|device| {
                let layers = [Layer { buffer: 0, index: 0, window: None }, Layer { buffer: 0, index: 2, window }];
                let buffers = vec![kernels::mapped_zeros([4, c, 2, w], device)];
                KvCache { buffers, layers: layers.to_vec(), length: 0, capacity: 2 }
            });
            for (n, causal, stays) in
                [(1, true, true), (7, true, true), (7, false, false), (5, true, true), (1, true, true)]
            {
                let rows = [normal([n, h, w]), normal([n, c, w]), normal([n, c, w])];
                let [expected, found] = caches.each_mut().map(|cache| {
                    let device = cache.buffers[0].device();
                    let on = |x: &Tensor<3>| Tensor::<3>::from_data(x.to_data(), &device);
                    let [queries, keys_ncw, values_ncw] = rows.each_ref().map(on);
                    cache.reserve(n);
                    let visible = if causal { Visible::Causal } else { Visible::Block(Sight::default()) };
                    let attended = cache.attend(1, queries, KeysValues { keys_ncw, values_ncw }, visible);
                    if stays {
                        cache.advance(n);
                    }
                    attended
                });
                close(&found, &expected, &format!("{h}/{c} heads of {w}, {n} rows behind {}", caches[0].length));
            }
        }
    }
}
