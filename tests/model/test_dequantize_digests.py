"""The digests in tests/cpp/base/dequantize_test.cc are those of the gguf package."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

CPP_TEST = Path(__file__).resolve().parent.parent / "cpp" / "base" / "dequantize_test.cc"
EXPECTATION = re.compile(
    r"digest_of\(DType::k(\w+), \{([\d, ]+)\}\),\s*(0x[0-9a-f]{16})u", re.ASCII
)


def random_blocks(num_bytes: int, halves: list[int]) -> np.ndarray:
    """As in the C++ test: random bytes, with float16 numbers in [1, 2) at `halves`."""
    state = 1

    def following() -> int:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return state >> 48

    blocks = np.array([following() >> 8 for _ in range(64 * num_bytes)], np.uint8)
    blocks = blocks.reshape(64, num_bytes)
    for block in blocks:
        for half in halves:
            block[half : half + 2] = np.array([0x3C00 | (following() & 0x3FF)], "<u2").view("u1")
    return blocks


def digest(values: np.ndarray) -> int:
    result = 0xCBF29CE484222325
    for bits in values.astype(np.float32).reshape(-1).view(np.uint32).tolist():
        result = (result ^ bits) * 0x100000001B3 % 2**64
    return result


FOUND = EXPECTATION.findall(CPP_TEST.read_text())


def test_every_block_type_is_there() -> None:
    assert [name for name, _, _ in FOUND] == [
        "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
        "Q6_K",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "halves", "expected"), FOUND)
def test_digest(name: str, halves: str, expected: str) -> None:
    type_ = gguf.GGMLQuantizationType[name]
    num_bytes = gguf.GGML_QUANT_SIZES[type_][1]
    blocks = random_blocks(num_bytes, [int(each) for each in halves.split(",")])
    assert f"0x{digest(gguf.dequantize(blocks, type_)):016x}" == expected
