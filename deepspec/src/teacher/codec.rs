//! Number formats of cached hidden states.
//!
//! A row is the output of one layer for one token, `w` numbers. Rows are independent, except with
//! [`Codec::Bf16Lossless`], which compresses all rows of a block together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The largest number of `e4m3`, to which the largest number of a row is scaled.
const LARGEST_FP8: f32 = 448.0;
const LARGEST_INT8: f32 = 127.0;
const LARGEST_INT4: f32 = 7.0;
/// Largest group of numbers that is rotated and scaled together with `int4`; a power of two.
const LARGEST_GROUP: usize = 128;
/// Smallest group, below which scales would take more than the numbers.
const SMALLEST_GROUP: usize = 16;
/// Compression level of Zstandard. Higher ones gain less than 1 %.
const LEVEL: i32 = 3;

/// How hidden states are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// 16-bit floats, rounded to nearest.
    Bf16,
    /// The same numbers. High and low bytes are separated and compressed with Zstandard.
    Bf16Lossless,
    /// 8-bit floats (`e4m3`), each row divided by a scale.
    Fp8,
    /// 8-bit integers, each row divided by a scale.
    Int8,
    /// 4-bit integers, each group of numbers rotated and divided by a scale. The rotation (random signs, then a Hadamard
    /// matrix) spreads single large numbers over their group.
    Int4,
}

impl Codec {
    /// All formats, in the order of their sizes.
    pub const ALL: [Self; 5] = [Self::Bf16, Self::Bf16Lossless, Self::Fp8, Self::Int8, Self::Int4];

    /// Returns the name in recipes and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Bf16Lossless => "bf16-lossless",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of `rows` rows of `width` numbers; `None` if that depends on the numbers.
    pub fn bytes(self, rows: usize, width: usize) -> Option<usize> {
        Some(match self {
            Self::Bf16 => 2 * rows * width,
            Self::Bf16Lossless => return None,
            Self::Fp8 | Self::Int8 => rows * (4 + width),
            Self::Int4 => rows * (width / 2 + 4 * (width / group(width))),
        })
    }

    /// Checks that rows of `width` numbers can be stored.
    ///
    /// # Errors
    /// Returns what was expected.
    pub fn check_width(self, width: usize) -> Result<(), String> {
        match self {
            Self::Int4 if group(width) < SMALLEST_GROUP => {
                Err(format!("int4 needs a hidden size that is a multiple of {SMALLEST_GROUP}, found {width}"))
            }
            _ => Ok(()),
        }
    }

    /// Encodes whole rows of finite numbers.
    ///
    /// # Errors
    /// Returns the problem if the compression fails.
    pub fn encode(self, values: &[f32], width: usize) -> Result<Vec<u8>, String> {
        let rows = || values.chunks_exact(width);
        Ok(match self {
            Self::Bf16 => values.iter().flat_map(|&value| bf16(value).to_le_bytes()).collect(),
            Self::Bf16Lossless => {
                let halves: Vec<[u8; 2]> = values.iter().map(|&value| bf16(value).to_le_bytes()).collect();
                let plane = |byte: usize| -> Result<Vec<u8>, String> {
                    let plane: Vec<u8> = halves.iter().map(|half| half[byte]).collect();
                    zstd::bulk::compress(&plane, LEVEL).map_err(|error| error.to_string())
                };
                let (high, low) = (plane(1)?, plane(0)?);
                let mut bytes = (high.len() as u64).to_le_bytes().to_vec();
                bytes.extend(high);
                bytes.extend(low);
                bytes
            }
            Self::Fp8 => rows().flat_map(|row| scaled(row, LARGEST_FP8, fp8)).collect(),
            Self::Int8 => {
                rows().flat_map(|row| scaled(row, LARGEST_INT8, |x| (x.round() as i8).cast_unsigned())).collect()
            }
            Self::Int4 => {
                let signs = signs(group(width));
                values.chunks_exact(signs.len()).flat_map(|group| int4(group, &signs)).collect()
            }
        })
    }

