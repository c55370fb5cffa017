"""Renders the conversations of the cases with the `transformers` package.

    pip install transformers==5.10.2 jinja2
    python make_golden.py                         # writes golden.json
    python make_golden.py --tokenizers DIR        # writes DIR/ids.json too

DIR holds a folder for each model, with its `tokenizer.json` and `tokenizer_config.json`. README.md says where they come from.

For every assistant message, `golden.json` has the messages before it with the generation prompt ("context") and the messages up
to and with it ("turn"), or null where the template refuses them. `ids.json` has the ids of the same renderings.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
SHARED = HERE / "../../../dspark-runtime/tests/golden/templates"
MODELS = ["smollm2", "qwen2_5", "qwen3", "llama3_1", "gemma3", "deepseek_v3"]


def template(name):
    for folder in (HERE / "templates", SHARED):
        path = folder / f"{name}.jinja"
        if path.exists():
            return path.read_bytes().decode()
    raise SystemExit(f"there is no template {name}")


def read_case(path):
    """Returns the fields of a case that come before its samples."""
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    fields = dict(line.split(" ", 1) for line in header.splitlines())
    row = json.loads(fields["row"])
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = json.loads(tools)
    arguments = json.loads(fields.get("arguments", "{}"))
    if tools:
        arguments["tools"] = tools
    return fields["template"], row["messages"], arguments


def renderings(messages, arguments, render):
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        entry = {"message": index}
        for name, part, prompt in (("context", messages[:index], True), ("turn", messages[: index + 1], False)):
            try:
                entry[name] = render(part, add_generation_prompt=prompt, **arguments)
            except Exception:  # every kind of refusal: the template's own, and those of Python
                entry[name] = None
        yield entry


def main():
    cli = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cli.add_argument("--tokenizers", type=Path, metavar="DIR", help="folder with the models' tokenizers")
    args = cli.parse_args()
    tokens = json.loads((HERE / "templates/tokens.json").read_text(encoding="utf-8"))
    golden, ids = {}, {}
    for path in sorted((HERE / "cases").glob("*.txt")):
        name, messages, arguments = read_case(path)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=template(name), **tokens[name]["variables"]
        )
        # A long case shows its limit; its first turns are enough.
        short = messages[:8]
        render = lambda part, **kwargs: tokenizer.apply_chat_template(part, tokenize=False, **kwargs)
        golden[path.stem] = list(renderings(short, arguments, render))
        if args.tokenizers and name in MODELS:
            full = PreTrainedTokenizerFast.from_pretrained(args.tokenizers / name)
            full.chat_template = template(name)
            encode = lambda part, **kwargs: full.apply_chat_template(part, tokenize=True, return_dict=False, **kwargs)
            ids[path.stem] = list(renderings(short, arguments, encode))
    text = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
    (HERE / "golden.json").write_text(text, encoding="utf-8")
    if args.tokenizers:
        (args.tokenizers / "ids.json").write_text(json.dumps(ids), encoding="utf-8")


if __name__ == "__main__":
    main()
