"""Overload: the peak in closed loop, then ten times its rate in open loop.

    PYTHONPATH=python:tests python -m faults.overload --seconds 60

The client has a core of its own and the server the others, or the one would be measured by the
other. It does little: requests are made before, of answers it looks at the beginning and the end.
Both loads take turns, so that a machine that others use too changes both alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import select
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.serving import launcher
from e2e.tiny_model import make_tiny_model
from faults.wire import connect, post

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from e2e.serving import Server

NUM_RUNNING, NUM_WAITING = 16, 16
FLAGS = (
    "--max-num-seqs", str(NUM_RUNNING), "--max-num-queued-reqs", str(NUM_WAITING),
    "--disable-log-requests",
)  # fmt: skip
OUTPUT_LEN = 1000  # of many steps, as with models that people serve
FACTOR = 10
NUM_TURNS = 5
_RECEIVE_BYTES = 1 << 16
_TAIL_BYTES = 512
_RETRY_AFTER = re.compile(rb"\r\nRetry-After: [1-9]\d*\r\n", re.IGNORECASE)


def requests(count: int, seed: int) -> list[bytes]:
    """Streamed completions, each with a prompt of its own."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        body = {
            "prompt": [chance.randrange(2, 258) for _ in range(32)], "max_tokens": OUTPUT_LEN,
            "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        found.append(post("/v1/completions", body))
    return found


def arrivals(count: int, rate: float) -> list[float]:
    """Times at which `count` requests come by chance, `rate` a second on average."""
    chance = random.Random(0)
    found, now = [], 0.0
    for _ in range(count):
        now += chance.expovariate(rate)
        found.append(now)
    return found


@dataclass(slots=True)
class Record:
    """One request; times of the monotonic clock, 0 where nothing came."""

    sent_s: float
    first_s: float = 0.0
    end_s: float = 0.0
    status: int = 0
    fault: str = ""


class _Connection:
    """A connection and the request on it."""

    __slots__ = ("record", "sock", "tail")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.record = Record(0.0)
        self.tail = b""

    def take(self, data: bytes, now_s: float) -> bool:
        """Take in a piece; True once the answer is whole."""
        record = self.record
        if not record.status:
            record.status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else -1
        if not record.first_s and (record.status != 200 or b"data: " in data):
            record.first_s = now_s
        self.tail = (self.tail + data)[-_TAIL_BYTES:] if len(data) < _TAIL_BYTES else data
        if record.status == 200:
            is_whole = self.tail.endswith(b"\r\n0\r\n\r\n")
            if is_whole and b'"completion_tokens":%d' % OUTPUT_LEN not in self.tail:
                record.fault = "an answer without all its tokens"
        else:
            is_whole = self.tail.endswith(b"}")  # short: it comes in one piece
            if record.status == 429 and not _RETRY_AFTER.search(self.tail):
                record.fault = "no Retry-After"
        if is_whole:
            record.end_s = now_s
        return is_whole


