//! Chat templates of models that nobody should have downloaded, run as the binaries run them: in a process of their own.

#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dspark_runtime::text::{ChatTemplate, TextError, render_templates_with};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const DSPARK: &str = env!("CARGO_BIN_EXE_dspark");

/// Compares two values for longer than anybody waits, in one instruction.
const SPIN: &str = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                    {% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}";
/// Overflows the stack.
const CRASH: &str = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}";

fn template(source: &str) -> Result<ChatTemplate, TextError> {
    render_templates_with(Path::new(DSPARK));
    ChatTemplate::new("hostile.jinja", source, &Map::new())
}

fn render(source: &str) -> Result<String, TextError> {
    template(source)?.render(&[json!({"role": "user", "content": "x"})], &Map::new(), true)
}

fn repeated(part: &str, count: usize) -> String {
    part.repeat(count)
}

/// The limit that a template met.
#[track_caller]
fn limit(source: &str) -> String {
    match render(source) {
        Err(TextError::TemplateLimit { name, limit }) if name == "hostile.jinja" => limit,
        other => panic!("{other:?}: {}", &source[..source.len().min(100)]),
    }
}

#[test]
fn memory_is_bounded() {
    let grow =
        |step: &str| format!("{{% set ns = namespace(x='x') %}}{{% for i in range(60) %}}{step}{{% endfor %}}");
    for source in [
        grow("{% set ns.x = ns.x ~ ns.x %}") + "{{ ns.x | length }}",
        grow("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        grow("{% set ns.x = [ns.x, ns.x] %}") + "{{ (ns.x | tojson) | length }}",
        format!("{{% set x = 'xxxxxxxx' %}}{}", repeated("{% set x = x ~ x %}", 60)),
        "{% macro m() %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endmacro %}{{ m() | length }}"
            .into(),
        "{{ '%999999999999d' | format(1) }}".to_owned(),
        "{{ ('x\n' * 1000000) | indent(99999999) }}".to_owned(),
        "{{ range(99999) | join('y' * 1000000) }}".to_owned(),
        "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}".to_owned(),
        "{{ [1] | tojson(indent=99999999999) }}".to_owned(),
        "{{ range(99999) | slice(9999999999) | list | length }}".to_owned(),
        "{{ ('a' * 100000000).split('a') | length }}".to_owned(),
        "{% for i in range(999) %}{{ (range(99999) | list * 200) | sort | length }}{% endfor %}".to_owned(),
    ] {
        // A busy machine may need too long to get there.
        let limit = limit(&source);
        assert!(
            ["needed more than 512 MiB of memory", "ran for more than 5 s"].contains(&&*limit),
            "{limit}: {source}"
        );
    }
}

#[test]
fn depth_is_bounded() {
    let nest = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(99999) %}}{{% for j in range(9) %}}{{% set ns.x = {step} %}}\
             {{% endfor %}}{{% endfor %}}"
        )
    };
    for source in [
        CRASH.to_owned(),
        nest("[]", "[ns.x]"),
        nest("[]", "[ns.x]") + "{{ ns.x }}",
        nest("{}", "{'a': ns.x}") + "{{ ns.x | string }}",
        // The compiler goes this deep, or what drops the result.
        format!("{{{{ 1{} }}}}", repeated("+1", 400_000)),
        format!("{{{{ a{} }}}}", repeated(".a", 400_000)),
        format!("{{{{ 1{} }}}}", repeated("|abs", 400_000)),
        format!("{{{{ {} 1 }}}}", repeated("not ", 400_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", repeated("{% elif 0 %}", 200_000)),
    ] {
        assert_eq!(limit(&source), "nested values or expressions too deeply");
    }
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}".to_owned(),
        "{% set ns = namespace(x={}) %}{% for i in range(9999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x | tojson }}"
            .to_owned(),
        format!("{{{{ {}{} }}}}", repeated("(", 100_000), repeated(")", 100_000)),
        repeated("{% if 1 %}", 100_000),
        repeated("{% for a in range(9) %}", 100_000),
    ] {
        let error = render(&source).unwrap_err().to_string();
        assert!(error.starts_with("chat template hostile.jinja") && error.contains("line 1"), "{error}");
    }
}

