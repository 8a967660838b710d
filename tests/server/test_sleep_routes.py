"""/sleep, /wake_up and /is_sleeping over a scripted engine, and what the probes say meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from app_under_test import Server

KEY = {"Authorization": "Bearer root"}


@pytest.fixture
def server() -> Server:
    return Server(enable_admin=True, admin_api_key=("root",))


def ask(server: Server, method: str, path: str, status: int = 200) -> Any:
    result = server.client.simulate_request(method, path, headers=KEY)
    assert result.status_code == status, result.text
    return result.json


@pytest.mark.parametrize(
    ("query", "level", "patience_s"),
    [
        ("", 1, 30.0),
        ("?level=1", 1, 30.0),
        ("?level=2", 2, 30.0),
        ("?level=2&mode=abort", 2, 0.0),
        ("?mode=wait", 1, 30.0),
    ],
)
def test_sleep_and_wake_up(server: Server, query: str, level: int, patience_s: float) -> None:
    assert ask(server, "GET", "/is_sleeping") == {"is_sleeping": False, "level": 0}
    said = ask(server, "POST", f"/sleep{query}")
    assert said == {"is_sleeping": True, "level": level}
    assert server.engine.sleeps == [(level, patience_s)]
    assert ask(server, "GET", "/is_sleeping") == said
    assert ask(server, "POST", "/sleep?level=2")["level"] == 2  # more deeply
    assert ask(server, "POST", "/wake_up") == {"is_sleeping": False, "level": 0}
    assert server.complete(max_tokens=2).status_code == 200


@pytest.mark.parametrize("query", ["level=0", "level=3", "level=x", "level=1e0", "mode=now"])
def test_refused(server: Server, query: str) -> None:
    error = ask(server, "POST", f"/sleep?{query}", 400)["error"]
    assert error["param"] == query.partition("=")[0]
    assert not server.engine.sleeps


def test_everything_tells_the_truth_while_it_sleeps(server: Server) -> None:
    ask(server, "POST", "/sleep")
    for path in ("/health", "/ready", "/readyz", "/ping"):
        probe = server.client.simulate_get(path)
        assert probe.status_code == 503
        assert probe.json == {"status": "sleeping", "level": 1}
        assert probe.headers["Retry-After"] == "5"
    for path in ("/livez", "/startupz", "/v1/models", "/version"):
        assert server.client.simulate_get(path).status_code == 200
    metrics = server.client.simulate_get("/metrics").text
    assert 'octavo:ready{model_name="org/fake"} 0' in metrics
    assert 'octavo:sleep_level{model_name="org/fake"} 1' in metrics
    refused = server.complete()
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "5"
    assert "asleep" in refused.json["error"]["message"]


def test_a_server_that_loads_cannot_be_put_to_sleep(server: Server) -> None:
    server.engine.ready = False
    error = ask(server, "POST", "/sleep", 503)["error"]
    assert "loading" in error["message"]
