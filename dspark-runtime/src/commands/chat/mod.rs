//! `dspark chat`: a conversation in the terminal that shows what the draft wrote and what the target corrected.

mod painter;
mod status;

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};

use self::painter::Painter;
use self::status::{Counts, StatusLine};
use super::engine::{EngineArguments, Running};
use super::output::{count, template_arguments, warn_of_other_template_arguments};
use super::prompt::{chat_template, typed};
use super::sampling::SamplingArguments;
use super::user_text::UserTextArguments;
use crate::checkpoint::LONGEST_LINE;
use crate::engine::{Answer, Event, Request, Sampling};
use crate::schedule::Switch;
use crate::speculate::NotFinite;
use crate::text::ChatTemplate;

/// The token limit of an answer where neither the user nor the model gives one.
const ANSWER_TOKENS: usize = 1024;
const HELP: &str = "/reset starts a new conversation, /quit exits, Ctrl-C stops an answer";

/// Arguments of `dspark chat`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// System message at the start of the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Set a variable of the chat template, for example `enable_thinking=false`. Can be repeated
    #[arg(long = "template-argument", value_name = "NAME=VALUE")]
    template_arguments: Vec<String>,
    #[command(flatten)]
    user_text: UserTextArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Maximum number of tokens per answer (default: 1024)
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    max_new_tokens: Option<usize>,
    /// Show rejected draft tokens too, with strikethrough
    #[arg(long)]
    show_rejected: bool,
}

/// Talks until standard input ends.
pub fn run(arguments: &Arguments) -> Result<()> {
    let template_arguments = template_arguments(&arguments.template_arguments)?;
    let running = arguments.engine.start(Sampling::GREEDY)?;
    if let Some(draft) = &running.draft {
        warn_of_other_template_arguments(draft, &template_arguments);
    }
    let template = chat_template(&running.tokenizer, &running.name, "use `dspark generate --raw`")?;
    let terminal = io::stdout().is_terminal();
    let mut conversation = Conversation {
        running: &running,
        template,
        template_arguments,
        arguments,
        messages: Vec::new(),
        counts: Counts::default(),
        switch: None,
        terminal,
        colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    if arguments.show_rejected && !conversation.colours {
        eprintln!("warning: --show-rejected needs a terminal with colours; rejected tokens are not shown");
    }
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
    /// The last report of drafting being switched off or on that was shown.
    switch: Option<Switch>,
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
            let who =
                if self.colours { "; green tokens come from the draft, plain tokens from the target" } else { "" };
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
            let Some(line) = line else { break };
            let text = typed(&line);
            match text.trim() {
                "/quit" => break,
                "" => {}
                "/reset" => self.reset(),
                command if command.starts_with('/') => eprintln!("unknown command {command}: {HELP}"),
                _ => {
                    if let Err(error) = self.answer(text).await {
                        if is_broken_pipe(&error) || error.chain().any(|cause| cause.is::<NotFinite>()) {
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
            Ok((answer, painter)) => self.listen(answer, painter).await,
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
        self.note(&self.counts.line())?;
        let switch = self.running.handle.metrics().switch;
        if switch != self.switch {
            if let Some(switch) = &switch {
                self.note(&switch.to_string())?;
            }
            self.switch = switch;
        }
        Ok(())
    }

    /// Shows a line about the answer, which is not part of it.
    fn note(&self, line: &str) -> io::Result<()> {
        match (self.terminal, self.colours) {
            (true, true) => show(&format!("\x1b[2m{line}\x1b[0m\n")),
            (true, false) => show(&format!("{line}\n")),
            (false, _) => {
                eprintln!("{line}");
                Ok(())
            }
        }
    }

    fn submit(&self) -> Result<(Answer, Painter)> {
        let Running { tokenizer, defaults, .. } = self.running;
        let arguments = self.arguments;
        let user_text = arguments.user_text.user_text();
        let prompt = self.template.prompt(tokenizer, &self.messages, &self.template_arguments, user_text)?;
        let painter = Painter::new(tokenizer, &prompt, self.colours, arguments.show_rejected)?;
        let request = Request {
            prompt,
            max_new_tokens: arguments.max_new_tokens.or(defaults.max_new_tokens).unwrap_or(ANSWER_TOKENS),
            sampling: arguments.sampling.sampling(defaults.sampling),
            stop_token_ids: tokenizer.stop_token_ids().to_vec(),
            stop_strings: Vec::new(),
            include_stop_string: false,
            logprobs: None,
        };
        let answer = self.running.handle.submit(request);
        Ok((answer.context("the message was rejected (use /reset to shorten the conversation)")?, painter))
    }

    /// Shows an answer as it comes, and returns its text.
    async fn listen(&mut self, mut answer: Answer, mut painter: Painter) -> Result<String> {
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
        let count = io::stdin().lock().take(LONGEST_LINE + 1).read_line(&mut line)?;
        if count as u64 > LONGEST_LINE {
            let reason = format!("the line has more than {LONGEST_LINE} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok((count > 0).then_some(line))
    });
    read.await?.context("reading standard input")
}

/// Writes at once.
fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
