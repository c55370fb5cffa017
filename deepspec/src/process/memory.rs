//! Memory of this process.

use std::fs;

/// Resident memory of this process in bytes, now and at its peak; `None` when the operating system does not report it.
pub fn resident() -> Option<(usize, usize)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').split_whitespace().next()?.parse::<usize>().ok()? * 1024)
    };
    Some((field("VmRSS")?, field("VmHWM")?))
}
