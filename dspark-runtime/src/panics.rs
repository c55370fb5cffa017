//! Panics of libraries that read untrusted files, as errors.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// True if a panic of this thread is about to become an error.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`. A panic in it becomes an error with the panic's message, and nothing is printed.
///
/// `work` must leave no lock or data of this process half changed when it is cut off: it calls a library that only reads
/// what outlives the call.
///
/// # Errors
/// The message of the panic.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                previous(panic);
            }
        }));
    });
    let outer = CAUGHT.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    outcome.map_err(|panic| match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => (*message).to_owned(),
        (None, Some(message)) => message.clone(),
        (None, None) => "no reason given".to_owned(),
    })
}
