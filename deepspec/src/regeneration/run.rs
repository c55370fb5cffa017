//! Threads that answer prompts, and the one that writes the answers down.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::answer::{AnswerError, Answered, Source, Stop, converse};
use super::error::RegenerationError;
use super::output::{FailedRow, FailedRows, Output, failed_path, is_readable};
use super::prompts::{Prompt, Survey, key};
use super::report::RegenerationReport;
use super::settings::Settings;
use crate::console::Progress;
use crate::conversation::generation_prompts;
use crate::process::Interrupter;

/// Results that may wait for the writing thread.
const RESULTS_AHEAD: usize = 256;
/// Time between looks at signals.
const ATTENTION: Duration = Duration::from_millis(100);

/// A run of regeneration.
#[derive(Debug)]
pub struct Job<'a> {
    /// Files of prompts.
    pub prompts: &'a [PathBuf],
    /// The file that gets the answers.
    pub output: &'a Path,
    /// Settings of all answers.
    pub settings: &'a Settings,
    /// Conversations that are held at the same time.
    pub conversations: usize,
}

/// Takes a line for the user, from any thread.
pub type Note = Box<dyn Fn(String) + Send + Sync>;

/// An answer to be made.
struct Work {
    prompt: Arc<Prompt>,
    file: PathBuf,
    sample: Option<usize>,
}

/// What threads tell the one that writes.
enum Message {
    Answered(Answered),
    Failed(FailedRow),
    Note(String),
    Fatal(RegenerationError),
}

/// Answers all prompts that the output does not answer yet. `start` is called if there are any, after everything else was
/// checked. Rows without an answer are counted in the report.
///
/// # Errors
/// Returns an error of `start`, or one that ends the run; the answers so far are then kept.
pub fn regenerate<E: From<RegenerationError>>(
    job: &Job<'_>,
    interrupter: &Interrupter,
    start: impl FnOnce(Note) -> Result<Arc<dyn Source>, E>,
) -> Result<RegenerationReport, E> {
    let survey = Survey::of(job.prompts)?;
    let (output, earlier) = Output::open(job.output, job.settings, &survey.digest)?;
    if earlier.torn > 0 {
        eprintln!(
            "{}: removed the beginning of a row that an earlier process did not complete ({} bytes)",
            job.output.display(),
            earlier.torn
        );
    }
    let mut report = RegenerationReport {
        prompts: survey.prompts(),
        duplicates: survey.duplicates,
        before: earlier.done.len(),
        ..RegenerationReport::default()
    };
    let answers = survey.prompts() * job.settings.samples;
    let (unanswered, malformed) = (answers.saturating_sub(earlier.done.len()), survey.malformed);
    let (sender, receiver) = sync_channel(RESULTS_AHEAD);
    let source = match unanswered {
        0 => None,
        _ => {
            let notes = sender.clone();
            Some(start(Box::new(move |line| _ = notes.send(Message::Note(line))))?)
        }
    };
    let mut writer = Writer {
        job,
        output,
        failed: FailedRows::of(job.output),
        progress: Progress::new("regenerate", (answers + malformed) as u64, report.before as u64),
        started: Instant::now(),
    };
    let stop = Stop::default();
    let threads = Threads { source, sender, stop: stop.clone(), settings: job.settings.clone() };
    let result = threads
        .start(job.prompts.to_vec(), survey, earlier.done, job.conversations.clamp(1, unanswered.max(1)))
        .and_then(|()| writer.write_all(&receiver, interrupter, &mut report));
    stop.set();
    drop(receiver);
    report.took(writer.started.elapsed().as_secs_f64());
    // What was written is worth keeping, whatever else went wrong.
    let synced = writer.output.sync().and_then(|()| writer.failed.sync());
    writer.progress.finish();
    result?;
    synced.map_err(RegenerationError::File)?;
    if report.answered + report.failed != unanswered + malformed {
        return Err(RegenerationError::ThreadEnded.into());
    }
    Ok(report)
}

/// The state of the thread that writes.
struct Writer<'a> {
    job: &'a Job<'a>,
    output: Output,
    failed: FailedRows,
    progress: Progress,
    started: Instant,
}

