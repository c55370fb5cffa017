#!/usr/bin/env python3
"""Blocks of each number type of GGUF with the values that the `gguf` package reads from them.

    make_gguf_blocks.py > gguf_blocks.json

Needs the packages gguf (0.19.0 made the file that is kept here) and numpy.
"""

import json

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

READ = {"F32": 4, "F16": 4, "BF16": 4, "Q8_0": 2, "Q4_0": 2, "Q4_1": 2, "Q4_K": 2, "Q6_K": 2}
WRITTEN = ["F32", "F16", "BF16", "Q8_0"]
# Where a block keeps its 16-bit scales: random bits there would be infinities now and then.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}


def main() -> None:
    random = np.random.default_rng(20261126)
    read = []
    for name, count in READ.items():
        kind = Type[name]
        elements, size = GGML_QUANT_SIZES[kind]
        if elements == 1:
            blocks = quantize(random.normal(size=(1, count)).astype(np.float32), kind)
            blocks = np.ascontiguousarray(blocks).view(np.uint8).reshape(count, size)
        else:
            blocks = random.integers(0, 256, size=(count, size), dtype=np.uint8)
            for offset in SCALES[name]:
                scales = random.normal(scale=0.02, size=(count, 1)).astype("<f2")
                blocks[:, offset : offset + 2] = scales.view(np.uint8)
        raw = blocks.reshape(1, -1)
        if elements == 1 and name != "BF16":
            raw = raw.view({"F32": "<f4", "F16": "<f2"}[name])
        values = np.ascontiguousarray(dequantize(raw, kind), dtype="<f4")
        read.append({"type": name, "number": int(kind), "blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()})
    values = random.normal(size=(1, 96)).astype("<f4")
    values[0, 32:64] = 0.0  # a block without a scale
    values[0, 64:72] = np.arange(8) + 0.5  # halves to round
    values[0, 95] = 127.0
    written = [
        {"type": name, "blocks": np.ascontiguousarray(quantize(values, Type[name])).tobytes().hex()} for name in WRITTEN
    ]
    print(json.dumps({"read": read, "values": values.tobytes().hex(), "written": written}, indent=1))


main()
