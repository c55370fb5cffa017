//! Checkpoints: what they hold, which are kept, and what becomes of damaged ones.

use super::*;

/// Two runs, and one that was interrupted: all files but the clock, the TensorBoard files and the speeds in the log.
#[test]
fn equal_runs_write_equal_bytes() {
    let models = models();
    let samples = Samples { validation: samples(2, |_| true).into(), ..training(5) };
    let optimizer = OptimizerSettings { muon: true, ..settings(6).optimizer };
    let settings = TrainSettings { optimizer, validate_every: 2, checkpoint_every: 2, ..settings(6) };
    let roots = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let runs = [0, 1, 2].map(|run| Run { models: &models, samples: &samples, folder: roots[run].path() });
    for run in &runs[..2] {
        run.train(settings.clone(), false).unwrap();
    }
    // As a killed process leaves it.
    runs[2].train(settings.clone(), false).unwrap();
    fs::remove_dir_all(runs[2].checkpoints().path(6)).unwrap();
    let report = runs[2].train(settings.clone(), true).unwrap();
    let log = |run: &Run<'_>| -> Vec<Value> {
        let text = fs::read_to_string(run.folder.join("metrics.jsonl")).unwrap();
        let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("train/tokens_per_second")));
        rows
    };
    for other in &runs[1..] {
        let (one, other_folder) = (runs[0].checkpoints().path(6), other.checkpoints().path(6));
        assert_eq!(entries(&one), ["config.json", "model.safetensors", "optimizer.bpk", "state.json"]);
        for file in entries(&one) {
            assert!(fs::read(one.join(&file)).unwrap() == fs::read(other_folder.join(&file)).unwrap(), "{file}");
        }
        assert_eq!(log(&runs[0]), log(other));
    }
    // A run that is continued after its last step reports what it reported then.
    let again = runs[0].train(settings, true).unwrap();
    assert_eq!((again.last, again.best), (report.last, report.best));
}

/// A file and what happens to it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

/// Whatever happens to a file of the newest checkpoint, the run goes on from the one before and ends as it ended.
#[test]
fn a_damaged_checkpoint_is_set_aside_for_the_one_before() {
    let models = models();
    let samples = training(4);
    let whole = tempfile::tempdir().unwrap();
    let whole = Run { models: &models, samples: &samples, folder: whole.path() };
    whole.train(settings(3), false).unwrap();
    let flip = |position: usize| {
        move |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            let position = position.min(bytes.len() - 1);
            bytes[position] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    };
    let cut = |path: &Path| {
        let length = fs::metadata(path).unwrap().len();
        fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
    };
    let damages: [Damage<'_>; 9] = [
        ("model.safetensors", &flip(usize::MAX)),
        ("model.safetensors", &cut),
        ("optimizer.bpk", &flip(usize::MAX)),
        ("optimizer.bpk", &|path| fs::remove_file(path).unwrap()),
        ("config.json", &flip(30)),
        ("state.json", &|path| fs::write(path, "garbage").unwrap()),
        ("state.json", &cut),
        ("state.json", &|path| fs::remove_file(path).unwrap()),
        // A number that only the checksum protects.
        ("state.json", &|path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replacen("\"ce_loss\": ", "\"ce_loss\": 1", 1)).unwrap();
        }),
    ];
    for (file, damage) in damages {
        let root = tempfile::tempdir().unwrap();
        let run = Run { models: &models, samples: &samples, folder: root.path() };
        for step in [2, 3] {
            let (from, to) = (whole.checkpoints().path(step), run.checkpoints().path(step));
            fs::create_dir_all(&to).unwrap();
            for name in entries(&from) {
                fs::copy(from.join(&name), to.join(&name)).unwrap();
            }
        }
        damage(&run.checkpoints().path(3).join(file));
        run.train(settings(3), true).unwrap();
        assert!(run.weights(3) == whole.weights(3), "{file}");
        let names = entries(&run.folder.join("checkpoints"));
        assert_eq!(names, ["step-00000002", "step-00000003", "step-00000003.damaged"], "{file}");

        fs::remove_dir_all(run.checkpoints().path(2)).unwrap();
        damage(&run.checkpoints().path(3).join(file));
        let error = run.train(settings(3), true).unwrap_err();
        assert!(matches!(error, TrainError::AllDamaged { .. }), "{error}");
        assert!(error.to_string().contains(file) && error.to_string().contains("--restart"), "{error}");
    }
}

