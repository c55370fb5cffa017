"""Decodes greedily with the `transformers` package, in float32 on a CPU, as the golden answers of the runtime's own decoding.

    python make_greedy_ids.py MODEL_DIR [MODEL_DIR ...] [--out FILE] [--threads N]

A MODEL_DIR is named like a key of PROMPTS. Each prompt is continued by exactly NEW_TOKENS tokens, each the argmax of the
logits: a stop token is a token like any other. A model with a chat template gets its prompt as the only user message.

Two correct implementations differ by float noise, so a prompt on which the best token ever leads the second best by less than
LEAST_MARGIN logits proves nothing: it is refused, and another one has to be chosen.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NEW_TOKENS = 64
LEAST_MARGIN = 0.02

PROMPTS = {
    "stories260k": [
        "Once upon a time",
        "Tom and his mom went to the park.",
        "Tim had a red ball. He",
        "Ben liked to play with his toy car.",
    ],
    "stories15m": [
        "Once upon a time",
        "Lily saw a cat in the garden. The cat was",
        "The sun was hot and the boy wanted to swim.",
        "Ben liked to play with his toy car.",
    ],
    "smollm2-135m": [
        "What is the capital of France?",
        "Write a haiku about the sea.",
        "Name the planets of the solar system in order.",
        "Natalia has 12 apples and gives 5 of them away. How many are left? Explain step by step.",
    ],
    "qwen2.5-coder-1.5b": [
        "What is the capital of France?",
        "Write a haiku about the sea.",
        "Write a Python function that reverses a string.",
        "Write a Rust function that returns the larger of two integers.",
    ],
}


@torch.inference_mode()
def greedy(model, prompt_ids):
    """The next NEW_TOKENS argmax tokens, and the least lead that any of them had over the second best."""
    ids, least_margin = [], float("inf")
    inputs, cache = torch.tensor([prompt_ids]), None
    for _ in range(NEW_TOKENS):
        outputs = model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        best = outputs.logits[0, -1].topk(2)
        least_margin = min(least_margin, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
        inputs, cache = best.indices[:1].unsqueeze(0), outputs.past_key_values
    return ids, least_margin


def decode_prompt(tokenizer, model, text):
    messages = [{"role": "user", "content": text}] if tokenizer.chat_template else None
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) if messages else text
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=messages is None)
    ids, least_margin = greedy(model, prompt_ids)
    print(f"  margin {least_margin:.4f}: {text!r} -> {tokenizer.decode(ids)!r}", file=sys.stderr)
    return {
        "messages": messages,
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "ids": ids,
        "least_margin": round(least_margin, 6),
    }


def decode_model(folder):
    print(folder.name, file=sys.stderr)
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        weights_dtype = file.get_slice(next(iter(file.keys()))).get_dtype()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [decode_prompt(tokenizer, model, text) for text in PROMPTS[folder.name]]
    return {
        "model": folder.name,
        "weights_sha256": hashlib.file_digest(weights.open("rb"), "sha256").hexdigest(),
        "weights_dtype": weights_dtype,
        "prompts": prompts,
    }


def to_json(value):
    """Indented JSON with each list of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*(\d+(?:,\s*\d+)*)\s*\]", lambda numbers: "[" + " ".join(numbers[1].split()) + "]", text) + "\n"


def main():
    cli = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cli.add_argument("models", type=Path, nargs="+", metavar="MODEL_DIR")
    cli.add_argument("--out", type=Path, default=Path(__file__).with_name("greedy_ids.json"), metavar="FILE")
    cli.add_argument("--threads", type=int, default=1)
    args = cli.parse_args()
    torch.set_num_threads(args.threads)

    models = [decode_model(folder) for folder in args.models]
    for model in models:
        for prompt in model["prompts"]:
            if prompt["least_margin"] < LEAST_MARGIN:
                sys.exit(f"{model['model']}: {prompt['prompt']!r} is too close to call: margin {prompt['least_margin']}")
    golden = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "compute_dtype": "float32",
        "new_tokens": NEW_TOKENS,
        "models": models,
    }
    args.out.write_text(to_json(golden), encoding="utf-8")


if __name__ == "__main__":
    main()
