//! `deepspec simulate`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use dspark_runtime::checkpoint::write_file;
use dspark_runtime::commands::{Named, check_outputs, count, count_to, print};
use dspark_runtime::schedule::{Mode, SpsTable, StsTable};

use crate::evaluation::read_trace;
use crate::simulation::{PLOTS, Prompts, SimulationReport, Workload, simulate, table, write_plots};

/// Arguments of `deepspec simulate`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Trace of whole blocks, written by `deepspec evaluate --trace` or `deepspec calibrate --write-trace`
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Calibration table of the draft, written by `deepspec calibrate`
    #[arg(long, value_name = "FILE")]
    sts: PathBuf,
    /// Speed table of the machine, written by `dspark profile --out`
    #[arg(long, value_name = "FILE")]
    sps: PathBuf,
    /// Modes to compare, separated by commas: off, fixed:N, threshold:P, scheduled
    #[arg(long, value_delimiter = ',', default_value = "off,fixed:1,fixed:7,threshold:0.5,scheduled")]
    modes: Vec<Mode>,
    /// Numbers of concurrent requests to simulate, separated by commas
    #[arg(long, value_name = "REQUESTS", value_delimiter = ',', value_parser = count_to::<{ 1 << 16 }>, default_value = "1,2,4,8,16,32,64,128,256,512,1024")]
    loads: Vec<usize>,
    /// Maximum number of tokens per step (default: the limit of the speed table)
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    batch_limit: Option<usize>,
    /// Seed for the positions in the trace at which requests start
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the report as JSON to this file; `-` prints JSON on standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the plots throughput.svg and budget.svg into this folder
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Simulates and prints the table.
pub fn run(arguments: &Arguments) -> Result<()> {
    check_files(arguments)?;
    let rounds = read_trace(&arguments.trace)?;
    let block_size = rounds.first().map_or(0, |round| round.confidence_logits.len());
    let sts = StsTable::read(&arguments.sts, block_size)?;
    let sps = SpsTable::read(&arguments.sps)?;
    match rounds.first().and_then(|round| round.draft.as_deref()) {
        Some(traced) if sts.draft.is_some() => sts.check_draft(&arguments.sts, traced)?,
        traced => {
            let path = if traced.is_none() { &arguments.trace } else { &arguments.sts };
            eprintln!(
                "warning: {}: the file does not record its draft, so it was not checked that trace and table belong \
                 to the same draft",
                path.display()
            );
        }
    }
    if let (Some(fitted), Some(round)) = (sts.sampling_temperature, rounds.first())
        && fitted != round.temperature
    {
        let (sts, traced) = (arguments.sts.display(), round.temperature);
        bail!(
            "{sts}: the table was fitted at temperature {fitted}, but the trace was sampled at {traced}: calibrate at the trace's temperature"
        );
    }
    for rise in sps.rises() {
        eprintln!("warning: {}: {rise}", arguments.sps.display());
    }
    if sps.draft().is_none() {
        eprintln!(
            "warning: {}: no `draft_seconds`: drafting counts as free, so predicted throughput with drafting is too high",
            arguments.sps.display()
        );
    }
    if sps.draft().is_some() && sps.context_seconds() == 0.0 {
        eprintln!(
            "warning: {}: no `draft_context_seconds`: updating the draft's context counts as free; measure again \
             with `dspark profile --again`",
            arguments.sps.display()
        );
    }
    if rounds.iter().any(|round| round.prompt_tokens == 0 || round.max_new_tokens == 0) {
        eprintln!(
            "warning: {}: no `prompt_tokens` or `max_new_tokens`: every request is assumed to draft from its first token; trace again with \
             `deepspec evaluate --trace`",
            arguments.trace.display()
        );
    }
    let batch_limit = arguments.batch_limit.unwrap_or(sps.max_batch_tokens());
    if batch_limit > sps.max_batch_tokens() {
        eprintln!(
            "warning: --batch-limit {batch_limit}: the speed table covers up to {} tokens; its last value is used \
             beyond",
            sps.max_batch_tokens()
        );
    }
    let prompts = Prompts::new(&rounds, &sts);
    let workload = Workload { prompts: &prompts, table: &sps, batch_limit, seed: arguments.seed };
    let mut loads = arguments.loads.clone();
    loads.sort_unstable();
    loads.dedup();
    let points =
        arguments.modes.iter().flat_map(|&mode| loads.iter().map(move |&load| simulate(workload, mode, load)));
    let report = SimulationReport {
        trace: arguments.trace.display().to_string(),
        sts: arguments.sts.display().to_string(),
        sps: arguments.sps.display().to_string(),
        prompts: prompts.count(),
        rounds: rounds.len(),
        batch_limit,
        points: points.collect(),
    };
    if let Some(folder) = &arguments.plots {
        write_plots(&report, folder)?;
    }
    let json = serde_json::to_string_pretty(&report)?;
    match &arguments.json {
        Some(path) if path.as_os_str() == "-" => print(json)?,
        other => {
            if let Some(path) = other {
                write_file(path, (json + "\n").as_bytes())?;
            }
            print(table(&report))?;
        }
    }
    Ok(())
}

/// Refuses outputs that would overwrite an input.
fn check_files(arguments: &Arguments) -> Result<()> {
    let plots = arguments.plots.iter().flat_map(|folder| PLOTS.map(|name| folder.join(name)));
    let plots: Vec<PathBuf> = plots.collect();
    let json = arguments.json.iter().map(|path| ("--json", path.as_path()));
    let outputs: Vec<Named<'_>> = json.chain(plots.iter().map(|path| ("--plots", path.as_path()))).collect();
    check_outputs(&outputs, &[("--trace", &arguments.trace), ("--sts", &arguments.sts), ("--sps", &arguments.sps)])
}