#[test]
fn a_state_that_is_not_its_folders_is_refused_at_once() {
    let models = models();
    let samples = training(4);
    let root = tempfile::tempdir().unwrap();
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    run.train(settings(3), false).unwrap();
    let path = run.checkpoints().path(3).join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    for step in ["2", "400", "1099511627776", "18446744073709551615"] {
        fs::write(&path, text.replacen("\"step\": 3", &format!("\"step\": {step}"), 1)).unwrap();
        let error = run.train(settings(3), true).unwrap_err().to_string();
        assert!(error.contains(&format!("state.json: `step` is {step}")), "{error}");
    }
}

/// The best checkpoint is the one that is exported: its damage is found even when the newest is intact.
#[test]
fn a_damaged_best_checkpoint_is_named() {
    let models = models();
    let samples = training(4);
    let root = tempfile::tempdir().unwrap();
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    let optimizer = Optimizer::new(&settings(1).optimizer);
    let best = Some(Best { step: 1, tau_probabilistic: 2.0 });
    for step in [1, 2] {
        let state = TrainingState { step, best, ..TrainingState::new(&course(5)) };
        run.checkpoints().save(&models.1, &optimizer, &state).unwrap();
    }
    fs::remove_file(run.checkpoints().path(1).join("model.safetensors")).unwrap();
    let error = run.train(settings(4), true).unwrap_err();
    assert!(
        matches!(error, TrainError::BestDamaged { .. }) && error.to_string().contains("step-00000001"),
        "{error}"
    );
}

/// States of earlier versions: without settings and checksums, with the time.
#[test]
fn checkpoints_of_earlier_versions_are_read() {
    let models = models();
    let samples = training(4);
    let roots = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let runs = [0, 1].map(|run| Run { models: &models, samples: &samples, folder: roots[run].path() });
    for run in &runs {
        run.train(settings(3), false).unwrap();
        fs::remove_dir_all(run.checkpoints().path(3)).unwrap();
    }
    let path = runs[1].checkpoints().path(2).join("state.json");
    let earlier = json!({"step": 2, "digest": "told by settings", "best": null, "seconds": 100.5});
    fs::write(path, earlier.to_string()).unwrap();
    fs::remove_file(runs[1].folder.join("clock.json")).unwrap();
    let other = runs[1].train(settings(3), true).unwrap_err().to_string();
    assert!(other.contains("made with other settings") && other.contains("unknown which ones"), "{other}");
    runs[0].train(settings(3), true).unwrap();
    let report = train(TrainJob {
        target: &models.0,
        cache: None,
        draft: models.1.clone(),
        samples: &samples,
        settings: settings(3),
        run: RunFolder {
            course: Course { earlier_digest: Some("told by settings".to_owned()), ..course(5) },
            ..run_folder(runs[1].folder, true)
        },
        interrupter: Interrupter::new(),
    });
    assert!(report.unwrap().seconds > 100.5);
    assert!(runs[0].weights(3) == runs[1].weights(3));
}

