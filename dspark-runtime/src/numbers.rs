//! Functions of plain numbers that several modules share.

/// `1 / (1 + exp(-x))`
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// FNV-1a, 64 bits: a hash that is the same on every machine and in every version.
pub(crate) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns the middle value, or the mean of the two middle values; `NaN` for an empty list.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of earlier versions hold these hashes.
    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv(*b"foobar"), 0x8594_4171_f739_67e8);
    }
}
