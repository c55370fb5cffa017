//! Chat templates render exactly as the `transformers` package renders them: `golden/chat_templates.json` holds
//! conversations with the text that it made of them, and `golden/templates` the templates.

use std::path::{Path, PathBuf};

use dspark_runtime::text::{ChatTemplate, render_templates_with};
use serde_json::Value;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn read_json(file: &str) -> Value {
    let path = golden(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn renderings_are_those_of_transformers() {
    let cases = read_json("chat_templates.json");
    let special_tokens = read_json("templates/special_tokens.json");
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    let executable = Path::new(env!("CARGO_BIN_EXE_dspark"));
    for (case, apart) in cases.iter().map(|case| (case, false)).chain(cases.iter().map(|case| (case, true))) {
        if apart {
            // As the binaries render: in a process of its own. On other systems than Unix this is the same again.
            render_templates_with(executable);
        }
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(golden(&format!("templates/{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(name, source, special_tokens[name].as_object().unwrap()).unwrap();

        let mut arguments = case["arguments"].as_object().unwrap().clone();
        let prompt = arguments.remove("add_generation_prompt").and_then(|value| value.as_bool());
        let messages = case["messages"].as_array().unwrap();
        let rendered = template.render(messages, &arguments, prompt.unwrap()).unwrap();
        assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{}", case["name"]);
    }
}