#[test]
fn time_and_text_are_bounded() {
    assert_eq!(limit(SPIN), "ran for more than 5 s");
    // A slow machine runs into the limit of time first.
    let stopped = |source: &str| {
        let limit = limit(source);
        assert!(["executed more than 50000000 instructions", "ran for more than 5 s"].contains(&&*limit), "{limit}");
    };
    let nested = (0..12).map(|depth| format!("{{% for a{depth} in range(999) %}}")).collect::<String>();
    let nested = nested + &repeated("{% endfor %}", 12);
    stopped(&nested);
    let calls = "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}";
    stopped(calls);
    for long in [
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ ('a' * 100000) | replace('', 'b' * 1000) }}",
    ] {
        assert_eq!(limit(long), "wrote more than 8388608 bytes of text");
    }
}

#[test]
fn the_next_rendering_works() {
    let source = format!(
        "{{% if messages[0].content == 'spin' %}}{SPIN}{{% elif messages[0].content == 'crash' %}}{CRASH}{{% else %}}\
         {{{{ messages[0].content }}}}{{% endif %}}"
    );
    let template = template(&source).unwrap();
    let render = |content: &str| template.render(&[json!({"content": content})], &Map::new(), true);
    for content in ["crash", "spin", "crash"] {
        assert!(matches!(render(content), Err(TextError::TemplateLimit { .. })), "{content}");
        assert_eq!(render("fine").unwrap(), "fine");
    }
    // Several threads render at the same time.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for number in 0..50 {
                    let content = format!("{thread} {number}");
                    assert_eq!(render(&content).unwrap(), content);
                }
            });
        }
    });
}

#[test]
fn numbers_and_errors_get_through_unchanged() {
    let numbers = json!([
        0.1,
        2.0,
        -0.0,
        1e300,
        5e-324,
        0.30000000000000004,
        1.7976931348623157e308,
        123456789.12345679,
        18446744073709551615_u64,
        -9223372036854775808_i64,
        8.41e21,
        9007199254740993.0
    ]);
    let arguments = json!({"numbers": numbers});
    let text = template("{{ numbers | tojson }}").unwrap().render(&[], arguments.as_object().unwrap(), true).unwrap();
    let back: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        text,
        "[0.1, 2.0, -0.0, 1e+300, 5e-324, 0.30000000000000004, 1.7976931348623157e+308, 123456789.12345679, \
                      18446744073709551615, -9223372036854775808, 8.41e+21, 9007199254740992.0]",
        "{back}"
    );
    let refused = render("first\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(refused.to_string(), "chat template hostile.jinja, line 2: invalid operation: roles must alternate");
    let broken = template("a\nb\n{% if %}").unwrap_err().to_string();
    assert!(broken.starts_with("chat template hostile.jinja, line 3:"), "{broken}");
}

/// The process that asks may be killed while one that renders never ends.
#[test]
fn a_renderer_ends_with_the_process_that_asks() {
    let mut command = Command::new(DSPARK);
    // As the binaries start one.
    command.arg("--internal-render-chat-templates").env("MIMALLOC_ARENA_RESERVE", "16MiB");
    let mut renderer = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut questions = renderer.stdin.take().unwrap();
    let compile = json!({"Compile": [format!("{{% if messages %}}{SPIN}{{% endif %}}ready"), {}]});
    let render = |messages: Value| json!({"Render": [messages, {}, true]});
    for question in [compile, render(json!([])), render(json!([1]))] {
        questions.write_all(&rmp_serde::to_vec(&question).unwrap()).unwrap();
    }
    let mut replies = renderer.stdout.take().unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"ready") {
        let mut byte = [0];
        replies.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    // It is in the last question now, or about to be.
    drop(questions);
    assert!(renderer.wait().unwrap().success());
}

fn quickstart_target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/quickstart-target")
}

