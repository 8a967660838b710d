"""The status page: what probes are told, across processes."""

from __future__ import annotations

import os
import time

import pytest

from octavo.engine.status_page import PHASES, StatusPage

ORDER = list(PHASES[PHASES.index("downloading") : PHASES.index("ready") + 1])


@pytest.fixture
def page() -> StatusPage:
    page = StatusPage()
    page.begin_generation()
    return page


def beat(page: StatusPage, age_s: float) -> None:
    words = memoryview(page.memory)[page.HEARTBEAT_OFFSET :].cast("q")
    words[0] = time.monotonic_ns() - int(age_s * 1e9)


def test_a_new_page_is_configuring_and_not_ready() -> None:
    state = StatusPage().read()
    assert (state.phase, state.is_ready, state.is_alive) == ("configuring", False, True)
    assert state.generation == 0


def test_progress_is_told_and_starts_over_with_each_phase(page: StatusPage) -> None:
    page.enter("loading_weights")
    page.advance(0.25, 250, 1000)
    state = page.read()
    assert (state.phase, state.progress, state.bytes_done, state.bytes_total) == (
        "loading_weights", 0.25, 250, 1000,
    )  # fmt: skip
    page.advance(0.5, 500, 1000)
    assert page.read().bytes_found == 250
    page.enter("warming_up")
    assert page.read().progress == 0
    assert page.read().bytes_total == 0


def test_ready_is_the_only_ready_phase(page: StatusPage) -> None:
    seen = []
    for phase in ORDER:
        page.enter(phase)
        seen.append(page.read().is_ready)
    assert seen == [False] * (len(ORDER) - 1) + [True]


def test_every_phase_has_its_duration(page: StatusPage) -> None:
    for phase in ORDER:
        page.enter(phase)
        time.sleep(0.01)
    seconds = page.read().phase_seconds
    assert [p for p in seconds if p in ORDER] == ORDER[:-1]
    assert all(seconds[p] >= 0.01 for p in ORDER[:-1])


def test_an_old_heartbeat_is_a_stuck_engine(page: StatusPage) -> None:
    page.enter("ready")
    page.set_liveness_timeout(5.0)
    assert page.read().is_ready, "no heartbeat yet"
    beat(page, 1.0)
    assert page.read().is_ready
    beat(page, 6.0)
    state = page.read()
    assert not state.is_ready
    assert not state.is_alive
    assert "no sign of life for 6.0 s" in state.reason
    beat(page, 0.0)
    assert page.read().is_ready
    assert page.read().reason == ""


def test_a_dead_engine_is_not_alive_until_the_next_one_starts(page: StatusPage) -> None:
    page.enter("ready")
    page.engine_died("Killed by SIGKILL.")
    state = page.read()
    assert (state.is_ready, state.is_alive, state.reason) == (False, False, "Killed by SIGKILL.")
    assert page.begin_generation() == 2
    state = page.read()
    assert (state.phase, state.is_alive, state.generation) == ("configuring", True, 2)


def test_draining_ends_readiness_and_keeps_the_engines_phase(page: StatusPage) -> None:
    page.enter("ready")
    page.begin_draining()
    state = page.read()
    assert (state.phase, state.is_ready, state.is_draining) == ("draining", False, True)
    assert state.is_alive
    assert page.engine_phase == "ready"


def test_exit_codes_and_failures_have_a_value_only_once_set(page: StatusPage) -> None:
    assert page.exit_code is None
    assert page.worker_failure is None
    page.set_exit_code(0)
    page.worker_failed(3, "No tokenizer.")
    assert page.exit_code == 0
    assert page.worker_failure == (3, "No tokenizer.")
    assert page.read().phase == "failed"


def test_long_and_odd_texts_are_cut_at_a_character(page: StatusPage) -> None:
    page.engine_died("é" * 5000)
    assert set(page.reason) == {"é"}
    assert 400 < len(page.reason) < 520


def test_workers_are_complete_once_all_are_ready_and_stay_so(page: StatusPage) -> None:
    page.worker_ready(0, 11)
    page.worker_ready(0, 13)
    assert not page.has_workers(2)
    page.worker_ready(1, 12)
    assert page.has_workers(2)
    page.worker_ready(1, 0)
    assert page.has_workers(2)


def test_forked_and_attached_processes_see_the_same_page(page: StatusPage) -> None:
    if os.fork() == 0:
        page.enter("warming_up")
        page.set_reason("from a child")
        os._exit(0)
    os.wait()
    assert page.read().phase == "warming_up"
    attached = StatusPage(os.dup(page.fd))
    assert attached.reason == "from a child"
    attached.enter("ready")
    assert page.read().is_ready
