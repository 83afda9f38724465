#!/usr/bin/env python3
"""Writes tests/golden/ggml_blocks.bin: blocks of the ggml weight formats and what the public `gguf` package (PyPI)
decodes them to, and, for the formats that package can encode, values and their encoding.

Records: kind (1 decode, 2 encode), format name [8] NUL-padded, u32 values, u32 bytes, then float32 values, then the bytes.
"""
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

rng = np.random.default_rng(20260)
out = open(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/ggml_blocks.bin", "wb")


def record(kind, name, values, data):
    values = np.ascontiguousarray(values, dtype=np.float32)
    data = np.ascontiguousarray(data, dtype=np.uint8)
    out.write(struct.pack("<I8sII", kind, name.encode(), values.size, data.size))
    out.write(values.tobytes())
    out.write(data.tobytes())


half_at = {"q8_0": [0], "q4_0": [0], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}
size = {"q8_0": 34, "q4_0": 18, "q4_k": 144, "q5_k": 176, "q6_k": 210}
kinds = {"q8_0": T.Q8_0, "q4_0": T.Q4_0, "q4_k": T.Q4_K, "q5_k": T.Q5_K, "q6_k": T.Q6_K}

for name, offsets in half_at.items():
    blocks = rng.integers(0, 256, (3, size[name]), dtype=np.uint8)
    for o in offsets:
        scale = (rng.standard_normal(3) * 0.01).astype(np.float16)
        scale[2] = np.float16(3e-6)  # subnormal
        blocks[:, o : o + 2] = scale.view(np.uint8).reshape(3, 2)
    record(1, name, quants.dequantize(blocks, kinds[name]).ravel(), blocks.ravel())

for name in ("q8_0", "q4_0"):
    x = (rng.standard_normal((8, 32)) * np.exp(rng.uniform(-6, 3, (8, 1)))).astype(np.float32)
    x[6] = 0
    x[7] = np.round(x[7] * 4) / 4  # ties
    record(2, name, x.ravel(), quants.quantize(x, kinds[name]).ravel())
