#!/usr/bin/env python3
"""Decode three prompts greedily with dspark and with llama.cpp, and compare ids and accepted drafts per round.

    gguf_peer.py TARGET_DIR DRAFT_DIR TARGET_GGUF DRAFT_GGUF

The two files are `deepspec export --layout gguf` of the two folders. DSPARK and LLAMA name the programs (default:
target/release/dspark, llama-speculative-simple). Needs the package `tokenizers`. Prints a line of JSON per prompt and exits
with 1 if anything differs. The prompts are for a target with SmolLM2's chat template.
"""

import json
import os
import re
import subprocess
import sys
from itertools import takewhile

from tokenizers import Tokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHAT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    CHAT % "Explain how a sailing boat can move against the wind.",
    CHAT % "Write a Python function that returns the prime numbers below n, and explain it.",
    "The history of the lighthouse begins in Egypt, where",
]
TOKENS = 128
CANDIDATE = re.compile(r"draft candidate +0, pos +(\d+): +(\d+) ")
ROUND = re.compile(r"accepted (\d+)/(\d+) draft tokens, the last target token is: \((\d+)\)")


def dspark(target: str, draft: str, prompt: str) -> dict:
    command = [os.environ.get("DSPARK", "target/release/dspark"), "generate", "--target", target, "--draft", draft]
    command += ["--raw", "--prompt", prompt, "--max-new-tokens", str(TOKENS), "--ignore-stop", "--json"]
    command += ["--draft-heads", "exact"]  # proposals in 8 bits would be others than llama.cpp's
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def llama(target: str, draft: str, block_size: int, prompt: str) -> tuple[list[int], list[int]]:
    """Ids after the prompt, and accepted drafts of each round."""
    command = [os.environ.get("LLAMA", "llama-speculative-simple"), "-m", target, "-md", draft]
    command += ["--spec-type", "draft-dspark", "--spec-draft-n-max", str(block_size), "-p", prompt]
    command += ["-n", str(TOKENS - 1), "--temp", "0", "-fa", "off", "-ctk", "f32", "-ctv", "f32"]
    command += ["-ctkd", "f32", "-ctvd", "f32", "-t", "2", "-c", "1024", "-lv", "6", "--no-spec-draft-backend-sampling"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    ids, counts, drafted = [], [], {}
    for line in (done.stdout + done.stderr).splitlines():
        if match := CANDIDATE.search(line):
            drafted[int(match[1])] = int(match[2])
        elif match := ROUND.search(line):
            ids += [drafted[slot] for slot in range(int(match[1]))] + [int(match[3])]
            counts.append(int(match[1]))
            drafted = {}
    return ids, counts


def equal(ours: list[int], theirs: list[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs))))


def main() -> int:
    target, draft, target_gguf, draft_gguf = sys.argv[1:5]
    tokenizer = Tokenizer.from_file(f"{target}/tokenizer.json")
    with open(f"{draft}/config.json", encoding="utf-8") as file:
        block_size = json.load(file)["block_size"]
    failed = False
    for prompt in PROMPTS:
        ours = dspark(target, draft, prompt)
        first = tokenizer.decode(ours["ids"][:1], skip_special_tokens=False)
        if tokenizer.encode(prompt + first).ids != ours["prompt_ids"] + ours["ids"][:1]:
            raise SystemExit("the first token does not survive as text; choose another prompt")
        ids, counts = llama(target_gguf, draft_gguf, block_size, prompt + first)
        ids = ours["ids"][:1] + ids
        own_counts = [committed - 1 for committed in ours["accepted_lengths"]]
        # The last round of either side is cut to what is left.
        rounds = min(len(own_counts), len(counts)) - 1
        result = {
            "ids": len(ours["ids"]),
            "equal_ids": equal(ours["ids"], ids),
            "rounds": rounds,
            "equal_rounds": equal(own_counts[:rounds], counts[:rounds]),
            "accepted_drafts": sum(own_counts[:rounds]),
        }
        print(json.dumps(result), flush=True)
        failed |= result["ids"] != result["equal_ids"] or rounds != result["equal_rounds"]
    return int(failed)


sys.exit(main())
