//! The side that asks: starts renderers, and stops those that take too long.

use std::borrow::Cow;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{EXECUTABLE, RENDER};
use crate::text::TextError;
use crate::text::template_program::{Conversation, TemplateFault};

/// Time of one rendering.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Bytes of memory of a renderer.
pub(super) const MAX_MEMORY: u64 = 512 << 20;

/// Questions to a renderer: first to compile a template, then to render with it.
#[derive(Serialize, Deserialize)]
pub(super) enum Question<'a> {
    Compile { source: Cow<'a, str>, special_tokens: Cow<'a, Map<String, Value>> },
    Render(Conversation<'a>),
}

/// The text; an empty one for a template that compiles.
pub(super) type Reply = Result<String, TemplateFault>;

/// The renderers of one template: as many as threads render at the same time.
pub(in crate::text) struct Renderers {
    /// The question that a new renderer is asked first.
    compile: Vec<u8>,
    idle: Mutex<Vec<Renderer>>,
}

impl Renderers {
    /// Starts a first renderer, which compiles the template. Returns `None` if no executable that renders is known.
    pub(in crate::text) fn start(
        name: &str,
        source: &str,
        special_tokens: &Map<String, Value>,
    ) -> Result<Option<Self>, TextError> {
        if EXECUTABLE.get().is_none() {
            return Ok(None);
        }
        let (source, special_tokens) = (Cow::Borrowed(source), Cow::Borrowed(special_tokens));
        let compile = encoded(name, &Question::Compile { source, special_tokens })?;
        let renderers = Self { compile, idle: Mutex::default() };
        let first = renderers.new_renderer(name)?;
        renderers.put_back(first);
        Ok(Some(renderers))
    }

    pub(in crate::text) fn render(&self, name: &str, conversation: Conversation<'_>) -> Result<String, TextError> {
        let question = encoded(name, &Question::Render(conversation))?;
        let mut renderer = match self.take() {
            Some(renderer) => renderer,
            None => self.new_renderer(name)?,
        };
        let reply = renderer.ask(&question).map_err(|fault| fault.of(name))?;
        self.put_back(renderer);
        reply.map_err(|fault| fault.of(name))
    }

    fn new_renderer(&self, name: &str) -> Result<Renderer, TextError> {
        let failed = |source| TextError::TemplateProcess { name: name.to_owned(), source };
        let mut renderer = Renderer::start().map_err(failed)?;
        renderer.ask(&self.compile).and_then(|reply| reply).map_err(|fault| fault.of(name))?;
        Ok(renderer)
    }

    /// Returns an idle renderer that is still alive.
    fn take(&self) -> Option<Renderer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut renderer) = idle.pop() {
            if matches!(renderer.process.try_wait(), Ok(None)) {
                return Some(renderer);
            }
        }
        None
    }

    fn put_back(&self, renderer: Renderer) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(renderer);
    }
}

fn encoded(name: &str, question: &Question<'_>) -> Result<Vec<u8>, TextError> {
    let failed = |error: rmp_serde::encode::Error| {
        TemplateFault::Refused { line: 0, message: format!("the conversation cannot be passed on: {error}") }.of(name)
    };
    rmp_serde::to_vec(question).map_err(failed)
}

/// A process that renders.
struct Renderer {
    process: Child,
    questions: ChildStdin,
    replies: ChildStdout,
    last_words: ChildStderr,
}

impl Renderer {
    fn start() -> io::Result<Self> {
        let executable = EXECUTABLE.get().ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new(&**executable);
        command.arg(RENDER).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for the process that asks, which may still have questions.
        command.process_group(0);
        // mimalloc would take a gigabyte of addresses before the limit is set.
        command.env("MIMALLOC_ARENA_RESERVE", "16MiB");
        let mut process = command.spawn()?;
        match (process.stdin.take(), process.stdout.take(), process.stderr.take()) {
            (Some(questions), Some(replies), Some(last_words)) => {
                Ok(Self { process, questions, replies, last_words })
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends a question and waits for the reply. After an error, the renderer cannot be used again.
    fn ask(&mut self, question: &[u8]) -> Result<Reply, TemplateFault> {
        let mut timed = Timed { replies: &mut self.replies, deadline: Instant::now() + MAX_TIME, expired: false };
        let sent = self.questions.write_all(question).and_then(|()| self.questions.flush());
        if let (Ok(()), Ok(reply)) = (sent, rmp_serde::from_read(BufReader::new(&mut timed))) {
            return Ok(reply);
        }
        let expired = timed.expired;
        Err(TemplateFault::Limit(match expired {
            true => format!("ran for more than {} s", MAX_TIME.as_secs()),
            false => self.cause_of_death(),
        }))
    }

    fn cause_of_death(&mut self) -> String {
        let _ = self.process.kill();
        let status = self.process.wait();
        let mut last_words = String::new();
        let _ = self.last_words.read_to_string(&mut last_words);
        if last_words.contains("overflowed its stack") {
            return "nested values or expressions too deeply".to_owned();
        }
        if last_words.contains("memory allocation") {
            return format!("needed more than {} MiB of memory", MAX_MEMORY >> 20);
        }
        let how = match status {
            Ok(status) => status.signal().map_or(status.to_string(), |signal| format!("signal {signal}")),
            Err(error) => error.to_string(),
        };
        format!("ended the process that renders it ({how})")
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads a reply until a deadline.
struct Timed<'a> {
    replies: &'a mut ChildStdout,
    deadline: Instant,
    expired: bool,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let mut watched = [PollFd::new(self.replies.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => {
                    self.expired = true;
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(_) => return self.replies.read(buffer),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
