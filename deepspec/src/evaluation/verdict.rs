//! A verdict on an evaluation, in sentences: whether the draft speeds decoding up, and if not, the likely reasons and what to do next.

use dspark_runtime::schedule::Mode;

use super::mode::EvaluationMode;
use super::report::{EvaluationReport, TaskReport};

/// Speed-ups closer to 1 than this count as no difference: repeats of a short measurement differ by as much.
const NOTICEABLE: f64 = 0.05;

/// Accepted length below which the verdict names low acceptance as the reason, not the cost of verifying.
const LOW_ACCEPTANCE: f64 = 1.5;

/// Facts about a draft and a machine that an evaluation report lacks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// Optimiser steps and conversations that the draft was trained with, where that is known.
    pub training: Option<(u64, usize)>,
    /// True if the models run on the CPU.
    pub on_cpu: bool,
    /// True if the draft has a confidence head and no calibration table.
    pub uncalibrated: bool,
}

/// Returns the verdict, one thought per line.
pub fn verdict(report: &EvaluationReport, circumstances: Circumstances) -> String {
    let measured: Vec<(&TaskReport, f64)> =
        report.tasks.iter().filter_map(|task| Some((task, task.speedup()?))).collect();
    if measured.is_empty() {
        return "Verdict: none on speed, because decoding without the draft was not measured.".to_owned();
    }
    let group = |holds: fn(f64) -> bool| -> Vec<&(&TaskReport, f64)> {
        measured.iter().filter(|(_, speedup)| holds(*speedup)).collect()
    };
    let faster = group(|speedup| speedup >= 1.0 + NOTICEABLE);
    let slower = group(|speedup| speedup <= 1.0 - NOTICEABLE);
    let same = group(|speedup| (speedup - 1.0).abs() < NOTICEABLE);
    let named = |group: &[&(&TaskReport, f64)]| {
        let one = |(task, speedup): &&(&TaskReport, f64)| format!("{} {speedup:.2}x", task.name);
        group.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let parts =
        [("speeds decoding up", faster), ("makes no clear difference", same), ("slows decoding down", slower)];
    let said: Vec<String> = parts
        .iter()
        .filter(|(_, group)| !group.is_empty())
        .map(|(effect, group)| format!("{effect} ({})", named(group)))
        .collect();
    let mut lines = vec![format!(
        "Verdict: on this machine, with one request at a time and {}, this draft {}.",
        conditions(report.mode),
        enumerated(&said)
    )];
    if parts[0].1.len() < measured.len() {
        lines.extend(reasons(report, circumstances, &measured));
        lines.extend(next_steps(report.mode, circumstances, !parts[2].1.is_empty()));
    }
    lines.join("\n")
}

fn conditions(mode: EvaluationMode) -> String {
    match mode {
        EvaluationMode::Whole => "whole blocks verified".to_owned(),
        EvaluationMode::Served(mode) => format!("mode `{mode}`"),
    }
}

/// Returns "a, b and c".
fn enumerated(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [before @ .., last] => format!("{} and {last}", before.join(", ")),
    }
}

