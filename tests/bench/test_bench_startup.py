"""The start-up measurement against a server whose times are known."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.bench import startup
from octavo.bench.process_tree import descendants, resident_bytes
from octavo.bench.startup import Launch, StartError, command_ms, measure, measure_once

SERVER = str(Path(__file__).with_name("late_server.py"))


def launch(fault: str = "", timeout_s: float = 20.0) -> Launch:
    words = [fault] if fault else []
    return Launch([sys.executable, SERVER, "{port}", *words], timeout_s=timeout_s)


def test_every_event_is_timed() -> None:
    figures = measure_once(launch())
    assert 0.2 <= figures["first_answer_s"] <= figures["ready_s"] - 0.4
    assert figures["ready_s"] >= 0.7
    assert figures["first_token_s"] == pytest.approx(
        figures["ready_s"] + figures["first_token_after_ready_s"]
    )
    assert figures["first_request_ms"] >= 60
    assert figures["hundredth_request_ms"] < figures["first_request_ms"]
    assert figures["first_to_hundredth"] == pytest.approx(
        figures["first_request_ms"] / figures["hundredth_request_ms"]
    )
    assert list(figures["phases_s"]) == ["loading_weights", "warming_up"]
    assert figures["phases_s"]["warming_up"] == pytest.approx(0.2, abs=0.1)
    assert figures["refused_after_first_answer"] == 0
    assert figures["exit_code"] == 0
    assert 5 < figures["memory_mb"] < 500


def test_runs_are_summed_up_by_their_medians() -> None:
    figures = measure(launch(), runs=3)
    runs = figures["runs"]
    assert len(runs) == 3
    assert figures["ready_s"] == sorted(run["ready_s"] for run in runs)[1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("die", "ended with code 1: the model is not there"),
        ("stuck", "Not ready after 1 s"),
        ("rude", "HTTP 500: not today"),
        ("stubborn", "after SIGTERM"),
    ],
)
def test_a_server_that_fails_is_named_and_ended(
    fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "EXIT_LIMIT_S", 0.3)
    with pytest.raises(StartError, match=message):
        measure_once(launch(fault, timeout_s=1.0 if fault == "stuck" else 20.0))
    assert [pid for pid in descendants(os.getpid()) if SERVER in command_line(pid)] == []


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_the_tree_holds_grandchildren() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while len(descendants(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(descendants(parent.pid)) == 2
        assert resident_bytes(parent.pid) > resident_bytes(descendants(parent.pid)[1]) > 1e6
    finally:
        parent.communicate(b"\n")


def test_short_commands_are_timed() -> None:
    assert 1 < command_ms([sys.executable, "-c", "pass"]) < 5000
    with pytest.raises(StartError, match="ended with code 3"):
        command_ms([sys.executable, "-c", "raise SystemExit(3)"])
