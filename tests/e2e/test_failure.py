"""Deaths of every process while the server serves, and what its clients see of them."""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.serving import FAKE, Launcher, Server, is_running, is_stopped, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 10**6


class Poller:
    """Asks a path again and again, each time on a new connection."""

    def __init__(self, server: Server, path: str = "/health") -> None:
        self._server, self._path = server, path
        self.seen: list[tuple[float, int | None]] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over:
            self.seen.append((time.monotonic(), self._server.status_of(self._path)))
            time.sleep(0.02)

    def stop(self) -> list[int | None]:
        self._is_over = True
        self._thread.join()
        return [status for _, status in self.seen]

    def first(self, status: int, after: float) -> float:
        """Seconds from `after` until this status was seen."""
        return next(when for when, each in self.seen if when >= after and each == status) - after


@contextmanager
def polled(server: Server) -> Iterator[Poller]:
    poller = Poller(server)
    try:
        yield poller
    finally:
        poller.stop()


def wait_restarted(server: Server, times: int) -> None:
    wait_for(lambda: server.metric("engine_restarts_total") == times, f"restart {times}")
    wait_for(lambda: server.status_of() == 200, "readiness")


@contextmanager
def held_down(server: Server, fail: Callable[[], object]) -> Iterator[int]:
    """Have the engine fail, and stop the supervisor before it starts another.

    The supervisor waits twice as long before each restart, so a slow machine that misses the first
    times without an engine sees a later one. Yields how often the engine failed.
    """
    supervisor = server.supervisor_pid()

    def is_down() -> bool:
        return bool(server.get("/health").json.get("status") == "unhealthy")

    def is_over(restarts: int) -> bool:
        return is_down() or server.metric("engine_restarts_total") == restarts

    for failures in range(1, 4):
        wait_restarted(server, failures - 1)
        fail()
        wait_for(functools.partial(is_over, failures), "the engine's end")
        os.kill(supervisor, signal.SIGSTOP)
        try:
            wait_for(lambda: is_stopped(supervisor), "the supervisor's stop")
            if is_down():
                yield failures
                return
        finally:
            os.kill(supervisor, signal.SIGCONT)
    raise AssertionError("the next engine was always there before it was looked for")


def slow(start: Launcher, *flags: str, **plan: object) -> Server:
    return start(*flags, command=FAKE, plan={"step_s": 0.02, **plan}).wait_ready()


# --- The engine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_the_engines_death_is_told_at_once_and_mended(start: Launcher, name: str) -> None:
    server = slow(start, phase_s=0.2)
    streams = [server.stream(max_tokens=LONG).wait_started() for _ in range(5)]
    answers: list[int] = []
    plain = threading.Thread(
        target=lambda: answers.append(server.complete(max_tokens=LONG).status), daemon=True
    )
    plain.start()
    wait_for(lambda: server.metric("num_requests_running") == 6, "six requests")
    engine = server.engine_pid()
    with polled(server) as poller:
        killed = time.monotonic()
        os.kill(engine, getattr(signal, name))
        for stream in streams:
            stream.join()
            assert stream.is_done
            assert stream.fault is not None
            assert stream.fault["type"] == "internal_server_error"
        plain.join(30)
        wait_for(lambda: server.status_of() == 503, "503")
        wait_for(lambda: server.status_of() == 200, "the next engine")
    statuses = {status for _, status in poller.seen}
    assert statuses <= {200, 503}, "the port was dropped"
    assert poller.first(503, killed) < 1.0
    assert answers == [500]
    assert server.complete().status == 200
    assert server.engine_pid() != engine
    assert server.metric("engine_restarts_total") == 1
    assert name in server.log()


def test_the_reason_is_told_while_the_engine_is_down(start: Launcher) -> None:
    server = slow(start, "--max-engine-restarts", "5")
    with held_down(server, lambda: os.kill(server.engine_pid(), signal.SIGKILL)):
        body = server.get("/health").json
        assert (body["status"], "SIGKILL" in body["reason"]) == ("unhealthy", True)
        assert server.get("/livez").status == 503
        assert server.get("/startupz").status == 200
        assert server.complete().status == 503
    wait_for(lambda: server.status_of() == 200, "readiness")


