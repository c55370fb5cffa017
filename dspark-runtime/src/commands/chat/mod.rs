//! `dspark chat`: a conversation in the terminal that shows what the draft wrote and what the target corrected.

mod painter;
mod status;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};

use self::painter::Painter;
use self::status::{Counts, StatusLine};
use super::engine::{EngineArguments, Running};
use super::output::{count, template_arguments, warn_of_other_template_arguments};
use super::sampling::SamplingArguments;
use crate::engine::{Answer, Event, Request};
use crate::text::ChatTemplate;

const HELP: &str = "/reset forgets the conversation, /quit ends it; Ctrl-C stops an answer";

/// Arguments of `dspark chat`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// A system message before the conversation
    #[arg(long)]
    system: Option<String>,
    /// A variable of the chat template, `enable_thinking=false`; may be given several times
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Token limit of each answer
    #[arg(long, default_value_t = 1024, value_parser = count)]
    max_new_tokens: usize,
    /// Show rejected draft tokens too, struck out
    #[arg(long)]
    show_rejected: bool,
}

/// Talks until standard input ends.
pub fn run(arguments: &Arguments) -> Result<()> {
    let template_arguments = template_arguments(&arguments.template_arguments)?;
    let running = arguments.engine.start()?;
    if let Some(draft) = &running.draft {
        warn_of_other_template_arguments(draft, &template_arguments);
    }
    let template = running
        .tokenizer
        .chat_template()
        .with_context(|| format!("{} has no chat template: use `dspark generate --raw`", running.name))?;
    let terminal = io::stdout().is_terminal();
    let mut conversation = Conversation {
        running: &running,
        template,
        template_arguments,
        arguments,
        messages: Vec::new(),
        counts: Counts::default(),
        terminal,
        colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    conversation.reset();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(conversation.talk());
    // A thread may still be reading standard input.
    runtime.shutdown_background();
    running.handle.shut_down(Duration::ZERO);
    running.engine.join();
    match outcome {
        // Nobody reads any more (`| head`).
        Err(error) if is_broken_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

struct Conversation<'a> {
    running: &'a Running,
    template: &'a ChatTemplate,
    template_arguments: Map<String, Value>,
    arguments: &'a Arguments,
    messages: Vec<Value>,
    counts: Counts,
    terminal: bool,
    colours: bool,
}

impl Conversation<'_> {
    fn reset(&mut self) {
        let system = self.arguments.system.iter();
        self.messages = system.map(|system| json!({"role": "system", "content": system})).collect();
    }

    async fn talk(&mut self) -> Result<()> {
        if self.terminal {
            let who = if self.colours { "; green is the draft's, plain the target's own" } else { "" };
            show(&format!("{}{who}\n{HELP}\n", self.running.name))?;
        }
        loop {
            if self.terminal {
                show("\n> ")?;
            }
            let line = tokio::select! {
                line = read_line() => line?,
                _ = tokio::signal::ctrl_c() => None,
            };
            match line.as_deref().map(str::trim) {
                None | Some("/quit") => break,
                Some("") => {}
                Some("/reset") => self.reset(),
                Some(command) if command.starts_with('/') => eprintln!("{command} is no command: {HELP}"),
                Some(text) => {
                    if let Err(error) = self.answer(text).await {
                        if is_broken_pipe(&error) {
                            return Err(error);
                        }
                        eprintln!("error: {}", super::message(&error));
                    }
                }
            }
        }
        if self.terminal { Ok(show("\n")?) } else { Ok(()) }
    }

    /// Asks and shows the answer. What was not answered at all is not part of the conversation.
    async fn answer(&mut self, text: &str) -> Result<()> {
        let asked = self.messages.len();
        self.messages.push(json!({"role": "user", "content": text}));
        let said = match self.submit() {
            Ok(answer) => self.listen(answer).await,
            Err(error) => Err(error),
        };
        match said {
            Ok(said) if !said.is_empty() => self.messages.push(json!({"role": "assistant", "content": said})),
            Ok(_) => self.messages.truncate(asked),
            Err(error) => {
                self.messages.truncate(asked);
                return Err(error);
            }
        }
        if self.terminal {
            let line = self.counts.line();
            show(&if self.colours { format!("\x1b[2m{line}\x1b[0m\n") } else { format!("{line}\n") })?;
        }
        Ok(())
    }

    fn submit(&self) -> Result<Answer> {
        let rendered = self.template.render(&self.messages, &self.template_arguments, true)?;
        let tokenizer = &self.running.tokenizer;
        let arguments = self.arguments;
        let request = Request {
            prompt: tokenizer.encode(&rendered, false)?,
            max_new_tokens: arguments.max_new_tokens,
            sampling: arguments.sampling.sampling(),
            stop_token_ids: tokenizer.stop_token_ids().to_vec(),
            stop_strings: Vec::new(),
            logprobs: None,
        };
        self.running.handle.submit(request).context("the question was not taken (/reset shortens the conversation)")
    }

    /// Shows an answer as it comes, and returns its text.
    async fn listen(&mut self, mut answer: Answer) -> Result<String> {
        let mut painter = Painter::new(&self.running.tokenizer, self.colours, self.arguments.show_rejected);
        let mut status = if self.colours { StatusLine::open()? } else { None };
        let mut said = String::new();
        self.counts.begin_answer();
        loop {
            let event = tokio::select! {
                event = answer.next() => event,
                // Dropping the answer cancels it; what was said stays part of the conversation.
                _ = tokio::signal::ctrl_c() => break,
            };
            match event {
                Some(Event::Delta(delta)) => {
                    said.push_str(&delta.text);
                    self.counts.add(&delta);
                    let painted = painter.step(&delta)?;
                    show(&painted)?;
                    if let Some(status) = &mut status {
                        status.draw(&self.counts.line())?;
                        show("")?;
                    }
                }
                Some(Event::Finished(_)) => break,
                Some(Event::Failed(failure)) => return Err(failure.into()),
                None => anyhow::bail!("the engine ended before the answer was complete"),
            }
        }
        show(&format!("{}\n", painter.finish()?))?;
        Ok(said)
    }
}

/// A line of standard input; `None` at its end.
async fn read_line() -> Result<Option<String>> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|count| (count > 0).then_some(line))
    });
    read.await?.context("reading standard input")
}

/// Writes at once.
fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
