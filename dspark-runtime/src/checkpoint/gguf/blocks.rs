//! The number types of GGUF tensors. Rows are cut into blocks of a fixed number of elements, each with its own scale; the
//! layouts are ggml's.

use std::fmt;

use half::{bf16, f16};

/// The number format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits, a scale per 32: `(q - 8) d`.
    Q4_0,
    /// 4 bits, a scale and a minimum per 32: `q d + m`.
    Q4_1,
    /// 8 bits, a scale per 32: `q d`.
    Q8_0,
    /// 4 bits, 8 scales and minima of 6 bits per 256.
    Q4K,
    /// 6 bits, 16 scales of 8 bits per 256.
    Q6K,
}

use BlockType::{Bf16, F16, F32, Q4_0, Q4_1, Q4K, Q6K, Q8_0};

/// Elements of a block of the plain and of the K kind.
const SMALL: usize = 32;
const LARGE: usize = 256;

impl BlockType {
    const ALL: [Self; 8] = [F32, F16, Bf16, Q8_0, Q4_0, Q4_1, Q4K, Q6K];

    /// Every type's name, for errors.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The type with this number in the file.
    ///
    /// # Errors
    /// The name of a type that is not read here, or its number.
    pub(super) fn from_number(number: u32) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|block_type| block_type.number() == number);
        known.ok_or_else(|| match number {
            6 => "Q5_0".to_owned(),
            7 => "Q5_1".to_owned(),
            9 => "Q8_1".to_owned(),
            10 => "Q2_K".to_owned(),
            11 => "Q3_K".to_owned(),
            13 => "Q5_K".to_owned(),
            15 => "Q8_K".to_owned(),
            other => format!("of type number {other}"),
        })
    }

    /// The number that stands for it in a file.
    pub(super) fn number(self) -> u32 {
        match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q8_0 => 8,
            Q4K => 12,
            Q6K => 14,
            Bf16 => 30,
        }
    }

    fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            Bf16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q8_0 => "Q8_0",
            Q4K => "Q4_K",
            Q6K => "Q6_K",
        }
    }

    /// Elements and bytes of one block.
    pub(in super::super) fn block(self) -> (usize, usize) {
        match self {
            F32 => (1, 4),
            F16 | Bf16 => (1, 2),
            Q4_0 => (SMALL, 18),
            Q4_1 => (SMALL, 20),
            Q8_0 => (SMALL, 34),
            Q4K => (LARGE, 144),
            Q6K => (LARGE, 210),
        }
    }

    /// Bytes of a tensor; `None` when its rows are no whole blocks, or there would be more than memory has addresses.
    pub(super) fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (elements, bytes) = self.block();
        let (row, others) = shape.split_last()?;
        if !row.is_multiple_of(elements) {
            return None;
        }
        let rows = others.iter().try_fold(1_usize, |product, axis| product.checked_mul(*axis))?;
        rows.checked_mul(row / elements)?.checked_mul(bytes)
    }

    /// Whole blocks as numbers: `to` has as many elements as the blocks.
    pub(in super::super) fn read(self, blocks: &[u8], to: &mut [f32]) {
        let (elements, bytes) = self.block();
        for (block, to) in blocks.chunks_exact(bytes).zip(to.chunks_exact_mut(elements)) {
            match self {
                F32 => to[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
                F16 => to[0] = half_at(block, 0),
                Bf16 => to[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                Q4_0 => {
                    let scale = half_at(block, 0);
                    read_nibbles(&block[2..], to, |q| (f32::from(q) - 8.0) * scale);
                }
                Q4_1 => {
                    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                    read_nibbles(&block[4..], to, |q| f32::from(q) * scale + minimum);
                }
                Q8_0 => {
                    let scale = half_at(block, 0);
                    to.iter_mut().zip(&block[2..]).for_each(|(to, q)| *to = f32::from(q.cast_signed()) * scale);
                }
                Q4K => read_q4_k(block, to),
                Q6K => read_q6_k(block, to),
            }
        }
    }

    /// Numbers as whole blocks, appended to `to`. Of the block types only Q8_0 is written; the others are read only.
    ///
    /// # Panics
    /// For a type that is only read.
    pub(super) fn write(self, values: &[f32], to: &mut Vec<u8>) {
        match self {
            F32 => values.iter().for_each(|value| to.extend(value.to_le_bytes())),
            F16 => values.iter().for_each(|value| to.extend(f16::from_f32(*value).to_le_bytes())),
            Bf16 => values.iter().for_each(|value| to.extend(bf16::from_f32(*value).to_le_bytes())),
            Q8_0 => values.chunks_exact(SMALL).for_each(|block| write_q8_0(block, to)),
            Q4_0 | Q4_1 | Q4K | Q6K => unreachable!("{self} is only read"),
        }
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of the bytes are the first elements, the high halves the others.
fn read_nibbles(bytes: &[u8], to: &mut [f32], number: impl Fn(u8) -> f32) {
    let (low, high) = to.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = number(byte & 15);
        *high = number(byte >> 4);
    }
}

/// Scale and minimum of the scales (f16 each), 12 bytes with 8 scales and 8 minima of 6 bits, 128 bytes of nibbles.
fn read_q4_k(block: &[u8], to: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    // The last four pairs keep their low bits in the last bytes, their high ones above the first eight.
    let pair = |index: usize| match index {
        0..4 => (packed[index] & 63, packed[index + 4] & 63),
        _ => (
            (packed[index + 4] & 15) | (packed[index - 4] >> 6 << 4),
            (packed[index + 4] >> 4) | (packed[index] >> 6 << 4),
        ),
    };
    for (chunk, (to, nibbles)) in to.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)).enumerate() {
        let (low, high) = to.split_at_mut(32);
        for (half, to) in [low, high].into_iter().enumerate() {
            let (own_scale, own_minimum) = pair(2 * chunk + half);
            let (scale, minimum) = (scale * f32::from(own_scale), minimum * f32::from(own_minimum));
            for (to, byte) in to.iter_mut().zip(nibbles) {
                *to = scale * f32::from(byte >> (4 * half) & 15) - minimum;
            }
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes with the two high bits, 16 signed scales, and their scale (f16).
fn read_q6_k(block: &[u8], to: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (index, to) in to.iter_mut().enumerate() {
        // Two halves of 128 elements, each four quarters of 32.
        let (half, quarter, lane) = (index / 128, index / 32 % 4, index % 32);
        let nibble = low[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4) & 15;
        let top = high[half * 32 + lane] >> (2 * quarter) & 3;
        let quant = i16::from(nibble | top << 4) - 32;
        *to = scale * f32::from(scales[index / 16].cast_signed()) * f32::from(quant);
    }
}

/// The largest magnitude becomes 127, the others round to the nearest, halves away from zero.
fn write_q8_0(block: &[f32], to: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    to.extend(f16::from_f32(scale).to_le_bytes());
    to.extend(block.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
}
