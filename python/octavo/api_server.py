"""The server as a library: run it, or put the application behind a WSGI server of your own.

asyncio.run(run_server(EngineArgs(model="smollm2", port=8000)))

with LLMEngine.from_engine_args(EngineArgs(model="smollm2")) as engine:
app = create_openai_api_app(engine)  # then serve `app` with threads or gevent
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from octavo.config import ServeConfig as EngineArgs
from octavo.config import foreign_environment
from octavo.engine.runtime import Runtime
from octavo.engine.socket_client import SocketEngineClient
from octavo.engine.supervisor import Supervision, Supervisor
from octavo.errors import EngineError, OctavoError, StartupTimeoutError
from octavo.server.assembly import assemble
from octavo.server.preflight import preflight
from octavo.server.request_metrics import RequestMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from octavo.engine.client import EngineClient
    from octavo.server.app import App

__all__ = ["EngineArgs", "LLMEngine", "create_openai_api_app", "run_server"]

_TICK_S = 0.05

log = logging.getLogger(__name__)


class LLMEngine:
    """An engine process, supervised from a thread of this one. Use as a context manager.

    Args:
        config: The settings; what concerns listening and workers has no effect.
    """

    def __init__(self, config: EngineArgs) -> None:
        preflight(config)
        self.config = config
        self.runtime = Runtime.create()
        reader, self._lifeline = os.pipe()
        supervision = Supervision(config, self.runtime.page, self.runtime.listener, reader)
        self._supervisor = threading.Thread(
            target=self._supervise, args=(supervision,), name="supervisor", daemon=True
        )
        self._client = SocketEngineClient(self.runtime.socket_path, self.runtime.page)
        self._is_shut_down = False
        self._supervisor.start()
        self._client.start()

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        """Begin to load a model; returns at once.

        Raises:
            OctavoError: The configuration or the model's name is at fault.
        """
        return cls(args)

    @property
    def client(self) -> EngineClient:
        """Submits requests."""
        return self._client

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until requests are served.

        Raises:
            EngineError: The engine cannot start; the message says why.
            StartupTimeoutError: It was not ready in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (self._client.state().is_ready and self._client.is_connected()):
            if not self._supervisor.is_alive():
                raise EngineError(self.runtime.page.reason or "The engine has been shut down.")
            if deadline is not None and time.monotonic() > deadline:
                raise StartupTimeoutError(f"The engine was not ready in {timeout_s:g} s.")
            time.sleep(_TICK_S)

    def shutdown(self) -> None:
        """End the engine; running requests fail. Harmless when over."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        self.runtime.page.begin_draining()
        self._client.close()
        os.close(self._lifeline)
        self._supervisor.join()
        self.runtime.remove()

    def __enter__(self) -> LLMEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _supervise(self, supervision: Supervision) -> None:
        code = Supervisor(supervision).run()
        supervision.page.set_exit_code(code)
        os.close(supervision.lifeline)


def create_openai_api_app(engine: LLMEngine) -> App:
    """The WSGI application of an engine. It answers 503 with the phase until the model is loaded.

    Serve it in one process with threads or with gevent's patches: each request waits in a thread.
    """
    page = engine.runtime.page
    alone = dataclasses.replace(engine.config, api_server_count=1)
    assembly = assemble(alone, engine.runtime, RequestMetrics())

    def load() -> None:
        try:
            assembly.load()
            page.worker_ready(0, os.getpid())
        except OctavoError as error:
            page.engine_died(str(error))
            log.error("%s", error)  # noqa: TRY400 - the message says it all

    threading.Thread(target=load, name="load-model", daemon=True).start()
    return assembly.app


async def run_server(args: EngineArgs) -> int:
    """Serve in processes of their own until told to end; returns the exit code.

    SIGTERM and SIGINT of this process are passed on. Cancelling ends the server in good order.
    """
    fd = os.memfd_create("octavo-config")
    try:
        values = {k: v for k, v in dataclasses.asdict(args).items() if v != ()}
        os.write(fd, msgspec.json.encode(values))  # JSON is YAML
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "octavo.cli.main", "serve"),
            *("--config", f"/proc/self/fd/{fd}"),
            pass_fds=(fd,),
            start_new_session=True,  # a Ctrl-C must not arrive twice
            env=foreign_environment(),
        )
    finally:
        os.close(fd)
    with _signals_to(process):
        try:
            return await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise


@contextlib.contextmanager
def _signals_to(process: asyncio.subprocess.Process) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        loop.add_signal_handler(number, process.send_signal, number)
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
