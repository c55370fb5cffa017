//! Ids of prompts, and which prompts are there more than once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use super::error::RegenerationError;
use crate::conversation::{GenerationPrompt, RowNumber, generation_prompts};
use crate::digest::digest;

/// A prompt with its id: the row's own, or the digest of the prompt.
#[derive(Debug)]
pub(super) struct Prompt {
    pub id: String,
    pub row: GenerationPrompt,
    /// Fingerprint of everything that an answer depends on.
    pub content: u128,
}

impl Prompt {
    pub fn of(row: GenerationPrompt) -> Self {
        let whole = digest(&[&row.canonical()]);
        let id = row.id.clone().unwrap_or_else(|| whole[..32].to_owned());
        Self { id, content: number(&whole), row }
    }
}

/// The first 128 bits of a digest of texts.
pub(super) fn fingerprint(parts: &[&str]) -> u128 {
    number(&digest(parts))
}

fn number(digest: &str) -> u128 {
    digest.bytes().take(32).fold(0, |number, digit| {
        let digit = (digit as char).to_digit(16).unwrap_or(0);
        (number << 4) | u128::from(digit)
    })
}

/// Returns the key of one answer: of an id and the number of the sample.
pub(super) fn key(id: &str, sample: usize) -> u128 {
    fingerprint(&[id, &sample.to_string()])
}

/// The first row with an id.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    number: RowNumber,
    content: u128,
}

/// All ids of the prompts. It takes about a hundred bytes per prompt, not the prompts' texts.
#[derive(Debug, Default)]
pub(super) struct Survey {
    places: HashMap<u128, Place>,
    /// Rows that repeat an earlier prompt with the same id.
    pub duplicates: usize,
    /// Rows that hold no prompt.
    pub malformed: usize,
    /// Digest of all ids and prompts, in order.
    pub digest: String,
}

impl Survey {
    /// Reads all files once.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, no row holds a prompt, or two different prompts have one id.
    pub fn of(files: &[PathBuf]) -> Result<Self, RegenerationError> {
        let mut survey = Self::default();
        let mut all = String::new();
        for row in generation_prompts(files) {
            let (file, row) = row?;
            let Ok(row) = row else {
                survey.malformed += 1;
                continue;
            };
            let prompt = Prompt::of(row);
            let place = Place { file, number: prompt.row.number, content: prompt.content };
            match survey.places.entry(fingerprint(&[&prompt.id])) {
                Entry::Vacant(free) => _ = free.insert(place),
                Entry::Occupied(first) if first.get().content == place.content => survey.duplicates += 1,
                Entry::Occupied(first) => {
                    let name = |place: &Place| format!("{}, {}", files[place.file].display(), place.number);
                    let (first, second) = (name(first.get()), name(&place));
                    return Err(RegenerationError::OneIdTwoPrompts { id: prompt.id, first, second });
                }
            }
            all = digest(&[&all, &prompt.id, &format!("{:032x}", prompt.content)]);
        }
        if survey.places.is_empty() {
            let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            return Err(RegenerationError::NoPrompts { files: files.join(", "), malformed: survey.malformed });
        }
        survey.digest = all;
        Ok(survey)
    }

    /// Number of different prompts.
    pub fn prompts(&self) -> usize {
        self.places.len()
    }

    /// Takes a prompt for the first time. Returns false for a duplicate.
    ///
    /// # Errors
    /// Returns an error if the prompt is not the one that was read before.
    pub fn take(&mut self, prompt: &Prompt, file: &std::path::Path) -> Result<bool, RegenerationError> {
        match self.places.remove(&fingerprint(&[&prompt.id])) {
            None => Ok(false),
            Some(place) if place.content == prompt.content => Ok(true),
            Some(_) => Err(RegenerationError::Changed { file: file.to_owned(), number: prompt.row.number }),
        }
    }
}
