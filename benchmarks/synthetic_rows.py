#!/usr/bin/env python3
"""Writes synthetic conversations as JSON lines, for measurements of reading and of the sample store.

    python3 benchmarks/synthetic_rows.py ROWS BYTES > rows.jsonl

Every row has about BYTES bytes of text and differs from the others. The same arguments give the same rows.
"""

import json
import random
import sys

WORDS = (
    "the a one of and to in that is for it as was with be on not by are this from at or an have which you we they all "
    "number sum value function list return print first second third answer question write read code table line text"
).split()


def main() -> None:
    rows, size = int(sys.argv[1]), int(sys.argv[2])
    dice = random.Random(22)
    for row in range(rows):
        words, length = [], 0
        while length < size:
            word = dice.choice(WORDS)
            words.append(word)
            length += len(word) + 1
        cut = len(words) // 4
        question, answer = " ".join(words[:cut]), " ".join(words[cut:])
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        print(json.dumps({"id": f"row {row}", "messages": messages}))


if __name__ == "__main__":
    main()