/// Likely reasons for tasks that are not faster.
fn reasons(report: &EvaluationReport, circumstances: Circumstances, measured: &[(&TaskReport, f64)]) -> Vec<String> {
    let not_faster = || measured.iter().filter(|(_, speedup)| *speedup < 1.0 + NOTICEABLE).map(|(task, _)| *task);
    let lengths: Vec<f64> = not_faster().filter_map(|task| task.accepted_length).collect();
    let (drafted, steps) = not_faster()
        .fold((0, 0), |(drafted, steps), task| (drafted + task.rounds, steps + task.rounds + task.plain_steps));
    let mut lines = Vec::new();
    if report.mode == EvaluationMode::Served(Mode::Scheduled) {
        lines.push(format!("The scheduler drafted in {drafted} of {steps} steps and decoded plainly in the others."));
    }
    let least = lengths.iter().copied().fold(f64::INFINITY, f64::min);
    if least < LOW_ACCEPTANCE {
        let trained = |(steps, samples): (u64, usize)| {
            format!("few training steps (this draft had {steps}) or conversations ({samples})")
        };
        let training =
            circumstances.training.map_or_else(|| "few training steps or conversations".to_owned(), trained);
        lines.push(format!(
            "The target rejects most drafted tokens: accepted length {least:.2}, where 1.00 is no gain. Usual reasons: {training}, \
             training answers that the target did not write itself, or prompts unlike the training data."
        ));
    }
    if lengths.iter().any(|length| *length >= LOW_ACCEPTANCE) {
        let machine = match circumstances.on_cpu {
            true => "on a CPU each additional token makes a pass slower",
            false => "drafting and verifying cost more time than the accepted tokens save",
        };
        let tasks: Vec<String> = not_faster()
            .filter_map(|task| Some((task, task.accepted_length.filter(|length| *length >= LOW_ACCEPTANCE)?)))
            .map(|(task, length)| format!("{} {length:.2}", task.name))
            .collect();
        lines.push(format!("Tokens are accepted (accepted length: {}), but {machine}.", tasks.join(", ")));
    }
    lines
}

