"""The supervisor: a small process between arbiter and engine that keeps an engine running.

Forked from the arbiter while that has one thread; it never imports the engine. It starts the engine
process, watches its exit, its progress while it starts and its heartbeat afterwards, starts it
again after a failure, and gives up after too many. What it decides it writes on the status page:
probes answer from there, and its last word is the exit code of the server. It ends, and takes the
engine with it, when the arbiter lets go of the lifeline, on purpose or by dying.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from octavo.engine.launch import Launch
from octavo.engine.status_page import ENGINE_ENDS
from octavo.errors import EngineError, OutOfMemoryError, StartupTimeoutError
from octavo.processes import oom_kills

if TYPE_CHECKING:
    import socket

    from octavo.config import ServeConfig
    from octavo.engine.status_page import StatusPage

RESTART_WINDOW_S = 600.0
# -P: a file in the working directory must not pass for one of our modules
ENGINE_COMMAND = (sys.executable, "-P", "-m", "octavo.engine.process")

_TICK_S = 0.05
_READY_TICK_S = 0.1
_MAX_BACKOFF_S = 30.0
_STOP_S = 6.0
_SUSPENDED_S = 2.0  # a tick this late means that this process was stopped, not the engine
_UNRECOVERABLE = frozenset({2, 3, 4, 5})  # exit codes that another start would only repeat

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Supervision:
    """What a supervisor needs.

    Attributes:
        config: The server's configuration.
        page: Shared with arbiter, workers and engine.
        listener: Listening socket that the workers connect to; the engine accepts.
        lifeline: Read end of a pipe that the arbiter holds open.
        command: The engine process.
    """

    config: ServeConfig
    page: StatusPage
    listener: socket.socket
    lifeline: int
    command: tuple[str, ...] = ENGINE_COMMAND


@dataclass(frozen=True)
class Failure:
    """Why an engine process ended.

    Attributes:
        reason: Cause and remedy, one line.
        exit_code: What the server exits with if this is the end.
        is_final: Another start would fail the same way.
    """

    reason: str
    exit_code: int = EngineError.exit_code
    is_final: bool = False


class Supervisor:
    """Keeps an engine running until the lifeline is cut or starting it again is of no use."""

    def __init__(self, supervision: Supervision, observer: Observer | None = None) -> None:
        self._config = supervision.config
        self._page = supervision.page
        self._listener = supervision.listener
        self._lifeline = supervision.lifeline
        self._command = supervision.command
        self._observer = observer or Observer()
        self._engine: subprocess.Popen[bytes] | None = None
        self._pidfd = -1  # of _engine
        self._failures: deque[float] = deque()
        self._oom_kills = oom_kills()

    def run(self) -> int:
        """Supervise; returns the exit code of the server."""
        try:
            while (failure := self._run_engine()) is not None:
                self._page.engine_died(failure.reason)
                self._kill_engine()
                if self._is_over(failure):
                    self._page.set_reason(self._last_words(failure))
                    return failure.exit_code
                log.error("%s", failure.reason)
                if not self._back_off():
                    break
        finally:
            self._end_engine()
        return 0

    # --- One engine process ---

    def _run_engine(self) -> Failure | None:
        """Start an engine and watch it; None when the lifeline was cut."""
        generation, watch = self._begin()
        while True:
            self._observer.observe(self._page)
            if self._wait(_READY_TICK_S if self._page.engine_phase == "ready" else _TICK_S):
                return None
            if self._engine is not None and (status := self._engine.poll()) is not None:
                return self._explain_exit(status, generation)
            if self._page.sleep_level == ENGINE_ENDS:
                if not self._sleep():
                    return None
                generation, watch = self._begin()
            elif failure := watch.check():
                return failure

    def _begin(self) -> tuple[int, _Watch]:
        generation = self._page.begin_generation()
        self._start_engine()
        return generation, _Watch(self._config, self._page)

    def _sleep(self) -> bool:
        """End the engine and wait until it is wanted again; False when the lifeline was cut."""
        self._end_engine()
        self._kill_engine()
        self._page.set_engine_pid(0)
        log.info("The engine sleeps: its process has ended")
        while self._page.sleep_level == ENGINE_ENDS:
            self._observer.observe(self._page)
            readable, _, _ = select.select([self._lifeline], [], [], _READY_TICK_S)
            if readable:
                return False
        log.info("Waking the engine")
        self._page.count_wake_up()
        return True

    def _start_engine(self) -> None:
        launch = Launch(
            config=dataclasses.asdict(self._config) | {"api_key": (), "api_key_file": ""},
            status_fd=self._page.fd,
            listener_fd=self._listener.fileno(),
            parent_pid=os.getpid(),
        )
        self._engine = subprocess.Popen(  # noqa: S603 - our own module, no shell
            self._command,
            stdin=subprocess.PIPE,
            pass_fds=(launch.status_fd, launch.listener_fd),
            start_new_session=True,  # a Ctrl-C on the terminal is the arbiter's business
        )
        self._pidfd = os.pidfd_open(self._engine.pid)
        self._page.set_engine_pid(self._engine.pid)
        assert self._engine.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: its exit status says why
            self._engine.stdin.write(msgspec.json.encode(launch) + b"\n")
            self._engine.stdin.flush()

    def _wait(self, timeout: float) -> bool:
        """Wait for the engine's exit or a tick; True when the lifeline was cut."""
        readable, _, _ = select.select([self._lifeline, self._pidfd], [], [], timeout)
        return self._lifeline in readable

    def _explain_exit(self, status: int, generation: int) -> Failure:
        if status < 0:
            return self._explain_signal(-status)
        reason = self._page.reason if status else ""
        is_final = status in _UNRECOVERABLE and generation == 1
        code = status if is_final else EngineError.exit_code
        return Failure(reason or f"The engine ended with exit code {status}.", code, is_final)

    def _explain_signal(self, number: int) -> Failure:
        name = signal.Signals(number).name
        if number == signal.SIGKILL and oom_kills() > self._oom_kills:
            return Failure(
                "The engine was killed because its memory limit was reached: raise the limit, "
                "or lower --kv-cache-memory-bytes or --max-model-len.",
                OutOfMemoryError.exit_code,
                is_final=self._page.read().generation == 1,
            )
        return Failure(f"The engine process was ended by {name}.")

    # --- After a failure ---

    def _is_over(self, failure: Failure) -> bool:
        now = time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - RESTART_WINDOW_S:
            self._failures.popleft()
        return failure.is_final or len(self._failures) > self._config.max_engine_restarts

    def _last_words(self, failure: Failure) -> str:
        if failure.is_final:
            return failure.reason
        times = f"{len(self._failures)} times in {RESTART_WINDOW_S / 60:g} minutes"
        return f"The engine failed {times} and is not started again. Last cause: {failure.reason}"

    def _back_off(self) -> bool:
        """Wait before the next start; False when the lifeline was cut."""
        tries = len(self._failures)
        delay = 0.0 if tries == 1 else min(_MAX_BACKOFF_S, 2.0 ** (tries - 2))
        log.info("Starting the engine again in %g s (restart %d)…", delay, tries)
        readable, _, _ = select.select([self._lifeline], [], [], delay)
        return not readable

    # --- Ending ---

    def _end_engine(self) -> None:
        """End the engine in good order where it serves, at once where it still loads."""
        engine = self._engine
        if engine is None or engine.poll() is not None:
            return
        if self._page.engine_phase == "ready" and engine.stdin is not None:
            engine.stdin.close()
            try:
                engine.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("The engine did not end by itself and is killed.")
        self._kill_engine()

    def _kill_engine(self) -> None:
        """Kill the engine process and whatever it started."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
        os.close(self._pidfd)
        if engine.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                engine.stdin.close()


class Observer:
    """Sees the page on every tick; this one says nothing."""

    def observe(self, page: StatusPage) -> None:
        """Look at the page."""


class _Watch:
    """Finds a start without progress and a started engine without a heartbeat."""

    def __init__(self, config: ServeConfig, page: StatusPage) -> None:
        self._timeout_s = config.startup_timeout
        self._page = page
        self._progress = page.progress
        self._progressed = self._ticked = self._resumed = time.monotonic()

    def check(self) -> Failure | None:
        """What is wrong with the engine, if anything is."""
        now = time.monotonic()
        if now - self._ticked > _SUSPENDED_S:
            self._resumed = now
        self._ticked = now
        if self._page.engine_phase == "ready":
            return self._check_heartbeat(now)
        return self._check_progress(now)

    def _check_progress(self, now: float) -> Failure | None:
        progress = self._page.progress
        if progress != self._progress or self._resumed == now:
            self._progress, self._progressed = progress, now
        if now - self._progressed <= self._timeout_s:
            return None
        return Failure(
            f"The start made no progress in phase {self._page.engine_phase} for "
            f"{self._timeout_s:g} s: look at the messages above, or raise --startup-timeout.",
            StartupTimeoutError.exit_code,
            is_final=True,
        )

    def _check_heartbeat(self, now: float) -> Failure | None:
        """A machine that slept wakes with old heartbeats: leave the engine time to beat again."""
        state = self._page.read()
        if state.is_alive or now - self._resumed < _SUSPENDED_S:
            return None
        return Failure(state.reason)