#[test]
fn the_newest_and_the_best_checkpoint_are_kept() {
    let (target, draft) = models();
    let root = tempfile::tempdir().unwrap();
    let checkpoints = TrainingCheckpoints::new(root.path().join("checkpoints"), 2);
    let optimizer = Optimizer::new(&settings(1).optimizer);
    let best = Some(Best { step: 2, tau_probabilistic: 1.5 });
    let state = |step: u64| TrainingState {
        step,
        best: best.filter(|best| best.step <= step),
        ..TrainingState::new(&course(5))
    };
    for step in 1..=5 {
        checkpoints.save(&draft, &optimizer, &state(step)).unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [2, 4, 5]);

    // What a killed process leaves is no checkpoint, and goes. Files of the user's stay.
    let folder = root.path().join("checkpoints");
    let left = [
        ".step-00000006.partial",
        ".step-00000007.a1B2c3.partial",
        ".removed-00000001",
        // Killed after its last file.
        ".removed-00000003",
        "step-00000004.bak",
    ];
    for name in left {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::write(folder.join("step-00000004.bak/model.safetensors"), "mine").unwrap();
    fs::write(folder.join(".removed-00000001/notes.txt"), "mine").unwrap();
    fs::write(folder.join(".notes"), "mine").unwrap();
    fs::create_dir(folder.join("step-99999999999999999999")).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [2, 4, 5]);
    checkpoints.tidy(&state(5)).unwrap();
    let mine = [".notes", "step-00000001", "step-00000004.bak", "step-99999999999999999999"];
    let ours = ["step-00000002", "step-00000004", "step-00000005"];
    let mut expected = [&mine[..], &ours].concat();
    expected.sort_unstable();
    assert_eq!(entries(&folder), expected);

    let load = |course: &Course, steps| checkpoints.load_newest(&target, &optimizer, course, steps);
    let (_, _, newest) = load(&course(5), 5).unwrap().unwrap();
    assert_eq!(TrainingState { files: Default::default(), ..newest }, state(5));
    let other = load(&course(6), 5).err().unwrap().to_string();
    assert!(
        other.contains("made with other settings") && other.contains("`train.seed` is 6, the run has 5"),
        "{other}"
    );
    let beyond = load(&course(5), 4).err().unwrap().to_string();
    assert!(beyond.contains("step-00000005: `step` is 5, but the run has 4 steps"), "{beyond}");

    checkpoints.remove_all().unwrap();
    assert_eq!(entries(&folder), mine);
}

/// Names in a folder, sorted.
fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn the_report_names_the_best_checkpoint() {
    let models = models();
    let samples = Samples { validation: samples(2, |_| true).into(), ..training(4) };
    let root = tempfile::tempdir().unwrap();
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    let settings = TrainSettings { checkpoint_every: 100, keep_last: 1, validate_every: 2, ..settings(9) };
    let report = run.train(settings, false).unwrap();
    let best = report.best.unwrap();
    assert_eq!(report.checkpoint, run.checkpoints().path(best.step));
    let mut kept = vec![best.step, 9];
    kept.dedup();
    assert_eq!(run.steps(), kept);
    // The best of all validations in the log, the first of equals.
    let log = fs::read_to_string(root.path().join("metrics.jsonl")).unwrap();
    let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let measured: Vec<(u64, f64)> = rows
        .filter_map(|row| Some((row["step"].as_u64()?, row.get("validation/tau_probabilistic")?.as_f64()?)))
        .collect();
    let steps: Vec<u64> = measured.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [2, 4, 6, 8, 9]);
    let highest = measured.iter().map(|(_, tau)| *tau).fold(0.0, f64::max);
    let expected = measured.iter().find(|(_, tau)| *tau == highest).unwrap();
    assert_eq!((best.step, best.tau_probabilistic), *expected);
}

#[test]
fn a_best_checkpoint_that_nothing_beats_stays_the_best_of_a_continued_run() {
    let models = models();
    let samples = Samples { validation: samples(2, |_| true).into(), ..training(4) };
    let root = tempfile::tempdir().unwrap();
    let run = Run { models: &models, samples: &samples, folder: root.path() };
    let optimizer = Optimizer::new(&settings(1).optimizer);
    let best = Best { step: 2, tau_probabilistic: 99.0 };
    let state = TrainingState { step: 2, best: Some(best), ..TrainingState::new(&course(5)) };
    run.checkpoints().save(&models.1, &optimizer, &state).unwrap();
    let report = run.train(TrainSettings { keep_last: 1, validate_every: 1, ..settings(5) }, true).unwrap();
    assert_eq!((report.best, report.checkpoint), (Some(best), run.checkpoints().path(2)));
    assert_eq!(run.steps(), [2, 5]);
}