impl Writer<'_> {
    /// Writes results until no thread is left.
    fn write_all(
        &mut self,
        results: &Receiver<Message>,
        interrupter: &Interrupter,
        report: &mut RegenerationReport,
    ) -> Result<(), RegenerationError> {
        loop {
            match results.recv_timeout(ATTENTION) {
                Ok(Message::Answered(answered)) => {
                    self.output.append(&answered.row)?;
                    report.count(answered.finish, answered.tokens);
                    self.step(report);
                }
                Ok(Message::Failed(row)) => {
                    self.failed.append(&row)?;
                    report.failed += 1;
                    if report.failed == 1 {
                        let (path, reason) = (failed_path(self.job.output), &row.reason);
                        self.progress.note(&format!(
                            "{}, {}: {reason} (rows without an answer are listed in {})",
                            row.file.display(),
                            row.number,
                            path.display()
                        ));
                    }
                    self.step(report);
                }
                Ok(Message::Note(line)) => self.progress.note(&line),
                Ok(Message::Fatal(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.output.sync_if_due()?;
            if let Some(signal) = interrupter.signal() {
                let (answered, output) = (report.before + report.answered, self.job.output.to_owned());
                return Err(RegenerationError::Interrupted { signal, answered, output });
            }
        }
    }

    fn step(&mut self, report: &RegenerationReport) {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        self.progress.step(|| {
            format!(
                "{} failed, {:.2} rows/s, {:.0} tokens/s",
                report.failed,
                report.answered as f64 / seconds,
                report.tokens as f64 / seconds
            )
        });
    }
}

/// What all threads share.
struct Threads {
    /// `None` if nothing is left to answer.
    source: Option<Arc<dyn Source>>,
    sender: SyncSender<Message>,
    stop: Stop,
    settings: Settings,
}

impl Threads {
    /// Starts a thread that reads prompts and `conversations` threads that answer them. They end by themselves.
    fn start(
        self,
        files: Vec<PathBuf>,
        survey: Survey,
        done: HashSet<u128>,
        conversations: usize,
    ) -> Result<(), RegenerationError> {
        let (work, waiting) = sync_channel(conversations);
        let (sender, stop, samples) = (self.sender.clone(), self.stop.clone(), self.settings.samples);
        spawn("prompts", move || {
            if let Err(error) = feed(&files, survey, &done, samples, &work, &sender, &stop) {
                // Nobody listens any more once the run has ended.
                let _ = sender.send(Message::Fatal(error));
            }
        })?;
        let (waiting, seed) = (Arc::new(Mutex::new(waiting)), self.settings.seed);
        let Some(source) = self.source else { return Ok(()) };
        for _ in 0..conversations {
            let (source, sender, stop) = (Arc::clone(&source), self.sender.clone(), self.stop.clone());
            let waiting = Arc::clone(&waiting);
            spawn("conversation", move || {
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok(work) = next() {
                    let Some(message) = answer(&*source, work, seed, &stop) else { return };
                    let fatal = matches!(message, Message::Fatal(_));
                    if sender.send(message).is_err() || fatal {
                        return;
                    }
                }
            })?;
        }
        Ok(())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RegenerationError> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(RegenerationError::Thread)
}

/// Reads the prompts a second time and hands out those that are not answered.
fn feed(
    files: &[PathBuf],
    mut survey: Survey,
    done: &HashSet<u128>,
    samples: usize,
    work: &SyncSender<Work>,
    results: &SyncSender<Message>,
    stop: &Stop,
) -> Result<(), RegenerationError> {
    for row in generation_prompts(files) {
        let (file, row) = row?;
        let file = &files[file];
        if stop.is_set() {
            return Ok(());
        }
        let row = match row {
            Ok(row) => row,
            Err(malformed) => {
                let failed = FailedRow {
                    id: None,
                    sample: None,
                    file: malformed.file,
                    number: malformed.number,
                    reason: malformed.reason,
                };
                if results.send(Message::Failed(failed)).is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        let prompt = Prompt::of(row);
        if !survey.take(&prompt, file)? {
            continue;
        }
        let prompt = Arc::new(prompt);
        for sample in (0..samples).filter(|sample| !done.contains(&key(&prompt.id, *sample))) {
            let sample = (samples > 1).then_some(sample);
            if work.send(Work { prompt: Arc::clone(&prompt), file: file.clone(), sample }).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Makes an answer; `None` if the run was told to stop.
fn answer(source: &dyn Source, work: Work, seed: u64, stop: &Stop) -> Option<Message> {
    let Work { prompt, file, sample } = work;
    let reason = match converse(source, &prompt, sample, seed, stop) {
        Ok(answered) if is_readable(&answered.row) => return Some(Message::Answered(answered)),
        Ok(answered) => format!("the answer's row has {} bytes, more than are read again", answered.row.len()),
        Err(AnswerError::Row(reason)) => reason,
        Err(AnswerError::Stopped) => return None,
        Err(AnswerError::Fatal(error)) => return Some(Message::Fatal(error)),
    };
    let (id, number) = (Some(prompt.id.clone()), prompt.row.number);
    Some(Message::Failed(FailedRow { id, sample, file, number, reason }))
}
