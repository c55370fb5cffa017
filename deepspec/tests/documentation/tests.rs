//! The test's own parts.

use crate::commands::{calls, check, commands};
use crate::common::workspace;
use crate::page::{Page, Purpose};
use crate::script;

const TEXT: &str = r#"# A page

```sh
A=1 target/release/deepspec inspect \
    checkpoints/quickstart-target | grep "not # a comment" # dspark chat
```

```text
dspark output
```

```sh slow
cat > notes.txt <<'END'
dspark nonsense
END
cargo run --release -p deepspec -- train recipes/quickstart.toml && dspark bench > bench.txt
```
"#;

fn page(text: &str) -> Page {
    Page::parse("page.md", text).unwrap()
}

#[test]
fn calls_are_found_on_their_lines() {
    let page = page(TEXT);
    let purposes: Vec<Purpose> = page.blocks.iter().map(|block| block.purpose).collect();
    assert_eq!(purposes, [Purpose::Run, Purpose::Other, Purpose::Slow]);
    let found = |block: usize| -> Vec<(usize, String)> {
        calls(&page.blocks[block]).into_iter().map(|call| (call.line, call.words.join(" "))).collect()
    };
    assert_eq!(found(0), [(4, "deepspec inspect checkpoints/quickstart-target".to_owned())]);
    let slow = [(16, "deepspec train recipes/quickstart.toml".to_owned()), (16, "dspark bench".to_owned())];
    assert_eq!(found(2), slow);
    assert_eq!(commands(r#"a "b c" 2>&1 'd"' $(e f)"#), [vec!["a", "b c", "d\""], vec!["e", "f"]]);
}

#[test]
fn unlabelled_and_indented_commands_are_refused() {
    let refused = |text: &str| Page::parse("page.md", text).unwrap_err();
    assert!(refused("\n```\ndspark chat\n```\n").starts_with("page.md:2: unknown info string \"\""));
    assert!(refused("```bash\n```\n").contains("page.md:1: unknown info string \"bash\""));
    assert!(refused("Then:\n\n    dspark chat\n").starts_with("page.md:3: an indented command"));
    assert!(refused("```sh\nls\n").contains("without an end"));
}

#[test]
fn options_that_do_not_exist_are_refused() {
    let wrong = |line: &str, abbreviated: bool| {
        let words = commands(line).remove(0);
        check(&words, abbreviated).err().unwrap_or_default()
    };
    assert!(wrong("deepspec train r.toml --speed 3", false).contains("--speed"));
    assert!(wrong("dspark serve --target t --port many", false).contains("many"));
    assert!(wrong("dspark wait", true).contains("wait"));
    assert!(wrong("dspark serve", false).contains("--target"));
    assert_eq!(wrong("dspark serve", true), "");
    assert_eq!(wrong("deepspec train r.toml --plan", false), "");
}

#[test]
fn a_failure_names_page_line_and_command() {
    let root = workspace();
    let bad = page("# A page\n\n```sh\ntrue\n```\n\n```sh\nls recipes\nls no-such-file\n```\n");
    let error = script::run(&bad, &root, false).unwrap_err();
    assert!(error.starts_with("page.md: ") && error.contains("FAILED at line 9: ls no-such-file"), "{error}");
    let hangs = page("```sh\ndspark serve --target checkpoints/quickstart-target\n```\n");
    assert!(script::run(&hangs, &root, false).unwrap_err().starts_with("page.md:2: the server never ends"));
    let slow = page("```sh slow\nfalse\n```\n\n```sh manual\nfalse\n```\n");
    assert_eq!(script::run(&slow, &root, false), Ok(()));
    assert!(script::run(&slow, &root, true).is_err());
}

#[test]
fn servers_are_waited_for_and_ended() {
    let served = page(
        "# A page\n\n```sh\ndspark serve --target checkpoints/quickstart-target \\\n    --port 8000 &\n```\n\n```sh\n\
         exec 3<> /dev/tcp/127.0.0.1/8000\nprintf 'GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3\n\
         grep -q ' 200 ' <&3\n```\n",
    );
    assert_eq!(script::run(&served, &workspace(), false), Ok(()));
}
