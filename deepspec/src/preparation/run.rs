//! The work: from sources to an output.

use std::collections::HashSet;
use std::fs;
use std::hash::BuildHasherDefault;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use dspark_runtime::checkpoint::{AtomicDirectory, CheckpointError, FolderLock, write_file};
use dspark_runtime::text::Tokenizer;
use rayon::prelude::*;

use super::choice::{Candidate, Chosen, choose};
use super::error::PreparationError;
use super::judge::{Judge, Kept, Verdict};
use super::manifest::{InputFile, MANIFEST, Manifest, NearDuplicates, OutputFile, SourceReport};
use super::near::{self, Bands, Unchanged};
use super::settings::{Settings, Source};
use super::text::{digest, upper};
use super::write::{Side, WrittenFile};
use crate::console::Count;
use crate::conversation::{FileRow, ReadReport, RowChunks};
use crate::digest::file_digest;

/// Folders of the two sides of the split, in the output.
const TRAINING: &str = "train";
const VALIDATION: &str = "validation";

/// What a preparation did.
#[derive(Debug)]
pub enum Prepared {
    /// It wrote the output.
    Written(Box<Manifest>),
    /// The output was there already, from the same data with the same settings.
    Before,
}

/// Writes the rows of `sources` into the folder `output`. The tokeniser is needed if the settings bound the number of tokens.
///
/// The folder appears when it is complete. Memory does not grow with the data, except for 16 bytes of each row that is kept and,
/// where the settings ask for it, what near duplicates and the choice of rows need.
///
/// # Errors
/// Returns an error if the settings contradict each other or the sources, a file cannot be read or written, another process
/// prepares the same output, the output holds something else, or no row is left.
pub fn prepare(
    sources: &[Source],
    output: &Path,
    settings: &Settings,
    tokenizer: Option<&Tokenizer>,
) -> Result<Prepared, PreparationError> {
    check(sources, settings)?;
    let _lock = FolderLock::of_file(output)?;
    let states = states(sources)?;
    let mut manifest = Manifest::new(settings.clone(), inputs(sources)?);
    if manifest.is_made(output)? {
        return Ok(Prepared::Before);
    }
    let folder = AtomicDirectory::begin(output)?;
    let bands = settings.near_duplicates.map(Bands::for_threshold);
    manifest.near_duplicates = settings.near_duplicates.zip(bands).map(|(threshold, bands)| NearDuplicates {
        bands: bands.bands,
        rows: bands.rows,
        found_at_threshold: bands.found(threshold),
    });
    let preparation = Preparation { sources, settings, judge: Judge { settings, bands, tokenizer } };
    let mut sink = Sink::new(sources, settings, folder.path());
    preparation.read(&mut sink)?;
    if settings.choose() {
        let chosen = choose(std::mem::take(&mut sink.candidates), sources, settings)?;
        preparation.write_chosen(&chosen, &mut sink)?;
    }
    let (reports, files) = sink.finish()?;
    if reports.iter().all(|report| report.written() == 0) {
        return Err(PreparationError::Empty(reasons(&reports)));
    }
    if let Some((_, path)) = states.iter().find(|(state, path)| self::state(path).ok().as_ref() != Some(state)) {
        return Err(PreparationError::Changed { path: path.clone() });
    }
    manifest.sources = reports;
    manifest.outputs = outputs(folder.path(), files)?;
    let path = folder.path().join(MANIFEST);
    let text = manifest.text().map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    write_file(&path, text.as_bytes())?;
    folder.commit()?;
    Ok(Prepared::Written(Box::new(manifest)))
}

/// Settings that need rows of other shards, and weights of sources that are not there.
fn check(sources: &[Source], settings: &Settings) -> Result<(), PreparationError> {
    let refused = |reason: String| Err(PreparationError::Settings(reason));
    if let Some(shard) = settings.shard {
        for (given, flag) in
            [(settings.choose(), "--rows and --weight"), (settings.near_duplicates.is_some(), "--near-duplicates")]
        {
            if given {
                return refused(format!(
                    "--shard {shard}: {flag} need all rows: prepare the shards first, then their outputs with {flag}"
                ));
            }
        }
    }
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    for (index, weight) in settings.weights.iter().enumerate() {
        let name = &weight.source;
        if !names.contains(&name.as_str()) {
            return refused(format!("--weight {name}: there is no source of this name; found {}", names.join(", ")));
        }
        if settings.weights[..index].iter().any(|other| other.source == *name) {
            return refused(format!("--weight {name}: given twice"));
        }
    }
    let weighted = |name: &&&str| settings.weights.iter().any(|weight| weight.source == **name);
    match names.iter().find(|name| !weighted(name)) {
        Some(name) if !settings.weights.is_empty() => {
            refused(format!("--weight: the source {name} has no weight; give one to every source"))
        }
        _ => Ok(()),
    }
}