class Client:
    """Keeps connections alive, as those do who ask again and again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._poll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._records: list[Record] = []

    def closed(self, bodies: Sequence[bytes], concurrency: int) -> list[Record]:
        """Send all, so many at a time."""
        waiting = iter(bodies)
        for body in waiting:
            self._send(body)
            if len(self._busy) >= concurrency:
                break
        while self._busy:
            for _ in range(self._receive(1.0)):
                if (body := next(waiting, None)) is not None:
                    self._send(body)
        return self._take_records()

    def open(self, bodies: Sequence[bytes], times: Sequence[float]) -> list[Record]:
        """Send each at its time, whatever is still under way."""
        began = time.monotonic()
        for body, due_s in zip(bodies, times, strict=True):
            while (left := began + due_s - time.monotonic()) > 0:
                self._receive(left)
            self._send(body)
            self._receive(0.0)
        while self._busy:
            self._receive(1.0)
        return self._take_records()

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.sock.close()
        self._poll.close()

    def _send(self, body: bytes) -> None:
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = _Connection(connect(self._server))
            connection.sock.setblocking(False)
            self._poll.register(connection.sock, select.EPOLLIN)
        connection.record, connection.tail = Record(time.monotonic()), b""
        connection.sock.send(body)  # small: the kernel takes it at once
        self._busy[connection.sock.fileno()] = connection

    def _receive(self, timeout: float) -> int:
        """Take in what comes within `timeout`; returns how many answers ended."""
        num_ended = 0
        for fd, _ in self._poll.poll(timeout):
            connection = self._busy.get(fd)
            if connection is None:
                raise ConnectionError("an idle connection was closed")
            data = connection.sock.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionError(f"cut off after {connection.tail!r}")
            if connection.take(data, time.monotonic()):
                num_ended += 1
                del self._busy[fd]
                self._idle.append(connection)
                self._records.append(connection.record)
        return num_ended

    def _take_records(self) -> list[Record]:
        records, self._records = self._records, []
        return records


def good(records: list[Record]) -> list[Record]:
    """Those that were answered in full."""
    return [record for record in records if record.status == 200 and not record.fault]


def goodput(turns: list[list[Record]]) -> float:
    """Whole answers a second, while they came."""
    num_answers, seconds = 0, 0.0
    for turn in map(good, turns):
        num_answers += len(turn)
        seconds += max(record.end_s for record in turn) - min(record.sent_s for record in turn)
    return num_answers / seconds


def quantile(values: list[float], share: float) -> float:
    """Of the values, 0 if there are none."""
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(server: Server, seconds: float) -> dict[str, Any]:
    """The figures of both loads, `seconds` of each, on a server with FLAGS."""
    client = Client(server)
    calm: list[list[Record]] = []
    busy: list[list[Record]] = []
    with contextlib.closing(client):
        both = NUM_RUNNING + NUM_WAITING // 2  # all at once, they must find room
        rate = goodput([client.closed(requests(3 * both, 1), both)])
        for turn in range(NUM_TURNS):
            count = max(2 * both, int(rate * seconds / NUM_TURNS))
            calm.append(client.closed(requests(count, 2 + turn), both))
            rate = goodput(calm)
            count = int(FACTOR * rate * seconds / NUM_TURNS)
            bodies = requests(count, 100 + turn)
            busy.append(client.open(bodies, arrivals(count, FACTOR * rate)))
    closed, records = [*chain(*calm)], [*chain(*busy)]
    peak, reached = goodput(calm), goodput(busy)
    shares = [goodput([b]) / goodput([c]) for c, b in zip(calm, busy, strict=True)]
    admitted = good(records)
    refused = [record for record in records if record.status == 429]
    waits = [record.first_s - record.sent_s for record in good(closed)]
    late_waits = [record.first_s - record.sent_s for record in admitted]
    refusal_s = [record.end_s - record.sent_s for record in refused]
    return {
        "peak_requests_per_s": round(peak, 2),
        "offered_requests_per_s": round(FACTOR * rate, 1),
        "goodput_requests_per_s": round(reached, 2),
        "goodput_of_peak": round(reached / peak, 3),
        "goodput_of_peak_by_turn": [round(share, 3) for share in shares],
        "requests": len(records),
        "admitted": len(admitted),
        "refused_429": len(refused),
        "other": len(records) - len(admitted) - len(refused),
        "refusal_faults": sum(bool(record.fault) for record in refused),
        "refusal_p50_ms": round(quantile(refusal_s, 0.5) * 1e3, 2),
        "refusal_p99_ms": round(quantile(refusal_s, 0.99) * 1e3, 2),
        "ttft_p50_s_at_peak": round(quantile(waits, 0.5), 3),
        "ttft_p50_s": round(quantile(late_waits, 0.5), 3),
        "ttft_p99_s": round(quantile(late_waits, 0.99), 3),
        # Who is admitted waits at most for those before, each batch as long as an answer takes.
        "ttft_bound_s": round(2 * (NUM_RUNNING + NUM_WAITING) / peak, 3),
    }


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """What starts inside has all cores but one, which is this process's afterwards."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        yield
        return
    os.sched_setaffinity(0, cores[:-1])
    yield
    os.sched_setaffinity(0, cores[-1:])


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        launch = stack.enter_context(launcher(directory, make_tiny_model(directory / "model")))
        with apart():
            server = launch(*FLAGS).wait_ready()
        figures = measure(server, arguments.seconds)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if not figures["other"] and not figures["refusal_faults"] else 1


if __name__ == "__main__":
    sys.exit(main())