    /// Decodes `rows` rows of `width` numbers.
    ///
    /// # Errors
    /// Returns what does not fit.
    pub fn decode(self, bytes: &[u8], rows: usize, width: usize) -> Result<Vec<f32>, String> {
        if let Some(expected) = self.bytes(rows, width)
            && bytes.len() != expected
        {
            return Err(format!("expected {expected} bytes for {rows} rows, found {}", bytes.len()));
        }
        Ok(match self {
            Self::Bf16 => bytes.as_chunks::<2>().0.iter().map(|&[low, high]| widened(low, high)).collect(),
            Self::Bf16Lossless => {
                let (high, rest) = bytes.split_first_chunk::<8>().ok_or("its first bytes are missing")?;
                let high = usize::try_from(u64::from_le_bytes(*high)).ok().filter(|&high| high <= rest.len());
                let (high, low) = rest.split_at(high.ok_or("a part is longer than the block")?);
                let plane = |bytes: &[u8]| -> Result<Vec<u8>, String> {
                    let plane = zstd::bulk::decompress(bytes, rows * width).map_err(|error| error.to_string())?;
                    match plane.len() == rows * width {
                        true => Ok(plane),
                        false => Err(format!("expected {} numbers, found {}", rows * width, plane.len())),
                    }
                };
                plane(low)?.into_iter().zip(plane(high)?).map(|(low, high)| widened(low, high)).collect()
            }
            Self::Fp8 => {
                let table: [f32; 256] = std::array::from_fn(|code| from_fp8(code as u8));
                unscaled(bytes, width, |code| table[usize::from(code)])
            }
            Self::Int8 => unscaled(bytes, width, |code| f32::from(code.cast_signed())),
            Self::Int4 => {
                let signs = signs(group(width));
                bytes.chunks_exact(4 + signs.len() / 2).flat_map(|group| from_int4(group, &signs)).collect()
            }
        })
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Codec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|codec| codec.name() == text)
            .ok_or_else(|| format!("expected one of {}, found {text:?}", known()))
    }
}

/// The upper half of a finite number, rounded to nearest, ties to even.
pub(super) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn widened(low: u8, high: u8) -> f32 {
    f32::from_le_bytes([0, 0, low, high])
}

/// The largest magnitude.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// A scale, and the codes of all numbers divided by it.
fn scaled(row: &[f32], largest_code: f32, code: impl Fn(f32) -> u8) -> Vec<u8> {
    let scale = largest(row) / largest_code;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // The inverse of a scale near the smallest number overflows.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let codes = row.iter().map(|value| code((value * inverse).clamp(-largest_code, largest_code)));
    scale.to_le_bytes().into_iter().chain(codes).collect()
}

fn unscaled(bytes: &[u8], width: usize, number: impl Fn(u8) -> f32) -> Vec<f32> {
    let row = |row: &[u8]| {
        let (scale, codes) = row.split_at(4);
        let scale = f32::from_le_bytes(std::array::from_fn(|byte| scale[byte]));
        codes.iter().map(|&code| number(code) * scale).collect::<Vec<f32>>()
    };
    bytes.chunks_exact(4 + width).flat_map(row).collect()
}

/// The code of a number of at most 448, rounded to nearest, ties to even.
fn fp8(value: f32) -> u8 {
    let (sign, size) = (if value.is_sign_negative() { 0x80 } else { 0 }, value.abs());
    // Below 2^-6 the numbers are multiples of 2^-9.
    let code = if size < 0.015_625 {
        (size * 512.0).round_ties_even() as u32
    } else {
        let bits = size.to_bits();
        let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
        (rounded >> 20) - (120 << 3)
    };
    sign | code.min(0x7e) as u8
}

fn from_fp8(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7) };
    if code & 0x80 == 0 { size } else { -size }
}

/// Numbers that are rotated and scaled together: the largest power of two that divides the width.
fn group(width: usize) -> usize {
    (1 << width.trailing_zeros().min(usize::BITS - 1)).min(LARGEST_GROUP)
}

/// The signs of a group's rotation: the same in every cache. Divided by the root of the group's size.
fn signs(size: usize) -> Vec<f32> {
    let length = 1.0 / (size as f32).sqrt();
    let sign = |index: usize| {
        // The finaliser of SplitMix64.
        let mut bits = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (bits ^ (bits >> 31)) & 1 == 0 { length } else { -length }
    };
    (0..size).map(sign).collect()
}