/// What tells whether a file changed.
type State = (u64, Option<SystemTime>);

fn state(path: &Path) -> Result<State, CheckpointError> {
    let metadata = fs::metadata(path).map_err(CheckpointError::io(path))?;
    Ok((metadata.len(), metadata.modified().ok()))
}

fn states(sources: &[Source]) -> Result<Vec<(State, PathBuf)>, CheckpointError> {
    let files = sources.iter().flat_map(|source| &source.files);
    files.map(|path| Ok((state(path)?, path.clone()))).collect()
}

fn inputs(sources: &[Source]) -> Result<Vec<InputFile>, CheckpointError> {
    let files: Vec<(&str, &PathBuf)> =
        sources.iter().flat_map(|source| source.files.iter().map(|path| (source.name.as_str(), path))).collect();
    let input = |(source, path): &(&str, &PathBuf)| {
        let (bytes, _) = state(path)?;
        Ok(InputFile { source: (*source).to_owned(), path: (*path).clone(), bytes, sha256: file_digest(path)? })
    };
    files.par_iter().map(input).collect()
}

fn outputs(folder: &Path, files: Vec<WrittenFile>) -> Result<Vec<OutputFile>, CheckpointError> {
    let output = |WrittenFile { path, rows }: WrittenFile| {
        let sha256 = file_digest(&folder.join(&path))?;
        Ok(OutputFile { path, rows, sha256 })
    };
    files.into_par_iter().map(output).collect()
}

/// What was left out, for a message.
fn reasons(reports: &[SourceReport]) -> String {
    let reasons = reports.iter().flat_map(|report| report.left_out.iter().map(move |left_out| (report, left_out)));
    let lines = reasons.take(20).map(|(report, left_out)| {
        format!("\n  {}: {} rows of {} ({})", report.name, left_out.rows, report.read, left_out.first)
    });
    lines.collect()
}

struct Preparation<'a> {
    sources: &'a [Source],
    settings: &'a Settings,
    judge: Judge<'a>,
}

impl Preparation<'_> {
    /// Reads all rows and passes those that are kept to the sink.
    fn read(&self, sink: &mut Sink) -> Result<(), PreparationError> {
        let mut seen: HashSet<u128, BuildHasherDefault<Unchanged>> = HashSet::default();
        let mut near = near::Kept::default();
        let take = |source: usize, number: usize, row: &FileRow<'_>, verdict: Verdict| {
            let report = &mut sink.reports[source];
            report.read += 1;
            let kept = match verdict {
                Verdict::Elsewhere => {
                    report.other_shards += 1;
                    return Ok(());
                }
                Verdict::LeftOut { reason, unusable } => {
                    report.unusable += usize::from(unusable);
                    sink.left_out[source].leave_out(row.malformed(reason));
                    return Ok(());
                }
                Verdict::Kept(kept) => kept,
            };
            let reason = if !seen.insert(kept.digests.whole) {
                "duplicate of an earlier row"
            } else if !near.keep(&kept.near) {
                "near duplicate of an earlier row"
            } else {
                return sink.keep(source, number, *kept);
            };
            sink.left_out[source].leave_out(row.malformed(reason.to_owned()));
            Ok(())
        };
        scan(self.sources, "rows read", |_, row| self.judge.judge(row), take)
    }

    /// Reads the rows again and writes the chosen ones.
    fn write_chosen(&self, chosen: &Chosen, sink: &mut Sink) -> Result<(), PreparationError> {
        let settings = Settings { tokens: None, near_duplicates: None, repetition: 1.0, ..self.settings.clone() };
        // They passed the slow filters already.
        let judge = Judge { settings: &settings, bands: None, tokenizer: None };
        let judge = |number: usize, row: &FileRow<'_>| match chosen.contains(number) {
            true => judge.judge(row).map(Some),
            false => Ok(None),
        };
        let take = |source: usize, _: usize, _: &FileRow<'_>, verdict: Option<Verdict>| match verdict {
            Some(Verdict::Kept(kept)) => {
                sink.reports[source].not_chosen -= 1;
                sink.write(source, *kept)
            }
            _ => Ok(()),
        };
        scan(self.sources, "rows read again", judge, take)
    }
}

