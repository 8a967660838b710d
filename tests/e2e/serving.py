"""A server as a user starts it, and what a test asks of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE_SERVE = Path(__file__).parent.parent / "fakes" / "serve_fake.py"
WAIT_S = 60.0
OCTAVO = (sys.executable, "-P", "-m", "octavo.cli.main", "serve")
FAKE = (sys.executable, str(FAKE_SERVE))
GUNICORN = (
    sys.executable, "-P", "-m", "gunicorn", "-c", "python:octavo.server.gunicorn_conf",
    "octavo.server.wsgi:app",
)  # fmt: skip


def wait_for(condition: Callable[[], Any], what: str, timeout: float = WAIT_S) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Server:
    """A running server; stderr goes to a file."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    # --- Requests ---

    def request(self, method: str, path: str, body: Any = None, timeout: float = WAIT_S) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode())

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def complete(self, **fields: Any) -> Answer:
        body = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, **fields}
        return self.request("POST", "/v1/completions", body)

    def stream(self, **fields: Any) -> Stream:
        return Stream(self.port, {"prompt": [5, 6, 7], "ignore_eos": True, **fields})

    def status_of(self, path: str = "/health") -> int | None:
        """The status, None where nothing listens."""
        try:
            return self.get(path).status
        except (OSError, http.client.HTTPException):
            return None

    def phase(self) -> str | None:
        try:
            answer = self.get("/health")
        except (OSError, http.client.HTTPException):
            return None
        return "ready" if answer.status == 200 else answer.json.get("phase")

    def metric(self, name: str) -> float:
        for line in self.get("/metrics").text.splitlines():
            if line.startswith((f"octavo:{name} ", f"octavo:{name}{{")):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")

    # --- Waiting ---

    def wait_listening(self) -> None:
        def listens() -> bool:
            assert self.process.poll() is None, self.log()
            return self.status_of() is not None

        wait_for(listens, "listening")

    def wait_ready(self, timeout: float = WAIT_S) -> Server:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log()
            return self.status_of() == 200

        wait_for(is_ready, "readiness", timeout)
        return self

    def wait_phase(self, phase: str) -> None:
        wait_for(lambda: self.phase() == phase, phase)

    def wait(self, timeout: float = WAIT_S) -> int:
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    # --- Processes ---

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def last_line(self) -> str:
        return self.log().splitlines()[-1]

    def children(self, pid: int | None = None) -> dict[int, str]:
        """Living descendants, pid to command line."""
        found: dict[int, str] = {}
        for child in child_pids(pid or self.process.pid):
            found[child] = command_line(child)
            found |= self.children(child)
        return found

    def engine_pid(self) -> int:
        def find() -> int | None:
            for pid, words in self.children().items():
                if "octavo.engine.process" in words or "fake_engine_process" in words:
                    return pid
            return None

        return int(wait_for(find, "an engine process"))

    def supervisor_pid(self) -> int:
        return parent_of(self.engine_pid())

    def worker_pids(self) -> list[int]:
        supervisor = self.supervisor_pid()
        return [pid for pid in child_pids(self.process.pid) if pid != supervisor]

    def runtime_directories(self) -> list[Path]:
        return list(self.log_path.parent.glob("octavo-*"))

    def kill(self) -> None:
        everyone = [*self.children(), self.process.pid]
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class NotifySocket:
    """What systemd would hear."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := self._socket.recv(4096):
            self.messages += data.decode().splitlines()


class Stream:
    """A streamed completion, read by a thread."""

    def __init__(self, port: int, body: dict[str, Any], timeout: float = WAIT_S) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._body = json.dumps({**body, "stream": True})
        self.status = 0
        self.events: list[str] = []
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            self._connection.request("POST", "/v1/completions", self._body, headers)
            response = self._connection.getresponse()
            self.status = response.status
            for line in response:
                if line.startswith(b"data: "):
                    self.events.append(line[6:].decode().strip())
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            self.error = error
        finally:
            self._connection.close()
            self.ended_at = time.monotonic()

    def wait_started(self) -> Stream:
        wait_for(lambda: self.events or self.ended_at, "the first event")
        assert self.events, self.error
        return self

    def join(self, timeout: float = WAIT_S) -> Stream:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the stream hangs"
        return self

    def close(self) -> None:
        """Go away without reading the rest."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.join()

    @property
    def is_done(self) -> bool:
        return self.events[-1:] == ["[DONE]"]

    @property
    def fault(self) -> dict[str, Any] | None:
        """The error chunk before [DONE]."""
        if len(self.events) < 2 or not self.is_done:
            return None
        found = json.loads(self.events[-2]).get("error")
        return dict(found) if found else None


def child_pids(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def state_of(pid: int) -> str:
    """The letter of its state; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    return state_of(pid) not in {"", "Z"}


def is_stopped(pid: int) -> bool:
    return state_of(pid) == "T"


class Launcher:
    """Starts servers and leaves none behind."""

    def __init__(self, directory: Path, model: Path | str) -> None:
        self.directory = directory
        self.model = str(model)
        self.servers: list[Server] = []

    def __call__(
        self,
        *flags: str,
        command: tuple[str, ...] = OCTAVO,
        model: str | None = None,
        plan: dict[str, Any] | None = None,
        stderr: int | None = None,
        group: Path | None = None,
        **environ: str,
    ) -> Server:
        """Start a server.

        Args:
            flags: Of the command line.
            command: How it is launched.
            model: Another than the launcher's.
            plan: What a fake engine is to do.
            stderr: Descriptor instead of the log file.
            group: Control group to run in.
            environ: Variables.
        """
        port = free_port()
        log_path = self.directory / f"server-{len(self.servers)}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OCTAVO_", "NOTIFY_"))}
        clean |= {"TMPDIR": str(self.directory), "FAKE_ENGINE": json.dumps(plan or {})}
        clean |= {"OCTAVO_LOAD_FORMAT": "dummy", "OCTAVO_KV_CACHE_MEMORY_BYTES": "64MiB"}
        clean.pop("XDG_RUNTIME_DIR", None)
        name = self.model if model is None else model
        if command == GUNICORN:
            words = [*command, *flags]
            clean |= {"OCTAVO_MODEL": name, "OCTAVO_PORT": str(port)}
        else:
            words = [*command, name, "--port", str(port), *flags]
        if group is not None:
            words = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *words]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=stderr or log,
                env={**clean, **environ},
                start_new_session=True,
            )
        self.servers.append(Server(process, port, log_path))
        return self.servers[-1]

    def close(self) -> None:
        for server in self.servers:
            server.kill()


@contextlib.contextmanager
def launcher(directory: Path, model: Path | str) -> Iterator[Launcher]:
    launch = Launcher(directory, model)
    try:
        yield launch
    finally:
        launch.close()