fn next_steps(mode: EvaluationMode, circumstances: Circumstances, slower: bool) -> Vec<String> {
    let mut lines = Vec::new();
    match mode {
        EvaluationMode::Served(Mode::Scheduled) if slower => lines.push(
            "Next: `dspark profile --again` on an idle machine, because `scheduled` relies on its measurement of step costs."
                .to_owned(),
        ),
        EvaluationMode::Served(Mode::Scheduled) => lines.push(
            "`dspark serve` loses no speed with this draft: by default it drafts only while that pays.".to_owned(),
        ),
        _ => lines.push(
            "Next: `deepspec evaluate --mode scheduled` measures what `dspark serve` does by default, which verifies fewer tokens and \
             stops drafting while it does not pay."
                .to_owned(),
        ),
    }
    if circumstances.uncalibrated {
        lines.push("`deepspec calibrate` makes the confidences that `scheduled` relies on more accurate.".to_owned());
    }
    lines.push("How to raise acceptance: docs/low-acceptance.md.".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{RoundStatistics, SamplingMethod};

    /// A report of tasks: name, accepted length, speed-up.
    fn report(mode: &str, tasks: &[(&str, f64, Option<f64>)]) -> EvaluationReport {
        let task = |&(name, length, speedup): &(&str, f64, Option<f64>)| TaskReport {
            rounds: 10,
            plain_steps: if mode == "scheduled" { 90 } else { 0 },
            accepted_length: Some(length),
            tokens_per_second: speedup.map(|speedup| 100.0 * speedup),
            plain_tokens_per_second: speedup.map(|_| 100.0),
            ..TaskReport::new(name, 1, 20, &RoundStatistics::new(7))
        };
        EvaluationReport {
            target: "target".to_owned(),
            draft: "draft".to_owned(),
            mode: mode.parse().unwrap(),
            temperature: 0.0,
            seed: 0,
            sampling: SamplingMethod::Rejection,
            draft_heads: "int8".to_owned(),
            max_new_tokens: 20,
            tasks: tasks.iter().map(task).collect(),
        }
    }

    const UNKNOWN: Circumstances = Circumstances { training: None, on_cpu: true, uncalibrated: false };

    #[track_caller]
    fn expect(text: &str, has: &[&str], lacks: &[&str]) {
        for words in has {
            assert!(text.contains(words), "{words:?} is missing in {text}");
        }
        for words in lacks {
            assert!(!text.contains(words), "{words:?} should not be in {text}");
        }
    }

    #[test]
    fn a_faster_draft_needs_no_advice() {
        let text = verdict(&report("whole", &[("sums", 5.0, Some(2.0)), ("chat", 2.0, Some(1.25))]), UNKNOWN);
        assert_eq!(
            text,
            "Verdict: on this machine, with one request at a time and whole blocks verified, this draft speeds decoding up (sums \
             2.00x, chat 1.25x)."
        );
    }

    /// Five percent either way is a difference, four are none.
    #[test]
    fn small_differences_are_none() {
        let effect = |speedup: f64| {
            let text = verdict(&report("whole", &[("chat", 3.0, Some(speedup))]), UNKNOWN);
            ["speeds decoding up", "no clear difference", "slows decoding down"].map(|words| text.contains(words))
        };
        assert_eq!([1.04, 0.96].map(effect), [[false, true, false]; 2]);
        assert_eq!([1.06, 0.94].map(effect), [[true, false, false], [false, false, true]]);
    }

    /// First the facts, then the likely reasons, then what to do.
    #[test]
    fn facts_come_before_reasons_and_reasons_before_advice() {
        let slow = report("scheduled", &[("chats", 1.1, Some(0.8)), ("code", 2.0, Some(0.9))]);
        let text = verdict(&slow, Circumstances { uncalibrated: true, ..UNKNOWN });
        let starts = [
            "Verdict: ",
            "The scheduler drafted in 20 of 200 steps",
            "The target rejects most drafted tokens: accepted length 1.10",
            "Tokens are accepted (accepted length: code 2.00)",
            "Next: `dspark profile --again`",
            "`deepspec calibrate` ",
            "How to raise acceptance: ",
        ];
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), starts.len(), "{text}");
        assert!(lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
    }

    #[test]
    fn without_a_plain_run_there_is_no_verdict_on_speed() {
        let text = verdict(&report("whole", &[("sums", 5.0, None)]), UNKNOWN);
        expect(&text, &["none on speed", "was not measured"], &["speeds", "Next"]);
    }

    #[test]
    fn a_slow_draft_of_low_acceptance_gets_its_training_named() {
        let slow = report("whole", &[("chats", 1.07, Some(0.47))]);
        let known = Circumstances { training: Some((30, 49)), ..UNKNOWN };
        let text = verdict(&slow, known);
        let has = ["slows decoding down (chats 0.47x)", "accepted length 1.07", "had 30) or conversations (49)"];
        expect(&text, &has, &["Tokens are accepted", "calibrate"]);
        expect(&text, &["did not write itself", "--mode scheduled", "docs/low-acceptance.md"], &["profile"]);
        expect(&verdict(&slow, UNKNOWN), &["few training steps or conversations,"], &["had"]);
    }

    #[test]
    fn accepted_tokens_that_do_not_pay_are_put_down_to_the_cost_of_passes() {
        let slow =
            report("whole", &[("sums", 5.58, Some(1.07)), ("code", 2.36, Some(0.56)), ("chat", 1.74, Some(1.0))]);
        let text = verdict(&slow, Circumstances { uncalibrated: true, ..UNKNOWN });
        let effects = "speeds decoding up (sums 1.07x), makes no clear difference (chat 1.00x) and slows decoding down (code 0.56x).";
        expect(&text, &[effects, "code 2.36, chat 1.74), but on a CPU", "deepspec calibrate"], &["rejects most"]);
        let gpu = Circumstances { on_cpu: false, ..UNKNOWN };
        expect(&verdict(&slow, gpu), &["cost more time"], &["CPU", "calibrate"]);
    }

    #[test]
    fn scheduled_says_how_often_it_drafted_and_loses_nothing() {
        let text = verdict(&report("scheduled", &[("chats", 1.1, Some(0.99))]), UNKNOWN);
        expect(&text, &["mode `scheduled`", "drafted in 10 of 100 steps", "loses no speed"], &["--again", "--mode"]);
        let text = verdict(&report("scheduled", &[("chats", 1.1, Some(0.8))]), UNKNOWN);
        expect(&text, &["slows decoding down", "dspark profile --again"], &["loses no speed", "--mode"]);
    }
}
