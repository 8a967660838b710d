"""From the files of a checkpoint into the engine."""

from __future__ import annotations

import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from octavo.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from octavo import _core
    from octavo.model.tensor_source import TensorEntry, TensorSource

    Progress = Callable[[int, int], None]

# What the engine takes; the names of cpp/base/dtype.h that stand for weights.
_DTYPES = frozenset(
    {
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3",
        "q8_0",
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "iq4_nl",
        "iq4_xs",
        "q2_k",
        "q3_k",
        "q4_k",
        "q5_k",
        "q6_k",
        "int4_g32",
        "int4_g64",
        "int4_g128",
        "float8_rows",
        "float8_blocks",
    }
)

# Tables that a model derives from its configuration.
_DERIVED = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    ".rotary_emb.inv_freq",
)
_MAX_NAMES = 8
_MAX_THREADS = 8  # enough to copy from the page cache faster than a bus takes it


def load_weights(
    engine: _core.Engine,
    source: TensorSource,
    *,
    progress: Progress | None = None,
    num_threads: int = 0,
) -> list[str]:
    """Read every weight that the engine asks for and hand it over.

    Args:
        engine: Its weight_specs() say what is needed.
        source: Where the tensors are.
        progress: Called with bytes done and bytes in all, from the calling thread.
        num_threads: Tensors read and packed at the same time, each in a buffer as large as the
            largest tensor it meets; 0 for as many as there are cores, at most 8.

    Returns:
        The names of tensors that no weight uses.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or the file cannot be read.
        UnsupportedModelError: A tensor's type is not supported.
    """
    specs = engine.weight_specs()
    check_tensors(source, specs)
    entries = source.tensors
    total = sum(entries[spec.name].num_bytes for spec in specs)
    buffers = _ThreadBuffers(max((entries[spec.name].num_bytes for spec in specs), default=1))

    def load(spec: _core.WeightSpec) -> int:
        entry = entries[spec.name]
        data = buffers.take(entry.num_bytes)
        source.read(spec.name, data)
        engine.load_weight(spec.name, entry.dtype, spec.rows, spec.cols, data)
        return entry.num_bytes

    done = 0
    num_threads = num_threads or min(len(os.sched_getaffinity(0)), _MAX_THREADS)
    with ThreadPoolExecutor(num_threads, "load-weights") as pool:
        futures = [pool.submit(load, spec) for spec in specs]
        try:
            for future in as_completed(futures):
                done += future.result()
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return surplus(source, specs)


def check_tensors(source: TensorSource, specs: Iterable[_core.WeightSpec]) -> None:
    """Check name, shape and type of every tensor that is needed, before any is read.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
        UnsupportedModelError: A tensor's type is not supported.
    """
    specs = list(specs)
    missing = [spec.name for spec in specs if spec.name not in source.tensors]
    if missing:
        raise CheckpointError(f"{source.location}: tensors are missing: {_listed(missing)}")
    for spec in specs:
        entry = source.tensors[spec.name]
        expected = (spec.cols,) if spec.rows == 1 and len(entry.shape) == 1 else _shape(spec)
        if entry.shape != expected:
            raise CheckpointError(
                f"{source.location}: {spec.name} has shape {list(entry.shape)}, the model's "
                f"configuration asks for {list(expected)}"
            )
        _check_dtype(source, spec.name, entry)


def surplus(source: TensorSource, specs: Iterable[_core.WeightSpec]) -> list[str]:
    """The names of tensors that no weight uses; derived tables do not count."""
    used = {spec.name for spec in specs}
    # A tied model may store its output projection all the same.
    used.add("lm_head.weight")
    return [name for name in source.tensors if name not in used and not name.endswith(_DERIVED)]


def _shape(spec: _core.WeightSpec) -> tuple[int, int]:
    return spec.rows, spec.cols


def _check_dtype(source: TensorSource, name: str, entry: TensorEntry) -> None:
    if entry.dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"{source.location}: {name} is of type {entry.dtype}; supported are "
            f"{', '.join(sorted(_DTYPES))}."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


class _ThreadBuffers(threading.local):
    """A page-aligned buffer a thread, used again for each tensor: no page is faulted in twice."""

    def __init__(self, num_bytes: int) -> None:
        self._map = mmap.mmap(-1, max(num_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)

    def take(self, num_bytes: int) -> memoryview:
        return memoryview(self._map)[:num_bytes]
