use std::fs;

use super::super::costs::RequestCost;
use super::*;

fn probes(batch_tokens: &[usize], steps_per_second: &[f64]) -> StepCost {
    StepCost::Probes {
        batch_tokens: batch_tokens.to_vec(),
        steps_per_second: steps_per_second.to_vec(),
        per_request: None,
    }
}

fn identity() -> Identity {
    Identity {
        model: "0123abcd".into(),
        device: "cpu".into(),
        dtype: "f32".into(),
        threads: 2,
        version: "0.1.0".into(),
    }
}

fn table() -> SpsTable {
    let draft = DraftCost {
        requests: vec![1, 3, 4],
        slots: vec![1, 3],
        seconds: vec![vec![0.004, 0.008, 0.012], vec![0.006, 0.014, 0.022]],
        context_seconds: 0.0001,
    };
    SpsTable::new(probes(&[2, 4, 8], &[100.0, 80.0, 20.0]), 16, Some(draft), Some(identity()))
}

#[test]
fn a_table_survives_the_round_trip() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("sps.json");
    let additive = StepCost::Additive(AdditiveCost {
        bias_seconds: 0.01,
        requests: vec![1, 8],
        alpha_seconds: vec![0.0, 0.002],
        batch_tokens: vec![1, 64],
        theta_seconds: vec![0.001, 0.064],
    });
    for table in [table(), SpsTable::new(additive, 64, None, None)] {
        table.write(&path).unwrap();
        assert_eq!(SpsTable::read(&path).unwrap(), table);
    }
}

#[test]
fn between_probes_the_speed_is_that_of_the_probe_below() {
    let table = table();
    let speed = |tokens: usize| 1.0 / table.verify_seconds(1, tokens);
    assert_eq!(
        [1, 2, 3, 4, 7, 8, 1000].map(|tokens| speed(tokens).round()),
        [100.0, 100.0, 100.0, 80.0, 80.0, 20.0, 20.0]
    );
}

#[test]
fn drafting_is_linear_in_requests_and_slots_and_part_of_the_step() {
    let table = table();
    let drafting = |slots: usize| [0, 1, 2, 3, 4, 6].map(|r| (table.draft_seconds(r, slots) * 1e6).round());
    assert_eq!(drafting(1), [0.0, 4000.0, 6000.0, 8000.0, 12000.0, 20000.0]);
    assert_eq!(drafting(2), [0.0, 5000.0, 8000.0, 11000.0, 17000.0, 29000.0]);
    assert_eq!(drafting(3), [0.0, 6000.0, 10000.0, 14000.0, 22000.0, 38000.0]);
    assert_eq!(drafting(5)[1], 8000.0);
    assert_eq!(drafting(0), [0.0; 6]);
    assert!((table.curve(2, 1).steps_per_second(4) - 1.0 / (0.0125 + 0.006)).abs() < 1e-9);
    assert_eq!(table.plain_seconds(4), 0.0125);
}

