"""Renders chat templates with the `transformers` package, as the golden answers of the runtime's own renderer.

    python make_chat_templates.py --smollm2 DIR --qwen2_5 DIR --qwen3 DIR [--out DIR]

Each DIR holds the model's `tokenizer.json` and `tokenizer_config.json`. Written into the output folder (default: this one):

    templates/NAME.jinja             the template, byte for byte
    templates/special_tokens.json    per template, the special tokens that a rendering can name
    chat_templates.json              [{"name", "template", "messages", "arguments", "rendered"}]

An argument that a case leaves out (`enable_thinking`, for one) is undefined in the template, which is not the same as false.
"""

import argparse
import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

TEMPLATES = ["smollm2", "qwen2_5", "qwen3"]
TEMPLATES_WITH_TOOLS = ["qwen2_5", "qwen3"]


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def tool(content):
    return {"role": "tool", "content": content}


def tool_call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


PLAIN = {
    "question": [user("What is 17 + 25?")],
    "system_prompt": [system("Answer in one word."), user("Which planet is the largest?")],
    "empty_system_prompt": [system(""), user("Hello")],
    "several_turns": [
        user("Name a prime number."),
        assistant("7"),
        user("A larger one, please."),
        assistant("104729"),
        user("Is it odd?"),
    ],
    "several_turns_with_system_prompt": [
        system("You write short answers."),
        user("Name a river."),
        assistant("The Danube."),
        user("Where does it end?"),
    ],
    "answered": [user("What is 17 + 25?"), assistant("42")],
    "late_system_message": [user("Hi"), assistant("Hello!"), system("Now speak French."), user("Hi again")],
    # Nothing may be stripped, escaped or taken for markup on its way through the template.
    "awkward_text": [
        system("  Keep <b>every</b> character & 'quote' \"too\".\n"),
        user("\n  Grüße, 世界 🦀\ttab\\n {{ not_a_variable }} {% not_a_tag %} <|im_end|>  \n\n"),
    ],
}

THINKING = {
    "thought_in_history": [
        user("What is 3 * 4?"),
        assistant("<think>\nThree fours are twelve.\n</think>\n\n12"),
        user("And twice that?"),
    ],
    "thought_in_last_answer": [
        user("What is 3 * 4?"),
        assistant("<think>\nThree fours are twelve.\n</think>\n\n12"),
    ],
    "thought_on_one_line": [user("2 + 2?"), assistant("<think>Easy.</think>4")],
    "empty_thought": [user("2 + 2?"), assistant("<think>\n\n</think>\n\n4")],
    "two_closing_marks": [user("Go on."), assistant("<think>a</think>b</think>\n\nc"), user("More.")],
    "reasoning_content": [
        user("2 + 2?"),
        assistant("\n4", reasoning_content="\nTwo and two.\n"),
    ],
    "reasoning_content_of_an_earlier_turn": [
        user("2 + 2?"),
        assistant("4", reasoning_content="Two and two."),
        user("3 + 3?"),
    ],
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a place <now> & later; don't guess.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "For example Zürich"},
                    "days": {"type": "integer", "default": 1},
                    "threshold": {"type": "number", "default": 0.5},
                    "metric": {"type": "boolean", "default": True},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
    },
]

TOOL_USE = {
    "tools_offered": [user("Will it rain in Zürich?")],
    "tools_offered_with_system_prompt": [system("Be brief."), user("Will it rain in Zürich?")],
    "tool_called": [
        user("Will it rain in Zürich?"),
        assistant("", tool_calls=[tool_call("weather", {"place": "Zürich", "days": 2, "threshold": 1.0})]),
        tool('{"rain": true}'),
    ],
    "two_tools_called_and_answered": [
        user("Rain and time?"),
        assistant("Let me look.", tool_calls=[tool_call("weather", {"place": "<Bern>"}), tool_call("now", {})]),
        tool("dry"),
        tool("12:00"),
        assistant("Dry, at noon."),
        user("Thanks"),
    ],
}


def conversations(template):
    """Every (case name, messages, further arguments) that `template` is rendered with, generation prompt aside."""
    for name, messages in PLAIN.items():
        yield name, messages, {}
    for name, messages in THINKING.items() if template == "qwen3" else ():
        yield name, messages, {}
    if template == "qwen3":
        for name in ["question", "several_turns_with_system_prompt"]:
            yield f"{name}/thinking", PLAIN[name], {"enable_thinking": True}
            yield f"{name}/no_thinking", PLAIN[name], {"enable_thinking": False}
        for name in ["thought_in_history", "thought_in_last_answer"]:
            yield f"{name}/thinking", THINKING[name], {"enable_thinking": True}
            yield f"{name}/no_thinking", THINKING[name], {"enable_thinking": False}
    if template in TEMPLATES_WITH_TOOLS:
        for name, messages in TOOL_USE.items():
            yield name, messages, {"tools": TOOLS}


def cases(template, tokenizer):
    for name, messages, further in conversations(template):
        for add_generation_prompt in (True, False):
            arguments = {"add_generation_prompt": add_generation_prompt, **further}
            yield {
                "name": f"{template}/{name}/{'prompt' if add_generation_prompt else 'no_prompt'}",
                "template": template,
                "messages": messages,
                "arguments": arguments,
                "rendered": tokenizer.apply_chat_template(messages, tokenize=False, **arguments),
            }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    cli = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for template in TEMPLATES:
        cli.add_argument(f"--{template}", type=Path, required=True, metavar="DIR", help="folder with its tokenizer")
    cli.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR", help="output folder")
    args = cli.parse_args()

    (args.out / "templates").mkdir(parents=True, exist_ok=True)
    rendered, special_tokens = [], {}
    for template in TEMPLATES:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(getattr(args, template))
        (args.out / "templates" / f"{template}.jinja").write_bytes(tokenizer.chat_template.encode())
        special_tokens[template] = {
            name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
        }
        rendered.extend(cases(template, tokenizer))
    write_json(args.out / "templates" / "special_tokens.json", special_tokens)
    write_json(args.out / "chat_templates.json", rendered)


if __name__ == "__main__":
    main()
