//! `dspark device` as a program, on the CPU.

use std::process::{Command, Output};

use serde_json::Value;

fn device(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dspark")).arg("device").args(arguments).output().unwrap()
}

#[test]
fn the_cpu_passes_its_checks_and_products_are_timed() {
    let output = device(&["--products", "--sizes", "32x48x64,7x5x3", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["device"], "cpu");
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 3, "{report:#}");
    assert!(checks.iter().all(|check| check["passed"] == true), "{report:#}");
    let products = report["products"].as_array().unwrap();
    let of = |product: &Value| {
        (product["size"].as_str().unwrap().to_owned(), product["type"].as_str().unwrap().to_owned())
    };
    let expected = [("32x48x64", "f32"), ("32x48x64", "bf16"), ("7x5x3", "f32"), ("7x5x3", "bf16")];
    assert_eq!(products.iter().map(of).collect::<Vec<_>>(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(products.iter().all(|product| product["teraflops"].as_f64().unwrap() > 0.0), "{report:#}");
}

#[test]
fn without_json_it_reads_as_a_table() {
    let output = device(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("device   cpu: "), "{text}");
    assert!(text.contains("a softmax in f32") && text.contains("right") && !text.contains("WRONG"), "{text}");
    assert!(!text.contains("TFLOP"), "{text}");
}

#[test]
fn nonsense_is_refused() {
    for (arguments, words) in [
        (vec!["--products", "--sizes", "12x12"], "expected MxKxN"),
        (vec!["--sizes", "12x12x12"], "--products"),
        (vec!["--device", "gpu"], "unknown device `gpu`"),
    ] {
        let output = device(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{text}");
    }
}
