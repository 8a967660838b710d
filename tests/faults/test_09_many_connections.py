"""Fault 9: more connections than can be had; probes answer, the rest gets 503, nothing spins."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.serving import FAKE, Launcher, Server, wait_for
from faults.wire import IS_LONG, connect, figures, open_all, patience, post, read_all, statuses

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_IDLE, NUM_ACTIVE = (10_000, 1_000) if IS_LONG else (600, 60)
FEW_FILES = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *FAKE)
LIMIT = 128  # connections that 256 files leave room for
STREAM = post(
    "/v1/completions", {"prompt": [5], "max_tokens": 10**6, "stream": True, "ignore_eos": True}
)


def slow(start: Launcher, **options: object) -> Server:
    flags = ("--keep-alive-timeout", "300", "--shutdown-timeout", "0")
    return start(*flags, plan={"step_s": 0.2}, **options).wait_ready()  # type: ignore[arg-type]


def probe_s(server: Server) -> float:
    """Seconds that a probe on a new connection takes; it must be answered well."""
    began = time.monotonic()
    assert server.get("/health").status == 200
    return time.monotonic() - began


def worker_cpu_s(server: Server) -> float:
    (worker,) = server.worker_pids()
    fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def streams(count: int, server: Server) -> Iterator[None]:
    with open_all(count, server, STREAM):
        wait_for(lambda: server.metric("num_requests_running") == count, "the streams")
        yield


def test_probes_answer_beside_many(start: Launcher) -> None:
    server = slow(start, command=FAKE)
    with open_all(NUM_IDLE, server), streams(NUM_ACTIVE, server):
        times = sorted(probe_s(server) for _ in range(20))
    figures(9, idle=NUM_IDLE, active=NUM_ACTIVE, probe_p50_ms=round(times[10] * 1e3, 1))
    assert times[10] < 0.1 * patience()


@pytest.fixture
def tight(start: Launcher) -> Server:
    return slow(start, command=FEW_FILES)


def test_idle_connections_make_room(tight: Server) -> None:
    with open_all(3 * LIMIT, tight) as idle:
        assert max(probe_s(tight) for _ in range(5)) < 1.0 * patience()
        assert tight.complete(max_tokens=1).status == 200
        idle[0].settimeout(5)
        assert idle[0].recv(1) == b"", "the one that idles longest was kept"
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert statuses(read_all(idle[-1])) == [200], "the newest one was closed"


def test_what_is_busy_is_kept_and_more_is_refused(tight: Server) -> None:
    with streams(LIMIT, tight):
        assert max(probe_s(tight) for _ in range(5)) < 1.0 * patience()
        refused = tight.complete(max_tokens=1)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json["error"]["code"] == "too_many_connections"
        assert tight.metric("num_requests_running") == LIMIT
    wait_for(lambda: tight.metric("num_requests_running") == 0, "freed requests")
    assert tight.complete(max_tokens=1).status == 200


def test_no_spin_when_nothing_more_can_be_accepted(tight: Server) -> None:
    with streams(LIMIT, tight), open_all(400, tight):
        before = worker_cpu_s(tight)
        time.sleep(2)
        used = (worker_cpu_s(tight) - before) / 2
        figures(9, case="no descriptor left", core_share=round(used, 2))
        assert used < 0.6
    wait_for(lambda: tight.metric("num_requests_running") == 0, "freed requests")
    with connect(tight) as fresh:
        fresh.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert statuses(read_all(fresh)) == [200]