/// Multiplies by the Hadamard matrix of order `values.len()`, a power of two.
fn hadamard(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

fn int4(group: &[f32], signs: &[f32]) -> Vec<u8> {
    let mut rotated: Vec<f32> = group.iter().zip(signs).map(|(value, sign)| value * sign).collect();
    hadamard(&mut rotated);
    let bytes = scaled(&rotated, LARGEST_INT4, |x| (x.round() as i8).cast_unsigned() & 15);
    let (scale, codes) = bytes.split_at(4);
    let pairs = codes.as_chunks::<2>().0.iter().map(|&[low, high]| low | high << 4);
    scale.iter().copied().chain(pairs).collect()
}

fn from_int4(bytes: &[u8], signs: &[f32]) -> Vec<f32> {
    let (scale, pairs) = bytes.split_at(4);
    let scale = f32::from_le_bytes(std::array::from_fn(|byte| scale[byte]));
    let number = |code: u8| f32::from((code << 4).cast_signed() >> 4) * scale;
    let mut values: Vec<f32> = pairs.iter().flat_map(|&pair| [number(pair & 15), number(pair >> 4)]).collect();
    // The matrix is its own inverse, up to the factor in the signs.
    hadamard(&mut values);
    values.iter().zip(signs).map(|(value, sign)| value * sign).collect()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn round_trip(codec: Codec, values: &[f32], width: usize) -> Vec<f32> {
        let bytes = codec.encode(values, width).unwrap();
        if let Some(expected) = codec.bytes(values.len() / width, width) {
            assert_eq!(bytes.len(), expected, "{codec}");
        }
        codec.decode(&bytes, values.len() / width, width).unwrap()
    }

    /// Rows of numbers around zero with a deviation near 1, every one with a number that is 50 times larger.
    fn rows(count: usize, width: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut uniform = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
        let mut values: Vec<f32> = (0..count * width).map(|_| (0..12).map(|_| uniform()).sum()).collect();
        values.chunks_exact_mut(width).enumerate().for_each(|(row, values)| values[row % width] = 50.0);
        values
    }

    #[test]
    fn errors_are_those_of_the_formats() {
        let (width, values) = (192, rows(8, 192));
        let error = |codec: Codec| -> f32 {
            let decoded = round_trip(codec, &values, width);
            let squares = values.iter().zip(&decoded).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            (squares / values.len() as f32).sqrt()
        };
        assert_eq!(error(Codec::Bf16), error(Codec::Bf16Lossless));
        // Half a unit in the last place of 8, 4 significant bits; half a step of 50 / 127; of a rotated group.
        for (codec, low, high) in
            [(Codec::Bf16, 1e-4, 2e-2), (Codec::Fp8, 5e-3, 0.2), (Codec::Int8, 0.08, 0.13), (Codec::Int4, 0.2, 0.7)]
        {
            let error = error(codec);
            assert!(error > low && error < high, "{codec}: {error}");
        }
        // Without the rotation a step of int4 is 50 / 7.
        assert!(error(Codec::Int4) < 50.0 / 7.0 / 12.0_f32.sqrt() / 3.0);
    }

    #[test]
    fn bf16_rounds_to_nearest_and_compression_changes_nothing() {
        for (value, expected) in [(1.0, 0x3f80), (1.003_906_2, 0x3f80), (1.003_906_4, 0x3f81), (-2.5, 0xc020)] {
            assert_eq!(bf16(value), expected, "{value}");
        }
        let values = rows(3, 64);
        assert_eq!(round_trip(Codec::Bf16, &values, 64), round_trip(Codec::Bf16Lossless, &values, 64));
    }

    #[test]
    fn every_fp8_number_has_its_code() {
        for code in (0..=0x7e).chain(0x80..=0xfe_u8) {
            assert_eq!(fp8(from_fp8(code)), code, "{}", from_fp8(code));
        }
        // Ties go to the even code: 432 lies between 416 and 448, and 2^-10 between 0 and 2^-9.
        assert_eq!((fp8(432.0), fp8(424.0), fp8(1.0 / 1024.0)), (0x7e, 0x7d, 0));
    }

    #[test]
    fn special_rows_keep_their_meaning() {
        let zeros = [0.0; 64];
        let tiny = [f32::MIN_POSITIVE / 4.0; 64];
        let huge = [1e37; 64];
        for codec in Codec::ALL {
            assert_eq!(round_trip(codec, &zeros, 64), zeros, "{codec}");
            assert!(round_trip(codec, &tiny, 64).iter().all(|value| value.abs() <= 1e-38), "{codec}");
            let decoded = round_trip(codec, &huge, 64);
            assert!(decoded.iter().all(|value| (value / 1e37 - 1.0).abs() < 0.3), "{codec}: {decoded:?}");
            assert_eq!(round_trip(codec, &[], 64), [0.0; 0], "{codec}");
        }
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let values = rows(2, 64);
        for codec in Codec::ALL {
            let bytes = codec.encode(&values, 64).unwrap();
            assert!(codec.decode(&bytes[..bytes.len() - 1], 2, 64).is_err(), "{codec}");
            assert!(codec.decode(&bytes, 3, 64).is_err(), "{codec}");
            assert!(codec.decode(&[], 2, 64).is_err(), "{codec}");
        }
        assert!(Codec::Int4.check_width(72).is_err() && Codec::Int4.check_width(576).is_ok());
        assert!(Codec::Int8.check_width(72).is_ok());
    }
}
