"""gunicorn's arbiter with an engine beside its workers, and with an end that clients can bear.

The arbiter binds the port, forks the supervisor and the HTTP workers, and stays small. The first
SIGTERM or SIGINT turns readiness off in the signal handler itself, then the workers finish what
runs; a second one ends everything at once. gunicorn makes the arbiter object, so adopt() changes
its class: `octavo serve` and `gunicorn -c` come to the same thing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import signal
import socket
import stat
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn import sock
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from octavo import logs
from octavo.engine.narrator import Narrator
from octavo.engine.runtime import Runtime
from octavo.engine.supervisor import ENGINE_COMMAND, Supervision, Supervisor
from octavo.engine.systemd import Notifier, take_notify_socket
from octavo.errors import AddressInUseError, ConfigError, EngineError, OctavoError
from octavo.processes import ignore_ending_signals, raise_descriptor_limit
from octavo.server.preflight import preflight
from octavo.server.request_metrics import MetricsPage

if TYPE_CHECKING:
    from types import FrameType

    from octavo.config import ServeConfig
    from octavo.engine.systemd import NotifySocket

MAX_WORKERS = 64
WORKER_MARGIN_S = 5.0  # beyond --shutdown-timeout, for last chunks to leave
_SUPERVISOR_STOP_S = 10.0
_MAX_SUPERVISORS = 4  # one and three more, should it be killed
_KILLED_S = 3.0
_TICK_S = 0.05

log = logging.getLogger(__name__)


@dataclass
class Shared:
    """What forked workers find at gunicorn's application object.

    Attributes:
        config: The server's settings.
        runtime: Status page and engine socket.
        metrics: Where workers count, a slot each.
        lifeline: Write end of the pipe whose end the supervisor waits for; -1 before it runs.
    """

    config: ServeConfig
    runtime: Runtime
    metrics: MetricsPage
    lifeline: int = -1


def adopt(arbiter: Arbiter, config: ServeConfig, command: tuple[str, ...] = ENGINE_COMMAND) -> None:
    """Make a gunicorn arbiter ours; gunicorn's on_starting hook.

    Args:
        arbiter: Before it listens.
        config: The server's settings.
        command: The engine process.
    """
    arbiter.__class__ = ServeArbiter
    try:
        arbiter.prepare(config, command)
    except OctavoError as error:
        say_last(config, str(error))
        sys.exit(error.exit_code)


class ServeArbiter(Arbiter):  # type: ignore[misc]
    """The arbiter of an Octavo server."""

    shared: Shared

    def prepare(self, config: ServeConfig, command: tuple[str, ...]) -> None:
        """Bind the port and make what the processes share.

        Raises:
            OctavoError: With the exit code of what is wrong.
        """
        self._config = config
        self._command = command
        self._supervisor_pid = 0
        self._num_supervisors = 0
        self._is_stopping = False
        self._notify: NotifySocket | None = take_notify_socket()
        raise_descriptor_limit()
        preflight(config)
        if not os.environ.get("LISTEN_FDS"):
            self.LISTENERS = bind(self.cfg, self.log)
        self.shared = self.app.octavo = Shared(config, Runtime.create(), MetricsPage(MAX_WORKERS))
        self._page = self.shared.runtime.page
        self._page.enter("binding")
        log.info("Started server process [%d]", os.getpid())
        log.info("Waiting for application startup")

    # --- The supervisor ---

    def start_supervisor(self) -> None:
        """Fork it; gunicorn's when_ready hook."""
        reader, writer = os.pipe()
        self._num_supervisors += 1
        self.shared.lifeline = writer
        self._supervisor_pid = os.fork()
        if self._supervisor_pid:
            os.close(reader)
            return
        status = 1
        try:
            ignore_ending_signals()
            os.close(writer)
            self._run_supervisor(reader)
            status = 0
        except BaseException:
            log.exception("The supervisor failed")
        finally:
            os._exit(status)

    def _run_supervisor(self, lifeline: int) -> None:
        arbiter_pid = os.getppid()
        for number in (signal.SIGCHLD, signal.SIGQUIT, *self.SIGNALS):
            if signal.getsignal(number) == self.signal:
                signal.signal(number, signal.SIG_DFL)
        address = ",".join(str(listener) for listener in self.LISTENERS)
        for listener in self.LISTENERS:
            listener.close()
        runtime = self.shared.runtime
        narrator = Narrator(self._config, address, self._notify)
        supervision = Supervision(
            self._config, runtime.page, runtime.listener, lifeline, self._command
        )
        code = Supervisor(supervision, narrator).run()
        runtime.page.set_exit_code(code)
        if os.getppid() != arbiter_pid:
            runtime.remove()

    def _reap_supervisor(self) -> None:
        """Notice the supervisor's end."""
        try:
            pid, _ = os.waitpid(self._supervisor_pid, os.WNOHANG)
            if pid == 0:
                return
        except ChildProcessError:
            pass  # gunicorn's own loop took it
        self._supervisor_pid = 0
        os.close(self.shared.lifeline)
        if self._is_stopping:
            return
        code = self._page.exit_code
        if code is not None:
            raise HaltServer(self._page.reason, code)
        if self._num_supervisors >= _MAX_SUPERVISORS:
            raise HaltServer(
                "The engine's supervisor failed again and again.", EngineError.exit_code
            )
        log.error("The engine's supervisor was killed; the engine is started again.")
        self._page.engine_died("The engine's supervisor was killed.")
        self.start_supervisor()

    def _end_supervisor(self) -> None:
        """Have the engine and its supervisor end, and wait for it."""
        if not self._supervisor_pid:
            return
        os.close(self.shared.lifeline)
        deadline = time.monotonic() + _SUPERVISOR_STOP_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                pid, _ = os.waitpid(self._supervisor_pid, os.WNOHANG)
                if pid == 0:
                    time.sleep(_TICK_S)
                    continue
            return
        self._kill_engine()

    def _kill_engine(self) -> None:
        engine_pid = self._page.engine_pid
        with contextlib.suppress(ProcessLookupError):
            if self._supervisor_pid:
                os.kill(self._supervisor_pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            if engine_pid:
                os.killpg(engine_pid, signal.SIGKILL)

    # --- Workers ---

    def place_worker(self, worker: Any) -> None:
        """Give a new worker a slot of its own; gunicorn's pre_fork hook."""
        taken = {each.slot for each in self.WORKERS.values()}
        worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def forget_worker(self, worker: Any) -> None:
        """Count a worker as not able to serve any more; gunicorn's child_exit hook."""
        self._page.worker_ready(worker.slot, 0)

    def reap_workers(self) -> None:
        """Reap children; an end that no restart will mend ends the server."""
        if self._supervisor_pid:
            self._reap_supervisor()
        failure = self._page.worker_failure
        if failure is not None and not self._is_stopping:
            raise HaltServer(failure[1], failure[0])
        try:
            super().reap_workers()
        except HaltServer:
            if not self._is_stopping:
                reason = "An HTTP worker failed to start: see the messages above."
                raise HaltServer(reason, EngineError.exit_code) from None

    # --- Signals ---

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Take note of a signal; readiness goes off here, not when the loop comes round."""
        if os.getpid() != self.pid:
            return  # a child that has not set its own handlers yet
        if sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            if self._page.is_draining or sig == signal.SIGQUIT:
                self._end_now(sig)
            self._page.begin_draining()
        super().signal(sig, frame)

    def _end_now(self, sig: int) -> NoReturn:
        """Kill every process of the server and this one."""
        self._kill_engine()
        for pid in list(self.WORKERS):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.shared.runtime.remove()
        self._unlink_sockets()
        _await_children(_KILLED_S)
        os._exit(128 + sig)

    def handle_int(self) -> None:
        """SIGINT ends in good order, like SIGTERM."""
        self.handle_term()

    def handle_usr2(self) -> None:
        """Gunicorn would start a second server, with a second engine, on the same port."""
        log.warning("SIGUSR2 is not supported: the model would be loaded twice.")

    # --- The end ---

    def stop(self, graceful: bool = True) -> None:
        """End the workers: those that serve finish what runs, while the port still answers."""
        self._is_stopping = True
        self._page.begin_draining()
        self.kill_workers(signal.SIGTERM if graceful else signal.SIGQUIT)
        deadline = time.monotonic() + self._config.shutdown_timeout + WORKER_MARGIN_S
        while self.WORKERS and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self.SIG_QUEUE.get(timeout=_TICK_S)
            self.reap_workers()
        self.kill_workers(signal.SIGKILL)
        self._unlink_sockets()
        for listener in self.LISTENERS:
            listener.close()
        self.LISTENERS = []

    def _unlink_sockets(self) -> None:
        for listener in self.LISTENERS:
            if isinstance(listener, sock.UnixSocket):
                with contextlib.suppress(OSError):
                    os.unlink(listener.cfg_addr)  # noqa: PTH108

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        """End the server; the last line says why."""
        log.info("Shutting down")
        Notifier(self._notify).send("STOPPING=1")
        self.stop()
        self._end_supervisor()
        self.shared.runtime.remove()
        if self.pidfile is not None:
            self.pidfile.unlink()
        if exit_status == 0:
            log.info("Finished server process [%d]", os.getpid())
        else:
            say_last(self._config, reason or "The server failed.")
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(exit_status)  # Python's own end turns a closed pipe into an exit code of 120


def _await_children(timeout: float) -> None:
    """Wait until killed children have let go of port and memory."""
    deadline = time.monotonic() + timeout
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(_TICK_S)


def say_last(config: ServeConfig, text: str) -> None:
    """Log an error, and show it on standard error where the log goes elsewhere."""
    log.error("%s", text)
    if config.log_file:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{'ERROR:':<9} {logs.one_line(text)}\n")
            sys.stderr.flush()


def bind(cfg: Any, log_to: Any) -> list[Any]:
    """The listening sockets of gunicorn's configuration.

    Raises:
        AddressInUseError: A port or socket is taken, or may not be bound.
        ConfigError: An address is not of this machine, or a path is no socket.
    """
    listeners = []
    for address in cfg.address:
        if isinstance(address, int):
            return []  # an inherited descriptor: gunicorn takes it as it is
        if isinstance(address, str):
            _check_socket_file(address)
        try:
            kind = sock._sock_type(address)  # noqa: SLF001 - gunicorn has no public way
            listeners.append(kind(address, cfg, log_to))
        except OSError as error:
            raise _bind_error(address, error) from None
    return listeners


def _bind_error(address: object, error: OSError) -> OctavoError:
    if isinstance(address, str):
        return AddressInUseError(f"--uds: cannot listen on {address}: {error.strerror}.")
    assert isinstance(address, tuple)
    host, port = address[:2]
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"Port {port} on {host} is in use: end the other server, or choose another --port."
        )
    if error.errno == errno.EACCES:
        return AddressInUseError(
            f"Port {port} may not be bound by this user: choose a --port above 1023."
        )
    return ConfigError(f"--host: cannot listen on {host}: {error.strerror or error}.")


def _check_socket_file(path: str) -> None:
    """Gunicorn removes any socket file in its way, also one that a server listens on."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
            raise ConfigError(f"--uds: {path} exists and is no socket.")
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise AddressInUseError(
                f"Another server listens on {path}: end it, or choose another --uds."
            )