/// The quickstart's target with another chat template.
fn target(template: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(quickstart_target()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

/// A server that is killed when a test fails.
struct Serving {
    process: Child,
    address: String,
}

impl Serving {
    fn start(target: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(DSPARK);
        command
            .args(["serve", "--port", "0", "--served-model-name", "tiny"])
            .arg("--target")
            .arg(target)
            .args(arguments);
        let mut process = command.env_remove("DSPARK_API_KEY").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("serving tiny on http://").and_then(|url| url.strip_suffix("/v1"));
        Self { process, address: address.unwrap_or_else(|| panic!("{line:?}")).to_owned() }
    }

    fn ask(&self, content: &Value, stream: bool) -> String {
        let body = json!({
            "model": "tiny", "max_tokens": 2, "temperature": 0, "stream": stream,
            "stream_options": stream.then(|| json!({"include_usage": true})),
            "messages": [{"role": "user", "content": content}],
        });
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "host: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}",
            body.len()
        );
        write!(stream, "POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_server_answers_the_next_request() {
    let source = format!(
        "{{% if 'boom' in messages[0].content %}}{CRASH}{{% elif 'spin' in messages[0].content %}}{SPIN}{{% endif %}}\
         <|im_start|>user\n{{{{ messages[0].content }}}}<|im_end|>\n<|im_start|>assistant\n"
    );
    let folder = target(&source);
    let server = Serving::start(folder.path(), &[]);
    let ask = |content: &str| server.ask(&json!(content), false);
    assert!(ask("2+3=").starts_with("HTTP/1.1 200"));
    let reply = ask("boom");
    assert!(
        reply.starts_with("HTTP/1.1 400") && reply.contains("nested values or expressions too deeply"),
        "{reply}"
    );
    assert!(ask("2+3=").starts_with("HTTP/1.1 200"));
    // As many as threads that read prompts; others wait for them, and no longer.
    std::thread::scope(|scope| {
        let spinning = [0, 1].map(|_| scope.spawn(|| ask("spin")));
        assert!(ask("2+3=").starts_with("HTTP/1.1 200"));
        for thread in spinning {
            let reply = thread.join().unwrap();
            assert!(reply.starts_with("HTTP/1.1 400") && reply.contains("ran for more than 5 s"), "{reply}");
            assert!(reply.contains("chat_template.jinja"), "{reply}");
        }
    });
}

/// The number of prompt tokens says what became of a special token in a message.
#[test]
fn a_server_encodes_messages_as_plain_text() {
    let prompt_tokens = |reply: &str| {
        let (_, rest) = reply.split_once("\"prompt_tokens\":").unwrap_or_else(|| panic!("{reply}"));
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<usize>().unwrap()
    };
    let [default, plain] =
        [&[][..], &["--plain-user-text"]].map(|arguments| Serving::start(&quickstart_target(), arguments));
    let parts = json!([{"type": "text", "text": "a<|im_end|>"}, {"type": "text", "text": "<|im_start|>b"}]);
    for stream in [false, true] {
        let tokens = |server: &Serving, content: &Value| prompt_tokens(&server.ask(content, stream));
        assert_eq!(tokens(&default, &json!("2+3=")), tokens(&plain, &json!("2+3=")));
        assert!(tokens(&default, &parts) + 4 < tokens(&plain, &parts));
        assert_eq!(tokens(&plain, &parts), tokens(&plain, &json!("a<|im_end|>\n<|im_start|>b")));
    }
}

#[test]
fn the_command_line_names_template_and_limit() {
    let folder = target(SPIN);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(DSPARK);
        command.arg("generate").arg("--target").arg(folder.path()).args(["--prompt", "x", "--max-new-tokens", "2"]);
        let output = command.args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = run(&[]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("chat_template.jinja was stopped: it ran for more than 5 s"), "{message}");
    let (code, message) = run(&["--raw", "--plain-user-text"]);
    assert!(code == Some(2) && message.contains("--plain-user-text"), "{message}");
    assert_eq!(run(&["--raw"]).0, Some(0));
}
