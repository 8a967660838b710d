"""The systemd unit against the program: flags, exit codes, and a start as systemd would make it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from deploy.facts import ROOT, VARIABLES, load_environment
from e2e.serving import NotifySocket, Server, free_port, wait_for
from e2e.tiny_model import make_tiny_model
from octavo import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNIT = ROOT / "deploy/systemd/octavo.service"
ENVIRONMENT = ROOT / "deploy/systemd/octavo.env"
MARGIN_S = 10


def directives() -> dict[str, list[str]]:
    """Name to values of the [Service] section."""
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def environment(*, with_examples: bool) -> dict[str, str]:
    pattern = r"^#?(\w+)=(.*)$" if with_examples else r"^(\w+)=(.*)$"
    return dict(re.findall(pattern, ENVIRONMENT.read_text(), re.MULTILINE))


def test_the_program_accepts_the_settings() -> None:
    assert set(environment(with_examples=True)) <= VARIABLES
    for with_examples in (False, True):
        config = load_environment(environment(with_examples=with_examples), [])
        assert config.model == "smollm2"
        assert config.host == "127.0.0.1"


def test_the_unit_runs_the_program() -> None:
    service = directives()
    program, *words = service["ExecStart"][0].split()
    assert program.endswith("/bin/octavo")
    assert words == ["serve"]
    assert service["EnvironmentFile"] == ["/etc/octavo/octavo.env"]


def test_readiness_comes_from_a_child_of_the_main_process() -> None:
    service = directives()
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["all"]
    assert int(service["WatchdogSec"][0]) >= 10


def test_systemd_waits_longer_than_the_server() -> None:
    service = directives()
    config = load_environment(environment(with_examples=False), [])
    assert int(service["TimeoutStopSec"][0]) >= config.shutdown_timeout + MARGIN_S
    assert service["TimeoutStartSec"] == ["infinity"]
    assert service["KillMode"] == ["mixed"]


def test_what_would_fail_again_is_not_tried_again() -> None:
    service = directives()
    hopeless = (
        errors.ConfigError,
        errors.ModelNotFoundError,
        errors.UnsupportedModelError,
        errors.OutOfMemoryError,
    )
    codes = {str(error.exit_code) for error in hopeless}
    assert set(service["RestartPreventExitStatus"][0].split()) == codes
    assert service["Restart"] == ["on-failure"]


def test_directories_are_those_that_the_variables_name() -> None:
    service = directives()
    named = dict(value.split("=", 1) for value in service["Environment"])
    assert named["XDG_CACHE_HOME"] == f"/var/cache/{service['CacheDirectory'][0]}"
    assert named["HF_HOME"].startswith(named["XDG_CACHE_HOME"])
    assert named["XDG_RUNTIME_DIR"] == f"/run/{service['RuntimeDirectory'][0]}"
    assert service["RuntimeDirectoryMode"] == ["0700"]


# --- The unit in action --------------------------------------------------------------------------


class Manager:
    """Starts the unit's command as systemd would: its environment, its sockets, its signals."""

    def __init__(self, directory: Path) -> None:
        service = directives()
        self.notify = NotifySocket(directory / "notify")
        self.runtime = directory / "run"
        self.runtime.mkdir(mode=int(service["RuntimeDirectoryMode"][0], 8))
        port = free_port()
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            **dict(value.split("=", 1) for value in service["Environment"]),
            **environment(with_examples=False),
            # What differs on this machine:
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "OCTAVO_PORT": str(port),
            "OCTAVO_MODEL": str(make_tiny_model(directory / "tiny")),
            "OCTAVO_LOAD_FORMAT": "dummy",
            "OCTAVO_KV_CACHE_MEMORY_BYTES": "64MiB",
            "NOTIFY_SOCKET": self.notify.path,
            "WATCHDOG_USEC": str(int(service["WatchdogSec"][0]) * 10**6 // 60),
        }
        program, *words = shlex.split(service["ExecStart"][0])
        assert program.endswith("octavo")
        command = [sys.executable, "-P", "-m", "octavo.cli.main", *words]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self.server = Server(process, port, directory / "log")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.server.kill()


def test_the_unit_starts_beats_and_stops(manager: Manager) -> None:
    server, messages = manager.server, manager.notify.messages
    wait_for(lambda: "READY=1" in messages, "READY=1")
    assert server.status_of() == 200, server.log()
    assert f"STATUS=Serving on http://127.0.0.1:{server.port}" in messages
    (directory,) = manager.runtime.iterdir()  # the engine's socket, nowhere else
    assert directory.name.startswith("octavo-")
    server.process.send_signal(signal.SIGTERM)
    assert server.wait(int(directives()["TimeoutStopSec"][0])) == 0
    assert "STOPPING=1" in messages
    assert list(manager.runtime.iterdir()) == []


def test_the_watchdog_hears_nothing_of_a_supervisor_that_hangs(manager: Manager) -> None:
    server, messages = manager.server, manager.notify.messages
    wait_for(lambda: messages.count("WATCHDOG=1") > 3, "the watchdog's beats")
    supervisor = server.supervisor_pid()
    os.kill(supervisor, signal.SIGSTOP)
    time.sleep(0.2)  # what was under way has arrived
    before = messages.count("WATCHDOG=1")
    time.sleep(1.0)  # two beats' time
    assert messages.count("WATCHDOG=1") == before
    os.kill(supervisor, signal.SIGCONT)
    wait_for(lambda: messages.count("WATCHDOG=1") > before, "another beat")
