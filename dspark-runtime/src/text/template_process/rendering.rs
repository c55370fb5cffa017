//! The renderer: answers what it is asked on standard input until that ends.

use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::asking::{MAX_MEMORY, Question, Reply};
use crate::text::template_program::{Program, TemplateFault};

/// Stack of the thread that renders.
const STACK: usize = 16 << 20;

pub(super) fn serve() -> ExitCode {
    // A renderer that dies leaves no memory image behind.
    if limit(Resource::RLIMIT_CORE, 0).and_then(|()| limit(Resource::RLIMIT_DATA, MAX_MEMORY)).is_err() {
        return ExitCode::FAILURE;
    }
    let renderer = thread::Builder::new().stack_size(STACK).spawn(answer_all);
    let Ok(renderer) = renderer else { return ExitCode::FAILURE };
    // A rendering may be in progress when the process that asked dies: nobody would stop it.
    let orphaned = thread::Builder::new().spawn(|| {
        wait_for_hang_up();
        std::process::exit(0);
    });
    match (orphaned, renderer.join()) {
        (Ok(_), Ok(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn limit(resource: Resource, most: u64) -> Result<(), Errno> {
    let (_, highest) = getrlimit(resource)?;
    setrlimit(resource, most.min(highest), most.min(highest))
}

/// Returns when the other end of standard input was closed.
fn wait_for_hang_up() {
    let input = io::stdin();
    loop {
        let mut watched = [PollFd::new(input.as_fd(), PollFlags::empty())];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => return,
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Answers until a question or a reply does not get through.
fn answer_all() -> Option<()> {
    let (mut questions, mut replies) = (BufReader::new(io::stdin()), BufWriter::new(io::stdout()));
    let mut program = Err(TemplateFault::Refused { line: 0, message: "no template was given".to_owned() });
    loop {
        let reply: Reply = match rmp_serde::from_read(&mut questions).ok()? {
            Question::Compile { source, special_tokens } => {
                program = Program::compile(&source, &special_tokens);
                program.as_ref().map(|_| String::new()).map_err(Clone::clone)
            }
            Question::Render(conversation) => match &program {
                Ok(program) => program.render(&conversation),
                Err(fault) => Err(fault.clone()),
            },
        };
        rmp_serde::encode::write(&mut replies, &reply).ok()?;
        replies.flush().ok()?;
    }
}
