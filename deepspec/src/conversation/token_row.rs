//! Rows that are tokenised already: `input_ids`, with `loss_mask` or `labels`.

use dspark_runtime::checkpoint::json_kind;
use dspark_runtime::text::TokenId;
use serde_json::{Map, Value};

use super::message::present;
use super::sample::Sample;

/// The field of the token ids.
pub(super) const TOKENS: &str = "input_ids";
/// The label of a token without loss.
const NO_LOSS: i64 = -100;

/// Reads a tokenised row. The first token carries no loss: nothing comes before it from which it could be predicted.
///
/// # Errors
/// Returns a reason that names the field.
pub(super) fn read_tokens(id: String, row: &Map<String, Value>, vocabulary_size: usize) -> Result<Sample, String> {
    let ids = numbers(row, TOKENS)?.ok_or_else(|| format!("`{TOKENS}` is missing"))?;
    let token = |(index, id): (usize, &i64)| {
        let within = TokenId::try_from(*id).ok().filter(|id| (*id as usize) < vocabulary_size);
        within.ok_or_else(|| {
            format!(
                "`{TOKENS}`, token {}: the id {id} is not in the target's vocabulary of {vocabulary_size}",
                index + 1
            )
        })
    };
    let token_ids = ids.iter().enumerate().map(token).collect::<Result<Vec<TokenId>, _>>()?;
    let (name, mut loss_mask) = match (numbers(row, "loss_mask")?, numbers(row, "labels")?) {
        (Some(_), Some(_)) => return Err("expected one of `loss_mask` and `labels`, found both".to_owned()),
        (None, None) => return Err(format!("`{TOKENS}` without `loss_mask` or `labels`: which tokens carry loss?")),
        (Some(mask), None) => ("loss_mask", mask.iter().map(|mask| in_mask(*mask)).collect::<Result<Vec<_>, _>>()?),
        (None, Some(labels)) => {
            let wrong = labels
                .iter()
                .zip(&ids)
                .position(|(label, id)| *label != NO_LOSS && label != id)
                .map(|index| index + 1);
            if let Some(token) = wrong {
                return Err(format!("`labels`, token {token}: expected {NO_LOSS} or the token's id in `{TOKENS}`"));
            }
            ("labels", labels.iter().map(|label| *label != NO_LOSS).collect())
        }
    };
    if loss_mask.len() != token_ids.len() {
        return Err(format!(
            "`{name}` has {} entries, but `{TOKENS}` has {}: expected as many",
            loss_mask.len(),
            token_ids.len()
        ));
    }
    if let Some(first) = loss_mask.first_mut() {
        *first = false;
    }
    Ok(Sample { id, token_ids, loss_mask })
}

fn in_mask(entry: i64) -> Result<bool, String> {
    match entry {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("`loss_mask`: expected 0 or 1, found {other}")),
    }
}

/// The whole numbers of a list; booleans are 0 and 1.
fn numbers(row: &Map<String, Value>, name: &str) -> Result<Option<Vec<i64>>, String> {
    let Some(value) = present(row, name) else { return Ok(None) };
    let list = value.as_array().ok_or_else(|| format!("`{name}` should be a list, found {}", json_kind(value)))?;
    let number = |(index, item): (usize, &Value)| {
        item.as_i64().or_else(|| item.as_bool().map(i64::from)).ok_or_else(|| {
            format!("`{name}`, token {}: expected a whole number, found {}", index + 1, json_kind(item))
        })
    };
    list.iter().enumerate().map(number).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(row: Value) -> Result<(Vec<TokenId>, Vec<bool>), String> {
        let sample = read_tokens("x".to_owned(), row.as_object().unwrap(), 10)?;
        Ok((sample.token_ids, sample.loss_mask))
    }

    #[test]
    fn a_mask_and_labels_say_the_same() {
        let expected = (vec![3, 4, 5], vec![false, false, true]);
        for row in [
            json!({"input_ids": [3, 4, 5], "loss_mask": [0, 0, 1]}),
            json!({"input_ids": [3, 4, 5], "loss_mask": [true, false, true], "labels": null}),
            json!({"input_ids": [3, 4, 5], "labels": [-100, -100, 5]}),
            json!({"input_ids": [3, 4, 5], "labels": [3, -100, 5]}),
        ] {
            assert_eq!(read(row.clone()).unwrap(), expected, "{row}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_together_are_refused() {
        for (row, expected) in [
            (
                json!({"input_ids": [3, 10], "loss_mask": [0, 1]}),
                "token 2: the id 10 is not in the target's vocabulary",
            ),
            (json!({"input_ids": [-1], "loss_mask": [0]}), "the id -1"),
            (json!({"input_ids": [3], "loss_mask": [0, 1]}), "`loss_mask` has 2 entries, but `input_ids` has 1"),
            (json!({"input_ids": [3, 4], "labels": [-100]}), "`labels` has 1 entries"),
            (json!({"input_ids": [3, 4], "labels": [-100, 5]}), "`labels`, token 2: expected -100 or"),
            (json!({"input_ids": [3], "loss_mask": [2]}), "expected 0 or 1, found 2"),
            (json!({"input_ids": [3]}), "without `loss_mask` or `labels`"),
            (json!({"input_ids": [3], "loss_mask": [1], "labels": [3]}), "found both"),
            (json!({"input_ids": "3"}), "`input_ids` should be a list"),
            (json!({"input_ids": [1.5]}), "token 1: expected a whole number"),
        ] {
            let reason = read(row.clone()).unwrap_err();
            assert!(reason.contains(expected), "{row}: {reason}");
        }
    }
}
