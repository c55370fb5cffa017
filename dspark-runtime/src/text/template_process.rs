//! Rendering of chat templates in separate processes.
//!
//! The cost of a single instruction of a template cannot be bounded within a process: a string that doubles forty
//! times, a list nested so deep that dropping it overflows the stack, a filter that takes hours. The executable
//! therefore starts itself again as a renderer, a process with a memory limit. It answers one request after the other
//! over its standard input and output, in MessagePack, which preserves every float. A renderer that takes too long is
//! killed; if it dies, the template was at fault. The next rendering starts a new one.

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

#[cfg(unix)]
mod asking;
#[cfg(unix)]
mod rendering;

#[cfg(unix)]
pub(super) use asking::Renderers;

/// The first argument of an executable that is started as a renderer.
#[cfg(unix)]
const RENDER: &str = "--internal-render-chat-templates";

/// The executable that renders, once one is known.
static EXECUTABLE: OnceLock<Box<Path>> = OnceLock::new();

/// Runs chat templates in separate processes, started from the executable that calls this. Must be called first in
/// `main`. Returns an exit code if this process itself was started to render; `main` must then exit with it.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     if let Some(code) = dspark_runtime::text::template_process() {
///         return code;
///     }
///     // ... the program
///     std::process::ExitCode::SUCCESS
/// }
/// ```
///
/// On other systems than Unix this does nothing.
pub fn template_process() -> Option<ExitCode> {
    #[cfg(unix)]
    {
        if std::env::args_os().nth(1).is_some_and(|argument| argument == RENDER) {
            return Some(rendering::serve());
        }
        // On Linux this name stays right when the file is replaced while the program runs.
        let own = Path::new("/proc/self/exe");
        if own.exists() {
            render_templates_with(own);
        } else if let Ok(path) = std::env::current_exe() {
            render_templates_with(&path);
        }
    }
    None
}

/// Runs chat templates that are loaded from now on in processes of `executable`, whose `main` must call
/// [`template_process`]. For programs that cannot call it in their own `main`. Only the first call has an effect.
pub fn render_templates_with(executable: &Path) {
    EXECUTABLE.get_or_init(|| executable.into());
}

/// On systems without memory limits for processes, templates run in the calling thread.
#[cfg(not(unix))]
pub(super) struct Renderers(std::convert::Infallible);

#[cfg(not(unix))]
impl Renderers {
    pub(super) fn start(
        _name: &str,
        _source: &str,
        _special_tokens: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Option<Self>, super::TextError> {
        Ok(None)
    }

    pub(super) fn render(
        &self,
        _name: &str,
        _conversation: super::template_program::Conversation<'_>,
    ) -> Result<String, super::TextError> {
        match self.0 {}
    }
}