def test_the_cause_of_a_lost_device_reaches_probes_and_log(start: Launcher) -> None:
    cause = "CUDA error 719: the device is lost"
    server = slow(start, "--max-engine-restarts", "3", lost_on_token=999)

    def lose() -> None:
        assert server.complete(prompt=[999]).status == 500

    with held_down(server, lose) as failures:
        body = server.get("/health").json
        assert (body["status"], body["reason"]) == ("unhealthy", cause)
        assert server.get("/livez").json == body
    for restarts in range(failures, 4):
        wait_restarted(server, restarts)
        lose()
    assert server.wait() == 70
    assert server.last_line().endswith(f"Last cause: {cause}")
    assert server.log().count(f"ERROR:    {cause}") == 3


def test_a_stopped_engine_is_found_and_replaced(start: Launcher) -> None:
    server = slow(start, "--liveness-timeout", "2")
    stream = server.stream(max_tokens=LONG).wait_started()
    engine = server.engine_pid()
    with polled(server) as poller:
        stopped = time.monotonic()
        os.kill(engine, signal.SIGSTOP)
        stream.join()
        assert stream.fault is not None
        wait_for(lambda: server.engine_pid() != engine, "another engine")
        wait_for(lambda: server.status_of() == 200, "readiness")
    assert poller.first(503, stopped) < 4.0
    assert not is_running(engine)
    assert "no sign of life" in server.log()
    assert server.complete().status == 200


def test_an_engine_that_goes_on_dying_ends_the_server_with_70(start: Launcher) -> None:
    server = slow(start, "--max-engine-restarts", "1")
    for _ in range(2):
        wait_for(lambda: server.status_of() == 200, "readiness")
        os.kill(server.engine_pid(), signal.SIGKILL)
        wait_for(lambda: server.status_of() != 200, "the death")
    assert server.wait() == 70
    assert "failed 2 times in 10 minutes" in server.last_line()
    assert server.runtime_directories() == []


def test_the_real_engine_is_mended_too(start: Launcher) -> None:
    server = start().wait_ready()
    before = server.complete(max_tokens=8).json["choices"][0]["text"]
    os.kill(server.engine_pid(), signal.SIGKILL)
    wait_for(lambda: server.status_of() == 503, "503")
    wait_for(lambda: server.status_of() == 200, "readiness")
    assert server.complete(max_tokens=8).json["choices"][0]["text"] == before


def test_a_stopped_real_engine_is_mended_too(start: Launcher) -> None:
    server = start("--liveness-timeout", "2").wait_ready()
    time.sleep(3)  # idle ticks keep it alive
    assert server.status_of() == 200
    os.kill(server.engine_pid(), signal.SIGSTOP)
    wait_for(lambda: server.status_of("/livez") == 503, "503")
    wait_for(lambda: server.status_of() == 200, "readiness")
    assert server.complete().status == 200


# --- The other processes -------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_model_stays(start: Launcher) -> None:
    server = slow(start, "--api-server-count", "2")
    engine, workers = server.engine_pid(), server.worker_pids()
    streams = [server.stream(max_tokens=300) for _ in range(8)]
    for stream in streams:
        stream.wait_started()
    os.kill(workers[0], signal.SIGKILL)
    wait_for(
        lambda: len(server.worker_pids()) == 2 and workers[0] not in server.worker_pids(),
        "another worker",
    )
    for stream in streams:
        stream.join()
    assert server.engine_pid() == engine
    wait_for(lambda: server.metric("num_requests_running") == 0, "freed requests", 10)
    assert [server.complete().status for _ in range(6)] == [200] * 6


def test_a_killed_arbiter_leaves_nothing(start: Launcher) -> None:
    server = slow(start)
    server.stream(max_tokens=LONG).wait_started()
    family = server.children()
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(is_running(pid) for pid in family), "no process left", 10)
    wait_for(lambda: server.runtime_directories() == [], "no directory left", 10)
    again = start().wait_ready()
    assert again.complete().status == 200


