"""Tells people and systemd how the start goes, from what stands on the status page."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from octavo.engine.status_page import PHASES
from octavo.engine.supervisor import Observer
from octavo.engine.systemd import Notifier

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.engine.client import EngineState
    from octavo.engine.status_page import StatusPage
    from octavo.engine.systemd import NotifySocket

_BAR_WIDTH = 24
_USUAL_COLUMNS = 80
_TITLES = {
    "configuring": "reading the model's configuration",
    "downloading": "downloading",
    "loading_weights": "loading weights",
    "allocating_kv_cache": "allocating the KV cache",
    "warming_up": "warming up",
    "self_testing": "self-testing",
}

log = logging.getLogger(__name__)


class Narrator(Observer):
    """One log line a phase; on a terminal a progress line meanwhile.

    Args:
        config: The server's settings.
        address: Where the server listens.
        notify: systemd's socket, if it started us.
    """

    def __init__(self, config: ServeConfig, address: str, notify: NotifySocket | None) -> None:
        self._config = config
        self._address = address
        self._is_terminal = (
            sys.stderr.isatty() and not config.log_file and config.log_format == "text"
        )
        self._notifier = Notifier(notify)
        self._generation = 0
        self._told: set[str] = set()
        self._phase = ""
        self._has_line = False

    def observe(self, page: StatusPage) -> None:
        """Tell what is new."""
        self._notifier.beat()
        if page.is_draining:
            self._clear_line()
            return
        state = page.read()
        if state.generation != self._generation:
            self._generation = state.generation
            self._told = set()
        phase = page.engine_phase
        self._tell_finished(state, phase)
        if phase != self._phase:
            self._phase = phase
            self._notifier.send(f"STATUS={_TITLES.get(phase, phase)}")
        if phase == "ready":
            self._tell_ready(page, state)
        elif self._is_terminal and phase in _TITLES:
            self._draw(state, phase)

    def _tell_finished(self, state: EngineState, running: str) -> None:
        for phase, seconds in state.phase_seconds.items():
            if phase in self._told or phase not in _TITLES:
                continue
            if PHASES.index(phase) < PHASES.index(running):
                self._told.add(phase)
                self._clear_line()
                fields = {"phase": phase, "seconds": round(seconds, 3)}
                log.info(
                    "Loading model… %s: %.2f s", _TITLES[phase], seconds, extra={"fields": fields}
                )

    def _tell_ready(self, page: StatusPage, state: EngineState) -> None:
        """Once for each engine, when the workers are ready too."""
        if "ready" in self._told or not page.has_workers(self._config.api_server_count):
            return
        self._told.add("ready")
        self._clear_line()
        log.info("Model loaded successfully")
        if state.generation > 1:
            log.info("The engine serves again")
            return
        log.info("Application startup complete")
        log.info("Octavo running on %s", self._address)
        for line in page.summary.splitlines():
            log.info("%s", line)
        log.info("%s", _durations(state))
        log.info("%s", _example(self._config, self._address))
        self._notifier.send(f"READY=1\nSTATUS=Serving on {self._address}")

    def _draw(self, state: EngineState, phase: str) -> None:
        line = progress_line(state, phase, _terminal_columns())
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
        self._has_line = True

    def _clear_line(self) -> None:
        if self._has_line:
            self._has_line = False
            with contextlib.suppress(OSError):
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()


def progress_line(state: EngineState, phase: str, columns: int) -> str:
    """How far a phase is; never wider than the terminal, where a second line would stay."""
    begin = f"{'INFO:':<9} Loading model… {_TITLES[phase]} "
    end = f" {state.phase_seconds.get(phase, 0.0):.1f} s"
    if state.bytes_total:
        end = f" {state.bytes_done / 1e6:,.0f}/{state.bytes_total / 1e6:,.0f} MB{end}"
        remaining_s = state.remaining_s
        if phase == "downloading" and remaining_s is not None:
            end += f", {state.bytes_per_s / 1e6:,.1f} MB/s, {remaining_s:,.0f} s left"
    width = min(_BAR_WIDTH, columns - 1 - len(begin) - len(end))
    filled = int(state.progress * width)
    bar = "━" * filled + "╌" * (width - filled)
    return f"{begin}{bar}{end}"[: max(0, columns - 1)]


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_COLUMNS
    except OSError:
        return _USUAL_COLUMNS


def _durations(state: EngineState) -> str:
    parts = [f"{_TITLES[p]} {s:.2f}" for p, s in state.phase_seconds.items() if p in _TITLES]
    return f"Ready in {state.elapsed_s:.2f} s ({', '.join(parts)})"


def _example(config: ServeConfig, address: str) -> str:
    key = " -H 'Authorization: Bearer …'" if config.api_key or config.api_key_file else ""
    url = address.replace("//0.0.0.0", "//localhost")
    if config.uds:
        url = f"--unix-socket {config.uds} http://localhost"
    name = config.model_names[0]
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hi!"}}]}}'
    return (
        f"Try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )
