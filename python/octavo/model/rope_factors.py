"""Llama 3's rope scaling, recovered from the frequency factors that GGUF files store.

A converter writes no parameters but, in the tensor rope_freqs.weight, the number that each
frequency is divided by: 1 for wavelengths below original / high, `factor` above original / low, and
between them 1 / ((1 - s) / factor + s) with s = (original / wavelength - low) / (high - low). As s
is linear in 1 / wavelength, two points of the middle give all that matters: only the ratios
original : low : high count, so high - low is set to 3, the value in every model of the family.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from octavo.model.tensor_source import TensorSource

_SPREAD = 3.0
_TOLERANCE = 1e-3  # files hold float32, and context lengths are rounded to whole tokens


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """The parameters of rope scaling "llama3"."""

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float


def read_rope_factors(
    source: TensorSource, name: str, theta: float, rotary_dim: int
) -> Llama3Scaling | None:
    """Read a tensor of frequency factors and recover the parameters; None when it scales nothing.

    Raises:
        CheckpointError: The tensor has another type or shape.
        UnsupportedModelError: The factors are not those of Llama 3's scaling.
    """
    return fit_llama3(read_factors(source, name, rotary_dim // 2), theta)


def read_factors(source: TensorSource, name: str, size: int) -> list[float]:
    """Read a tensor of `size` frequency factors.

    Raises:
        CheckpointError: It is missing or has another type or shape.
    """
    entry = source.tensors.get(name)
    if entry is None:
        raise CheckpointError(f"{source.location}: tensor {name!r} is missing")
    if entry.dtype != "float32" or entry.shape != (size,):
        raise CheckpointError(
            f"{source.location}: tensor {name!r} is {entry.dtype} {list(entry.shape)}, "
            f"not float32 [{size}]"
        )
    data = bytearray(entry.num_bytes)
    source.read(name, memoryview(data))
    return list(struct.unpack(f"<{size}f", data))


def fit_llama3(factors: list[float], theta: float) -> Llama3Scaling | None:
    """The parameters that give these factors; None when all are 1.

    Raises:
        UnsupportedModelError: There are none.
    """
    if all(each == 1 for each in factors):
        return None
    turns = [theta ** (-i / len(factors)) / (2 * math.pi) for i in range(len(factors))]
    fitted = _fit(factors, turns)
    for each, turn in zip(factors, turns, strict=True):
        if fitted is None or abs(_factor_of(fitted, turn) - each) > _TOLERANCE * each:
            raise UnsupportedModelError("rope_freqs.weight does not follow Llama 3's rope scaling.")
    return fitted


def _fit(factors: list[float], turns: list[float]) -> Llama3Scaling | None:
    """`turns` is 1 / wavelength of each frequency, falling."""
    factor = max(factors)
    if not all(1 <= each < math.inf for each in factors):
        return None
    middle = [
        (turn, (1 / each - 1 / factor) / (1 - 1 / factor))
        for each, turn in zip(factors, turns, strict=True)
        if 1 < each < factor
    ]
    if len(middle) < 2:
        return None
    (turn_a, smooth_a), (turn_b, smooth_b) = middle[0], middle[-1]
    slope = (smooth_a - smooth_b) / (turn_a - turn_b)
    low = _SPREAD * (slope * turn_a - smooth_a)
    original = round(slope * _SPREAD)
    if original < 1 or low <= 0:
        return None
    return Llama3Scaling(factor, original, low, low + _SPREAD)


def _factor_of(scaling: Llama3Scaling, turn: float) -> float:
    rotations = scaling.original_max_position_embeddings * turn
    spread = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = min(max((rotations - scaling.low_freq_factor) / spread, 0.0), 1.0)
    return 1 / ((1 - smooth) / scaling.factor + smooth)
