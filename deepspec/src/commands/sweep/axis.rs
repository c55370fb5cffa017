//! The settings that a sweep varies, and the points of their grid.

use std::str::FromStr;

/// A setting and the values that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The recipe's key, `section.key`.
    pub key: String,
    /// Its values as the recipe would have them, at least one, in the order of the command line.
    pub values: Vec<String>,
}

impl Axis {
    /// The values as numbers, if all are.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        self.values.iter().map(|value| value.parse().ok().filter(|number: &f64| number.is_finite())).collect()
    }
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected KEY=VALUE,VALUE,... as in model.num_draft_layers=1,2,4";
        let (key, values) = text.split_once('=').ok_or(expected)?;
        let values = split_outside_brackets(values);
        if key.trim().is_empty() || values.iter().any(String::is_empty) {
            return Err(expected.to_owned());
        }
        if matches!(key.trim(), "output.dir" | "name") {
            return Err(format!("`{}` sets the run's folder, which the sweep chooses itself", key.trim()));
        }
        Ok(Self { key: key.trim().to_owned(), values })
    }
}

/// Pieces between commas that stand in no list, table or string.
fn split_outside_brackets(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let (mut depth, mut quote) = (0_usize, None);
    for letter in text.chars() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(letter),
            ('[' | '{', None) => depth += 1,
            (']' | '}', None) => depth = depth.saturating_sub(1),
            (',', None) if depth == 0 => {
                pieces.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push(letter);
        }
    }
    pieces.into_iter().map(|piece| piece.trim().to_owned()).collect()
}

/// Every combination of values, the last axis changing fastest; one point without settings for no axes.
pub fn grid(axes: &[Axis]) -> Vec<Vec<(String, String)>> {
    axes.iter().fold(vec![Vec::new()], |points, axis| {
        points
            .iter()
            .flat_map(|point| {
                axis.values.iter().map(|value| {
                    let mut longer = point.clone();
                    longer.push((axis.key.clone(), value.clone()));
                    longer
                })
            })
            .collect()
    })
}

/// Returns a file name that contains the settings.
pub fn file_name(start: &str, settings: &[(String, String)]) -> String {
    let safe = |text: &str| -> String {
        let keep = |letter: char| if letter.is_ascii_alphanumeric() || ".-_".contains(letter) { letter } else { '_' };
        text.chars().map(keep).collect()
    };
    settings.iter().fold(start.to_owned(), |name, (key, value)| format!("{name}+{}={}", short(key), safe(value)))
}

/// The last part of a key.
pub fn short(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_split_where_no_list_or_string_is_open() {
        let axis: Axis = r#"model.target_layer_ids=[0, 1], [0, 2],["a,b"]"#.parse().unwrap();
        assert_eq!(axis.values, ["[0, 1]", "[0, 2]", r#"["a,b"]"#]);
        assert_eq!(axis.numbers(), None);
        let axis: Axis = "train.lr=1e-3,3e-3".parse().unwrap();
        assert_eq!(axis.numbers(), Some(vec![1e-3, 3e-3]));
        for wrong in ["train.lr", "=1", "train.lr=", "train.lr=1,,2", "output.dir=a,b", "name=a,b"] {
            assert!(wrong.parse::<Axis>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_grid_has_every_combination_once() {
        let axes = ["a.x=1,2".parse().unwrap(), "b.y=u,v,w".parse().unwrap()];
        let points: Vec<String> = grid(&axes).iter().map(|point| file_name("r", point)).collect();
        assert_eq!(points, ["r+x=1+y=u", "r+x=1+y=v", "r+x=1+y=w", "r+x=2+y=u", "r+x=2+y=v", "r+x=2+y=w"]);
        assert_eq!(grid(&[]), [vec![]]);
    }
}
