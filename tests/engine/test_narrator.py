"""The progress line of a terminal."""

from __future__ import annotations

import pytest

from octavo.engine.client import EngineState
from octavo.engine.narrator import progress_line
from octavo.engine.status_page import PHASES

DRAWN = [*PHASES[:1], *PHASES[2 : PHASES.index("ready")]]


def state(phase: str, **changes: object) -> EngineState:
    return EngineState(phase=phase, phase_seconds={phase: 12.0}, **changes)


@pytest.mark.parametrize("columns", [1, 20, 80, 200])
@pytest.mark.parametrize("phase", DRAWN)
def test_it_stays_on_one_line(phase: str, columns: int) -> None:
    told = state(phase, progress=0.5, bytes_done=7 * 10**9, bytes_total=14 * 10**9)
    line = progress_line(told, phase, columns)
    assert len(line) < columns
    if columns >= 80:
        assert line.startswith("INFO:     Loading model… ")


def test_it_shows_how_far_the_phase_is() -> None:
    line = progress_line(state("warming_up", progress=0.5), "warming_up", 120)
    assert line.count("━") == line.count("╌") > 5
    assert line.endswith(" 12.0 s")
    weights = state("loading_weights", progress=0.25, bytes_done=10**8, bytes_total=4 * 10**8)
    assert " 100/400 MB 12.0 s" in progress_line(weights, "loading_weights", 120)


def test_a_download_tells_rate_and_time_left_of_what_is_new() -> None:
    told = state("downloading", bytes_done=400 * 10**6, bytes_total=10**9, bytes_found=100 * 10**6)
    assert told.bytes_per_s == 25e6
    assert told.remaining_s == 24
    assert progress_line(told, "downloading", 120).endswith("12.0 s, 25.0 MB/s, 24 s left")
    assert state("downloading").remaining_s is None
