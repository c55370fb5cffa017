#!/usr/bin/env python3
"""Compare the answers of two running `dspark serve` to many requests at once.

    same_text.py --ports 8080 8081 --prompts gsm8k.jsonl --requests 32

Half of the requests are greedy; the others have a temperature and a seed, and some of them filters. All are sent at the same
time, first to one server, then to the other, for example one with `--mode off` and one with `--mode scheduled`. Texts must be
equal. Where two greedy ones differ, the first different token is shown with the distance of the two likeliest tokens there:
nearly equal logits may change places when passes have different sizes. Exits with 1 if texts of seeded requests differ, or
greedy ones at a distance of 1e-3 or more. Needs Python alone.
"""

import argparse
import json
import sys
import threading
import urllib.request


def request(index: int, prompt: str, max_tokens: int) -> dict:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    body |= {"logprobs": True, "top_logprobs": 2, "temperature": 0}
    if index % 2:
        body |= {"temperature": [0.5, 0.8, 1.0][index % 3], "seed": 1000 + index}
    if index % 4 == 3:
        body |= {"top_p": 0.9, "top_k": 50}
    return body


def ask_all(port: int, bodies: list[dict]) -> list[dict]:
    answers: list[dict] = [{} for _ in bodies]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as response:
        model = json.load(response)["data"][0]["id"]

    def ask(index: int) -> None:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        headers = {"Content-Type": "application/json"}
        data = json.dumps(bodies[index] | {"model": model}).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=1800) as response:
            answers[index] = json.load(response)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(answers):
        sys.exit(f"port {port}: {sum(not answer for answer in answers)} of {len(answers)} requests failed")
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, nargs=2, required=True)
    parser.add_argument("--prompts", required=True, help="JSON lines with `turns`, or `question`")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    with open(arguments.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()][: arguments.requests]
    prompts = [row["turns"][0] if "turns" in row else row["question"] for row in rows]
    bodies = [request(index, prompt, arguments.max_tokens) for index, prompt in enumerate(prompts)]
    one, other = (ask_all(port, bodies) for port in arguments.ports)
    equal = close = wrong = drafted = tokens = 0
    for index, (a, b) in enumerate(zip(one, other)):
        drafted += b["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
        a, b = a["choices"][0], b["choices"][0]
        said = [[entry["token"] for entry in choice["logprobs"]["content"]] for choice in (a, b)]
        tokens += len(said[0])
        if a["message"]["content"] == b["message"]["content"] and said[0] == said[1]:
            equal += 1
            continue
        at = next((i for i, pair in enumerate(zip(*said)) if pair[0] != pair[1]), min(map(len, said)))
        top = [entry["logprob"] for entry in a["logprobs"]["content"][at]["top_logprobs"]] if at < len(said[0]) else []
        gap = top[0] - top[1] if len(top) == 2 else float("inf")
        alike = bodies[index]["temperature"] == 0 and gap < 1e-3
        close += alike
        wrong += not alike
        print(f"request {index}, token {at}: {said[0][at:at + 1]} and {said[1][at:at + 1]}, top two {gap:.5f} apart")
    print(
        f"{len(bodies)} requests, {tokens} tokens: {equal} equal, {close} that differ where two logits are all but equal, "
        f"{wrong} that differ otherwise; the second server accepted {drafted} drafted tokens"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
