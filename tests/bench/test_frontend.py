"""The program that measures the front end: its engine keeps to the protocol of the real one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).parents[2] / "bench" / "frontend.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("frontend", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["frontend"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def affinity() -> Iterator[None]:
    """The program gives this process other cores."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_a_short_run_has_every_figure() -> None:
    program = load()
    case = program.Case(step_s=0.005, concurrency=2, max_tokens=50, num_requests=20, burst=3)
    figures = program.run(case)
    assert figures["tokens_per_s"] > 0
    assert figures["events_per_s"] <= figures["tokens_per_s"]
    assert figures["ttft_p50_ms"] > 0
