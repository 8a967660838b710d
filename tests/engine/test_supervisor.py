"""The supervisor with real processes around a FakeEngine: restarts, giving up, ending."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from octavo.config import ServeConfig
from octavo.engine.runtime import Runtime
from octavo.engine.socket_client import SocketEngineClient
from octavo.engine.supervisor import Observer, Supervision, Supervisor
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE_PROCESS = Path(__file__).parent.parent / "fakes" / "fake_engine_process.py"
WAIT_S = 30.0


def wait_for(condition: Callable[[], object], what: str = "the condition") -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Run:
    """A supervisor in a thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plan: dict, **config: object) -> None:
        monkeypatch.setenv("FAKE_ENGINE", json.dumps(plan))
        self.runtime = Runtime.create()
        self.page = self.runtime.page
        self.lifeline, self._writer = os.pipe()
        self.code: int | None = None
        self.phases: list[str] = []
        supervision = Supervision(
            ServeConfig(model="fake", **config),  # type: ignore[arg-type]
            self.page,
            self.runtime.listener,
            self.lifeline,
            (sys.executable, str(FAKE_PROCESS)),
        )
        self._thread = threading.Thread(target=self._run, args=(supervision,), daemon=True)
        self._thread.start()

    def _run(self, supervision: Supervision) -> None:
        run = self

        class Recorder(Observer):
            def observe(self, page: object) -> None:
                phase = run.page.engine_phase
                if run.phases[-1:] != [phase]:
                    run.phases.append(phase)

        self.code = Supervisor(supervision, Recorder()).run()

    def wait_ready(self, generation: int = 1) -> None:
        wait_for(
            lambda: self.page.read().is_ready and self.page.read().generation == generation,
            f"generation {generation}",
        )

    def join(self) -> int | None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.code

    def stop(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
            self.join()
            os.close(self.lifeline)
            self.runtime.remove()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(plan: dict | None = None, **config: object) -> Run:
        runs.append(Run(monkeypatch, plan or {}, **config))
        return runs[-1]

    yield make
    for run in runs:
        run.stop()


def test_an_engine_starts_through_all_phases_and_serves(start: Callable[..., Run]) -> None:
    run = start({"phase_s": 0.15})
    run.wait_ready()
    wait_for(lambda: run.phases[-1] == "ready")
    assert run.phases[-6:] == [
        "downloading", "loading_weights", "allocating_kv_cache", "warming_up", "self_testing",
        "ready",
    ]  # fmt: skip
    client = SocketEngineClient(run.runtime.socket_path, run.page)
    client.start()
    wait_for(client.is_connected)
    outputs = list(client.submit([5], SamplingParams(max_tokens=3)))
    assert [t for o in outputs for t in o.token_ids] == [6, 7, 8]
    client.close()


def test_cutting_the_lifeline_ends_the_engine(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    pid = run.page.engine_pid
    run.stop()
    assert run.code == 0
    assert not is_running(pid)


def test_cutting_the_lifeline_ends_a_loading_engine_at_once(start: Callable[..., Run]) -> None:
    run = start({"fail": ["loading_weights", "hang"]})
    wait_for(lambda: run.page.engine_phase == "loading_weights")
    pid, began = run.page.engine_pid, time.monotonic()
    run.stop()
    assert run.code == 0
    assert time.monotonic() - began < 5
    assert not is_running(pid)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_killed_engine_is_started_again(start: Callable[..., Run], name: str) -> None:
    run = start()
    run.wait_ready()
    client = SocketEngineClient(run.runtime.socket_path, run.page)
    client.start()
    wait_for(client.is_connected)
    first = run.page.engine_pid
    os.kill(first, getattr(signal, name))
    wait_for(lambda: not run.page.read().is_ready, "the death")
    run.wait_ready(2)
    assert run.page.engine_pid != first
    wait_for(client.is_connected, "the same client's new connection")
    assert len(list(client.submit([5], SamplingParams(max_tokens=1)))) == 1
    client.close()


def test_the_reason_of_a_death_is_kept_while_the_engine_is_down(start: Callable[..., Run]) -> None:
    run = start(max_engine_restarts=5)
    run.wait_ready()
    os.kill(run.page.engine_pid, signal.SIGKILL)
    run.wait_ready(2)
    os.kill(run.page.engine_pid, signal.SIGKILL)
    wait_for(lambda: not run.page.read().is_alive)  # the second restart waits a second
    assert run.page.read().reason == "The engine process was ended by SIGKILL."


def test_a_stopped_engine_is_found_by_its_heartbeat(start: Callable[..., Run]) -> None:
    run = start(liveness_timeout=1.5)
    run.wait_ready()
    wait_for(lambda: run.page.read().heartbeat_age_s > 0)
    first = run.page.engine_pid
    os.kill(first, signal.SIGSTOP)
    wait_for(lambda: not run.page.read().is_alive, "the stuck engine")
    run.wait_ready(2)
    assert not is_running(first)


def test_a_crash_loop_ends_with_70(start: Callable[..., Run]) -> None:
    run = start({"fail": ["warming_up", "SIGSEGV"]}, max_engine_restarts=1)
    assert run.join() == 70
    assert run.page.read().generation == 2
    assert "failed 2 times in 10 minutes" in run.page.reason
    assert "SIGSEGV" in run.page.reason


@pytest.mark.parametrize(("code", "words"), [(3, "not there"), (4, "architecture"), (5, "41.2 GB")])
def test_a_fault_of_the_model_is_final(start: Callable[..., Run], code: int, words: str) -> None:
    run = start({"fail": ["loading_weights", code]})
    assert run.join() == code
    assert run.page.read().generation == 1
    assert words in run.page.reason


def test_an_engine_error_is_tried_again(start: Callable[..., Run]) -> None:
    run = start({"fail": ["warming_up", 70], "fail_generation": 1})
    run.wait_ready(2)


def test_a_start_without_progress_ends_with_7(start: Callable[..., Run]) -> None:
    run = start({"fail": ["loading_weights", "hang"]}, startup_timeout=6.0)
    wait_for(lambda: run.page.engine_pid)
    pid = run.page.engine_pid
    assert run.join() == 7
    assert "no progress in phase loading_weights for 6 s" in run.page.reason
    assert not is_running(pid)


def test_a_slow_start_with_progress_is_left_alone(start: Callable[..., Run]) -> None:
    run = start({"phase_s": 6.0, "slow_phase": "loading_weights"}, startup_timeout=4.0)
    run.wait_ready()


def test_a_deep_sleep_ends_the_process_and_waking_starts_one(start: Callable[..., Run]) -> None:
    run = start({"phase_s": 0.05}, max_engine_restarts=0)
    run.wait_ready()
    client = SocketEngineClient(run.runtime.socket_path, run.page)
    client.start()
    wait_for(client.is_connected)
    for round_ in (1, 2):
        pid = run.page.engine_pid
        client.sleep(2, patience_s=10)
        assert not is_running(pid)
        state = run.page.read()
        assert (state.sleep_level, state.is_ready, state.is_alive) == (2, False, True)
        time.sleep(0.3)  # nothing starts by itself, and nothing counts as stuck
        assert run.page.engine_pid == 0
        assert run.page.read().is_alive
        client.sleep(1, patience_s=10)
        assert run.page.read().sleep_level == 2
        client.wake_up()
        state = run.page.read()
        assert (state.sleep_level, state.is_ready) == (0, True)
        assert (state.generation, state.num_wake_ups) == (1 + round_, round_)
        wait_for(client.is_connected)
        outputs = list(client.submit([5], SamplingParams(max_tokens=2)))
        assert [t for o in outputs for t in o.token_ids] == [6, 7]
    client.close()


def test_an_engine_that_fails_while_it_sleeps_is_awake_again(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    client = SocketEngineClient(run.runtime.socket_path, run.page)
    client.start()
    wait_for(client.is_connected)
    client.sleep(1, patience_s=10)
    os.kill(run.page.engine_pid, signal.SIGKILL)
    run.wait_ready(generation=2)
    assert run.page.read().num_wake_ups == 0
    client.close()


def test_the_server_ends_while_the_engine_sleeps_deeply(start: Callable[..., Run]) -> None:
    run = start()
    run.wait_ready()
    client = SocketEngineClient(run.runtime.socket_path, run.page)
    client.start()
    wait_for(client.is_connected)
    client.sleep(2, patience_s=10)
    client.close()
    run.stop()
    assert run.code == 0