#[test]
fn what_comes_with_requests_is_told_apart() {
    // A token takes 1 ms, a request 2: probes of 1, 2 and 4 requests, then of 4 with two tokens each.
    let cost = StepCost::Probes {
        batch_tokens: vec![1, 2, 4, 8],
        steps_per_second: [3.0, 6.0, 12.0, 16.0].map(|ms| 1000.0 / ms).to_vec(),
        per_request: Some(PerRequest {
            sample_requests: vec![1, 2, 4, 4],
            cost: RequestCost { requests: vec![1, 4], seconds: vec![0.002, 0.008] },
        }),
    };
    let table = SpsTable::new(cost, 8, None, None);
    for (requests, tokens, expected) in
        [(1, 1, 3), (1, 2, 4), (1, 6, 8), (2, 3, 7), (1, 8, 10), (2, 8, 12), (4, 4, 12), (4, 8, 16), (8, 8, 24)]
    {
        let got = (table.verify_seconds(requests, tokens) * 1e6).round() as u64;
        assert_eq!(got, expected * 1000, "{requests} requests, {tokens} tokens");
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("sps.json");
    table.write(&path).unwrap();
    assert_eq!(SpsTable::read(&path).unwrap(), table);
}

#[test]
fn the_price_is_in_plain_steps_and_infinite_where_nothing_can_pay() {
    let table = table();
    // Verifying two tokens takes 10 ms as one does, drafting 4 ms.
    assert!((table.price(1, 7, 100, &Experience::default()) - 0.4).abs() < 1e-9);
    assert_eq!(SpsTable::new(table.cost.clone(), 16, None, None).price(1, 7, 100, &Experience::default()), 0.0);
    // Two requests: four tokens take 12.5 ms for 10 and drafting one slot 6.
    assert!((table.price(2, 1, 100, &Experience::default()) - 0.85).abs() < 1e-9);
    assert_eq!(table.price(2, 1, 3, &Experience::default()), f64::INFINITY);
    // Four requests: eight tokens take 50 ms for 12.5; with blocks of 7 all 32 take as long.
    assert_eq!(table.price(4, 1, 100, &Experience::default()), f64::INFINITY);
    assert!(table.price(4, 7, 100, &Experience::default()).is_finite());
}

#[test]
fn rises_are_told() {
    assert!(table().rises().is_empty());
    let rises = SpsTable::new(probes(&[1, 2, 3], &[100.0, 109.0, 130.0]), 3, None, None).rises();
    assert_eq!(rises.iter().map(|rise| (rise.from, rise.to)).collect::<Vec<_>>(), [(2, 3)]);
    assert!(rises[0].to_string().contains("1.19 times"), "{}", rises[0]);
}

#[test]
fn a_table_of_something_else_is_refused() {
    let (table, path) = (table(), Path::new("sps.json"));
    let identity = identity();
    assert!(table.check_identity(path, &identity).is_ok());
    for (expected, words) in [
        (Identity { threads: 4, ..identity.clone() }, ["identity.threads", "expected 4, found 2"]),
        (Identity { model: "ffff".into(), ..identity.clone() }, ["identity.model", "expected \"ffff\""]),
    ] {
        let error = table.check_identity(path, &expected).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let anonymous = SpsTable::new(table.cost.clone(), 16, None, None);
    assert!(anonymous.check_identity(path, &identity).unwrap_err().to_string().contains("found nothing"));
}

#[test]
fn bad_tables_are_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("bad.json");
    for (text, words) in [
        ("{}", "field `sample_batch_tokens`"),
        (r#"{"sample_batch_tokens": [], "sample_steps_per_sec": [], "max_batch_tokens": 1}"#, "at least one"),
        (
            r#"{"sample_batch_tokens": [1, 1], "sample_steps_per_sec": [1, 1], "max_batch_tokens": 1}"#,
            "strictly increasing",
        ),
        (
            r#"{"sample_batch_tokens": [0, 1], "sample_steps_per_sec": [1, 1], "max_batch_tokens": 1}"#,
            "sample_batch_tokens",
        ),
        (
            r#"{"sample_batch_tokens": [1, 2], "sample_steps_per_sec": [1], "max_batch_tokens": 2}"#,
            "2 numbers above 0",
        ),
        (r#"{"sample_batch_tokens": [1, 2], "sample_steps_per_sec": [1, 0], "max_batch_tokens": 2}"#, "above 0"),
        (
            r#"{"sample_batch_tokens": [1, 2], "sample_steps_per_sec": [1, 1], "max_batch_tokens": 1}"#,
            "max_batch_tokens",
        ),
        (r#"{"sample_batch_tokens": [1, 2], "sample_steps_per_sec": [1, 1]}"#, "max_batch_tokens"),
        (
            r#"{"sample_batch_tokens": [1], "sample_steps_per_sec": [1], "max_batch_tokens": 1, "draft_requests": [1]}"#,
            "draft_slots",
        ),
        (
            r#"{"sample_batch_tokens": [1], "sample_steps_per_sec": [1], "max_batch_tokens": 1, "draft_requests": [1, 2],
                "draft_slots": [1], "draft_seconds": [[1]]}"#,
            "1 lists, one per entry of `draft_slots`, of 2 numbers",
        ),
        (
            r#"{"sample_batch_tokens": [1], "sample_steps_per_sec": [1], "max_batch_tokens": 1, "identity": {"model": "x"}}"#,
            "device",
        ),
        (r#"{"bias_seconds": 1, "bs_probes": [1], "alpha_seconds": [1], "m_probes": [1]}"#, "theta_seconds"),
    ] {
        fs::write(&path, text).unwrap();
        let error = SpsTable::read(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("bad.json"), "{text}: {error}");
    }
}