def test_a_killed_supervisor_takes_the_engine_along_and_is_replaced(start: Launcher) -> None:
    server = slow(start)
    stream = server.stream(max_tokens=LONG).wait_started()
    engine, supervisor = server.engine_pid(), server.supervisor_pid()
    os.kill(supervisor, signal.SIGKILL)
    stream.join()
    assert stream.fault is not None
    wait_for(lambda: not is_running(engine), "the engine's end")
    wait_for(lambda: server.supervisor_pid() != supervisor and server.status_of() == 200, "both")
    assert server.complete().status == 200
    assert server.stop() == 0


# --- Clients -------------------------------------------------------------------------------------


def freed(server: Server) -> Callable[[], bool]:
    return lambda: server.metric("num_requests_running") == 0


def test_a_client_that_goes_away_frees_its_request(start: Launcher) -> None:
    server = slow(start)
    streams = [server.stream(max_tokens=LONG).wait_started() for _ in range(4)]
    assert server.metric("num_requests_running") == 4
    for stream in streams:
        stream.close()
    wait_for(freed(server), "freed requests", 5)


def test_a_client_that_waits_without_streaming_and_goes_away_frees_its_request(
    start: Launcher,
) -> None:
    server = slow(start)
    with pytest.raises(TimeoutError):
        server.request("POST", "/v1/completions", {"prompt": [5], "max_tokens": LONG}, timeout=0.5)
    wait_for(freed(server), "the freed request", 5)


def test_blocks_are_back_after_clients_went_away(start: Launcher) -> None:
    server = start().wait_ready()
    baseline = server.metric("kv_cache_free_blocks")
    streams = [server.stream(max_tokens=3000, n=2).wait_started() for _ in range(6)]
    for stream in streams:
        stream.close()
    wait_for(lambda: server.metric("kv_cache_free_blocks") == baseline, "free blocks", 10)
    assert server.metric("num_requests_running") == 0


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped_and_others_are_served(start: Launcher) -> None:
    server = slow(start, step_s=0.0)
    body = b'{"prompt": [5], "max_tokens": 100000000, "stream": true, "ignore_eos": true}'
    with socket.socket() as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.connect(("127.0.0.1", server.port))
        mute.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: server.metric("num_requests_running") == 1, "the request")
        assert server.complete(max_tokens=50).status == 200
        wait_for(lambda: server.metric("num_requests_running") == 0, "the drop", 120)
    assert server.get("/health").status == 200


# --- The surroundings ----------------------------------------------------------------------------


def test_a_closed_log_pipe_changes_nothing(start: Launcher) -> None:
    reader, writer = os.pipe()
    server = start(stderr=writer)
    os.close(writer)
    server.wait_ready()
    os.close(reader)
    assert [server.complete().status for _ in range(3)] == [200] * 3
    assert server.stop() == 0
    assert server.runtime_directories() == []


def test_a_full_disk_changes_nothing(start: Launcher) -> None:
    server = start("--log-file", "/dev/full").wait_ready()
    assert [server.complete().status for _ in range(3)] == [200] * 3
    assert server.stop() == 0


def test_a_rotated_log_goes_on_in_a_new_file(start: Launcher, tmp_path: Path) -> None:
    log = tmp_path / "octavo.log"
    server = start("--log-file", str(log)).wait_ready()
    log.rename(tmp_path / "octavo.log.1")
    server.complete()
    wait_for(lambda: log.exists() and "/v1/completions" in log.read_text(), "the new file")


def test_an_engine_killed_for_memory_ends_the_server_with_5(start: Launcher) -> None:
    with memory_group(400 << 20) as group:
        plan = {"fail": ["loading_weights", "eat"]}
        server = start(command=FAKE, plan=plan, group=group)
        assert server.wait() == 5, server.log()
        assert "memory limit was reached" in server.last_line()
        assert "--kv-cache-memory-bytes" in server.last_line()


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group with a memory limit, where this machine lets us make one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":", 2)[1]: line.split(":", 2)[2].lstrip("/") for line in lines}
    root = Path("/sys/fs/cgroup")
    base, limit_file = root / own.get("", ""), "memory.max"
    if "memory" in own:
        base, limit_file = root / "memory" / own["memory"], "memory.limit_in_bytes"
    group = base / f"octavo-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / limit_file).write_text(str(limit))
        yield group
    except OSError as error:
        pytest.skip(f"no memory limit can be set: {error}")
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
        group.rmdir()