/// Passes every row to `judge`, in parallel, and what it returns to `take`, in order, with the number of the source and of the row
/// among all. The next rows are read at the same time. `name` says what the progress counts.
pub(super) fn scan<T: Send>(
    sources: &[Source],
    name: &'static str,
    judge: impl Fn(usize, &FileRow<'_>) -> Result<T, PreparationError> + Sync,
    mut take: impl FnMut(usize, usize, &FileRow<'_>, T) -> Result<(), PreparationError> + Send,
) -> Result<(), PreparationError> {
    let mut first = 0;
    let mut count = Count::new(name);
    for (index, source) in sources.iter().enumerate() {
        let mut chunks = RowChunks::of(&source.files);
        let mut next = chunks.next();
        while let Some(chunk) = next {
            let chunk = chunk?;
            let work = || {
                let numbered = chunk.par_iter().zip(first..first + chunk.len());
                let judged = numbered.map(|(row, number)| judge(number, row)).collect::<Result<Vec<T>, _>>()?;
                let mut rows = chunk.iter().zip(first..).zip(judged);
                rows.try_for_each(|((row, number), judged)| take(index, number, row, judged))
            };
            let (following, worked) = rayon::join(|| chunks.next(), work);
            worked?;
            first += chunk.len();
            count.add(chunk.len() as u64);
            next = following;
        }
    }
    count.finish();
    Ok(())
}

/// Where rows go that are kept, and the counts.
struct Sink {
    names: Vec<Arc<str>>,
    reports: Vec<SourceReport>,
    left_out: Vec<ReadReport>,
    /// Rows to choose from, by source; none if all are written.
    candidates: Vec<Vec<Candidate>>,
    choose: bool,
    seed: u64,
    validation_share: f64,
    training: Side,
    validation: Side,
}

impl Sink {
    fn new(sources: &[Source], settings: &Settings, folder: &Path) -> Self {
        Self {
            names: sources.iter().map(|source| Arc::from(source.name.as_str())).collect(),
            reports: sources.iter().map(|source| SourceReport::of(&source.name)).collect(),
            left_out: vec![ReadReport::default(); sources.len()],
            candidates: vec![Vec::new(); sources.len()],
            choose: settings.choose(),
            seed: settings.seed,
            validation_share: settings.validation,
            training: Side::new(folder, TRAINING),
            validation: Side::new(folder, VALIDATION),
        }
    }

    /// Takes a row that passed everything.
    fn keep(&mut self, source: usize, number: usize, kept: Kept) -> Result<(), PreparationError> {
        if !self.choose {
            return self.write(source, kept);
        }
        self.reports[source].not_chosen += 1;
        let key = upper(digest(&[&self.seed.to_le_bytes(), kept.row.id().as_bytes()]));
        self.candidates[source].push(Candidate { key, row: number });
        Ok(())
    }

    fn write(&mut self, source: usize, kept: Kept) -> Result<(), PreparationError> {
        let report = &mut self.reports[source];
        // 2^64 different numbers.
        let validation = (upper(kept.digests.prompt) as f64) < self.validation_share * 2.0_f64.powi(64);
        let (count, side) = match validation {
            true => (&mut report.validation, &mut self.validation),
            false => (&mut report.training, &mut self.training),
        };
        *count += 1;
        side.write(kept.row, &self.names[source])
    }

    fn finish(self) -> Result<(Vec<SourceReport>, Vec<WrittenFile>), PreparationError> {
        let mut files = self.training.finish()?;
        files.extend(self.validation.finish()?);
        let mut reports = self.reports;
        reports.iter_mut().zip(self.left_out).for_each(|(report, left_out)| report.take(left_out));
        Ok((reports, files))
    }
}
