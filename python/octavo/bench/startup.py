"""`octavo bench startup`: from exec to the first answer, to ready, to the first token, to the exit.

Every time is from right before the process is started. The server is asked every few milliseconds,
so a time is that much too late at most.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from octavo.bench.load import LoadGenerator, Target
from octavo.bench.process_tree import descendants, resident_bytes
from octavo.bench.workloads import fixed
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from collections.abc import Sequence

POLL_S = 0.005
NUM_REQUESTS = 100
NUM_LATE = 10  # the hundredth request is the median of so many last ones: one is mostly noise
PROMPT_LEN, OUTPUT_LEN = 16, 16
COMMAND_RUNS = 5
EXIT_LIMIT_S = 60.0


class StartError(OctavoError):
    """The server did not come up, or went away; the message ends with its last words."""

    exit_code = 1


@dataclass(frozen=True)
class Launch:
    """A server to start.

    Attributes:
        command: Program and arguments; `{port}` becomes a free port.
        url: Where it answers; `{port}` as above.
        health_path: Answers 200 once the server is ready.
        timeout_s: Longest wait for it to be ready.
    """

    command: Sequence[str]
    url: str = "http://127.0.0.1:{port}"
    health_path: str = "/health"
    timeout_s: float = 600.0

    def at(self, port: int) -> Launch:
        """The same with the port filled in."""
        filled = [word.replace("{port}", str(port)) for word in self.command]
        url = self.url.replace("{port}", str(port))
        return Launch(filled, url, self.health_path, self.timeout_s)


@dataclass
class _Timeline:
    """What was seen from exec to ready."""

    first_answer_s: float = 0.0
    ready_s: float = 0.0
    refused_after_first_answer: int = 0
    phase_started_s: dict[str, float] = field(default_factory=dict)

    def phase_seconds(self) -> dict[str, float]:
        """How long each phase that the server named lasted, as seen from outside."""
        ends = [*list(self.phase_started_s.values())[1:], self.ready_s]
        started = self.phase_started_s.items()
        return {name: end - begin for (name, begin), end in zip(started, ends, strict=True)}


def measure(launch: Launch, runs: int) -> dict[str, object]:
    """Start the server `runs` times, one after the other: medians, and every single run.

    Raises:
        StartError: It did not become ready.
    """
    single = [measure_once(launch) for _ in range(runs)]
    names = [name for name, value in single[0].items() if isinstance(value, int | float)]
    medians: dict[str, object] = {
        name: statistics.median([float(str(run[name])) for run in single]) for name in names
    }
    return {**medians, "phases_s": single[-1]["phases_s"], "runs": single}


def measure_once(launch: Launch) -> dict[str, object]:
    """One start, a hundred requests, one SIGTERM.

    Raises:
        StartError: The server did not become ready, or failed the first request.
    """
    placed = launch.at(free_port())
    with tempfile.TemporaryFile("w+b") as log:
        begun_s = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - the command is the user's own
            placed.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            timeline = _watch(process, placed, begun_s, log)
            figures = _requests(placed, begun_s, timeline.ready_s)
            figures["memory_mb"] = resident_bytes(process.pid) / 1e6
            figures |= _stop(process)
        finally:
            _kill_tree(process)
    return {
        "first_answer_s": timeline.first_answer_s,
        "ready_s": timeline.ready_s,
        **figures,
        "refused_after_first_answer": timeline.refused_after_first_answer,
        "phases_s": timeline.phase_seconds(),
    }


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _watch(
    process: subprocess.Popen[bytes], launch: Launch, begun_s: float, log: IO[bytes]
) -> _Timeline:
    timeline = _Timeline()
    while True:
        answer = probe(launch.url, launch.health_path)
        now_s = time.monotonic() - begun_s
        if answer is None:
            timeline.refused_after_first_answer += bool(timeline.first_answer_s)
        else:
            status, phase = answer
            timeline.first_answer_s = timeline.first_answer_s or now_s
            if status == http.HTTPStatus.OK:
                timeline.ready_s = now_s
                return timeline
            timeline.phase_started_s.setdefault(phase, now_s)
        if process.poll() is not None:
            raise StartError(f"The server ended with code {process.returncode}: {_tail(log)}")
        if now_s > launch.timeout_s:
            raise StartError(f"Not ready after {launch.timeout_s:.0f} s: {_tail(log)}")
        time.sleep(POLL_S)


def probe(url: str, path: str) -> tuple[int, str] | None:
    """Status and phase (or status word) of a health answer; None when nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", parts.path + path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    try:
        fields = json.loads(body)
        return response.status, str(fields.get("phase") or fields.get("status") or "")
    except (ValueError, AttributeError):
        return response.status, ""


def model_name(url: str) -> str:
    """The first model that the server names.

    Raises:
        StartError: /v1/models does not answer with one.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", parts.path.rstrip("/").removesuffix("/v1") + "/v1/models")
        return str(json.loads(connection.getresponse().read())["data"][0]["id"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        raise StartError(f"{url}: /v1/models names no model.") from None
    finally:
        connection.close()


def _requests(launch: Launch, begun_s: float, ready_s: float) -> dict[str, object]:
    """The first request right after ready, and ninety-nine like it."""
    generator = LoadGenerator(Target(launch.url, model_name(launch.url)), timeout_s=60.0)
    items = fixed(NUM_REQUESTS, PROMPT_LEN, OUTPUT_LEN)
    records = generator.run(items[:1], concurrency=1)
    records += generator.run(items[1:], concurrency=1)
    generator.close()
    for record in records:
        if record.error:
            raise StartError(f"A request right after ready failed: {record.error}")
    whole_ms = [(r.event_s[-1] - r.sent_s) * 1e3 for r in records]
    ttft_ms = [(r.event_s[0] - r.sent_s) * 1e3 for r in records]
    late_ms = statistics.median(whole_ms[-NUM_LATE:])
    late_ttft_ms = statistics.median(ttft_ms[-NUM_LATE:])
    return {
        "first_token_s": records[0].event_s[0] - begun_s,
        "first_token_after_ready_s": records[0].event_s[0] - begun_s - ready_s,
        "first_request_ms": whole_ms[0],
        "hundredth_request_ms": late_ms,
        "first_to_hundredth": whole_ms[0] / late_ms,
        "first_ttft_ms": ttft_ms[0],
        "hundredth_ttft_ms": late_ttft_ms,
    }


def _stop(process: subprocess.Popen[bytes]) -> dict[str, object]:
    begun_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(EXIT_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise StartError(f"Still there {EXIT_LIMIT_S:.0f} s after SIGTERM.") from None
    return {"exit_s": time.monotonic() - begun_s, "exit_code": code}


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    for pid in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def command_ms(command: Sequence[str]) -> float:
    """Median wall time of a short command such as `octavo --version`.

    Raises:
        StartError: It fails.
    """
    times = []
    for _ in range(COMMAND_RUNS):
        begun_s = time.monotonic()
        result = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - as above
        times.append((time.monotonic() - begun_s) * 1e3)
        if result.returncode != 0:
            raise StartError(f"{' '.join(command)} ended with code {result.returncode}.")
    return statistics.median(times)
