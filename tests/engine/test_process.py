"""The engine process by itself: how it begins, what it says when it cannot, how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from octavo.config import ServeConfig
from octavo.engine.launch import Launch
from octavo.engine.process import liveness_timeout
from octavo.engine.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE_PROCESS = Path(__file__).parent.parent / "fakes" / "fake_engine_process.py"
WAIT_S = 30.0


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime.create()
    runtime.page.begin_generation()
    yield runtime
    runtime.remove()


def start(runtime: Runtime, plan: dict | None = None, parent: int = 0) -> subprocess.Popen[bytes]:
    launch = Launch(
        config=dataclasses.asdict(ServeConfig(model="fake")),
        status_fd=runtime.page.fd,
        listener_fd=runtime.listener.fileno(),
        parent_pid=parent or os.getpid(),
    )
    process = subprocess.Popen(
        [sys.executable, str(FAKE_PROCESS)],
        stdin=subprocess.PIPE,
        pass_fds=(launch.status_fd, launch.listener_fd),
        env={**os.environ, "FAKE_ENGINE": json.dumps(plan or {})},
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(launch) + b"\n")
    process.stdin.flush()
    return process


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(WAIT_S)


def test_it_ends_with_its_standard_input(runtime: Runtime) -> None:
    process = start(runtime)
    wait_for(lambda: runtime.page.engine_phase == "ready")
    assert end(process) == 0


def test_it_ends_while_loading(runtime: Runtime) -> None:
    process = start(runtime, {"fail": ["loading_weights", "hang"]})
    wait_for(lambda: runtime.page.engine_phase == "loading_weights")
    assert end(process) == 0


def test_it_ends_if_nothing_is_ever_said() -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE_PROCESS)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (0, b"")


def test_it_ends_if_its_parent_is_another_by_now(runtime: Runtime) -> None:
    process = start(runtime, parent=1)
    assert process.wait(WAIT_S) == 0
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_group_do_not_end_it(runtime: Runtime, number: int) -> None:
    process = start(runtime)
    wait_for(lambda: runtime.page.engine_phase == "ready")
    process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    assert end(process) == 0


@pytest.mark.parametrize("code", [3, 4, 5, 70])
def test_a_fault_becomes_exit_code_and_reason(runtime: Runtime, code: int) -> None:
    process = start(runtime, {"fail": ["loading_weights", code]})
    assert process.wait(WAIT_S) == code
    assert runtime.page.reason
    end(process)


def test_the_liveness_timeout_grows_with_slow_steps_unless_given() -> None:
    assert liveness_timeout(ServeConfig(), 0.5) == 30
    assert liveness_timeout(ServeConfig(), 20.0) == 80
    assert liveness_timeout(ServeConfig(liveness_timeout=3.0), 20.0) == 3
