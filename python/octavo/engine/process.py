"""The engine process: loads the model, owns the engine, serves the HTTP workers' connections.

Started by octavo.engine.supervisor with a pipe as standard input: its first line is a Launch; its
end, or anything after that line, means "end now". So the process cannot outlive its supervisor.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from octavo import logs
from octavo.config import ServeConfig
from octavo.engine.adapters import Adapters
from octavo.engine.client import ModelInfo
from octavo.engine.endpoint import Endpoint, Engine
from octavo.engine.grammars import GrammarCompiler
from octavo.engine.launch import Launch
from octavo.engine.status_page import StatusPage
from octavo.errors import EngineError, OctavoError
from octavo.processes import (
    MEMORY_INTERVAL_S,
    die_with_parent,
    give_back_memory,
    ignore_ending_signals,
)
from octavo.sampling_params import SamplingParams

_STOP_S = 5.0  # for the engine to end what it does; then the process ends anyway
_AUTO_LIVENESS_S = 30.0
_LIVENESS_STEPS = 4.0  # "auto" allows a heartbeat to be this many times as late as a warm-up takes

log = logging.getLogger(__name__)


class Loaded(msgspec.Struct, frozen=True):
    """A started engine.

    Attributes:
        engine: Answers submits.
        info: For the workers.
        to_sampling: Makes the engine's sampling parameters.
        slowest_step_s: An upper bound of one step, measured by the warm-up; 0 if unknown.
        compiler: For requests with a grammar.
        adapters: Those that are loaded; None where there is no room for any.
    """

    engine: Engine
    info: ModelInfo
    to_sampling: Callable[[SamplingParams], object]
    slowest_step_s: float = 0.0
    compiler: GrammarCompiler | None = None
    adapters: Adapters | None = None


class Process:
    """The life of one engine process.

    Args:
        build: Makes a started engine; enters its phases on the page and reports progress there.
    """

    def __init__(self, build: Callable[[ServeConfig, StatusPage], Loaded]) -> None:
        self._build = build
        self._endpoint: Endpoint | None = None
        self._lock = threading.Lock()

    def run(self) -> int:
        """Read the Launch, load, serve, return the exit code."""
        launch = msgspec.json.decode(_read_line(0), type=Launch)
        die_with_parent(launch.parent_pid)
        threading.Thread(target=self._await_end, name="lifeline", daemon=True).start()
        page = StatusPage(launch.status_fd)
        config = ServeConfig(**launch.config)
        logs.configure(config)
        if config.log_level == "debug":
            faulthandler.enable()
        try:
            self._serve(config, page, socket.socket(fileno=launch.listener_fd))
        except OctavoError as error:
            log.debug("The engine process ends", exc_info=True)
            page.set_reason(str(error))
            return error.exit_code
        except MemoryError:
            page.set_reason(
                "Not enough memory to load the model: free some, or use a smaller model."
            )
            return 5
        except Exception as error:
            log.debug("The engine process ends", exc_info=True)
            page.set_reason(
                f"The engine failed: {logs.one_line(str(error)) or type(error).__name__}."
            )
            return EngineError.exit_code
        return 0

    def _serve(self, config: ServeConfig, page: StatusPage, listener: socket.socket) -> None:
        loaded = self._build(config, page)
        endpoint = Endpoint(
            loaded.engine,
            listener,
            loaded.info,
            loaded.to_sampling,
            loaded.compiler,
            loaded.adapters,
        )
        with self._lock:
            self._endpoint = endpoint
        page.set_liveness_timeout(liveness_timeout(config, loaded.slowest_step_s))
        # What loading left is permanent: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        threading.Thread(target=_keep_memory_low, name="memory", daemon=True).start()
        page.enter("ready")
        endpoint.run()

    def _await_end(self) -> None:
        """End the process when the supervisor says so or goes away."""
        os.read(0, 1)
        with self._lock:
            endpoint = self._endpoint
        if endpoint is not None:
            endpoint.stop()
            threading.Event().wait(_STOP_S)
        os._exit(0)


def liveness_timeout(config: ServeConfig, slowest_step_s: float) -> float:
    """Seconds without a heartbeat after which the engine counts as stuck."""
    return config.liveness_timeout or max(_AUTO_LIVENESS_S, _LIVENESS_STEPS * slowest_step_s)


def _keep_memory_low() -> NoReturn:
    """What loading and peaks took is given back, on a thread that nobody waits for."""
    while True:
        give_back_memory()
        time.sleep(MEMORY_INTERVAL_S)


def _read_line(fd: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(fd, 1)
        if not data:
            os._exit(0)
        line += data
    return bytes(line)


def main() -> NoReturn:
    """Run the engine process."""
    ignore_ending_signals()
    from octavo.engine.loader import load  # noqa: PLC0415 - signals are ignored from the start

    code = Process(load).run()
    sys.stderr.flush()
    os._exit(code)  # device libraries may hang in their exit handlers


if __name__ == "__main__":
    main()
