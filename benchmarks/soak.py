#!/usr/bin/env python3
"""Put mixed load on a running `dspark serve` and check that its memory does not grow.

    soak.py --port 8080 --pid PID --prompts gsm8k.jsonl --minutes 15 --clients 12

Every client sends one request after the other: streamed or not, at temperature 0 or above, with and without seed, stop
strings, log probabilities, several choices; some hang up in the middle. The server's resident memory is read every
second; every minute a line says how many requests were answered, and the median and the peak of that minute's readings.
Single readings vary, since a step's activations come and go. Exits with 1 if a request failed, or if the
median of any later minute is 2 % or more above that of the first minute after the first. Needs Python alone.
"""

import argparse
import http.client
import itertools
import json
import random
import statistics
import sys
import threading
import time


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


class Totals:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.answered = self.hung_up = self.tokens = 0
        self.failures: list[str] = []

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def fail(self, reason: str) -> None:
        with self.lock:
            self.failures.append(reason)


def served_model(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/models")
    name = json.loads(connection.getresponse().read())["data"][0]["id"]
    connection.close()
    return name


def body(dice: random.Random, prompts: list[str], model: str) -> dict:
    """A request of some kind."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": dice.choice(prompts)}],
        "max_tokens": dice.choice([8, 24, 64, 128]),
        "temperature": dice.choice([0, 0, 0.7, 1.0]),
        "stream": dice.random() < 0.5,
    }
    if dice.random() < 0.3:
        request["messages"].insert(0, {"role": "system", "content": "Answer in one sentence."})
    if dice.random() < 0.4:
        request["seed"] = dice.randrange(1 << 31)
    if dice.random() < 0.3:
        request["stop"] = dice.choice([["\n\n"], [".", "!"], ["therefore"]])
    if dice.random() < 0.2:
        request |= {"logprobs": True, "top_logprobs": dice.randrange(6)}
    if dice.random() < 0.2:
        request |= {"top_p": 0.9, "top_k": 40}
    if dice.random() < 0.1:
        request["n"] = 2
    if request["stream"]:
        request["stream_options"] = {"include_usage": True}
    return request


def ask(port: int, request: dict, hang_up: bool, totals: Totals) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            totals.fail(f"status {response.status}: {response.read(300)!r}")
        elif not request["stream"]:
            usage = json.loads(response.read())["usage"]
            totals.add(answered=1, tokens=usage["completion_tokens"])
        else:
            usage = None
            for number, line in enumerate(response):
                if hang_up and number > 6:
                    totals.add(hung_up=1)
                    return
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        totals.fail(f"in the stream: {event['error']}")
                        return
                    usage = event.get("usage") or usage
                elif line.startswith(b"data: [DONE]"):
                    totals.add(answered=1, tokens=usage["completion_tokens"])
                    return
            totals.fail("a stream without an end")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        totals.fail(repr(error))
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the server's process, whose memory is watched")
    parser.add_argument("--prompts", required=True, help="JSON lines with `turns`, or `question`")
    parser.add_argument("--minutes", type=int, default=15, help="at least 3")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.minutes < 3:
        parser.error("--minutes: expected at least 3, since the growth is that after the second")
    with open(arguments.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    prompts = [row["turns"][0] if "turns" in row else row["question"] for row in rows]
    model = served_model(arguments.port)
    totals, over = Totals(), threading.Event()

    def client(index: int) -> None:
        dice = random.Random(arguments.seed * 1000 + index)
        while not over.is_set():
            ask(arguments.port, body(dice, prompts, model), dice.random() < 0.15, totals)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(arguments.clients)]
    for thread in threads:
        thread.start()
    medians: list[float] = []
    for minute in range(1, arguments.minutes + 1):
        readings = []
        for _ in range(60):
            time.sleep(1)
            readings.append(resident(arguments.pid))
        medians.append(statistics.median(readings))
        growth = f" ({100 * (medians[-1] / medians[1] - 1):+.2f} %)" if minute > 1 else ""
        print(
            f"{minute:3} min: {totals.answered} answered, {totals.hung_up} hung up, {len(totals.failures)} failed, {totals.tokens} tokens, "
            f"median {medians[-1] / 2**20:.1f} MiB{growth}, peak {max(readings) / 2**20:.1f} MiB",
            flush=True,
        )
    over.set()
    for thread in threads:
        thread.join()
    growth = max(medians[2:]) / medians[1] - 1
    print(f"in all: {totals.answered} answered, {totals.hung_up} hung up, {len(totals.failures)} failed, {totals.tokens} tokens")
    print(f"largest growth of a minute's median over that of minute 2: {100 * growth:.2f} %")
    for reason in totals.failures[:10]:
        print(f"failed: {reason}")
    return int(bool(totals.failures) or growth >= 0.02)


if __name__ == "__main__":
    sys.exit(main())
