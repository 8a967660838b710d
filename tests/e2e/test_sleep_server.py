"""/sleep and /wake_up on the real server: memory goes, the same text comes back."""

from __future__ import annotations

import http.client
import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e.serving import Server, launcher

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = {"prompt": list(range(5, 45)), "max_tokens": 24, "temperature": 0, "logprobs": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    with launcher(tmp_path_factory.mktemp("sleep"), tiny_model) as launch:
        flags = ("--enable-admin", "--admin-api-key", "root", "--api-server-count", "2")
        yield launch(*flags).wait_ready()


def administer(server: Server, method: str, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(connection):
        connection.request(method, path, headers={"Authorization": "Bearer root"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())


def answer(server: Server) -> Any:
    return server.complete(**PROMPT).json["choices"]


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


def test_level_1_gives_the_cache_back(server: Server) -> None:
    before = answer(server)
    pid = server.engine_pid()
    cache_bytes = server.metric("kv_cache_bytes")
    assert cache_bytes > 0
    assert administer(server, "POST", "/sleep?level=1") == {"is_sleeping": True, "level": 1}
    assert server.metric("kv_cache_bytes") == 0
    assert server.metric("kv_cache_usage_perc") == 0
    probe = server.get("/health")
    assert (probe.status, probe.json) == (503, {"status": "sleeping", "level": 1})
    assert server.get("/livez").status == 200
    refused = server.complete(**PROMPT)
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    assert administer(server, "POST", "/wake_up") == {"is_sleeping": False, "level": 0}
    assert server.engine_pid() == pid
    assert server.metric("kv_cache_bytes") == cache_bytes
    hits = server.metric("prefix_cache_hits_total")
    assert answer(server) == before
    assert server.metric("prefix_cache_hits_total") == hits  # what was cached has gone


def test_level_2_gives_everything_back(server: Server) -> None:
    before = answer(server)
    pid = server.engine_pid()
    assert resident_bytes(pid) > 0
    assert administer(server, "POST", "/sleep?level=2") == {"is_sleeping": True, "level": 2}
    assert not Path(f"/proc/{pid}").exists()
    assert administer(server, "GET", "/is_sleeping")["is_sleeping"] is True
    assert server.get("/livez").status == 200
    assert server.complete(**PROMPT).status == 503
    assert server.get("/v1/models").status == 200
    assert administer(server, "POST", "/wake_up") == {"is_sleeping": False, "level": 0}
    server.wait_ready()
    assert server.engine_pid() != pid
    assert server.metric("engine_restarts_total") == 0
    assert answer(server) == before


def test_running_streams_end_first(server: Server) -> None:
    stream = server.stream(max_tokens=150).wait_started()
    administer(server, "POST", "/sleep")
    assert stream.join().is_done
    assert stream.fault is None
    administer(server, "POST", "/wake_up")


def test_abort_ends_them(server: Server) -> None:
    [model] = server.get("/v1/models").json["data"]
    stream = server.stream(max_tokens=model["max_model_len"] - 10).wait_started()
    administer(server, "POST", "/sleep?mode=abort")
    fault = stream.join().fault
    assert fault is not None
    assert "sleep" in fault["message"]
    administer(server, "POST", "/wake_up")
    assert server.complete().status == 200
